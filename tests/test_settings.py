"""Settings are understood, or refused before anything is fetched: by `load`, aliases, files and the command line."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub import add_repository
from tiny_models import save_decoder, tiny_tokenizer

import st_llm2vec
from st_llm2vec import aliases, loading
from st_llm2vec.aliases import Alias
from st_llm2vec.cli import main
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.runtime import Runtime
from st_llm2vec.settings import NAMES, EncoderSettings, is_original
from st_llm2vec.templates import TEMPLATES, Template

WRONG: list[tuple[str, Any]] = [
    ("pooling_mode", "max"),
    ("pooling_mode", 3),
    ("pooling_mode", ["mean"]),
    ("template", "alpaca"),
    ("template", {"prefix": "a", "infix": "b"}),
    ("template", {"prefix": 3}),
    ("template", ["chatml"]),
    ("max_seq_length", "512"),
    ("max_seq_length", True),
    ("max_seq_length", 0),
    ("max_seq_length", -1),
    ("max_seq_length", 512.0),
    ("document_max_length", "400"),
    ("document_max_length", 0),
    ("include_prompt", "no"),
    ("include_prompt", 1),
    ("attention", "bidi"),
    ("attention", False),
    ("prompts", ["query"]),
    ("prompts", {"query": 3}),
    ("prompts", {"query": None}),
    ("prompts", "query: "),
]
WRONG_RUNTIME: list[tuple[str, Any]] = [
    ("dtype", "float17"),
    ("dtype", "int8"),
    ("dtype", torch.int8),
    ("dtype", 16),
    ("quantize", "int4"),
    ("quantize", True),
    ("packing", "no"),
    ("packing", None),
    ("compile", "yes"),
    ("device", "gpu"),
    ("device", 0),
    ("device", ["cpu"]),
    ("device", "meta"),
    ("adapter", ""),
    ("base", ""),
    ("revision", ""),
    ("model_kwargs", "sdpa"),
    ("model_kwargs", {"torch_dtype": "float17"}),
    ("model_kwargs", {"token": "hf_x"}),
    ("model_kwargs", {"trust_remote_code": True}),
    ("model_kwargs", {"use_safetensors": False}),
    ("cache_folder", 3),
    ("token", 3),
    ("local_files_only", "yes"),
    ("adapter", 3),
    ("base", ["a"]),
    ("revision", 3),
]


@pytest.fixture
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched or loaded")

    for name in ("resolve", "alias_folder", "_build", "LLM2VecTransformer"):
        monkeypatch.setattr(loading, name, fail)


@pytest.mark.parametrize(("name", "value"), [*WRONG, *WRONG_RUNTIME], ids=str)
@pytest.mark.usefixtures("nothing_is_fetched")
def test_load_refuses_before_it_fetches(name: str, value: Any) -> None:
    named = "dtype" if isinstance(value, dict) and "torch_dtype" in value else name
    with pytest.raises(InvalidInputError, match=named):
        st_llm2vec.load("owner/decoder", **{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_aliases_refuse_when_they_are_registered(name: str, value: Any, tmp_path: Path) -> None:
    arguments = {"prompts": value} if name == "prompts" else {"settings": {name: value}}
    with pytest.raises(InvalidInputError, match=name):
        st_llm2vec.register_alias("x", "owner/decoder", **arguments)
    (tmp_path / "aliases.json").write_text(json.dumps({"x": {"model": "owner/decoder", **arguments}}))
    with pytest.raises(InvalidInputError, match=rf"aliases.json cannot be used.*{name}"):
        aliases._from_file(tmp_path / "aliases.json")


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_folders_file_is_refused_before_its_decoder_is_fetched(
    name: str, value: Any, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_build", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "x").mkdir()
    for file in decoder.iterdir():
        shutil.copy(file, tmp_path / "x" / file.name)
    (tmp_path / "x" / "llm2vec_config.json").write_text(json.dumps({"format": 1, name: value}))
    with pytest.raises(InvalidCheckpointError, match=f"llm2vec_config.json.*{name}"):
        st_llm2vec.load(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ({"pooling_mode": "lasttoken"}, "last_token"),
        ({"pooling_mode": "weightedmean"}, "weighted_mean"),
        ({"pooling_mode": "cls"}, "bos_token"),
        ({"max_seq_length": np.int64(64)}, 64),
        ({"include_prompt": np.bool_(True)}, True),
        ({"template": {"prefix": "a", "suffix": "b"}}, Template("a", "b")),
    ],
    ids=str,
)
def test_what_is_meant_is_understood(given: dict[str, Any], understood: Any) -> None:
    (name,) = given
    assert getattr(EncoderSettings(**given), name) == understood
    assert type(getattr(EncoderSettings(**given), name)) is type(understood)


def test_the_original_packages_file_and_ours_are_one_table() -> None:
    original = {"pooling_mode": "mean", "max_length": 128, "doc_max_length": 40, "skip_instruction": False}
    assert is_original(original)
    assert not is_original({"format": 1, **original})
    ours = EncoderSettings("mean", None, 128, 40, True)
    assert EncoderSettings.from_file(original) == ours
    assert EncoderSettings.from_file({"format": 1, "audit": {}, **ours.to_dict()}) == ours
    with pytest.raises(InvalidCheckpointError, match="skip_instruction"):
        EncoderSettings.from_file({"skip_instruction": "no"})


def test_every_row_is_an_argument_of_load_and_comes_out_of_the_encoder(decoder: Path) -> None:
    assert set(NAMES) <= inspect.signature(st_llm2vec.load).parameters.keys()
    assert {row.name for row in fields(Runtime)} <= inspect.signature(st_llm2vec.load).parameters.keys()
    asked = EncoderSettings("weighted_mean", Template("<s>", "</s>"), 64, 32, True, "causal", {"query": "find: "})
    model = st_llm2vec.load(str(decoder), device="cpu", **{name: getattr(asked, name) for name in NAMES})
    assert EncoderSettings.of(model.settings()) == asked


def test_every_row_is_an_option_of_the_command_line(decoder: Path, tmp_path: Path) -> None:
    arguments = ["--pooling-mode", "weightedmean", "--template", "llama-2", "--max-seq-length", "64"]
    arguments += ["--document-max-length", "32", "--include-prompt", "--attention", "causal"]
    arguments += ["--prompt", "query=find: ", "--prompt", "document=a=b"]
    assert main(["convert", str(decoder), str(tmp_path / "x"), *arguments]) == 0
    prompts = {"query": "find: ", "document": "a=b"}
    wanted = EncoderSettings("weighted_mean", TEMPLATES["llama-2"], 64, 32, True, "causal", prompts)
    assert EncoderSettings.of(st_llm2vec.load(tmp_path / "x", device="cpu").settings()) == wanted


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--pooling-mode", "max"], 1, "--pooling-mode must be one of"),
        (["--attention", "bidi"], 1, "--attention must be one of"),
        (["--max-seq-length", "0"], 1, "--max-seq-length must be an integer of tokens, at least 1, got 0"),
        (["--max-seq-length", "many"], 2, "--max-seq-length"),
        (["--prompt", "query"], 2, "NAME=TEXT"),
        (["--dtype", "float17"], 1, "--dtype must be one of"),
        (["--device", "gpu"], 1, "--device must be a name such as"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("nothing_is_fetched")
def test_the_command_line_refuses_before_it_fetches(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "owner/decoder", str(tmp_path / "x"), *arguments]) == code
    assert said in capsys.readouterr().err


def test_settings_lie_over_others_name_by_name() -> None:
    below = EncoderSettings("mean", max_seq_length=8, prompts={"query": "a", "document": "b"})
    above = EncoderSettings(max_seq_length=9, include_prompt=False, prompts={"query": "c"})
    both = EncoderSettings("mean", None, 9, None, False, None, {"query": "c", "document": "b"})
    assert above.over(below) == both


def test_a_dtype_is_obeyed_wherever_it_is_given_and_refused_twice(decoder: Path) -> None:
    for kwargs in ({"dtype": torch.bfloat16}, {"model_kwargs": {"torch_dtype": "bfloat16"}},
                   {"model_kwargs": {"dtype": "bfloat16"}}, {"dtype": "torch.bfloat16"}):  # fmt: skip
        assert st_llm2vec.load(str(decoder), device="cpu", **kwargs)[0].model.dtype == torch.bfloat16
    for kwargs in ({"dtype": "float32", "model_kwargs": {"torch_dtype": "bfloat16"}},
                   {"model_kwargs": {"dtype": "float32", "torch_dtype": "float32"}}):  # fmt: skip
        with pytest.raises(InvalidInputError, match="dtype must be given once, got"):
            st_llm2vec.load(str(decoder), device="cpu", **kwargs)


def test_two_places_for_the_weights_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="device_map"):
        Runtime(device="cpu", model_kwargs={"device_map": "auto"})
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInputError, match="device must be one that is here, got 'cuda'"):
            Runtime(device="cuda")


def test_int8_is_made_on_a_cpu_of_weights_in_float32() -> None:
    runtime = Runtime(quantize="int8", dtype="bfloat16")
    assert (runtime.device, runtime.stored_dtype, runtime.dtype) == ("cpu", torch.float32, torch.bfloat16)
    assert (Runtime().device, Runtime(dtype="bfloat16").stored_dtype) == (None, torch.bfloat16)


def test_paths_are_understood(decoder: Path) -> None:
    assert st_llm2vec.load(decoder, device="cpu").get_embedding_dimension() == 32


def test_more_tokens_than_positions_are_refused(decoder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"max_seq_length must be from 1 to 256, .*got 257"):
        st_llm2vec.load(str(decoder), max_seq_length=257, device="cpu")


def test_a_decoder_of_few_positions_is_given_no_more_tokens(decoder: Path) -> None:
    assert st_llm2vec.load(str(decoder), device="cpu").max_seq_length == 256


# What the tables of templates.py say is text to another tokenizer.
SMOL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer has no "</s>", as SmolLM2 and Llama 3 have none."""
    return save_decoder(tmp_path_factory.mktemp("smol") / "smol", tokenizer=tiny_tokenizer(names=SMOL))


