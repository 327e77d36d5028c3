"""Workers: the same vectors in the same order as one process gives, whichever of them dies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_encoder import Doubled, FakeEncoder, PatientEncoder
from test_corpus import files, table

import st_llm2vec
from st_llm2vec import encode_corpus
from st_llm2vec.cli import main
from st_llm2vec.errors import InvalidInputError, MissingExtraError, WorkerError
from st_llm2vec.workers import in_processes


def test_results_come_in_order_from_every_process() -> None:
    read: list[int] = []
    numbers = set()

    def items() -> Any:
        for item in range(20):
            read.append(item)
            yield f"tag {item}", item

    for done, (tag, (result, number)) in enumerate(in_processes(Doubled(), items(), 2)):
        assert (tag, result) == (f"tag {done}", 2 * done)
        assert len(read) <= done + 5  # no more is held in memory
        numbers.add(number)
    assert len(read) == 20
    assert numbers == {0, 1}


def test_workers_that_are_done_clean_up_after_themselves(tmp_path: Path) -> None:
    """They were terminated, and what their libraries had opened was said to leak, on every run."""
    assert len(list(in_processes(Doubled(cleaned=tmp_path), ((i, i) for i in range(8)), 2))) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize("ordered", [True, False])
def test_what_a_slow_worker_holds_up_is_bounded(tmp_path: Path, ordered: bool) -> None:
    read: list[int] = []

    def items() -> Any:
        for item in range(12):
            read.append(item)
            yield item, item

    found = []
    for tag, (result, _) in in_processes(Doubled(slow=tmp_path), items(), 2, ordered=ordered):
        assert result == 2 * tag
        found.append(tag)
        assert len(read) < len(found) + 4  # two for every process, with the one that is yielded
    assert sorted(found) == list(range(12))
    assert found.index(0) == 0 if ordered else found.index(0) >= 1


def test_shards_are_written_while_a_slow_worker_has_another(tmp_path: Path) -> None:
    rows = [{"text": "slow" if i == 0 else f"text {i}"} for i in range(36)]
    encoder = PatientEncoder(tmp_path / "out" / "00011-*.parquet")  # the last of twelve
    done = encode_corpus(encoder, rows, tmp_path / "out", shard_size=3, workers=2)
    assert done.shards == 12
    assert not done.said
    few = encode_corpus(FakeEncoder(), rows, tmp_path / "few", shard_size=36, workers=2)
    assert few.said == (
        "1 of 2 workers had texts to encode, as one takes a shard. Make those smaller with shard_size.",
    )
    encode_corpus(FakeEncoder(), rows, tmp_path / "alone", shard_size=3)
    assert files(tmp_path / "out") == files(tmp_path / "alone")


@pytest.mark.parametrize("deaths", [1, 2])
def test_an_item_whose_worker_dies_is_given_to_another_once(tmp_path: Path, deaths: int) -> None:
    for i in range(deaths):
        (tmp_path / str(i)).touch()
    found = in_processes(Doubled(tmp_path), ((i, i) for i in range(12)), 2)
    if deaths == 1:
        assert [(tag, result) for tag, (result, _) in found] == [(i, 2 * i) for i in range(12)]
    else:
        with pytest.raises(WorkerError, match=r"two workers died over the same texts \(exit codes \[-9, -9\]"):
            list(found)


def test_what_the_function_raises_is_raised_here() -> None:
    with pytest.raises(InvalidInputError, match="an item below 0"):
        list(in_processes(Doubled(), [(0, -1)], 2))


def test_two_workers_leave_what_one_process_leaves(tmp_path: Path) -> None:
    texts = [{"text": f"number {i}: " + "the quick brown fox " * (i % 7)} for i in range(400)]
    tiny: Any = st_llm2vec.load("llm2vec-tiny", device="cpu")
    reports: list[tuple[int, int]] = []
    alone = encode_corpus(tiny, texts, tmp_path / "one", shard_size=60)
    done = encode_corpus(
        tiny, texts, tmp_path / "two", shard_size=60, workers=2, progress=lambda *report: reports.append(report)
    )
    assert (done.encoded, done.shards) == (alone.encoded, alone.shards) == (400, 7)
    assert reports[-1] == (400, 400)
    first, second = (np.array(table(tmp_path / name)["embedding"].to_pylist(), "f4") for name in ("one", "two"))
    assert np.abs(first - second).max() <= 1e-6
    assert table(tmp_path / "one")["id"] == table(tmp_path / "two")["id"]
    assert encode_corpus(tiny, texts, tmp_path / "two", shard_size=60, workers=2).encoded == 0


def test_workers_go_on_with_what_a_killed_run_left(tmp_path: Path) -> None:
    texts = [{"text": f"text {i}"} for i in range(40)]
    encode_corpus(FakeEncoder(), texts, tmp_path / "one", shard_size=4)
    encode_corpus(FakeEncoder(), texts[:20], tmp_path / "two", shard_size=4)
    done = encode_corpus(FakeEncoder(), texts, tmp_path / "two", shard_size=4, workers=2)
    assert done.encoded == 20
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_workers_and_engines_that_there_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for options, error, message in [
        ({"workers": 0}, InvalidInputError, "workers must be a whole number of at least 1, got 0"),
        ({"engine": "spark"}, InvalidInputError, "engine must be one of local, ray, got 'spark'"),
        ({"engine": "ray"}, MissingExtraError, r'pip install "st-llm2vec\[ray\]"'),
    ]:
        with pytest.raises(error, match=message):
            encode_corpus(FakeEncoder(), [{"text": "a"}], tmp_path / "out", **options)
    with pytest.raises(MissingExtraError):
        encode_corpus("nowhere", [{"text": "a"}], tmp_path / "out", engine="ray")  # before the model is looked for
    texts = tmp_path / "a.txt"
    texts.write_text("a\n")
    for command in ("encode", "index"):
        assert main([command, str(texts), str(tmp_path / "out"), "-m", "nowhere", "--engine", "ray"]) == 1
        assert 'pip install "st-llm2vec[ray]"' in capsys.readouterr().err
