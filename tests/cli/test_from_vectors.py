"""`index --from-vectors`: what encode wrote becomes a store, as if its inputs had been indexed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_encoder import FakeEncoder

from faiss_llm2vec import FaissStore
from st_llm2vec import encode_corpus

from .conftest import Command, Done, write_jsonl
from .test_index import Killed, index_command_raising

ROWS = [{"text": f"text {i}", "key": f"k{i}", "year": 2000 + i, "tags": ["a", str(i)]} for i in range(10)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def encode(rows: list[dict[str, Any]], **options: Any) -> None:
    encode_corpus(
        FakeEncoder(), write_jsonl(Path("a.jsonl"), rows), "vectors", id_column="key", **{"shard_size": 4, **options}
    )


def held(store: str = "store") -> tuple[list[Any], Any]:
    with FaissStore.open(store) as opened:
        assert opened.verify() == []
        records = opened.get(where={}, with_vectors=True)
    return [(r.id, r.text, r.metadata) for r in records], np.stack([r.vector for r in records])


def index(command: Command, *options: str) -> Done:
    return command("index", "--from-vectors", "vectors", "store", *options)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_store_is_what_the_inputs_would_have_made_of_it(command: Command, format: str) -> None:
    encode(ROWS, format=format)
    done = index(command, "--commit-every", "3")
    assert (done.code, "10 added, 0 updated, 0 unchanged, 0 deleted; 10 in all" in done.err) == (0, True), done.err
    with FaissStore.create("direct", FakeEncoder()) as store:
        meta = [{"year": row["year"], "tags": row["tags"], "source": "a.jsonl"} for row in ROWS]
        store.add([row["text"] for row in ROWS], ids=[row["key"] for row in ROWS], metadata=meta)
    (rows, vectors), (wanted, wanted_vectors) = held(), held("direct")
    assert rows == wanted
    np.testing.assert_array_equal(vectors, wanted_vectors)
    with FaissStore.open("store", FakeEncoder()) as store:  # the fingerprint is that of the encoder
        assert store.search("text 3", k=1)[0].id == "k3"


def test_it_follows_vectors_that_change(command: Command) -> None:
    encode(ROWS)
    assert index(command).code == 0
    assert "10 unchanged" in index(command).err
    encode([{**ROWS[0], "text": "new"}, *ROWS[2:]])
    refused = index(command)
    assert (refused.code, "Give --upsert" in refused.err) == (1, True)
    done = index(command, "--sync")
    assert "0 added, 1 updated, 8 unchanged, 1 deleted; 9 in all" in done.err
    rows, vectors = held()
    assert np.abs(vectors - FakeEncoder().encode_document([text for _, text, _ in rows])).max() <= 1e-6


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_killed_run_is_gone_on_with(command: Command, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    encode(ROWS)
    calls = 0
    upsert = FaissStore.upsert

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        return upsert(*arguments, **options)

    line = ("index", "--from-vectors", "vectors", "store", "--commit-every", "3")
    with monkeypatch.context() as patch:
        patch.setattr(FaissStore, "upsert", counted)
        with pytest.raises(Killed):
            index_command_raising(line)
    done = index(command, "--commit-every", "3")
    assert f"{10 - 3 * (step - 1)} added, 0 updated, {3 * (step - 1)} unchanged" in done.err
    rows, vectors = held()
    assert [id for id, _, _ in rows] == [row["key"] for row in ROWS]
    assert np.abs(vectors - FakeEncoder().encode_document([text for _, text, _ in rows])).max() <= 1e-6


def test_what_is_no_good_is_said_before_a_store_is_made(command: Command) -> None:
    def said() -> str:
        done = index(command)
        assert done.code == 1
        assert not Path("store").exists()
        return " ".join(done.err.split())

    assert "vectors has no manifest.json. Give a folder that st-llm2vec encode wrote." in said()
    encode(ROWS)
    part = min(Path("vectors").glob("*.parquet"))
    whole = part.read_bytes()
    for broken in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1]):
        part.write_bytes(broken)
        assert f"{part} is missing or was changed. Run the same st-llm2vec encode again" in said()
    part.unlink()
    assert "is missing or was changed" in said()
    part.write_bytes(whole)
    manifest = Path("vectors/manifest.json")
    complete = manifest.read_text()
    manifest.write_text(complete.replace('"complete": true', '"complete": false'))
    assert "vectors is not finished. Run the same st-llm2vec encode again first." in said()
    manifest.write_text(complete.replace('"task": "document"', '"task": "query"'))
    assert "vectors was encoded as queries, and a store holds documents as its model encodes them" in said()
    manifest.write_text(complete.replace('"prompt": null', '"prompt": "Find: "'))
    assert "vectors was encoded as the prompt 'Find: '" in said()
    manifest.write_text(complete)
    for option in (["--chunk-size", "3"], ["a.jsonl"], ["-m", "other"]):
        done = command("index", "--from-vectors", "vectors", *option, "store")
        assert (done.code, "it is encoded already: leave" in " ".join(done.err.split())) == (2, True), done.err
    assert index(command).code == 0
    with FaissStore.create("other", FakeEncoder("two")):
        pass
    assert "other was made with" in command("index", "--from-vectors", "vectors", "other").err


@pytest.mark.parametrize("how", [("--dtype", "bfloat16"), ("--max-seq-length", "9"), ("--quantize", "int8")])
def test_a_store_is_searched_and_added_to_as_it_was_encoded(
    command: Command, encoder: Path, texts: Path, how: tuple[str, str]
) -> None:
    if how[0] == "--quantize":  # which is refused for weights at random
        encoder = Path("llm2vec-tiny")
    assert command("encode", texts, "vectors", "-m", encoder, "--device", "cpu", *how).code == 0
    made = index(command)
    assert made.code == 0, made.err
    assert (f"Search it with {' '.join(how)}" in made.err) == (how[0] != "--max-seq-length")
    other = command("search", "store", "lazy dogs", "--device", "cpu")
    assert (other.code, "with its --dtype, --quantize and --max-seq-length" in other.err) == (1, True), other.err
    found = command("search", "store", "seven wizards compress files", "-k", "1", "--json", "--device", "cpu", *how)
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["hits"][0]["text"] == "seven wizards compress files"
    Path("more.txt").write_text("one more dog\n")
    assert command("index", "more.txt", "store", "--device", "cpu", *how).code == 0


@pytest.mark.parametrize("there", [False, True])
def test_vectors_of_unit_length_are_no_part_of_a_store_where_length_counts(command: Command, there: bool) -> None:
    encode(ROWS, normalize=True)
    if there:
        FaissStore.create("store", None, metric="dot", fingerprint="one").close()
    done = index(command, *([] if there else ["--metric", "dot"]))
    assert (done.code, "was encoded with --normalize" in done.err, "'dot'" in done.err) == (1, True, True)
    assert Path("store").exists() == there
    if not there:
        assert index(command).code == 0
