"""The saved folder: what its configs say, the dtype of its weights, and the classes that it names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import save_decoder

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.modules import LLM2VecTransformer
from st_llm2vec.settings import KEPT

TEXTS = ["a", "the quick brown fox", "lazy dog " * 100]


def read(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("bf16") / "decoder", dtype=torch.bfloat16)


def test_weights_of_a_bfloat16_decoder_are_saved_as_small_as_they_were(bf16: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bf16), device="cpu")
    assert model[0].model.dtype == torch.float32
    model.save_pretrained(str(tmp_path / "encoder"))
    assert dtypes(tmp_path / "encoder") == {torch.bfloat16}
    assert read(tmp_path / "encoder")["dtype"] == "float32"  # it computes as the model that was saved
    again = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-6
    again.save_pretrained(str(tmp_path / "again"))
    assert dtypes(tmp_path / "again") == {torch.bfloat16}


@pytest.mark.parametrize("training", [True, False])
def test_saving_leaves_training_mode_as_it_was(decoder: Path, tmp_path: Path, training: bool) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu").train(training)
    model.save_pretrained(str(tmp_path / "encoder"))
    assert [module.training for module in model.modules()] == [training] * len([*model.modules()])


def test_weights_that_changed_are_not_rounded_unless_asked(bf16: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bf16), device="cpu")
    with torch.no_grad():
        model[0].model.norm.weight.mul_(1.0001)
    model.save_pretrained(str(tmp_path / "encoder"))
    assert dtypes(tmp_path / "encoder") == {torch.float32}
    assert (st_llm2vec.load(str(tmp_path / "encoder"), device="cpu").encode(TEXTS) == model.encode(TEXTS)).all()
    model.save_pretrained(str(tmp_path / "small"), dtype="bfloat16")
    assert dtypes(tmp_path / "small") == {torch.bfloat16}
    assert read(tmp_path / "small")["dtype"] == "bfloat16"
    assert model[0].model.dtype == torch.float32


def test_dtypes_that_cannot_be_saved(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    for options, message in (
        ({"dtype": "float17"}, "float17"),
        ({"dtype": torch.int8}, "int8"),
        ({"dtype": "bfloat16", "merge": False}, "merge=False"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            model.save_pretrained(str(tmp_path / "encoder"), **options)
    with torch.no_grad():
        model[0].model.norm.weight.fill_(1e5)
    with pytest.raises(InvalidInputError, match="no finite value"):
        model.save_pretrained(str(tmp_path / "encoder"), dtype="float16")
    assert not (tmp_path / "encoder").exists()


def test_a_folder_is_opened_in_the_dtype_that_was_asked_for(decoder: Path, tmp_path: Path) -> None:
    st_llm2vec.load(str(decoder), device="cpu").save_pretrained(str(tmp_path / "encoder"), dtype="bfloat16")
    assert dtypes(tmp_path / "encoder") == {torch.bfloat16}
    assert read(tmp_path / "encoder")["dtype"] == "bfloat16"


def test_convert_writes_the_dtype_that_was_asked_for(decoder: Path, tmp_path: Path) -> None:
    from st_llm2vec.loading import convert

    for asked, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        convert(str(decoder), tmp_path / str(asked), dtype=asked)
        assert dtypes(tmp_path / str(asked)) == {expected}
        assert read(tmp_path / str(asked))["dtype"] == str(expected).removeprefix("torch.")


@pytest.mark.parametrize("converted", [False, True])
def test_code_that_is_not_in_the_folder_is_not_named(decoder: Path, tmp_path: Path, converted: bool) -> None:
    import shutil

    from st_llm2vec.loading import convert

    source, folder = tmp_path / "source", tmp_path / "encoder"
    shutil.copytree(decoder, source)
    named = {
        "config.json": {"AutoModel": "modeling_own.OwnModel", "AutoConfig": "configuration_own.OwnConfig"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    }
    for name, auto_map in named.items():
        (source / name).write_text(json.dumps(read(source, name) | {"auto_map": auto_map}))
    if converted:
        model = convert(str(source), folder)
    else:
        model = st_llm2vec.load(str(source), device="cpu")
        model.save_pretrained(str(folder))
    for name in named:
        assert "auto_map" not in read(folder, name)
    again = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-6


def test_padding_is_left_to_the_host(decoder: Path, tmp_path: Path) -> None:
    st_llm2vec.load(str(decoder), device="cpu").save_pretrained(str(tmp_path / "encoder"))
    assert "unpad_inputs" not in read(tmp_path / "encoder", "sentence_bert_config.json")


def test_a_decoder_whose_tokenizer_pads_left_is_saved_with_padding_on_the_right(tmp_path: Path) -> None:
    source, folder = save_decoder(tmp_path / "gpt2", "gpt2"), tmp_path / "encoder"  # positions count from the left
    name = "tokenizer_config.json"
    (source / name).write_text(json.dumps(read(source, name) | {"padding_side": "left"}))
    model = st_llm2vec.load(str(source), device="cpu")
    model.save_pretrained(str(folder))
    assert read(folder, name)["padding_side"] == "right"
    one_by_one = np.stack([model.encode(text) for text in TEXTS])
    assert np.abs(SentenceTransformer(str(folder), device="cpu").encode(TEXTS) - one_by_one).max() <= 1e-5


def test_a_cut_longer_than_the_probes_still_names_our_classes(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), document_max_length=400, max_seq_length=200, device="cpu")
    model[0].document_max_length = 100  # longer than any probe text
    model.save_pretrained(str(tmp_path / "encoder"))
    assert "LLM2VecTransformer" in (tmp_path / "encoder" / "modules.json").read_text()
    again = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5


def test_prompts_that_end_in_a_blank(decoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stock pooling counts the blank as the prompt's, the tokenizer reads it with the text's first word."""
    model = st_llm2vec.load(str(decoder), device="cpu")
    with caplog.at_level(logging.WARNING, "st_llm2vec"):
        model.save_pretrained(str(tmp_path / "encoder"))
    assert "ends in a blank" in caplog.text
    assert "cosine down to 0." in caplog.text
    assert "LLM2Vec" not in (tmp_path / "encoder" / "modules.json").read_text()
    caplog.clear()
    model.prompts["query"] = "Find: "
    model.save_pretrained(str(tmp_path / "prompted"))
    assert "ends in a blank" not in caplog.text
    assert "LLM2VecTransformer" in (tmp_path / "prompted" / "modules.json").read_text()
    included = st_llm2vec.load(str(decoder), include_prompt=True, device="cpu")
    included.save_pretrained(str(tmp_path / "included"))
    assert "ends in a blank" not in caplog.text


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float32"}, {"compile": True}], ids=str)
def test_prepacked_and_compiled_models_are_saved_as_they_are(decoder: Path, tmp_path: Path, options: dict) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu", **options)
    model.encode(TEXTS)
    model.save_pretrained(str(tmp_path / "encoder"))
    assert dtypes(tmp_path / "encoder") == {model[0].model.dtype}
    stored, saved = (load_file(folder / "model.safetensors") for folder in (decoder, tmp_path / "encoder"))
    for name, tensor in saved.items():
        assert torch.equal(tensor, stored[f"model.{name}"].to(tensor.dtype)), name