def test_eos_pooling_ends_in_one_token_of_the_tokenizer(smol: Path, decoder: Path) -> None:
    for folder, suffix in ((smol, "<|im_end|>"), (decoder, " </s>")):
        model = st_llm2vec.load(str(folder), pooling_mode="eos_token", device="cpu")
        assert model[0].text_template.suffix == suffix
        assert model.preprocess(["lazy dog"])["input_ids"][0, -1] == model.tokenizer.eos_token_id


@pytest.mark.parametrize("file", [{}, {"pooling_mode": "eos_token", "skip_instruction": True}])
def test_checkpoints_of_the_original_package_keep_its_suffix(smol: Path, tmp_path: Path, file: dict[str, Any]) -> None:
    from st_llm2vec.training import add_lora

    model = st_llm2vec.load(str(smol), device="cpu")
    add_lora(model, "mntp")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.02)
    model[0].model.save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"auto_mapping": {"base_model_class": "LlamaModel"}}
    path.write_text(json.dumps(config))
    options = {"pooling_mode": "eos_token", "device": "cpu"}

    def suffix() -> str:
        return st_llm2vec.load(str(smol), adapter=str(tmp_path / "adapter"), **options)[0].text_template.suffix

    assert suffix() == "<|im_end|>"  # anyone's adapter
    if file:
        (tmp_path / "adapter" / "llm2vec_config.json").write_text(json.dumps(file))
    else:
        path.write_text(json.dumps(config | {"auto_mapping": {"base_model_class": "LlamaBiModel"}}))
    assert suffix() == " </s>"

    def cut() -> int | None:
        return st_llm2vec.load(str(smol), adapter=str(tmp_path / "adapter"), **options)[0].document_max_length

    assert cut() == 400
    (tmp_path / "adapter" / "llm2vec_config.json").write_text('{"format": 1}')  # ours
    assert cut() is None


