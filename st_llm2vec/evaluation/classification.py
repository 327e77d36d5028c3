"""Classification: a logistic regression on a few vectors of each label, as mteb trains it; accuracy.

Ten times, eight texts of each label are drawn from the training split. The draws are mteb's, so the figure is, too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ..errors import InvalidInputError
from .files import Source, text
from .kind import Kind, vectors

SHOTS, EXPERIMENTS, SEED = 8, 10, 42


class Labelled(NamedTuple):
    """Texts and their labels, to train on and to score."""

    train: list[str]
    train_labels: Any
    test: list[str]
    test_labels: Any


def read(source: Source) -> Labelled:
    """Columns text, label in the training split and the one that is scored; of one file, half is each."""
    columns = ("text", "label")
    scored = source.rows(*columns)
    if source.is_file:
        order = np.random.default_rng(SEED).permutation(len(scored))
        train = [scored[i] for i in order[: len(order) // 2]]
        scored = [scored[i] for i in order[len(order) // 2 :]]
    else:
        if source.split == "train":
            raise InvalidInputError("split must be another than 'train', which the classifier learns from.")
        train = source.rows(*columns, split="train")
    labels = [np.array([str(row["label"]) for row in rows]) for rows in (train, scored)]
    if len(set(labels[0])) < 2:
        raise InvalidInputError(f"{source.path}: the texts to train on must have at least two labels.")
    return Labelled([text(row, "text") for row in train], labels[0], [text(row, "text") for row in scored], labels[1])


def draws(labels: Any) -> list[list[int]]:
    """Which texts each experiment trains on: mteb's undersampling, which shuffles what the last one had shuffled."""
    order, found = list(range(len(labels))), []
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(order)  # mteb's numbers
        seen: Counter[str] = Counter()
        chosen = []
        for i in order:
            if seen[labels[i]] < SHOTS:
                chosen.append(i)
                seen[labels[i]] += 1
        found.append(chosen)
    return found


def correct(model: Any, examples: Labelled) -> Any:
    """One column: in which share of the experiments a text got its label."""
    chosen = draws(examples.train_labels)
    needed = sorted(set().union(*chosen))
    place = {i: position for position, i in enumerate(needed)}
    train = vectors(model.encode, [examples.train[i] for i in needed]).numpy()
    test = vectors(model.encode, examples.test).numpy()
    hits = []
    for experiment in chosen:
        classifier = LogisticRegression(max_iter=100, random_state=SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train[[place[i] for i in experiment]], examples.train_labels[experiment])
        hits.append(classifier.predict(test) == examples.test_labels)
    return np.mean(hits, axis=0)[:, None]


KIND = Kind(
    name="classification",
    metric="accuracy",
    columns=("text", "label"),
    layout="train.* and test.*: text, label (of one file, half trains)",
    read=read,
    measure=correct,
    statistic=lambda items: float(items.mean()),
)
