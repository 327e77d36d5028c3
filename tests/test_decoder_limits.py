"""Decoders and tokenizers that do not fit the usual picture: towers beside the decoder, odd alphabets, overflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_decoder, tiny_config, tiny_decoder, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

import st_llm2vec
from st_llm2vec.auditing import decoder_layers
from st_llm2vec.bidirectional import enable_bidirectional_attention
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.evaluation.diagnosis import doctor
from st_llm2vec.templates import special_counts
from st_llm2vec.training import MNTPDataCollator, MNTPLoss
from st_llm2vec.training.lora import lora_targets


def multimodal() -> torch.nn.Module:
    """Gemma 3 with a vision tower as deep as its decoder."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {
        "model_type": "siglip_vision_model",
        "image_size": 28,
        "patch_size": 14,
        **sizes,
        "intermediate_size": 960,
    }
    text = tiny_config("gemma3_text").to_dict()
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    return AutoModel.from_config(config, attn_implementation="eager").eval()


def test_the_audited_layers_are_those_of_the_text_decoder() -> None:
    model = multimodal()
    assert decoder_layers(model) == list(model.language_model.layers)
    assert enable_bidirectional_attention(model)
    adapted = lora_targets(model).modules
    assert len(adapted) == 3 * 7
    assert all(name.startswith("language_model.") for name in adapted)


def test_a_list_that_is_as_long_as_the_layers_is_not_taken_for_them() -> None:
    model = tiny_decoder("llama")
    layers = list(model.layers)
    del model._modules["layers"]
    model.norms = torch.nn.ModuleList(torch.nn.LayerNorm(8) for _ in layers)
    model.layers = torch.nn.ModuleList(layers)
    assert decoder_layers(model) == layers


def test_overflow_is_not_told_as_causal_attention() -> None:
    model = tiny_decoder("llama")
    with torch.no_grad():  # all weights are finite in float16, and what lies between these two is not
        model.layers[1].mlp.up_proj.weight *= 5e5
        model.layers[1].mlp.down_proj.weight *= 2e-6
    assert enable_bidirectional_attention(model)
    with pytest.raises(InvalidInputError, match=r"layer 1 .*float16.*not finite.*dtype='bfloat16' or 'float32'"):
        enable_bidirectional_attention(model.half())


def test_damaged_weights_are_called_so() -> None:
    model = tiny_decoder("llama")
    with torch.no_grad():
        model.layers[2].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(InvalidCheckpointError, match=r"layers\.2\.self_attn\.q_proj\.weight.*not finite"):
        enable_bidirectional_attention(model)


def test_a_tokenizer_with_more_tokens_than_embeddings_stays_within_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.add_tokens([AddedToken(f"<extra_{i}>") for i in range(30)])
    tokenizer.add_special_tokens({"pad_token": "<pad_beyond>"})
    rows = len(tokenizer) - 31
    save_decoder(tmp_path / "decoder", tokenizer=tokenizer, vocab_size=rows, tie_word_embeddings=True)
    texts = ["the quick brown fox", "a dog", ""]
    vectors = {}
    for packing in (True, False):
        model = st_llm2vec.load(str(tmp_path / "decoder"), device="cpu", packing=packing)
        assert model.tokenizer.pad_token_id < rows
        vectors[packing] = model.encode(texts)
    assert np.abs(vectors[True] - vectors[False]).max() <= 1e-5
    model.save_pretrained(str(tmp_path / "encoder"))
    assert np.abs(st_llm2vec.load(str(tmp_path / "encoder"), device="cpu").encode(texts) - vectors[True]).max() <= 1e-5
    assert doctor(model)

    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mlm_probability=1.0)
    batch = collator([{"text": "the quick brown fox jumps over a lazy dog " * 20}] * 8)
    ids = batch["text_input_ids"]
    assert len(ids.unique()) > 100  # a tenth of them drawn from the whole table
    assert ids.max() < rows
    features = {"input_ids": ids, "attention_mask": batch["text_attention_mask"]}
    assert MNTPLoss(model)([features], batch["label"]).isfinite()
    with pytest.raises(InvalidInputError, match="mask_token"):
        MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mask_token="<extra_7>")
    with pytest.raises(InvalidInputError, match=r"'<extra_3>'.*embeddings"):
        model.encode(["a <extra_3> dog"])


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_an_alphabet_without_an_a_works(unknown: str | None, tmp_path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", "_", *"ACGT"])}
    inner = (
        Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")) if unknown else Tokenizer(models.BPE(vocabulary, []))
    )
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "<pad>", "eos_token": "<eos>"} | ({"unk_token": unknown} if unknown else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    assert special_counts(tokenizer) == (0, 0)
    save_decoder(tmp_path / "dna", tokenizer=tokenizer, vocab_size=300, tie_word_embeddings=True)
    model = st_llm2vec.load(str(tmp_path / "dna"), device="cpu")
    vectors = model.encode(["ACGT", "TTTTGA"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    model.save_pretrained(str(tmp_path / "encoder"))
    assert (
        np.abs(st_llm2vec.load(str(tmp_path / "encoder"), device="cpu").encode(["ACGT", "TTTTGA"]) - vectors).max()
        <= 1e-5
    )
    batch = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer)([{"text": "ACGT" * 9}] * 4)
    assert batch["text_input_ids"].shape == (4, 36)
