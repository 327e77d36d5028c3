"""`search` of a store that knows its model, by words as well, and the errors that name both models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from st_llm2vec.cli.tables import print_table
from st_llm2vec.cli.terminal import escaped

from .conftest import SENTENCES, Command, write_jsonl


def test_search_needs_no_model_and_finds_words(command: Command, encoder: Path, texts: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert command("index", texts, store, "--model", encoder, "--device", "cpu").code == 0
    found = command("search", store, SENTENCES[1], "-k", 1, "--json", "--device", "cpu")
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["hits"][0]["text"] == SENTENCES[1]
    found = command("search", store, "wizard", "-k", 3, "--hybrid", "--json")
    assert {hit["text"] for hit in json.loads(found.out)[0]["hits"]} >= {SENTENCES[1], SENTENCES[4]}
    assert json.loads(found.out)[0]["hits"][0]["score"] <= 2 / 61
    other = command("search", store, "wizard", "-m", "llm2vec-tiny")
    assert other.code == 1
    assert str(encoder) in other.err
    assert "'llm2vec-tiny'" in other.err
    encoder.rename(encoder.with_name("moved"))
    try:
        gone = command("search", store, "wizard")
        assert gone.code == 1
        assert f"-m {encoder}" in " ".join(gone.err.split())
    finally:
        encoder.with_name("moved").rename(encoder)
    assert command("search", store, "wizard", "-m", encoder).code == 0
    nothing = command("search", store, "wizard", "--rerank", tmp_path / "none")
    assert nothing.code == 1
    assert "safetensors" in nothing.err


def test_ids_are_whole_and_fields_without_room_are_named(
    command: Command, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {f"field_{n}": f"a value of field {n}" for n in range(9)} | {"score": 7, "[b]evil\x1b": "x"}
    key = f"a key with blanks {'x' * 30}"
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{SENTENCES[0]} " * 5, "key": key, **fields}])
    assert command("index", source, tmp_path / "s", "--id-column", "key", "-m", encoder, "--device", "cpu").code == 0
    monkeypatch.setenv("COLUMNS", "110")
    found = command("search", tmp_path / "s", "the fox")
    lines = found.out.splitlines()
    assert key in found.out
    assert max(map(len, lines)) == 110
    shown = [name for name in fields if name != "score" and name in lines[2]]
    assert 0 < len(shown) < 9
    hidden = [escaped(name) for name in fields if name not in shown]
    assert f"There is no room for {', '.join(hidden)}. Choose fields with --show" in found.err
    found = command("search", tmp_path / "s", "the fox", "--show", ",".join(fields))  # what is asked for is all there
    assert key in found.out
    assert all(escaped(name) in found.out.splitlines()[2] for name in fields)
    assert "no room" not in found.err
    monkeypatch.delenv("COLUMNS")  # a file, which has room
    found = command("search", tmp_path / "s", "the fox")
    assert all(escaped(name) in found.out.splitlines()[2] for name in fields)
    assert "no room" not in found.err
    monkeypatch.setenv("COLUMNS", "20")
    assert key in command("search", tmp_path / "s", "the fox").out
    found = command("search", tmp_path / "s", "the fox", "--where", '{"score": 8}')
    assert found.out == ""
    assert "no document matches the filter" in found.err


def test_no_cell_of_a_table_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a" * 30, "some words", "b c " * 10), ("编码器" * 5, "1", "3")]
    for width in ("10", "40", "200"):
        monkeypatch.setenv("COLUMNS", width)
        print_table(("x", "y", "z"), rows)
        shown = capsys.readouterr().out
        assert all(word in shown for row in rows for word in row[1].split())
        assert all(row[0] in shown and row[2].strip() in shown for row in rows)
    print_table(("x",), [])
    assert capsys.readouterr().out == ""
