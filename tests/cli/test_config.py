"""The user's defaults, and what is said of a large model before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from faiss_llm2vec import FaissStore
from st_llm2vec import aliases
from st_llm2vec.cli.config import config_file
from st_llm2vec.cli.options import cost_of

from .conftest import Command


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_the_file_gives_defaults_and_the_command_line_comes_first(
    command: Command, home: Path, texts: Path, tmp_path: Path, encoder: Path
) -> None:
    config_file().write_text(f"[index]\nmodel = {str(encoder)!r}\nkind = 'sq8'\n\n[search]\nk = 2\njson = true\n")
    assert config_file() == home / "config.toml"
    for name, options, kind in (("one", (), "sq8"), ("two", ("--kind", "flat"), "flat")):
        assert command("index", texts, tmp_path / name, *options).code == 0
        with FaissStore.open(tmp_path / name) as store:
            assert store.stats()["kind"] == kind
            assert store.stats()["model"] == str(encoder)
    assert command("search", tmp_path / "one", "fox").out.count('"id"') == 2
    assert command("search", tmp_path / "one", "fox", "-k", 3).out.count('"id"') == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[indx]\nkind = 'flat'\n", "Did you mean 'index'? "),
        ("[index]\nchunksize = 3\n", "Did you mean 'chunk-size'? "),
        ("kind = 'flat'\n", "there is no command 'kind'"),
        ("[index]\nkind = {a = 1}\n", "[index] has no option 'kind'"),
        ("[models.remove]\nname = 'x'\n", "has no option 'name'"),
        ("[index", "is not valid TOML"),
    ],
)
def test_a_file_that_means_nothing_is_named(command: Command, content: str, said: str) -> None:
    config_file().write_text(content)
    done = command("models")
    assert done.code == 1
    assert said in done.err
    assert str(config_file()) in done.err


def test_a_value_that_an_option_cannot_have_is_refused(command: Command, texts: Path, tmp_path: Path) -> None:
    config_file().write_text("[index]\nbatch-size = 0\n")
    done = command("index", texts, tmp_path / "store")
    assert (done.code, "--batch-size" in done.err) == (2, True)


@pytest.mark.parametrize("name", [name for name in aliases.ALIASES if name != "llm2vec-tiny"])
def test_what_a_published_name_takes_is_said_before_it_starts(command: Command, home: Path, name: str) -> None:
    said = cost_of(name)
    assert f"keeps {2 * aliases.BILLIONS[name.removesuffix('-supervised').removesuffix('-mntp')]:.1f} GB more" in said
    assert str(home / "models") in said
    kept = aliases.kept_folder(name, aliases.ALIASES[name])
    kept.mkdir(parents=True)
    assert "GB of memory in bfloat16" in cost_of(name)
    assert "downloads" not in cost_of(name)


def test_it_comes_before_the_loading_and_not_for_what_is_small(command: Command, texts: Path, tmp_path: Path) -> None:
    done = command("encode", texts, tmp_path / "v.npy", "--model", "llm2vec-mistral")
    assert done.code == 1  # no network here
    assert done.err.startswith("llm2vec-mistral takes 14.5 GB of memory in bfloat16, 29.0 GB in float32")
    assert done.err.index("downloads 14.5 GB") < done.err.index("Loading llm2vec-mistral ...")
    assert cost_of("llm2vec-tiny") == cost_of("owner/name") == ""
    aliases.register_alias("llm2vec-mistral", str(tmp_path))
    try:
        assert cost_of("llm2vec-mistral") == ""  # somebody's own, of another size
    finally:
        aliases.unregister_alias("llm2vec-mistral")
