"""What others read: plain transformers, and folders in which the adapter stays beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import KIT
from transformers import AutoModel, PreTrainedTokenizerFast

import st_llm2vec
from st_llm2vec.bidirectional import audit
from st_llm2vec.errors import InvalidCheckpointError
from st_llm2vec.merging import restore_adapter
from st_llm2vec.training import add_lora

TEXTS = ["a", "the quick brown fox", "lazy dog " * 20]


def test_plain_transformers_gives_the_same_hidden_states(bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    model.encode(TEXTS)  # packing is on from here; the folder is a plain one
    model.save_pretrained(str(tmp_path / "encoder"))
    features = model.preprocess(TEXTS)
    ours = model[0]({**features})["token_embeddings"]
    plain = AutoModel.from_pretrained(tmp_path / "encoder")
    assert type(plain).__name__ == json.loads((tmp_path / "encoder" / "config.json").read_text())["architectures"][0]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "encoder")
    inputs = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], features["input_ids"])
    with torch.no_grad():
        theirs = plain(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    mask = inputs["attention_mask"].bool()
    assert (ours[mask] - theirs[mask]).abs().max() <= 1e-5
    assert audit(plain)


def trained(name: str, **settings: str) -> st_llm2vec.LLM2Vec:
    """An encoder with an adapter that does something."""
    model = st_llm2vec.load(name, device="cpu", **settings)
    add_lora(model, "simcse", r=4)
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_an_adapter_kept_beside_the_weights_reopens_bidirectional(bos_decoder: Path, tmp_path: Path) -> None:
    model = trained(str(bos_decoder))
    folder = tmp_path / "adapter"
    model.save_pretrained(str(folder), merge=False)
    assert {file.name for file in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    expected = model.encode(TEXTS)
    assert np.abs(expected - st_llm2vec.load(str(bos_decoder), device="cpu").encode(TEXTS)).max() > 1e-3
    beside = SentenceTransformer(str(folder), device="cpu")
    assert isinstance(beside, st_llm2vec.LLM2Vec)
    assert beside[0].audit
    merged = st_llm2vec.load(str(folder), base=str(bos_decoder), device="cpu")
    for again in (beside, merged):
        assert np.abs(again.encode(TEXTS) - expected).max() <= 1e-5


def test_an_adapter_that_was_not_loaded_as_stored_is_refused(bos_decoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    trained(str(bos_decoder)).save_pretrained(str(folder), merge=False)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    elsewhere = {name.replace("layers.0", "layers.9"): tensor.clone() for name, tensor in tensors.items()}
    save_file(elsewhere, path)
    with pytest.raises(InvalidCheckpointError, match="lack 14 tensors"):
        SentenceTransformer(str(folder), device="cpu")
    save_file(tensors | elsewhere, path)  # peft leaves out what it has no place for, and warns
    with pytest.raises(InvalidCheckpointError, match=r"was not loaded as its file has it: 'layers\.9.* 13 more"):
        SentenceTransformer(str(folder), device="cpu")


def test_every_value_of_an_adapter_is_compared(bos_decoder: Path, tmp_path: Path) -> None:
    model = trained(str(bos_decoder))
    model.save_pretrained(str(tmp_path / "adapter"), merge=False)
    restore_adapter(model[0].model, tmp_path / "adapter")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_A" in name)[0, 0] += 1e-6
    with pytest.raises(InvalidCheckpointError, match="and 0 more tensors are missing or differ"):
        restore_adapter(model[0].model, tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:Could not find a config file in llama-mntp-merged")  # peft looks for the base's
def test_an_adapter_on_merged_stages_does_not_reopen_on_the_raw_decoder(tmp_path: Path) -> None:
    mntp = str(KIT / "models" / "llama-mntp")
    model = trained(mntp)
    model.save_pretrained(str(tmp_path / "adapter"), merge=False)
    with pytest.raises(InvalidCheckpointError, match=r"llama-mntp-merged-but-not-saved.*base="):
        SentenceTransformer(str(tmp_path / "adapter"), device="cpu")
    again = st_llm2vec.load(str(tmp_path / "adapter"), base=mntp, device="cpu")
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5
