"""Checkpoints from strangers, a second look: ways around what test_strangers.py says is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub import add_repository
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from test_strangers import edit, refused
from tiny_models import KIT, save_decoder
from transformers import AutoTokenizer, Mxfp4Config

import st_llm2vec
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError, LLM2VecError
from st_llm2vec.loading import convert
from st_llm2vec.templates import own_template
from st_llm2vec.vetting import require_finite_pattern, require_safe


@pytest.fixture
def folder(decoder: Path, tmp_path: Path) -> Path:
    """A decoder's folder, free to be changed."""
    return Path(shutil.copytree(decoder, tmp_path / "stranger"))


@pytest.fixture(scope="module")
def _saved(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "encoder"
    st_llm2vec.load(str(decoder), device="cpu", pooling_mode="weighted_mean").save_pretrained(str(path))
    return path


@pytest.fixture
def saved(_saved: Path, tmp_path: Path) -> Path:
    """An encoder's folder, free to be changed."""
    return Path(shutil.copytree(_saved, tmp_path / "encoder"))


def refused_by_host(folder: Path, match: str, error: type[Exception] = InvalidCheckpointError) -> None:
    """Refused by `load`, and by `SentenceTransformer` after `import st_llm2vec`."""
    refused(folder, match, error)
    with pytest.raises(error, match=match):
        SentenceTransformer(str(folder), device="cpu")


# ---- links below the folder, and files without end ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_in_a_folder_below_leads_nowhere_else(folder: Path, saved: Path, tmp_path: Path, kind: str) -> None:
    """The entries of the folder itself were looked at, and not those of the folders that its files name."""
    elsewhere, below = tmp_path / "elsewhere", folder / "below"
    shutil.copytree(saved, elsewhere)
    below.mkdir()
    name = "below/x.safetensors" if kind == "file" else "below/there/model.safetensors"
    link, target = (below / "x.safetensors", elsewhere / "model.safetensors")
    (link if kind == "file" else below / "there").symlink_to(target if kind == "file" else elsewhere)
    (folder / "model.safetensors").rename(folder / "kept")
    edit(folder / "model.safetensors.index.json", weight_map={"norm.weight": name})
    refused(folder, "is a link to")
    with pytest.raises(InvalidCheckpointError, match="is a link to"):
        convert(str(folder), tmp_path / "made")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "kept").rename(folder / "model.safetensors")

    (below / "tokenizer.json").symlink_to(elsewhere / "tokenizer.json")
    tokenizer = "below/tokenizer.json" if kind == "file" else "below/there/tokenizer.json"
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=[tokenizer])
    refused(folder, "is a link to")
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=[], tokenizer_file=tokenizer)
    refused(folder, "is a link to")

    modules = json.loads((saved / "modules.json").read_text())
    (saved / "a").mkdir()
    (saved / "a" / "b").symlink_to(elsewhere / modules[1]["path"])
    (saved / "modules.json").write_text(json.dumps([modules[0], modules[1] | {"path": "a/b"}]))
    refused_by_host(saved, "is a link to")


