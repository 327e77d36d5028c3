"""A folder of texts becomes a folder of vectors, shard by shard; what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_llm2vec.corpus import encode_shard
from st_llm2vec.errors import InvalidInputError

from .conftest import SENTENCES, Command, write_jsonl

SETTING: dict[str, Any] = {"fingerprint": "one", "normalize": False}


class Embed:
    """Lengths of texts as vectors; remembers what it was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> Any:
        self.texts += texts
        return np.array([[len(text), 1.0] for text in texts], dtype="f4")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "corpus" / "a.jsonl", [{"text": text} for text in SENTENCES[:3]])
    (tmp_path / "corpus" / "b.txt").write_text("\n".join(SENTENCES[3:]), encoding="utf-8")
    (tmp_path / "corpus" / "README.md").write_text("no texts", encoding="utf-8")
    return tmp_path / "corpus"


def encode(corpus: Path, target: Path, embed: Embed, **changes: Any) -> int:
    return encode_shard(corpus / "b.txt", target, embed, text_column="text", setting=SETTING | changes)


def test_a_shard_is_encoded_once_and_again_when_anything_it_is_made_of_changes(corpus: Path, tmp_path: Path) -> None:
    target, embed = tmp_path / "out" / "b.npy", Embed()
    assert encode(corpus, target, embed) == 5
    assert np.load(target)[:, 0].tolist() == [len(text) for text in SENTENCES[3:]]
    assert encode(corpus, target, embed) == 0
    assert encode(corpus, target, embed, fingerprint="two") == 5
    (corpus / "b.txt").write_text("changed", encoding="utf-8")
    assert encode(corpus, target, embed, fingerprint="two") == 1
    target.write_bytes(b"cut")
    assert encode(corpus, target, embed, fingerprint="two") == 1
    done = json.loads((tmp_path / "out" / "b.npy.done.json").read_text())
    assert (done["rows"], done["dimension"], done["fingerprint"]) == (1, 2, "two")


@pytest.mark.parametrize("when", ["encoding", "writing the vectors", "writing the note"])
def test_a_shard_that_was_interrupted_is_not_taken_for_done(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    target, embed = tmp_path / "out" / "b.npy", Embed()

    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "writing the vectors":
            patch.setattr(np, "save", interrupted)
        if when == "writing the note":
            patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode(corpus, target, interrupted if when == "encoding" else embed)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.glob("out/*")} == ({"b.npy"} if when == "writing the note" else set())
    assert encode(corpus, target, Embed()) == 5
    assert encode(corpus, target, Embed()) == 0


def test_the_command_encodes_a_folder_and_resumes(
    command: Command, corpus: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vectors"
    arguments = ("encode", corpus, out, "--model", encoder, "--device", "cpu")
    done = command(*arguments)
    assert done.code == 0, done.err
    assert "2 of 2 shards encoded" in done.err
    single = tmp_path / "single.npy"
    assert command("encode", corpus / "b.txt", single, "--model", encoder, "--device", "cpu").code == 0
    np.testing.assert_allclose(np.load(out / "b.txt.npy"), np.load(single), atol=1e-6)
    (out / "a.jsonl.npy").unlink()
    assert "1 of 2 shards encoded" in command(*arguments).err
    assert "2 of 2 shards encoded" in command(*arguments, "--normalize").err
    assert "2 of 2 shards encoded" in command(*arguments, "--to", "parquet").err


def test_a_folder_without_texts_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("encode", tmp_path / "empty", tmp_path / "out")
    assert done.code == 1
    assert "has no file that ends in .txt" in done.err


def test_an_ending_that_cannot_be_written_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"ends in '\.bin'"):
        encode(corpus, tmp_path / "b.bin", Embed())
