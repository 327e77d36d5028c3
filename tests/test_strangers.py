"""Checkpoints from strangers: they read, fetch and run nothing, do not hang, and do not end in a raw error."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fuzz_checkpoints import HANGS
from hub import add_repository
from sentence_transformers import SentenceTransformer
from tiny_models import KIT, save_decoder

import st_llm2vec
from st_llm2vec.aliases import CONTENTS as KEPT
from st_llm2vec.backend.build_folder import VARIABLE, use_build_folder
from st_llm2vec.checkpoints import resolve
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError, LLM2VecError
from st_llm2vec.loading import convert
from st_llm2vec.templates import own_template
from st_llm2vec.vetting import require_finite_pattern, require_safe


@pytest.fixture
def folder(decoder: Path, tmp_path: Path) -> Path:
    """A decoder's folder, free to be changed."""
    return Path(shutil.copytree(decoder, tmp_path / "stranger"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An MNTP stage beside its decoder."""
    for name in ("llama-base", "llama-mntp"):
        shutil.copytree(KIT / "models" / name, tmp_path / name)
    return tmp_path / "llama-mntp"


@pytest.fixture(scope="module")
def saved(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "encoder"
    st_llm2vec.load(str(decoder), device="cpu", pooling_mode="weighted_mean").save_pretrained(str(path))
    return path


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def refused(folder: Path, match: str, error: type[Exception] = InvalidCheckpointError, **options: Any) -> None:
    """Refused by `load` without hanging; fuzz_checkpoints.py holds each case to a second."""
    started = time.process_time()
    with pytest.raises(error, match=match):
        st_llm2vec.load(str(folder), device="cpu", **options)
    assert time.process_time() - started < HANGS


# ---- links, and what is no file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_secret", "model.safetensors", "README.md", "config.json"]
)
def test_a_link_out_of_the_folder_is_neither_read_nor_copied(folder: Path, tmp_path: Path, name: str) -> None:
    key = tmp_path / "id_ed25519"
    key.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(key)
    refused(folder, "is a link to")
    with pytest.raises(InvalidCheckpointError, match="is a link to"):
        convert(str(folder), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_link_that_comes_later_is_not_copied(folder: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(folder))
    (folder / "tokenizer_secret").symlink_to(tmp_path)
    from st_llm2vec.merging import merge_to_folder

    (tmp_path / "made").mkdir()
    with pytest.raises(InvalidCheckpointError, match="is a link to"):
        merge_to_folder(checkpoint, tmp_path / "made")


def test_links_of_the_hub_cache_and_inside_a_folder_work(folder: Path, tmp_path: Path) -> None:
    snapshot = add_repository(tmp_path / "hub", "owner/name", folder)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        shutil.move(file, blobs / f"blob-{file.name}")
        file.symlink_to(f"../../blobs/blob-{file.name}")
    st_llm2vec.load(str(snapshot), device="cpu")
    (blobs / "blob-tokenizer.json").rename(tmp_path / "tokenizer.json")
    (blobs / "blob-tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    refused(snapshot, "is a link to")
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "w")
    (folder / "model.safetensors").symlink_to("weights/w")
    st_llm2vec.load(str(folder), device="cpu")


def test_a_folder_of_blobs_elsewhere_is_no_hub_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for place in (tmp_path / "a" / "b", tmp_path / "snapshots" / "b"):  # neither is models--owner--name/snapshots/...
        shutil.copytree(folder, place)
        (place / "tokenizer.json").rename(tmp_path / "blobs" / "tokenizer.json")
        (place / "tokenizer.json").symlink_to(tmp_path / "blobs" / "tokenizer.json")
        refused(place, "is a link to")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "model.safetensors", "vocab.txt"])
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "nothing", "circle"])
def test_what_is_no_regular_file_is_refused(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "nothing": "nowhere", "circle": path.name}[kind])
    refused(folder, "not a regular file|is a link to")


# ---- names of files -----------------------------------------------------------------------------------------------

ELSEWHERE = ["../x.json", "/etc/x.safetensors", "a/../../x", "C:\\x", "\\\\host\\x", "..\\x", "a\0b", 3, ["a"]]


@pytest.mark.parametrize("name", ELSEWHERE, ids=repr)
def test_a_file_names_files_of_its_own_folder_only(folder: Path, adapter: Path, saved: Path, name: Any) -> None:
    (folder / "model.safetensors").rename(folder / "kept")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": name}}))
    refused(folder, "no path inside")
    edit(folder / "model.safetensors.index.json", weight_map={})
    (folder / "kept").rename(folder / "model.safetensors")

    edit(folder / "tokenizer_config.json", fast_tokenizer_files=[name])
    refused(folder, "no path inside|must be a list of texts")
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=[])

    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": name, "type": "x.Y"}]))
    refused(folder, "no path inside|must be a text")
    (folder / "modules.json").unlink()

    for key in ("tokenizer_folder", "tokenizer_name_or_path"):
        edit(folder / "sentence_bert_config.json", **{key: name})
        refused(folder, f"{key} must be null")
        (folder / "sentence_bert_config.json").unlink()
    st_llm2vec.load(str(folder), device="cpu")

    if not (isinstance(name, str) and name.startswith("/")):  # a decoder of this machine may be named, where it lies
        edit(adapter / "adapter_config.json", base_model_name_or_path=name)
        with pytest.raises(InvalidCheckpointError, match="base="):
            resolve(str(adapter))


def test_a_kept_alias_names_files_of_its_own_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from st_llm2vec import aliases

    alias = aliases.Alias("owner/name")
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path))
    place = aliases.kept_folder("my", alias)
    place.mkdir(parents=True)
    (tmp_path / "outside").write_text("12345")
    for sizes in ({"../../../outside": 5}, [], "x", {"a": None}, {}):
        (place / KEPT).write_text(json.dumps(sizes))
        with pytest.raises(aliases.CacheError, match="damaged"):
            aliases.folder_of("my", alias, lambda folder: None)
    for content in ("[]", "[" * 100_000, '{"a": 3}', '{"a": {"model": 3}}', '{"a": {"model": "o/n", "prompts": 3}}'):
        aliases.config_file().write_text(content)
        with pytest.raises(InvalidInputError, match="cannot be used"):
            aliases.known()


def test_a_tokenizer_names_no_file_of_this_machine(folder: Path, tmp_path: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_file="/where/it/was/saved/tokenizer.json")
    st_llm2vec.load(str(folder), device="cpu")  # old files carry it, and nothing is there
    (tmp_path / "there.json").write_text("{}")
    edit(folder / "tokenizer_config.json", tokenizer_file=str(tmp_path / "there.json"))
    refused(folder, "no path inside")
    edit(folder / "tokenizer_config.json", tokenizer_file=None, init_inputs=["/etc/passwd"])
    refused(folder, "init_inputs must be null")


def test_an_index_names_safetensors_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "evil.bin")
    edit(folder / "model.safetensors.index.json", weight_map={"norm.weight": "evil.bin"})
    refused(folder, r"end in \.safetensors")


# ---- what transformers would fetch or run -------------------------------------------------------------------------

KERNEL = "kernels-community/flash-attn2"
SPELLINGS: list[dict[str, Any]] = [
    {"attn_implementation": KERNEL},
    {"_attn_implementation": KERNEL},
    {"_attn_implementation_internal": KERNEL},
    {"attn_implementation": f"paged|{KERNEL}"},
    {"attn_implementation": "stranger/kernel@main:attend"},
    {"attn_implementation": {"": KERNEL}},
    {"text_config": {"attn_implementation": KERNEL}},
    {"per_layer_config": [{"_attn_implementation": KERNEL}]},
    {"experts_implementation": "stranger/experts"},
    {"attribute_map": {"name": "_attn_implementation_internal"}, "name": KERNEL},
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_an_attention_implementation_on_the_hub_is_the_callers_to_choose(
    folder: Path, saved: Path, spelling: dict[str, Any]
) -> None:
    edit(folder / "config.json", **spelling)
    refused(folder, "fetch from the hub and run|attribute_map must be null", local_files_only=True)
    copy = shutil.copytree(saved, folder.parent / "encoder")
    edit(copy / "config.json", **spelling)
    with pytest.raises(InvalidCheckpointError, match=r"fetch from the hub and run|attribute_map must be null"):
        SentenceTransformer(str(copy), device="cpu")
    for key in ("model_args", "model_kwargs", "config_args"):
        shutil.copy(saved / "config.json", copy / "config.json")
        edit(copy / "sentence_bert_config.json", **{key: spelling})
        with pytest.raises(InvalidCheckpointError, match=rf"{key} must be an object of numbers"):
            SentenceTransformer(str(copy), device="cpu")
        edit(copy / "sentence_bert_config.json", **{key: None})


@pytest.mark.parametrize("named", ["flash_attention_2", "flash_attention_3", "no_such_thing"])
def test_an_attention_implementation_that_may_be_fetched_is_not_taken_from_the_file(folder: Path, named: str) -> None:
    edit(folder / "config.json", attn_implementation=named, _attn_implementation_autoset=True)
    model = st_llm2vec.load(str(folder), device="cpu", packing=False)
    assert model[0].model.config._attn_implementation == "sdpa"
    convert(str(folder), folder.parent / "converted")  # merging makes the decoder from its config, too
    edit(folder / "config.json", attn_implementation="eager")
    assert st_llm2vec.load(str(folder), device="cpu", packing=False)[0].model.config._attn_implementation == "eager"


# ---- sizes, patterns, programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1e9},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**12},
        {"vocab_size": 10**10},
        {"head_dim": 2**31},
        {"num_attention_heads": 10**9},
        {"max_position_embeddings": 10**12},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"num_experts": 10**9},
        {"num_key_value_heads": 10**300},
    ],
    ids=str,
)
def test_sizes_beyond_any_decoder_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    refused(folder, "must be at most|digits")


ENDLESS = [
    "(a+)+$",
    "(a*)*b",
    "(a|a)*b",
    "(a|aa)+$",
    "(?:a?){30}",
    "(.*)*x",
    "((a+)b?)+",
    "((a+))+$",
    "a*a*a*a*b",
    "(x+x+)+y",
]


@pytest.mark.parametrize("pattern", [*ENDLESS, r"(a)\1", "a?" * 40, "a{100000}", "a" * 9999, "(a*a*|b)(a*a*|b)c"])
def test_a_pattern_that_does_not_end_is_refused(folder: Path, adapter: Path, pattern: str) -> None:
    with pytest.raises(InvalidCheckpointError, match="busy for ever"):
        require_finite_pattern(Path("x"), pattern)
    for key in ("alpha_pattern", "rank_pattern"):
        edit(adapter / "adapter_config.json", **{key: {pattern: 8}})
        refused(adapter, "busy for ever")
        edit(adapter / "adapter_config.json", **{key: {}})
    edit(adapter / "adapter_config.json", target_modules=pattern)
    refused(adapter, "busy for ever")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})
    refused(folder, "busy for ever")


# Patterns of published tokenizers and adapters.
REAL_PATTERNS = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t|'ll|'d)?",
    r" ?[^(\s|[.,!?…。、])]+",
    r"[一-龥\u3040-ゟ]+",
    r".*\.(q_proj|v_proj)$",
    r"^model\.layers\.(?:1[0-9]|2[0-9])\.self_attn\.(q|k|v|o)_proj$",
]


@pytest.mark.parametrize("pattern", REAL_PATTERNS)
def test_patterns_of_published_files_pass(pattern: str) -> None:
    require_finite_pattern(Path("x"), pattern)


CHARSMAP = base64.b64encode(bytes(4) + b"a" * 10**5).decode()
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 40}}, "replacements make of one"),
        ({"normalizer": REPLACE | {"content": "a" * 10**6}}, "replacements make of one"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "length of prepend"),
        ({"padding": {"strategy": {"Fixed": 10**10}}}, "padding.Fixed must be at most"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{}] * 10**5}}, "length of post_processor.single"),
        ({"model": {"type": "BPE", "dropout": 0.5}}, "dropout must be null"),
        ({"model": []}, "model must be an object"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "make of one"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_tokenizer_that_fills_the_memory_is_refused(folder: Path, part: dict[str, Any], match: str) -> None:
    edit(folder / "tokenizer.json", **part)
    refused(folder, match)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99) %}" + "{% endfor %}" * 3
DOUBLING = "{% set a = 'aaaaaaaa' %}" + "{% set a = a ~ a %}" * 60 + "{{ messages[0].content }}"
RECURSION = "{% macro m(x) %}{% for i in [1, 2] %}{{ m(x + 1) if x < 60 }}{% endfor %}{% endmacro %}{{ m(0) }}"


@pytest.mark.parametrize("template", [LOOP, DOUBLING, RECURSION, "a" * 10**6, "{{ 10**10**8 }}"], ids=lambda t: t[:20])
def test_a_chat_template_that_does_not_end_is_refused(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    st_llm2vec.load(str(folder), device="cpu")  # which renders none
    refused(folder, "chat template", InvalidInputError, template="chat")


def test_a_chat_template_that_ends_is_rendered(folder: Path) -> None:
    turn = "<{{ m.role }}>{{ m.content }}</s>"
    (folder / "chat_template.jinja").write_text("{% for m in messages %}" + turn + "{% endfor %}")
    from transformers import AutoTokenizer

    assert own_template(AutoTokenizer.from_pretrained(str(folder))).to_dict() == {"prefix": "<user>", "suffix": "</s>"}


@pytest.mark.parametrize("key", ["prefix", "suffix"])
def test_megabytes_around_every_text_are_refused(saved: Path, tmp_path: Path, key: str) -> None:
    copy = shutil.copytree(saved, tmp_path / "encoder")
    edit(copy / "llm2vec_config.json", template={key: "a " * 10**6})
    refused(copy, "template must be a name, or prefix and suffix of at most 20,000")
    with pytest.raises(InvalidInputError, match=f"the template's {key} must be a text of at most 20,000"):
        st_llm2vec.load(str(saved), template=st_llm2vec.modules.Template(**{key: "a " * 10**6}))


DEEP = "[" * 1000 + "]" * 1000


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "llm2vec_config.json", "modules.json"])
@pytest.mark.parametrize("text", [DEEP, '{"a": ' + DEEP + "}", "[" * 10**6, '{"a": 1' + "0" * 5000 + "}", "\ud800"])
def test_json_that_no_file_has_is_refused(folder: Path, file: str, text: str) -> None:
    (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(folder, "nested more than|not valid JSON|holds a|must be an object")


def test_a_json_file_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(10**10)  # of nothing: a sparse file
    refused(folder, "10,000,000,000 bytes")


# ---- contents of another kind -------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("config.json", {"model_type": 3}),
    ("config.json", {"model_type": "no_such_model"}),
    ("config.json", {"num_hidden_layers": "x"}),
    ("config.json", {"num_hidden_layers": None}),
    ("config.json", {"hidden_act": "no_such_function"}),
    ("config.json", {"hidden_size": -1}),
    ("config.json", {"hidden_size": 33}),
    ("config.json", {"num_attention_heads": 0}),
    ("config.json", {"rope_parameters": []}),
    ("config.json", {"rope_scaling": {"rope_type": "no_such_rope"}}),
    ("config.json", {"quantization_config": 3}),
    ("config.json", {"dtype": "load"}),
    ("config.json", {"to_dict": 3}),
    ("config.json", {"layer_types": 3}),
    ("config.json", {"max_position_embeddings": "x"}),
    ("config.json", {"_name_or_path": []}),
    ("llm2vec_config.json", {"max_seq_length": "x"}),
    ("llm2vec_config.json", {"max_length": -3}),
    ("llm2vec_config.json", {"pooling_mode": ["mean"]}),
    ("llm2vec_config.json", {"template": {"x": "y"}}),
    ("llm2vec_config.json", {"template": 3}),
    ("llm2vec_config.json", {"prompts": ["x"]}),
    ("llm2vec_config.json", {"provenance": "x"}),
    ("llm2vec_config.json", {"include_prompt": "yes"}),
    ("tokenizer_config.json", {"model_max_length": "x"}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": 3}}),
    ("tokenizer.json", {"added_tokens": 3}),
    ("tokenizer.json", {"model": None}),
    ("tokenizer.json", {"version": 3}),
]


@pytest.mark.parametrize(("file", "changes"), WRONG, ids=lambda value: str(value)[:50])
def test_contents_of_another_kind_end_in_our_error(folder: Path, file: str, changes: dict[str, Any]) -> None:
    edit(folder / file, **changes)
    refused(folder, ".", LLM2VecError)


ADAPTERS = [{"lora_alpha": "x"}, {"lora_alpha": None}, {"alpha_pattern": ["x"]}, {"alpha_pattern": {"[": 3}}]
ADAPTERS += [{"auto_mapping": 3}, {"auto_mapping": {"base_model_class": 3}}, {"peft_type": 3}, {"bias": []}]
ADAPTERS += [{"megatron_config": {"x": 1}}, {"alpha_pattern": {"q_proj": None}}, {"use_rslora": "no"}]


@pytest.mark.parametrize("changes", ADAPTERS, ids=str)
def test_an_adapter_of_another_kind_ends_in_our_error(adapter: Path, changes: dict[str, Any]) -> None:
    edit(adapter / "adapter_config.json", **changes)
    refused(adapter, ".", InvalidCheckpointError)


def test_a_readme_in_another_encoding_has_its_licence_read(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\nCaf\xe9 \xff")
    assert st_llm2vec.load(str(folder), device="cpu").provenance["license"] == "mit"


# ---- compiled code ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_build_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(VARIABLE, "")  # remembered, so that what is set below goes again
    monkeypatch.delenv(VARIABLE)
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="the rights of POSIX")
def test_code_is_compiled_in_a_folder_of_our_own(no_build_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert use_build_folder() == ""
    made = Path(os.environ[VARIABLE])
    assert made == no_build_folder / "home" / "compiled"
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o777)
    assert "can be written by other users" in use_build_folder()
    made.chmod(0o770)
    assert "can be written by other users" in use_build_folder()
    made.chmod(0o700)
    made.parent.chmod(0o777)  # others could rename it, and make another in its place
    assert "can be written by other users" in use_build_folder()
    made.parent.chmod(0o1777)  # as /tmp
    assert use_build_folder() == ""
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert "belongs to another user" in use_build_folder()


def test_a_folder_that_others_can_write_leaves_compiling_out(
    no_build_folder: Path, monkeypatch: pytest.MonkeyPatch, decoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planted = no_build_folder / "planted"
    planted.mkdir()
    planted.chmod(0o777)
    monkeypatch.setenv(VARIABLE, str(planted))
    from st_llm2vec.backend.compilation import compile_layers

    model = st_llm2vec.load(str(decoder), device="cpu")
    model.encode("a")
    assert "can be written by other users" in compile_layers(model[0].model).reason
    assert not list(planted.iterdir())


def test_require_safe_passes_what_we_save(saved: Path) -> None:
    require_safe(saved)
    require_safe(Path(st_llm2vec.__file__).parent / "tiny")
    for checkpoint in (KIT / "models").iterdir():
        require_safe(checkpoint)


def test_a_decoder_of_another_architecture_passes(tmp_path: Path) -> None:
    require_safe(save_decoder(tmp_path / "gemma", "gemma3_text"))


def test_json_is_nested_as_deep_as_the_limit_and_no_deeper(tmp_path: Path) -> None:
    from st_llm2vec.vetting.files import MAX_DEPTH, require_shallow

    def nested(depth: int) -> Any:
        content: Any = {}
        for _ in range(depth - 1):
            content = {"a": content}
        return content

    require_shallow(tmp_path / "x.json", nested(MAX_DEPTH))
    with pytest.raises(InvalidCheckpointError, match=f"nested more than {MAX_DEPTH} deep"):
        require_shallow(tmp_path / "x.json", nested(MAX_DEPTH + 1))