def test_links_of_the_hub_cache_work_in_folders_below(saved: Path, tmp_path: Path) -> None:
    snapshot = add_repository(tmp_path / "hub", "owner/name", saved)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    for number, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    require_safe(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(saved / "config.json")
    with pytest.raises(InvalidCheckpointError, match="is a link to"):
        require_safe(snapshot)


LARGE = ["chat_template.jinja", "vocab.txt", "merges.txt", "tokenizer.model", "README.md"]
LARGE += ["video_preprocessor_config.json", "additional_chat_templates/x.jinja"]


@pytest.mark.parametrize("name", LARGE)
def test_a_text_without_end_is_not_read(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("ab") as file:
        file.truncate(10**8)  # of nothing: a sparse file
    refused(folder, "100,000,000 bytes")


# ---- names ---------------------------------------------------------------------------------------------------------

LONG = "a" * 999


def test_names_that_no_file_can_have_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "kept")
    for name in (f"{LONG}.safetensors", "a/" * 999 + "b.safetensors", "\ud800.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": name}}))
        refused(folder, "no path inside")
    edit(folder / "model.safetensors.index.json", weight_map={str(i): f"{i}.safetensors" for i in range(5000)})
    refused(folder, "at most 4,096 files")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "kept").rename(folder / "model.safetensors")
    edit(folder / "tokenizer_config.json", tokenizer_file=f"/{LONG}", vocab_file="/a\0b")
    st_llm2vec.load(str(folder), device="cpu")  # where it was saved, on another machine

    for name in (LONG, f"/{LONG}", f"x/{LONG}", "\ud800", "a\0b"):
        with pytest.raises(InvalidInputError, match="name that a file can have"):
            st_llm2vec.load(name)
        with pytest.raises(InvalidInputError, match="folder must be a name that a file can have"):
            convert(str(folder), name)
    for odd in (None, 3, b"x"):
        with pytest.raises(InvalidInputError, match="folder"):
            convert(str(folder), odd)  # type: ignore[arg-type]


@pytest.mark.parametrize("named", [f"/{LONG}", LONG, f"/{LONG}.gguf", f"{LONG}.gguf"], ids=lambda name: name[-9:])
def test_an_adapter_names_no_decoder_that_cannot_be(tmp_path: Path, named: str) -> None:
    adapter = Path(shutil.copytree(KIT / "models" / "llama-mntp", tmp_path / "adapter"))
    edit(adapter / "adapter_config.json", base_model_name_or_path=named)
    refused(adapter, ".", LLM2VecError)


# ---- what transformers would fetch, run or put in the place of what is not there ------------------------------------

FETCHED = ["mxfp4", "fp8", "mxfp8", "nvfp4", "fbgemm_fp8", "metal", "eetq", "gguf", "no_such_method", 3, None]


@pytest.mark.parametrize("method", FETCHED)
def test_a_quantization_with_kernels_on_the_hub_is_the_callers_to_choose(
    folder: Path, saved: Path, method: Any, tmp_path: Path
) -> None:
    for place in (folder, saved):
        edit(place / "config.json", quantization_config={"quant_method": method})
    refused_by_host(saved, "quantization_config names")
    with pytest.raises(InvalidCheckpointError, match="quantization_config names"):
        convert(str(folder), tmp_path / "made")


