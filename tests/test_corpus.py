"""`encode_corpus`: what an interrupted run leaves is what an undisturbed one leaves; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from fake_encoder import FakeEncoder, vectors

import st_llm2vec
from st_llm2vec import atomic
from st_llm2vec.cli import encode as encode_command
from st_llm2vec.cli import main
from st_llm2vec.corpus import encode_corpus
from st_llm2vec.embedding import Embed
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.ingestion import Records

ROWS = [{"key": i, "text": f"text number {i}", "year": 2000 + i, "tags": ["a", str(i)]} for i in range(10)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus" / "rows.jsonl"
    write(path, ROWS)
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def table(folder: Path) -> Any:
    return pyarrow.concat_tables(pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet")))


def test_shards_hold_ids_texts_typed_columns_and_vectors(corpus: Path, tmp_path: Path) -> None:
    done = encode_corpus(FakeEncoder(), corpus, tmp_path / "out", id_column="key", shard_size=4)
    assert (done.texts, done.encoded, done.shards, done.dimension, done.skipped) == (10, 10, 3, 8, 0)
    found = table(tmp_path / "out")
    assert found.column_names == ["id", "text", "year", "tags", "source", "embedding"]
    assert found["id"].to_pylist() == [str(i) for i in range(10)]
    assert str(found.schema.field("year").type) == "int64"
    assert str(found.schema.field("embedding").type).startswith("fixed_size_list<")
    np.testing.assert_array_equal(np.array(found["embedding"].to_pylist(), "f4"), vectors([r["text"] for r in ROWS]))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["fingerprint"], manifest["texts"], manifest["complete"]) == ("one", 10, True)
    for entry in manifest["shards"]:
        content = (tmp_path / "out" / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_npy_shards_have_their_rows_beside_them(corpus: Path, tmp_path: Path) -> None:
    encode_corpus(FakeEncoder(), corpus, tmp_path / "out", format="npy", shard_size=6)
    parts = sorted((tmp_path / "out").glob("*.npy"))
    rows = [json.loads(line) for part in parts for line in part.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert rows[3]["id"] == f"{corpus}:4"
    assert rows[3]["metadata"] == {"key": 3, "year": 2003, "tags": ["a", "3"], "source": str(corpus)}
    np.testing.assert_array_equal(np.concatenate([np.load(part) for part in parts]), vectors([r["text"] for r in ROWS]))


def test_an_encoder_without_a_fingerprint_is_told_by_its_class_and_name(corpus: Path, tmp_path: Path) -> None:
    encoder: Any = FakeEncoder()
    encoder.fingerprint, encoder.transformers_model = None, SimpleNamespace(name_or_path="models/small")
    encode_corpus(encoder, corpus, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["fingerprint"], manifest["model"]) == ("FakeEncoder small", "models/small")
    with pytest.raises(InvalidInputError, match="vectors made with another model"):
        encode_corpus(FakeEncoder(), corpus, tmp_path / "out")


class Killed(BaseException):
    """As a kill: nothing may be tidied up on its account."""


@pytest.mark.parametrize("format", ["parquet", "npy"])
@pytest.mark.parametrize("step", range(8))
def test_a_killed_run_is_gone_on_with_and_leaves_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, step: int
) -> None:
    encode_corpus(FakeEncoder(), corpus, tmp_path / "calm", format=format, shard_size=4)
    calls = 0

    def before(step_of: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise Killed
            return step_of(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", before(atomic.os.replace))
        patch.setattr(Embed, "__call__", before(Embed.__call__))
        with pytest.raises(Killed):
            encode_corpus(FakeEncoder(), corpus, tmp_path / "out", format=format, shard_size=4)
    (tmp_path / "out" / ".draft-0").mkdir(parents=True)  # as a kill leaves it
    (tmp_path / "out" / ".draft-0" / "manifest.json").write_bytes(b"half")
    written = len(list((tmp_path / "out").glob(f"0*.{format}")))
    again = FakeEncoder()
    done = encode_corpus(again, corpus, tmp_path / "out", format=format, shard_size=4)
    assert len(again.texts) == done.encoded == max(0, 10 - 4 * written)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_a_second_run_encodes_what_changed_wherever_it_moved(corpus: Path, tmp_path: Path) -> None:
    encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=4)
    again = FakeEncoder()
    assert encode_corpus(again, corpus, tmp_path / "out", shard_size=4).encoded == 0
    moved = [*ROWS[:3], ROWS[9], *ROWS[6:9], *ROWS[3:5]]
    write(corpus, [{"text": "new"}, *moved])
    done = encode_corpus(again, corpus, tmp_path / "out", shard_size=4)
    assert again.texts == ["new"]
    assert (done.encoded, done.texts) == (1, 10)
    texts = table(tmp_path / "out")["text"].to_pylist()
    assert texts == ["new", *(row["text"] for row in moved)]
    found = np.array(table(tmp_path / "out")["embedding"].to_pylist(), "f4")
    np.testing.assert_array_equal(found, vectors(texts))


def test_of_a_hundred_texts_one_that_was_edited_is_encoded(corpus: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}"} for i in range(300)]
    write(corpus, rows)
    assert encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=64).encoded == 300
    assert encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=64).encoded == 0
    edited = [{"text": f"edited {i}"} if i % 100 == 50 else row for i, row in enumerate(rows)]
    write(corpus, edited)
    assert encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=64).encoded == 3


def test_inputs_that_change_after_a_kill(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return real(*arguments)

    real = Embed.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Embed, "__call__", killed)
        with pytest.raises(Killed):
            encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=4)
    write(corpus, [{"text": "new", "year": 1}, *ROWS[1:]])
    encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=4)
    encode_corpus(FakeEncoder(), corpus, tmp_path / "calm", shard_size=4)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk: what writes more gets an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_full_disk_costs_one_shard(corpus: Path, tmp_path: Path, format: str) -> None:
    long = [{"text": "".join(random.Random(i).choices(string.printable, k=90_000))} for i in range(2)]
    write(corpus, [{"text": "one"}, {"text": "two"}, *long, {"text": "three"}])
    encode_corpus(FakeEncoder(), corpus, tmp_path / "calm", format=format, shard_size=2)
    with files_of_at_most(80_000), pytest.raises(OSError, match="File too large"):
        encode_corpus(FakeEncoder(), corpus, tmp_path / "out", format=format, shard_size=2)
    assert len(list((tmp_path / "out").glob(f"0*.{format}"))) == 1
    assert encode_corpus(FakeEncoder(), corpus, tmp_path / "out", format=format, shard_size=2).encoded == 3
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_no_room_for_the_texts_themselves_is_said(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    rows = ({"text": f"{i} " + "x" * 10_000} for i in range(2000))
    with files_of_at_most(1_000_000), pytest.raises(OSError, match=r"no room for the texts in .* Set TMPDIR"):
        encode_corpus(encoder, rows, tmp_path / "out")
    assert not encoder.texts
    assert not (tmp_path / "out").exists()


def test_a_shard_that_was_removed_or_cut_by_hand_is_made_again(corpus: Path, tmp_path: Path) -> None:
    encode_corpus(FakeEncoder(), corpus, tmp_path / "out", shard_size=4)
    before = files(tmp_path / "out")
    first, second, _ = sorted((tmp_path / "out").glob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    again = FakeEncoder()
    encode_corpus(again, corpus, tmp_path / "out", shard_size=4)
    assert len(again.texts) == 8
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        (FakeEncoder("two"), {}, "vectors made with another model"),
        (FakeEncoder(), {"normalize": True}, "vectors made with normalize=False, not normalize=True"),
        (FakeEncoder(), {"format": "npy"}, "vectors made with format='parquet'"),
    ],
)
def test_vectors_of_another_model_or_setting_stay(
    corpus: Path, tmp_path: Path, encoder: FakeEncoder, options: dict[str, Any], message: str
) -> None:
    encode_corpus(FakeEncoder(), corpus, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(InvalidInputError, match=message):
        encode_corpus(encoder, corpus, tmp_path / "out", **options)
    assert not encoder.texts
    assert files(tmp_path / "out") == before


def test_a_folder_of_something_else_stays(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="choose a new or empty folder"):
        encode_corpus(FakeEncoder(), corpus, corpus.parent)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"manifest\.json is damaged"):
        encode_corpus(FakeEncoder(), corpus, tmp_path / "out")


REFUSED_OUTPUTS = [
    ("v.csv", "or a file that ends in .parquet or .npy, got"),
    ("v.jsonl", "or a file that ends in .parquet or .npy, got"),
    ("v.NPZ", "or a file that ends in .parquet or .npy, got"),
    ("folder.npy", "is a folder, and its name that of a file"),
    ("file", "is a file"),
    ("others", "has files in it, and no manifest.json"),
]


@pytest.mark.parametrize(("name", "said"), REFUSED_OUTPUTS)
def test_an_output_that_cannot_be_is_refused_before_the_model_is_opened(
    corpus: Path, tmp_path: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes.txt").touch()
    with pytest.raises(InvalidInputError, match=said):
        encode_corpus("there-is-no-such-model", corpus, tmp_path / name)
    monkeypatch.setattr(encode_command, "open_model", lambda *_, **__: pytest.fail("the model was opened"))
    assert main(["encode", str(corpus), str(tmp_path / name)]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("v.*"))


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_one_file_is_the_shards_joined(corpus: Path, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"v{ending}"
    encode_corpus(FakeEncoder(), corpus, target, shard_size=3)
    expected = vectors([row["text"] for row in ROWS])
    found = np.load(target) if ending == ".npy" else np.array(table(tmp_path)["embedding"].to_pylist(), "f4")
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", target.name]


def test_rows_of_a_program_and_data_sets(tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    encode_corpus(FakeEncoder(), rows, tmp_path / "one", id_column="key")
    encode_corpus(FakeEncoder(), iter(ROWS), tmp_path / "two", id_column="key")
    encode_corpus(FakeEncoder(), Records(row["text"] for row in ROWS), tmp_path / "three")
    rows.save_to_disk(str(tmp_path / "saved"))
    encode_corpus(FakeEncoder(), tmp_path / "saved", tmp_path / "four", id_column="key")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in ("one", "three", "four"):
        assert table(tmp_path / name)["text"].to_pylist() == [row["text"] for row in ROWS]
    with pytest.raises(InvalidInputError, match="mapping of 'train'; give one"):
        encode_corpus(FakeEncoder(), DatasetDict(train=rows), tmp_path / "five")
    with pytest.raises(InvalidInputError, match="a DataFrame of columns: give its rows"):
        encode_corpus(FakeEncoder(), rows.to_pandas(), tmp_path / "five")
    with pytest.raises(InvalidInputError, match="There is no text in an empty list"):
        encode_corpus(FakeEncoder(), [], tmp_path / "five")


@pytest.mark.parametrize("name", ["vectors", "vectors.npy", "vectors.parquet"])
def test_one_run_at_a_time_writes_an_output(tmp_path: Path, name: str) -> None:
    output, encoder = tmp_path / name, FakeEncoder()
    link = tmp_path / f"link-to-{name}"
    link.symlink_to(output)

    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "bears"}
        for same in (output, link):
            with pytest.raises(InvalidInputError, match=f"Another run is writing .*{name}"):
                encode_corpus(FakeEncoder(), [{"text": "banks"}], same)
        assert encode_corpus(FakeEncoder(), [{"text": "banks"}], tmp_path / "other").texts == 1

    assert encode_corpus(encoder, rows(), output).texts == 1
    assert encode_corpus(encoder, [{"text": "bears"}], output).texts == 1


def test_what_is_wrong_is_said_before_anything_is_encoded(corpus: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    for rows, options, message in [
        ([*ROWS, {"text": 5}], {}, "line 11: 'text' is 5"),
        (ROWS, {"text_column": "body"}, "line 1: there is no column 'body'; it has 'key', 'text', 'year', 'tags'"),
        ([{"text": "a", "id": 1}], {}, "rows have a column 'id', which is what the output calls its own"),
        ([*ROWS, ROWS[3]], {"id_column": "key"}, "line 11: the id '3' is given already, in .*rows.jsonl, line 4"),
        (ROWS, {"task": "passage"}, "task must be one of document, query, got 'passage'"),
        (ROWS, {"shard_size": 0}, "shard_size must be an integer of at least 1, got 0"),
        (ROWS, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (ROWS, {"prompt": 3}, "prompt must be a text, got 3"),
        (ROWS, {"normalize": "no"}, "normalize must be True or False, got 'no'"),
        (ROWS, {"late_chunking": "no"}, "late_chunking must be True or False, got 'no'"),
        (ROWS, {"metadata": "yeer"}, "no row has a column 'yeer'"),
        (ROWS, {"chunk_overlap": 5}, "chunk_overlap must be 0 without chunk_size"),
        (ROWS, {"chunk_size": 100}, "chunk_size must be from 1 to 19, .* got 100"),
        (ROWS, {"chunk_size": 2.5}, "chunk_size must be from 1 to 19, .* got 2.5"),
        (ROWS, {"chunk_size": "7"}, "chunk_size must be from 1 to 19, .* got '7'"),
        (ROWS, {"chunk_size": 7, "chunk_overlap": 1.5}, "chunk_overlap must be at least 0 .* got 1.5"),
    ]:
        write(corpus, rows)
        with pytest.raises(InvalidInputError, match=message):
            encode_corpus(encoder, corpus, tmp_path / "out", **options)
    assert not encoder.texts
    assert not (tmp_path / "out").exists()


def test_long_rows_are_said_to_be_cut_or_are_split(tmp_path: Path) -> None:
    rows = [{"text": "word " * 30}, {"text": "short"}]
    assert encode_corpus(FakeEncoder(), rows, tmp_path / "cut").cut == 1
    done = encode_corpus(FakeEncoder(), rows, tmp_path / "split", chunk_size=10)
    assert (done.cut, done.texts) == (0, 4)
    found = table(tmp_path / "split").to_pylist()
    assert [(row["id"], row["chunk"]) for row in found] == [("1#1", 1), ("1#2", 2), ("1#3", 3), ("2", None)]
    with pytest.raises(InvalidInputError, match=r"a \.npy file holds vectors only"):
        encode_corpus(FakeEncoder(), rows, tmp_path / "split.npy", chunk_size=10)


def test_a_long_run_and_its_end_find_the_encoder_in_one_state(tmp_path: Path) -> None:
    small, large = st_llm2vec.load("llm2vec-tiny", device="cpu"), st_llm2vec.load("llm2vec-tiny", device="cpu")
    encode_corpus(small, [{"text": "a"}], tmp_path / "small")
    encode_corpus(large, [{"text": "word " * 10}] * 500, tmp_path / "large")  # one text: the run itself repays nothing
    assert small[0].status["prepacked"].on is None
    assert large[0].status["prepacked"].on
