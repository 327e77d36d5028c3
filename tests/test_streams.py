"""Chunks of one text each, and data sets that are read while training: right tokens, the same ones after a stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from safetensors.torch import load_file
from tiny_models import WORDS
from transformers import TrainerCallback

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.templates import special_counts
from st_llm2vec.training import DataSet, MNTPDataCollator, MNTPLoss, TrainingSettings, chunk_texts, train_stage
from st_llm2vec.training.mntp import IGNORED
from st_llm2vec.training.streams import endless

TEXTS = [" ".join(WORDS.split()[i % 7 : i % 7 + 1 + i % 11]) for i in range(40)]
SHORT: dict[str, Any] = {
    "max_steps": 4,
    "save_steps": 1,
    "batch_size": 4,
    "max_seq_length": 8,
    "cpu": True,
    "lora_r": 4,
    "learning_rate": 1e-2,
}


@pytest.fixture
def stream_of() -> Any:
    """A stream of rows, and how many of them were read."""

    def make(rows: Any, column: str = "text") -> tuple[IterableDataset, list[int]]:
        read: list[int] = []

        def generate() -> Iterator[dict[str, str]]:
            for i, text in enumerate(rows()):
                read.append(i)
                yield {column: text}

        return IterableDataset.from_generator(generate), read

    return make


@pytest.mark.parametrize("model", ["bos", "eos"])
def test_a_chunk_is_of_one_text_if_asked(model: str, bos_decoder: Path, request: pytest.FixtureRequest) -> None:
    name = str(bos_decoder) if model == "bos" else "llm2vec-tiny"
    tokenizer = st_llm2vec.load(name, device="cpu").tokenizer
    before, after = special_counts(tokenizer)
    assert (before, after) == ((1, 0) if model == "bos" else (0, 1))
    chunks = list(chunk_texts(TEXTS, tokenizer, 6, cross_documents=False))
    expected = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        content = ids[before : len(ids) - after]
        parts = [content[start : start + 5] for start in range(0, len(content), 5)]
        expected += [ids[:before] + part + ids[len(ids) - after :] for part in parts if len(part) > 1]
    assert [chunk["input_ids"] for chunk in chunks] == expected
    assert {len(chunk["input_ids"]) for chunk in chunks} >= {3, 6}
    for chunk in chunks:
        n = len(chunk["input_ids"]) - 1
        assert chunk["special_tokens_mask"] == ([1] + [0] * n if before else [0] * n + [1])
    with pytest.raises(InvalidInputError, match="length must be at least 3, special tokens and two others, got 2"):
        chunk_texts(TEXTS, tokenizer, 2, cross_documents=False)


@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_of_chunks_of_several_lengths_is_that_of_each_alone(packed: bool, bos_decoder: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu", packing=packed)
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mlm_probability=1.0, all_mask=True)
    chunks = list(chunk_texts(TEXTS[:9], model.tokenizer, 8, cross_documents=False))
    loss = MNTPLoss(model)

    def of(rows: list[Any]) -> tuple[float, int]:
        batch = collator(rows)
        features = {"input_ids": batch["text_input_ids"], "attention_mask": batch["text_attention_mask"]}
        return loss([features], batch["label"]).item(), int((batch["label"] != IGNORED).sum())

    alone = [of([chunk]) for chunk in chunks]
    whole, n = of(chunks)
    assert len({len(chunk["input_ids"]) for chunk in chunks}) > 2
    assert n == sum(each for _, each in alone)
    assert whole == pytest.approx(sum(value * each for value, each in alone) / n, abs=1e-5)


@pytest.mark.parametrize("cross_documents", [True, False])
def test_a_stream_has_the_chunks_of_its_texts(cross_documents: bool, bos_decoder: Path, stream_of: Any) -> None:
    tokenizer = st_llm2vec.load(str(bos_decoder), device="cpu").tokenizer
    stream, _ = stream_of(lambda: TEXTS)
    given = {"length": 8, "cross_documents": cross_documents}
    found = chunk_texts(stream, tokenizer, **given)
    assert isinstance(found, IterableDataset)
    assert list(found) == list(chunk_texts(TEXTS, tokenizer, **given))
    with pytest.raises(InvalidInputError, match="fewer tokens than one chunk of length=4096"):
        chunk_texts(stream, tokenizer, length=4096)
    pairs, _ = stream_of(lambda: TEXTS)
    with pytest.raises(InvalidInputError, match="a stream of one column, got the columns text, more"):
        chunk_texts(pairs.map(lambda row: {"more": row["text"]}), tokenizer, **given)


def mntp(decoder: Path, data: Any, output: Path, **settings: Any) -> TrainingSettings:
    return TrainingSettings("mntp", str(decoder), {"mine": data}, str(output), **{**SHORT, **settings})


class _Stop(TrainerCallback):
    def __init__(self, step: int = 3) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("given", ["file", "python"])
def test_a_stopped_run_on_a_stream_ends_with_the_same_weights(
    given: str, bos_decoder: Path, tmp_path: Path, stream_of: Any
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))

    def data() -> DataSet:
        file: Any = tmp_path / "texts.jsonl" if given == "file" else stream_of(lambda: TEXTS, "body")[0]
        return DataSet(file, columns=("body",), stream=True if given == "file" else None)

    train_stage(mntp(bos_decoder, data(), tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train_stage(mntp(bos_decoder, data(), tmp_path / "stopped"), callbacks=[_Stop()])
    said: list[str] = []
    result = train_stage(mntp(bos_decoder, data(), tmp_path / "stopped"), resume=True, log=said.append)
    assert any("checkpoint-2" in line for line in said)
    assert said[-1].endswith("4 steps on a stream.")
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    first = load_file(bos_decoder / "model.safetensors")
    assert any(not torch.equal(first[f"model.{name}"], whole[name]) for name in whole)
    card = (tmp_path / "stopped" / "README.md").read_text()
    assert "mine (a stream)" in card
    assert result.steps == 4


def test_a_run_that_has_gone_round_its_stream_is_resumed_where_it_was(
    bos_decoder: Path, tmp_path: Path, stream_of: Any
) -> None:
    given = {"max_steps": 7, "batch_size": 16, "gradient_accumulation": 2}  # of 74 chunks

    def train(name: str, **asked: Any) -> dict[str, torch.Tensor]:
        train_stage(mntp(bos_decoder, stream_of(lambda: TEXTS)[0], tmp_path / name, **given), **asked)
        return load_file(tmp_path / name / "model.safetensors")

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", callbacks=[_Stop(6)])
    stopped = train("stopped", resume=True)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_each_round_of_a_stream_has_all_chunks_in_another_order(stream_of: Any) -> None:
    stream, _ = stream_of(lambda: TEXTS)
    chunks = chunk_texts(stream, st_llm2vec.load("llm2vec-tiny", device="cpu").tokenizer, 8)
    expected = [chunk["input_ids"] for chunk in chunks]
    rounds = iter(endless(chunks.shuffle(seed=1, buffer_size=100)))
    found = [[next(rounds)["input_ids"] for _ in expected] for _ in range(3)]
    assert all(sorted(each) == sorted(expected) for each in found)
    assert len({str(each) for each in found}) == 3


def test_a_stream_without_end_is_read_as_far_as_training_goes(
    bos_decoder: Path, tmp_path: Path, stream_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_llm2vec.training.objectives.SHUFFLED", 50)
    stream, read = stream_of(lambda: (TEXTS[i % len(TEXTS)] for i in count()))
    assert train_stage(mntp(bos_decoder, stream, tmp_path / "out")).steps == 4
    assert max(read) < 3000


def test_another_stream_is_noticed_when_a_run_is_resumed(bos_decoder: Path, tmp_path: Path, stream_of: Any) -> None:
    stream, _ = stream_of(lambda: TEXTS)
    with pytest.raises(KeyboardInterrupt):
        train_stage(mntp(bos_decoder, stream, tmp_path / "out"), callbacks=[_Stop()])
    other, _ = stream_of(lambda: TEXTS[1:])
    with pytest.raises(InvalidInputError, match="data set 'mine' has changed"):
        train_stage(mntp(bos_decoder, other, tmp_path / "out"), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "simcse"}, "data.mine is a stream, which is for mntp: simcse never has a text twice"),
        ({"data": {"mine": ..., "other": TEXTS}}, "must be the only data set, got mine, other"),
        ({"weight": 2}, "a stream, which has no weight, got 2"),
        ({"max_steps": None, "epochs": 1}, "give max_steps, not epochs=1"),
        ({"data": {"mine": DataSet(TEXTS, stream=True)}}, "stream is for a file, got rows of type list"),
        ({"columns": ("a", "b")}, "this stage trains on one column, got a, b"),
        ({"columns": ("title",)}, "data.mine, line 1: there is no column 'title'"),
        ({"rows": []}, "data.mine is empty"),
        ({"rows": ["the fox", None]}, "data.mine, line 2: the text is missing"),
    ],
    ids=str,
)
def test_what_a_stream_cannot_do_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, bos_decoder: Path, tmp_path: Path, stream_of: Any
) -> None:
    rows = change.get("rows", TEXTS)
    stream, _ = stream_of(lambda: rows)
    own = {name: change[name] for name in ("weight", "columns") if name in change}
    data = {"mine": DataSet(stream, **own)}
    data |= {name: each for name, each in change.get("data", {}).items() if each is not ...}
    said = {**SHORT, **{name: change[name] for name in ("max_steps", "epochs") if name in change}}
    settings = TrainingSettings(change.get("objective", "mntp"), str(bos_decoder), data, str(tmp_path / "out"), **said)
    with pytest.raises(InvalidInputError, match=message):
        train_stage(settings)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_bad_row_further_on_stops_the_run_with_its_line(bos_decoder: Path, tmp_path: Path) -> None:
    rows = [*TEXTS * 30, None]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    with pytest.raises(InvalidInputError, match=r"texts.jsonl, line 1201: the text is missing"):
        train_stage(mntp(bos_decoder, DataSet(tmp_path / "texts.jsonl", stream=True), tmp_path / "out", max_steps=400))


def test_limit_takes_the_first_rows_of_a_stream(bos_decoder: Path, tmp_path: Path, stream_of: Any) -> None:
    stream, _ = stream_of(lambda: [*TEXTS, None])
    train_stage(mntp(bos_decoder, DataSet(stream, limit=len(TEXTS)), tmp_path / "out", max_steps=30))


def test_a_stream_that_can_be_read_once_is_refused(bos_decoder: Path, tmp_path: Path) -> None:
    for rows in (TEXTS, [f"{i} {text}" for i, text in enumerate(TEXTS * 30)]):
        once = iter([{"text": text} for text in rows])
        stream = IterableDataset.from_generator(lambda once=once: once)
        with pytest.raises(InvalidInputError, match=r"data.mine must begin anew each time it is read"):
            train_stage(mntp(bos_decoder, stream, tmp_path / "out"))


def test_a_stream_of_plain_texts_and_one_that_is_read_whole(bos_decoder: Path, tmp_path: Path) -> None:
    plain = IterableDataset.from_generator(lambda: iter(TEXTS))
    assert train_stage(mntp(bos_decoder, plain, tmp_path / "plain")).rows == 0
    assert "a stream" in (tmp_path / "plain" / "README.md").read_text()
    again = st_llm2vec.load(str(tmp_path / "plain"), device="cpu")  # what the next stage starts from
    assert again.provenance["training"][0]["data"]["mine"].keys() == {"sha256", "columns"}
    assert train_stage(mntp(bos_decoder, DataSet(plain, stream=False), tmp_path / "whole")).rows == len(TEXTS)
    numbers = IterableDataset.from_generator(lambda: iter([1, 2]))
    with pytest.raises(InvalidInputError, match=r"data.mine must be texts, or rows with columns, got 1 among them"):
        train_stage(mntp(bos_decoder, numbers, tmp_path / "numbers"))


def test_the_splits_of_a_data_set_are_not_taken_for_its_fields(bos_decoder: Path, tmp_path: Path) -> None:
    both = DatasetDict({"train": Dataset.from_dict({"text": TEXTS}), "test": Dataset.from_dict({"text": TEXTS})})
    with pytest.raises(InvalidInputError, match=r"must be one data set, got those of train, test. Give one, such as"):
        mntp(bos_decoder, both, tmp_path / "out")


def test_prompts_of_a_data_set_are_refused_where_the_stage_reads_none(bos_decoder: Path, tmp_path: Path) -> None:
    data = {"mine": DataSet(TEXTS, query_prompt="find: ")}
    for objective in ("mntp", "simcse"):
        with pytest.raises(InvalidInputError, match=rf"data.mine has a query_prompt, .* not for {objective}"):
            TrainingSettings(objective, str(bos_decoder), data, str(tmp_path / "out"))