def test_rounding_is_no_reason_for_our_classes(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained decoder in bfloat16 gives packed texts other roundings than padded ones; the tokens are the same."""
    model = st_llm2vec.load(str(decoder), device="cpu", dtype="bfloat16")
    packed = LLM2VecTransformer._forward_packed

    def rounded(self: LLM2VecTransformer, features: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        packed(self, features, *args, **kwargs)
        features["token_embeddings"] = features["token_embeddings"] * 1.05

    monkeypatch.setattr(LLM2VecTransformer, "_forward_packed", rounded)
    model.save_pretrained(str(tmp_path / "encoder"))
    named = [module["type"] for module in json.loads((tmp_path / "encoder" / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in named), named


def test_what_the_transformer_keeps_comes_back(decoder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "template": {"prefix": "a ", "suffix": " b"},
        "document_max_length": 7,
        "attention": "causal",
    }
    assert given.keys() == KEPT.keys(), "a setting without a value here"
    for name, value in given.items():
        model = st_llm2vec.load(str(decoder), device="cpu", **{name: value})
        model.save_pretrained(str(tmp_path / name))
        classes = {module["type"].rpartition(".")[2] for module in read(tmp_path / name, "modules.json")}
        assert "LLM2VecTransformer" in classes, f"stock classes would not know {name}"
        assert st_llm2vec.load(str(tmp_path / name), device="cpu").settings()[name] == value
