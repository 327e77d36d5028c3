"""What training asks of a decoder, over the whole architecture table: its causal LM's logits, and LoRA on all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import lora_row
from peft import LoraConfig
from tiny_models import save_decoder, tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM

import st_llm2vec
from st_llm2vec.architectures import ARCHITECTURES
from st_llm2vec.backend.prepacked import lacks
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.templates import Template
from st_llm2vec.tokenization import tokenize
from st_llm2vec.training import (
    MNTPDataCollator,
    MNTPLoss,
    add_lora,
    attention_dropout,
    chunk_texts,
    merge_lora,
    simcse_pairs,
)

TEXTS = ["the quick brown fox", "seven wizards compress files and search"]
IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(3))


def decoder_with_biases(folder: Path, model_type: str) -> Path:
    """A decoder's folder in which nothing has its first value: a bias of zero would hide that it is left out."""
    model = AutoModelForCausalLM.from_pretrained(save_decoder(folder, model_type))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_mntp_predicts_with_the_causal_lms_own_logits(model_type: str, tmp_path: Path) -> None:
    folder = decoder_with_biases(tmp_path, model_type)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    options = {"attention": "causal", "packing": False, "model_kwargs": {"attn_implementation": "eager"}}
    model = st_llm2vec.load(str(folder), device="cpu", **options).eval()
    loss = MNTPLoss(model)
    with torch.no_grad():
        want = causal_lm(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
        hidden = model({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})["token_embeddings"]
        got = loss.logits(hidden.flatten(0, 1)).view_as(want)
    assert want.std() > 1e-3
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    trainable = {id(p) for p in model.parameters()}
    assert not any(p.requires_grad for p in loss.parameters() if id(p) not in trainable)


def trained(model: st_llm2vec.LLM2Vec) -> None:
    """Adapters as after training: without a step, B is zero and adds nothing."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_lora_adapts_the_whole_decoder_and_merges_into_it(model_type: str, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(save_decoder(tmp_path / "decoder", model_type)), device="cpu", attention="causal")
    decoder = model[0].model
    matrices = {name for name, p in decoder.named_parameters() if p.ndim > 1}
    add_lora(model, "mntp", r=4)
    trained(model)
    left = {name for name, p in decoder.named_parameters() if p.ndim > 1 and "lora_" not in name}
    adapted = {name.replace(".base_layer", "") for name in left if ".base_layer" in name}
    # Not adapted: embeddings, routers, and where all seven projections are there, what else a layer may have.
    rest = {name.removesuffix(".weight").rpartition(".")[2] for name in matrices - adapted}
    other = {"word_embeddings", "gate", "router", "shared_expert_gate", "gate_up_proj_bias", "down_proj_bias"}
    other |= {"embed_tokens", "embed_positions", "embed_in", "embed_tokens_per_layer", "tok_embeddings"}
    other |= {"w", "wte", "wpe"}
    other |= {name for name in rest if model_type == "gemma4_text" and "per_layer" in name}
    assert rest <= other

    before, trained_weights = model.encode(TEXTS), model.state_dict()
    model.save_pretrained(str(tmp_path / "checkpoint-1"))  # as the trainer does, adapter and decoder apart
    reopened = st_llm2vec.LLM2Vec(str(tmp_path / "checkpoint-1"), device="cpu").state_dict()
    assert reopened.keys() == trained_weights.keys()
    assert all(torch.equal(reopened[name], trained_weights[name]) for name in reopened)
    merge_lora(model)
    assert not any("lora_" in name or "base_layer" in name for name, _ in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())  # training in full may follow
    assert np.abs(model.encode(TEXTS) - before).max() <= 1e-5 * np.abs(before).max()


def test_the_page_says_what_lora_adapts() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in map(lora_row, ARCHITECTURES) if row not in page] == []
    assert "| phi | dense fc1 fc2 k_proj q_proj v_proj | - |" in page
    assert "| phi3 | down_proj gate_up_proj o_proj qkv_proj | - |" in page


def test_lora_settings_without_sense_are_refused(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    with pytest.raises(InvalidInputError, match=r"r must be an integer of at least 1, got 0"):
        add_lora(model, "mntp", r=0)
    with pytest.raises(InvalidInputError, match=r"alpha must be greater than 0, got -1"):
        add_lora(model, "mntp", alpha=-1)
    with pytest.raises(InvalidInputError, match=r"dropout must be in \[0, 1\), got 2"):
        add_lora(model, "mntp", dropout=2)
    with pytest.raises(InvalidInputError, match=r"target_modules must be of \['down_proj', .*got 'c_attn'"):
        add_lora(model, "mntp", target_modules=["q_proj", "c_attn"])
    assert "stages" not in model.provenance
    assert not any("lora_" in name for name, _ in model.named_parameters())
    add_lora(model, "mntp", target_modules=["q_proj"])
    assert model.provenance["lora"] == [{"stage": "mntp", "r": 16, "alpha": 32, "targets": ["q_proj"]}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": "32"}, r"alpha must be greater than 0, got '32'"),
        ({"alpha": True}, r"alpha must be greater than 0, got True"),
        ({"alpha": float("inf")}, r"alpha must be greater than 0, got inf"),
        ({"dropout": "0.1"}, r"dropout must be in \[0, 1\), got '0.1'"),
        ({"seed": None}, r"seed must be an integer of at least 0, got None"),
        ({"target_modules": "q_proj"}, r"target_modules must be a list of names.*got 'q_proj'"),
        ({"target_modules": []}, r"target_modules must be a list of names.*got \[\]"),
        ({"stage": ""}, r"stage must be a name.*got ''"),
    ],
    ids=str,
)
def test_lora_settings_of_another_type_are_refused(decoder: Path, settings: dict[str, Any], message: str) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    with pytest.raises(InvalidInputError, match=message):
        add_lora(model, **{"stage": "mntp", **settings})
    assert not any("lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("texts", ["a single text", ["a", None], [1, 2], 7, b"bytes", {"text": "a"}], ids=str)
def test_texts_to_train_on_are_texts(decoder: Path, texts: Any) -> None:
    """A single text was taken for a list of its letters, each a text to train on."""
    with pytest.raises(InvalidInputError, match="texts must be texts"):
        simcse_pairs(texts)
    with pytest.raises(InvalidInputError, match="texts must be texts"):
        chunk_texts(texts, st_llm2vec.load(str(decoder), device="cpu").tokenizer, length=2)


@pytest.mark.parametrize("length", [0, -1, "32", 2.5, True, None])
def test_chunks_have_a_length(decoder: Path, length: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"length must be an integer of at least 1, got {length!r}"):
        chunk_texts(TEXTS * 9, st_llm2vec.load(str(decoder), device="cpu").tokenizer, length=length)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm_probability": "0.2"}, r"mlm_probability must be in \(0, 1\], got '0.2'"),
        ({"mlm_probability": True}, r"mlm_probability must be in \(0, 1\], got True"),
        ({"all_mask": "no"}, "all_mask must be True or False"),
        ({"seed": "x"}, "seed must be an integer of at least 0, got 'x'"),
        ({"mask_token": ""}, "mask_token='' is not in the tokenizer's vocabulary"),
        ({"mask_token": 5}, "mask_token=5 is not in the tokenizer's vocabulary"),
    ],
    ids=str,
)
def test_masking_settings_are_checked(decoder: Path, options: dict[str, Any], message: str) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    with pytest.raises(InvalidInputError, match=message):
        MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, **options)


def test_mntp_leaves_no_column_and_no_prompt_out_in_silence(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer)
    with pytest.raises(InvalidInputError, match=r"one column of texts, got \['a', 'b'\].*select_columns\('a'\)"):
        collator([{"a": "the fox", "b": "the dog"}])
    for rows in ([{"input_ids": [5, 6]}], [{"input_ids": [5, 6], "special_tokens_mask": [0, 0, 0]}]):
        with pytest.raises(InvalidInputError, match="must be those of chunk_texts"):
            collator(rows)
    with pytest.raises(InvalidInputError, match="without prompts"):
        MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, prompts="query: ")([{"text": "the fox"}])
    with pytest.raises(InvalidInputError, match="train_head must be True or False"):
        MNTPLoss(model, train_head="no")
    with pytest.raises(InvalidInputError, match="got a str"):
        MNTPLoss(model, head="lm_head")
    with pytest.raises(InvalidInputError, match="probability must be in"), attention_dropout(model, "0.3"):
        pass


@pytest.mark.skipif(bool(lacks("int8")), reason="no int8 products here")
@pytest.mark.parametrize("train", [lambda model: add_lora(model, "mntp"), MNTPLoss], ids=["add_lora", "MNTPLoss"])
def test_an_int8_model_is_not_trained(train: Callable[..., Any]) -> None:
    model = st_llm2vec.load("llm2vec-tiny", quantize="int8")
    with pytest.raises(InvalidInputError, match=r"cannot be trained.*without quantize"):
        train(model)


def test_weights_that_others_quantized_are_trained_and_not_merged(decoder: Path) -> None:
    """QLoRA, as transformers tells of it: bitsandbytes itself is not among the packages of the tests."""
    model = st_llm2vec.load(str(decoder), device="cpu")
    plain = st_llm2vec.load(str(decoder), device="cpu")
    model[0].model.is_quantized, model[0].model.hf_quantizer = True, SimpleNamespace(is_trainable=True)
    model[0].model.config.quantization_config = SimpleNamespace(to_dict=dict)
    add_lora(model, "mntp", r=4)
    batch = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer)([{"text": text} for text in TEXTS])
    tokens = {"input_ids": batch["text_input_ids"], "attention_mask": batch["text_attention_mask"]}
    losses = [MNTPLoss(each)([tokens], batch["label"]).item() for each in (model, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    with pytest.raises(InvalidInputError, match=r"not merged into quantized weights.*load\(base, adapter=folder\)"):
        merge_lora(model)


def test_experts_in_one_parameter_have_no_dropout(tmp_path: Path) -> None:
    model = st_llm2vec.load(str(save_decoder(tmp_path, "glm4_moe")), device="cpu")
    with pytest.raises(InvalidInputError, match=r"dropout must be 0 .*experts\.gate_up_proj.*got 0\.1"):
        add_lora(model, "mntp", dropout=0.1)
    assert add_lora(model, "mntp").lora_dropout == 0


def test_an_adapter_trains_in_float32_and_starts_from_its_seed(decoder: Path) -> None:
    starts = []
    for seed in (1, 1, 2):
        model = st_llm2vec.load(str(decoder), device="cpu", dtype="bfloat16")
        state = torch.get_rng_state()
        add_lora(model, "mntp", seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        starts.append({name: p for name, p in model.named_parameters() if "lora_" in name})
        assert {p.dtype for p in starts[-1].values()} == {torch.float32}
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not all(torch.equal(starts[0][name], starts[2][name]) for name in starts[0])


def test_rslora_is_scaled_as_peft_does(decoder: Path, tmp_path: Path) -> None:
    trained_on, raw = (AutoModel.from_pretrained(decoder) for _ in range(2))
    config = LoraConfig(r=16, lora_alpha=16, use_rslora=True, target_modules=["q_proj"], init_lora_weights=False)
    trained_on.add_adapter(config)
    trained_on.save_pretrained(tmp_path)
    merged = st_llm2vec.load(str(decoder), adapter=str(tmp_path), device="cpu")[0].model
    for adapted, before, after in zip(trained_on.layers, raw.layers, merged.layers, strict=True):
        delta = adapted.self_attn.q_proj.get_delta_weight("default")  # alpha / sqrt(r) is 4 times alpha / r
        assert delta.abs().max() > 1e-2
        assert (after.self_attn.q_proj.weight - before.self_attn.q_proj.weight - delta).abs().max() <= 1e-6


def test_mntp_never_predicts_what_the_tokenizer_adds(tmp_path: Path) -> None:
    save_decoder(tmp_path, tokenizer=tiny_tokenizer(bos=True, eos=True))
    model = st_llm2vec.load(str(tmp_path), device="cpu")
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mlm_probability=1.0)
    batch = collator([{"text": "lazy dog"}, {"text": "the quick brown fox"}])
    added = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
    assert added.isdisjoint(batch["label"].flatten().tolist())
    lengths = batch["text_attention_mask"].sum(1)
    assert ((batch["label"] != -100).sum(1) == lengths - 2).all()  # everything else is
    chunks = chunk_texts(["lazy dog"] * 40, model.tokenizer, 16)
    labels = collator(list(chunks))["label"]
    assert added.isdisjoint(labels.flatten().tolist())


def test_masks_follow_from_seed_and_batch_alone(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")

    def masked(texts: list[str], seed: int = 42) -> torch.Tensor:
        torch.rand(1)
        collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, seed=seed)
        return collator([{"text": text} for text in texts])["label"]

    texts = ["the quick brown fox jumps over a lazy dog"] * 3 + ["seven wizards compress files and search"] * 2
    assert torch.equal(masked(texts), masked(texts))
    assert not torch.equal(masked(texts), masked(texts, seed=43))
    assert not torch.equal(masked(texts), masked([*texts[1:], texts[0]])[[4, 0, 1, 2, 3]])


def test_the_tokenizers_eos_is_pooled_after_a_prompt(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True, eos=True)
    (row,) = tokenize(tokenizer, [("find: ", "lazy dog")], Template(), max_length=64)
    assert tokenizer.decode(row.input_ids[-row.n_pooled :]).strip() == "lazy dog</s>"


def test_another_head_can_be_given_and_a_wrong_one_cannot(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    hidden, head = torch.randn(5, 32), torch.randn(300, 32)
    assert torch.allclose(MNTPLoss(model, head=head).logits(hidden), hidden @ head.T, atol=1e-5)
    with pytest.raises(InvalidInputError, match=r"\(300, 32\), got \(32, 300\)"):
        MNTPLoss(model, head=head.T)


def test_the_card_says_what_was_adapted(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    add_lora(model, "mntp", r=4, target_modules=["q_proj", "v_proj"])
    trained(model)
    model.save_pretrained(str(tmp_path))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| mntp | 4 | 8 | q_proj, v_proj |" in card


def test_simcse_drops_in_both_places_anew_in_each_pass_and_saves_nothing_of_it(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    add_lora(model, "simcse", r=4, dropout=0.5)
    features = model.preprocess(TEXTS)

    def moved() -> float:
        first, second = (model(dict(features))["sentence_embedding"].detach() for _ in range(2))
        return float((first - second).abs().max())

    model.train()
    assert moved() == 0  # B is zero: LoRA drops nothing yet
    with attention_dropout(model, 0.3):
        assert moved() > 1e-4
    trained(model)
    assert moved() > 1e-4  # LoRA's own
    model.eval()
    assert moved() == 0
    with attention_dropout(model, 0.3):
        model.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0
    reopened = st_llm2vec.load(str(tmp_path), device="cpu").train()
    first, second = (reopened(dict(features))["sentence_embedding"].detach() for _ in range(2))
    assert torch.equal(first, second)