def test_the_callers_own_quantization_is_taken(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    options = {"quantization_config": Mxfp4Config(dequantize=True)}
    st_llm2vec.load(str(folder), device="cpu", model_kwargs=options)


ACTIVATIONS = ["os.system", "torch.os.abort", "torch.testing._internal.common_utils.TestCase", "tanh", 3, None]


def with_dense(folder: Path, **config: Any) -> None:
    (folder / "2_Dense").mkdir()
    Dense(32, 16).save(str(folder / "2_Dense"))
    edit(folder / "2_Dense" / "config.json", **config)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_not_torchs_own_is_not_another_one(saved: Path, name: Any) -> None:
    """sentence-transformers imports what begins with torch, and takes Tanh in the place of the rest."""
    with_dense(saved, activation_function=name)
    refused_by_host(saved, "activation_function must be a class of torch.nn")


def test_an_activation_of_torch_opens(saved: Path) -> None:
    with_dense(saved, activation_function="torch.nn.modules.activation.ReLU")
    assert (st_llm2vec.load(str(saved), device="cpu").encode(["a"]) >= 0).all()


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**9},
        {"num_hidden_layers": 900},
        {"vocab_size": 1 << 24},
        {"intermediate_size": 1 << 20},
        {"model_type": "llama4"},  # of a hundred billion weights by its defaults
    ],
    ids=str,
)
def test_weights_that_the_files_do_not_have_are_not_made(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    refused(folder, "must be at most|layers by its config.json|lack most tensors|lack .* tensors")


def test_wide_layers_that_the_files_do_not_have_are_not_made(tmp_path: Path) -> None:
    """Each fits its first one: as many as the config says would fill the memory before one is missed."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    folder = save_decoder(tmp_path / "wide", num_hidden_layers=1, intermediate_size=512, **sizes)
    edit(folder / "config.json", num_hidden_layers=120)
    refused(folder, "lack most tensors")


MANY = [f"<{i}>" for i in range(20_000)]
TOKENS: list[tuple[str, dict[str, Any]]] = [
    ("tokenizer_config.json", {"additional_special_tokens": MANY}),
    ("tokenizer_config.json", {"extra_special_tokens": MANY}),
    ("tokenizer_config.json", {"added_tokens_decoder": {str(i): {"content": t} for i, t in enumerate(MANY)}}),
    ("special_tokens_map.json", {"additional_special_tokens": MANY}),
    ("added_tokens.json", {t: i for i, t in enumerate(MANY)}),
    ("tokenizer.json", {"added_tokens": [{"id": i, "content": t, "special": True} for i, t in enumerate(MANY)]}),
]


@pytest.mark.parametrize(("file", "changes"), TOKENS, ids=lambda value: str(value)[:40])
def test_more_added_tokens_than_any_tokenizer_has_are_refused(folder: Path, file: str, changes: dict[str, Any]) -> None:
    edit(folder / file, **changes)
    refused(folder, "at most 16,384")


CHARSMAPS = ["/////w==", "AAAA", "BQAAAGFhYWFh"]  # 4 GB; no length; 5 bytes, which are no numbers of 4


@pytest.mark.parametrize("charsmap", CHARSMAPS)
def test_a_map_of_characters_has_the_length_that_it_names(folder: Path, charsmap: str) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})
    refused(folder, "precompiled_charsmap has")


def test_word_pieces_and_parts_of_no_length_are_refused(folder: Path) -> None:
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "FixedLength", "length": 0})
    refused(folder, "length must be at least 1")
    edit(folder / "tokenizer.json", pre_tokenizer=None, model={"type": "WordPiece", "max_input_chars_per_word": 10_000})
    refused(folder, "max_input_chars_per_word must be at most 1,000")


# ---- patterns ------------------------------------------------------------------------------------------------------

# Each was taken for harmless, and is not: what repeats stands behind a blank, a comment, a control character, ...
HIDDEN = [
    r"(?x)(a+) +$",
    r"(?mx:(a+) +)$",
    r"(a+)(?#c)+$",
    r"a{0,9}{0,9}{0,9}b",
    r"a**b",
    r"(?:\c)|a+)+$",
    r"(?:\C-)|a+)+$",
    r"(?Wx)(a+) +$",
    r"(?(1)a|b)",
    r"(?P=x)",
    r"a)",
]


@pytest.mark.parametrize("nested", [True, False], ids=["Oniguruma", "Python"])
@pytest.mark.parametrize("pattern", HIDDEN)
def test_a_repeat_that_hides_is_found(pattern: str, nested: bool) -> None:
    with pytest.raises(InvalidCheckpointError, match="busy for ever"):
        require_finite_pattern(Path("x"), pattern, nested=nested)


def test_what_a_bracket_and_a_mark_mean_depends_on_who_reads() -> None:
    """Classes nest in Oniguruma only; there, a mark behind {n} is a further quantifier."""
    behind_a_class = r"(?:[[^]|)([\w.]+)+![^]]"
    with pytest.raises(InvalidCheckpointError, match="busy for ever"):
        require_finite_pattern(Path("x"), behind_a_class, nested=False)
    require_finite_pattern(Path("x"), r"[a-z&&[^aeiou(+]]+", nested=True)
    for pattern in (r"(a{1}+)+$", "a{1}?" * 13):
        with pytest.raises(InvalidCheckpointError, match="busy for ever"):
            require_finite_pattern(Path("x"), pattern, nested=True)
        re.compile(pattern) if "+" not in pattern else None
        require_finite_pattern(Path("x"), pattern, nested=False)
    require_finite_pattern(Path("x"), r"\p{N}{1,3}+| ?\p{L}++")  # as published: nothing can fail behind it


def test_an_adapters_patterns_are_pythons(tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(KIT / "models" / "llama-mntp", tmp_path / "adapter"))
    edit(adapter / "adapter_config.json", alpha_pattern={r"(?:[[^]|)([\w.]+)+![^]]": 8})
    refused(adapter, "busy for ever")


BREAKING: list[dict[str, Any]] = [
    {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "b"}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "bb"}},
    {"model": {"type": "BPE", "unk_token": "zz", "fuse_unk": True, "vocab": {"b": 0}, "merges": []}},
    {"model": {"type": "WordLevel", "unk_token": "zz", "vocab": {"a": 1}}},
]


@pytest.mark.parametrize("part", BREAKING, ids=str)
def test_a_tokenizer_that_fails_at_a_text_ends_in_our_error(folder: Path, part: dict[str, Any]) -> None:
    edit(folder / "tokenizer.json", **part)
    with pytest.raises(LLM2VecError):
        st_llm2vec.load(str(folder), device="cpu").encode(["a" * 3000, "the quick brown fox", "z"])


# ---- chat templates ------------------------------------------------------------------------------------------------

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99) %}" + "{% endfor %}" * 3
# transformers knows the tag, the filter's option and the function; a renderer that does not would end at once.
OURS_ALONE = [
    "{% generation %}{% endgeneration %}" + LOOP,
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ strftime_now('%Y' * 10**8) }}",
    "{{ 'x' * 10**7 }}{{ messages[0].content }}",
]


@pytest.mark.parametrize("template", OURS_ALONE, ids=lambda text: text[:20])
def test_a_chat_template_runs_apart_in_whatever_transformers_knows(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, "takes more than 1 s or 512 MB", InvalidInputError, template="chat")


def test_a_chat_template_never_runs_in_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}</s>{% endfor %}"
    (folder / "chat_template.jinja").write_text(turn)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def run_here(*_: Any, **__: Any) -> None:
        raise AssertionError("rendered in this process")

    monkeypatch.setattr(tokenizer, "apply_chat_template", run_here, raising=False)
    assert own_template(tokenizer).to_dict() == {"prefix": "<user>", "suffix": "</s>"}


# ---- an encoder's own files ----------------------------------------------------------------------------------------


def test_no_prompt_is_no_prompt_as_in_sentence_transformers(saved: Path) -> None:
    """Plain sentence-transformers opens it, and `encode_query` puts nothing before a text."""
    model = st_llm2vec.load(str(saved), device="cpu", prompts={"query": "find: "})
    model.save_pretrained(str(saved.parent / "prompted"))
    edit(saved.parent / "prompted" / "config_sentence_transformers.json", prompts={"query": None, "x": "y: "})
    for opened in (
        st_llm2vec.load(str(saved.parent / "prompted"), device="cpu"),
        SentenceTransformer(str(saved.parent / "prompted"), device="cpu"),
    ):
        assert (opened.encode_query(["the fox"]) == opened.encode(["the fox"])).all()
        assert not (opened.encode(["the fox"], prompt_name="x") == opened.encode(["the fox"])).all()


@pytest.mark.parametrize("value", ["x", 0, -1, 8.5, True, [8]])
def test_a_length_of_vectors_is_a_number_from_1_on(saved: Path, value: Any) -> None:
    edit(saved / "config_sentence_transformers.json", truncate_dim=value)
    refused_by_host(saved, "truncate_dim must be a whole number from 1 on")


@pytest.mark.parametrize("mode", [3, {"a": 1}, [3]])
def test_a_pooling_is_a_name(saved: Path, mode: Any) -> None:
    pooling = json.loads((saved / "modules.json").read_text())[1]["path"]
    edit(saved / pooling / "config.json", pooling_mode=mode)
    refused_by_host(saved, "pooling_mode must be a name, or a list of names")
    edit(saved / pooling / "config.json", pooling_mode=["mean", "cls"])
    refused_by_host(saved, "pooling_mode", LLM2VecError)


MARKUP = "<img src=x onerror=alert(1)>"
ROW = {"stage": "mntp", "r": 16, "alpha": 32, "targets": ["q_proj"]}
TRAINING: dict[str, Any] = {
    "settings": {"objective": "mntp", "seed": 1},
    "data": {"nli": {"rows": 10}},
    "steps": 3,
    "before": {"sts": 0.1},
    "after": {"sts": 0.2},
}
PROVENANCE: list[Any] = [
    {"lora": 3},
    {"lora": [3]},
    {"lora": [ROW | {"stage": MARKUP}]},
    {"lora": [ROW | {"targets": [MARKUP]}]},
    {"lora": [ROW | {"r": "|"}]},
    {"stages": 3},
    {"stages": [MARKUP]},
    {"training": {}},
    {"training": [3]},
    {"training": [{"settings": {}}]},
    {"training": [TRAINING | {"steps": MARKUP}]},
    {"training": [TRAINING | {"settings": {"objective": MARKUP, "seed": 1}}]},
    {"training": [TRAINING | {"after": {MARKUP: 0.5}, "before": {MARKUP: 0.5}}]},
    {"training": [TRAINING | {"data": {"nli": {"rows": MARKUP}}}]},
    {"checkpoints": [3]},
    {"checkpoints": [{"name": "a"}]},
    {"base_model": 3},
    {"checkpoints": 3},
    {"gguf": 3},
    {"license": {"a": 1}},
    {"license": f"mit\n---\n{MARKUP}"},
]


@pytest.mark.parametrize("provenance", PROVENANCE, ids=str)
def test_what_a_card_is_written_from_has_the_form_that_we_write(saved: Path, provenance: Any) -> None:
    edit(saved / "llm2vec_config.json", provenance=provenance)
    refused_by_host(saved, "provenance must be an object as save_pretrained writes it")


def test_the_provenance_that_we_write_passes(saved: Path) -> None:
    told = {"lora": [ROW], "stages": ["mntp"], "license": "apache-2.0", "gguf": {"dtype": "float32"}, "checkpoints": []}
    edit(saved / "llm2vec_config.json", provenance=told)
    st_llm2vec.load(str(saved), device="cpu").save_pretrained(str(saved.parent / "again"))
    assert "| mntp | 16 | 32 | q_proj |" in (saved.parent / "again" / "README.md").read_text()


def test_names_that_a_stranger_chose_mark_up_no_card(saved: Path) -> None:
    """Data sets, base models, checkpoints and prompts have names and texts of any form: shown, never rendered."""
    training = TRAINING | {"data": {f"nli | ```{MARKUP}": {"rows": 10, "file": f"```\n{MARKUP}"}}}
    checkpoints = [{"name": MARKUP, "commit": f"`{MARKUP}"}]
    told = {"training": [training], "base_model": f"me/it\n{MARKUP}", "checkpoints": checkpoints}
    edit(saved / "llm2vec_config.json", provenance=told)
    edit(saved / "config_sentence_transformers.json", prompts={"query": f"`{MARKUP}\n\n{MARKUP}", "document": ""})
    st_llm2vec.load(str(saved), device="cpu").save_pretrained(str(saved.parent / "again"))
    card = (saved.parent / "again" / "README.md").read_text()
    blocks = re.split(r"^```.*$", card, flags=re.M)
    assert len(blocks) % 2 == 1  # each block that begins ends
    assert MARKUP not in re.sub(r"`[^`\n]*`", "", "".join(blocks[::2]))
    assert MARKUP in card  # in the block of settings and data, as it is
