"""Word-level linear probes (paper, section 4.1): what do frozen token embeddings know of each word?

A linear layer on the vectors of words, trained as the paper trains it (dropout 0.1, Adam, 1500 steps of 8 sentences),
with every dimension scaled to unit variance first: hidden states of large decoders have outlier channels, which would
otherwise set the pace. Parts of speech are scored word by word; chunks and names also by whole spans.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..errors import InvalidInputError
from ..words import Reading, encode_words
from .files import Row, Source
from .kind import Kind

STEPS, BATCH_SIZE, LEARNING_RATE, DROPOUT, SEEDS = 1500, 8, 5e-4, 0.1, (1, 2, 3)
TRAIN_SENTENCES = 6000  # of a training split, drawn once: the steps read 12,000 sentences


class Tagged(NamedTuple):
    """Sentences as lists of words, and the tag of every word."""

    train: list[list[str]]
    train_tags: list[list[str]]
    test: list[list[str]]
    test_tags: list[list[str]]


def read(source: Source) -> Tagged:
    """Columns tokens and tags, lists of texts, in the training split and the one that is scored."""
    if source.is_file:
        raise InvalidInputError(
            f"{source.path}: probes are trained, so give a folder with train.* and {source.split}.*."
        )
    if source.split == "train":
        raise InvalidInputError("split must be another than 'train', which the probe learns from.")
    (train, train_tags), (test, test_tags) = (_sentences(source, split) for split in ("train", source.split))
    order = np.random.default_rng(0).permutation(len(train))[:TRAIN_SENTENCES]
    return Tagged([train[i] for i in order], [train_tags[i] for i in order], test, test_tags)


def _sentences(source: Source, split: str) -> tuple[list[list[str]], list[list[str]]]:
    words, tags = [], []
    for row in source.rows("tokens", "tags", split=split):
        found = [_list(row, column) for column in ("tokens", "tags")]
        if len(found[0]) != len(found[1]):
            raise InvalidInputError(f"{row['']}: {len(found[0])} tokens and {len(found[1])} tags; each token has one.")
        if found[0]:
            words.append(found[0])
            tags.append(found[1])
    return words, tags


def _list(row: Row, column: str) -> list[str]:
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidInputError(f"{row['']}: {column!r} must be a list of texts, got {value!r:.60}.")
    return value


def probe(model: Any, examples: Tagged, *, reading: Reading, steps: int = STEPS) -> Any:
    """Columns, one row for each sentence: words right, words, spans right, spans predicted, spans known.

    All are means over probes of several seeds. A first word that nothing stands before has no vector in the reading
    "next_token"; it is left out, as the original does.
    """
    names = sorted({tag for tags in examples.train_tags for tag in tags})
    number = {name: i for i, name in enumerate(names)}
    train, test = _vectors(model, examples, reading)
    tags = torch.tensor([number[tag] for tags in examples.train_tags for tag in tags])
    starts = np.cumsum([0, *map(len, examples.train)])
    inputs = torch.from_numpy(np.concatenate(train))
    lost = inputs.isnan().any(1)
    mean, scale = inputs[~lost].mean(0), inputs[~lost].std(0).clamp_min(1e-6)
    known = tags.masked_fill(lost, -100)
    inputs = ((inputs - mean) / scale).nan_to_num()
    scored = [((torch.from_numpy(each) - mean) / scale) for each in test]
    items = []
    for seed in SEEDS:
        layer = fit(inputs, known, starts, len(names), seed=seed, steps=steps)
        with torch.no_grad():
            guesses = [[names[i] for i in layer(each.nan_to_num()).argmax(1)] for each in scored]
        kept = [~each.isnan().any(1).numpy() for each in scored]
        items.append([count(*each) for each in zip(guesses, examples.test_tags, kept, strict=True)])
    return np.mean(items, axis=0)


def _vectors(model: Any, examples: Tagged, reading: Reading) -> tuple[list[Any], list[Any]]:
    """Vectors of words; kept for the next task, which is often other tags of the same sentences."""
    sentences = [*examples.train, *examples.test]
    key = (reading, getattr(model, "fingerprint", None), hash(tuple(map(tuple, sentences))))
    if _kept.get(model, (None,))[0] != key:
        _kept[model] = key, encode_words(model, sentences, reading=reading, lost="nan")
    vectors = _kept[model][1]
    return vectors[: len(examples.train)], vectors[len(examples.train) :]


_kept: weakref.WeakKeyDictionary[Any, tuple[Any, Any]] = weakref.WeakKeyDictionary()


def fit(inputs: Any, known: Any, starts: Any, n_tags: int, *, seed: int, steps: int = STEPS) -> nn.Linear:
    """Train a linear layer on the vectors of words.

    Args:
        inputs: float32 (words, hidden).
        known: The number of each word's tag, int64 (words,); -100 for words to leave out.
        starts: Where each sentence begins, and the end of the last.
        n_tags: How many tags there are.
        seed: Of the first weights, the order of the sentences and dropout.
        steps: Of 8 sentences each.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = np.random.default_rng(seed)
        layer = nn.Linear(inputs.shape[1], n_tags)
        optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
        sentences: list[int] = []
        for _ in range(steps):
            if len(sentences) < BATCH_SIZE:
                sentences += order.permutation(len(starts) - 1).tolist()
            batch, sentences = sentences[:BATCH_SIZE], sentences[BATCH_SIZE:]
            rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
            loss = probe_loss(layer(functional.dropout(inputs[rows], DROPOUT)), known[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return layer


def probe_loss(logits: Any, known: Any) -> Any:
    """Cross entropy, mean over the words that have a tag."""
    total = functional.cross_entropy(logits, known, ignore_index=-100, reduction="sum")
    return total / (known != -100).sum().clamp_min(1)


def count(guesses: Sequence[str], known: Sequence[str], kept: Any) -> list[int]:
    """Of one sentence: words right, words, spans right, spans predicted, spans known."""
    pairs = [(guess, tag) for guess, tag, there in zip(guesses, known, kept, strict=True) if there]
    found, wanted = spans([guess for guess, _ in pairs]), spans([tag for _, tag in pairs])
    return [sum(guess == tag for guess, tag in pairs), len(pairs), len(found & wanted), len(found), len(wanted)]


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Spans (type, first word, word after the last) of IOB2 tags, as conlleval has them: a stray I- begins one, too."""
    found, start, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add((kind, start, i))
            kind = ""
        if prefix == "B" or (prefix == "I" and not kind):
            start, kind = i, name
    return found


def accuracy(items: Any) -> float:
    """Share of the words that are right."""
    return float(items[:, 0].sum() / items[:, 1].sum())


def span_f1(items: Any) -> float:
    """F1 of whole spans over all sentences; nan where there is none."""
    right, predicted, known = items[:, 2:].sum(0)
    return float(2 * right / (predicted + known)) if known else float("nan")


def _kind(name: str, metric: str, statistic: Any, reading: Reading) -> Kind:
    return Kind(
        name=name,
        metric=metric,
        columns=("tokens", "tags"),
        layout="train.* and test.*: tokens, tags (lists of texts)",
        read=read,
        measure=partial(probe, reading=reading),
        statistic=statistic,
        static=False,
    )


KINDS = (
    _kind("words", "accuracy", accuracy, "same_token"),
    _kind("words_next", "accuracy, read one token before", accuracy, "next_token"),
    _kind("spans", "span F1", span_f1, "same_token"),
    _kind("spans_next", "span F1, read one token before", span_f1, "next_token"),
)