def test_a_template_whose_tokens_are_text_here_is_refused(smol: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'llama-3' needs <\|start_header_id\|>, .*<\|eot_id\|>"):
        st_llm2vec.load(str(smol), template="llama-3", device="cpu")
    assert st_llm2vec.load(str(smol), template="chatml", device="cpu")[0].text_template.suffix == "<|im_end|>"
    assert st_llm2vec.load(str(smol), template="llama-2", device="cpu")[0].text_template.suffix == " [/INST]"


def test_a_decoder_is_known_by_the_name_that_was_asked_for(smol: Path, tmp_path: Path) -> None:
    """Its own config may name the folder that it was made in."""
    snapshot = add_repository(tmp_path, "Qwen/Qwen2-1.5B-Instruct", smol)
    config = json.loads((snapshot / "config.json").read_text()) | {"_name_or_path": "/home/somebody/checkpoint-100"}
    (snapshot / "config.json").write_text(json.dumps(config))
    options = {"cache_folder": str(tmp_path), "local_files_only": True, "device": "cpu"}
    assert st_llm2vec.load("Qwen/Qwen2-1.5B-Instruct", **options)[0].text_template == TEMPLATES["chatml"]


def test_an_alias_takes_all_settings_but_prompts() -> None:
    assert Alias("a/b", settings={"attention": "causal", "pooling_mode": "cls"}).settings["attention"] == "causal"
    with pytest.raises(InvalidInputError, match="settings must be without 'prompts'"):
        Alias("a/b", settings={"prompts": {"query": "x"}})


def test_an_empty_name_is_not_the_working_directory(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(decoder)
    with pytest.raises(InvalidInputError, match="name must be a name or a folder, got ''"):
        st_llm2vec.load("", device="cpu")


def test_a_revision_of_a_folder_is_refused(decoder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"revision must be left out .*got 'v1': it is on this machine"):
        st_llm2vec.load(decoder, revision="v1", device="cpu")


@pytest.mark.parametrize(
    "options",
    [{"attn_implementation": "flash"}, {"device_map": "nowhere"}, {"quantization_config": "x"}, {"variant": "fp16"}],
    ids=str,
)
def test_model_kwargs_are_blamed_and_not_the_files(decoder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=f"cannot be opened with model_kwargs.*{next(iter(options))}"):
        st_llm2vec.load(decoder, model_kwargs=options)


@pytest.mark.parametrize("options", [{"nonsense": 1}, {"similarity_fn_name": "cos"}], ids=str)
def test_options_of_the_host_are_blamed_and_not_the_files_alone(options: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    with pytest.raises(InvalidCheckpointError, match=f"with the options {next(iter(options))}"):
        SentenceTransformer("llm2vec-tiny", device="cpu", **options)


@pytest.mark.parametrize("length", [0, -3, "8", 2.5, None])
def test_a_length_that_is_set_later_is_checked(length: Any, decoder: Path) -> None:
    model = st_llm2vec.load(decoder, device="cpu")
    model.max_seq_length = length
    with pytest.raises(InvalidInputError, match="max_seq_length"):
        model.encode("the quick brown fox")


def test_a_length_without_room_for_a_text_is_refused(bos_decoder: Path) -> None:
    model = st_llm2vec.load(bos_decoder, device="cpu", max_seq_length=1)  # BOS alone: one vector for all texts
    with pytest.raises(InvalidInputError, match=r"max_seq_length must be more than 1, .*got 1"):
        model.encode("the quick brown fox")
    model.max_seq_length = 2
    assert np.abs(model.encode("fox") - model.encode("dog")).max() > 1e-3


@pytest.mark.parametrize("output", ["sentence_embedding", "token_embeddings"])
def test_half_a_surrogate_pair_is_named(output: str) -> None:
    model = st_llm2vec.load("llm2vec-tiny", device="cpu")
    for options in ({"inputs": ["fine", "a\ud800b"]}, {"inputs": "fine", "prompt": "\udfff: "}):
        with pytest.raises(InvalidInputError, match="half of a surrogate pair"):
            model.encode(**options, output_value=output)
