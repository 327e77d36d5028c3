"""Texts as chunks of token ids, which MNTP trains on; of a data set in memory, or of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from datasets import Dataset, Features, IterableDataset, Sequence, Value
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from ..settings import as_count, as_flag, as_texts
from ..templates import special_counts

BATCH = 1000  # texts that are tokenized at once
FEATURES = Features({name: Sequence(Value("int64")) for name in ("input_ids", "special_tokens_mask")})
Row = dict[str, list[int]]
Columns = dict[str, list[Any]]


def chunk_texts(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int = 512, *, cross_documents: bool = True
) -> Any:
    """Cut tokenized texts to chunks.

    Args:
        texts: A list or column of them; or a stream, a `datasets.IterableDataset` of one column, which is read while
            training and never held whole.
        length: Tokens of a chunk.
        cross_documents: Let a chunk run on into the next text, each with its own special tokens, as the original
            does: all chunks are full, and what remains at the end (of a stream: of every 1,000 texts) is dropped.
            Otherwise a chunk is of one text and is encoded as such, with special tokens; the last of a text is shorter.

    Returns:
        A `Dataset`, of a stream an `IterableDataset`: columns `input_ids` and `special_tokens_mask`, lists of `length`
        integers, or of at most so many.

    Raises:
        InvalidInputError: No texts, fewer tokens than one chunk, or a length that leaves no room for a token that can
            be predicted.

    Example:
        >>> chunks = chunk_texts(["Bears sleep through the winter."] * 9, model.tokenizer, length=16)
        >>> [len(chunk["input_ids"]) for chunk in chunks]
        [16, 16, 16]
    """
    length = as_count("length", length)
    if as_flag("cross_documents", cross_documents):
        cut = partial(_joined, length=length)
    else:
        before, after = special_counts(tokenizer)
        if length < (least := before + after + 2):
            raise InvalidInputError(f"length must be at least {least}, special tokens and two others, got {length}.")
        cut = partial(_apart, length=length, before=before, after=after)
    if isinstance(texts, IterableDataset):
        return _of_stream(texts, tokenizer, cut)
    tokenized = _tokenized(as_texts("texts", texts), tokenizer)
    chunks = list(cut(tokenized))
    if not chunks:
        raise _too_short(length)
    return Dataset.from_dict({name: [chunk[name] for chunk in chunks] for name in FEATURES}, features=FEATURES)


def _of_stream(texts: IterableDataset, tokenizer: PreTrainedTokenizerBase, cut: Any) -> IterableDataset:
    first = next(iter(texts), None)
    if first is None:
        raise InvalidInputError("texts must be a stream of rows, got one without any.")
    if len(first) != 1:
        raise InvalidInputError(
            f"texts must be a stream of one column, got the columns {', '.join(first)}. Choose it: "
            "select_columns('text')."
        )
    (column,) = first

    def chunks(rows: Columns) -> Columns:
        found = list(cut(_tokenized(as_texts("texts", rows[column]), tokenizer)))
        return {name: [chunk[name] for chunk in found] for name in FEATURES}

    stream = texts.map(chunks, batched=True, batch_size=BATCH, remove_columns=[column], features=FEATURES)
    if next(iter(stream), None) is None:
        raise _too_short(cut.keywords["length"])
    return stream


def _too_short(length: int) -> InvalidInputError:
    return InvalidInputError(
        f"All texts together have fewer tokens than one chunk of length={length}. Give more, or a shorter one."
    )


def _tokenized(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Row]:
    """The token ids of each text, with its own special tokens."""
    for start in range(0, len(texts), BATCH):
        found = tokenizer(texts[start : start + BATCH], return_special_tokens_mask=True, verbose=False)
        for ids, special in zip(found["input_ids"], found["special_tokens_mask"], strict=True):
            yield {"input_ids": ids, "special_tokens_mask": special}


def _joined(rows: Iterable[Row], *, length: int) -> Iterator[Row]:
    """Chunks of the texts one after the other; the remainder is dropped."""
    kept: Row = {name: [] for name in FEATURES}
    for row in rows:
        for name in FEATURES:
            kept[name] += row[name]
        whole = len(kept["input_ids"]) // length * length
        for start in range(0, whole, length):
            yield {name: kept[name][start : start + length] for name in FEATURES}
        if whole:
            kept = {name: kept[name][whole:] for name in FEATURES}


def _apart(rows: Iterable[Row], *, length: int, before: int, after: int) -> Iterator[Row]:
    """Chunks of each text, all with its special tokens; none has fewer than two other tokens."""
    room = length - before - after
    for row in rows:
        end = len(row["input_ids"]) - after
        for start in range(before, end, room):
            stop = min(start + room, end)
            if stop - start >= 2:
                yield {name: ids[:before] + ids[start:stop] + ids[end:] for name, ids in row.items()}
