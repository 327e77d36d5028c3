"""Clustering: do k-means clusters of the vectors agree with the known ones? V-measure, mean of several runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from ..errors import InvalidInputError
from .files import Source, text
from .kind import Kind, vectors

RUNS, BATCH_SIZE = 5, 512


class Clusters(NamedTuple):
    """Texts, and the number of each one's cluster."""

    texts: list[str]
    known: Any


def read(source: Source) -> Clusters:
    """Columns text, cluster."""
    rows = source.rows("text", "cluster")
    names, known = np.unique([str(row["cluster"]) for row in rows], return_inverse=True)
    if not 1 < len(names) < len(rows):
        raise InvalidInputError(
            f"{source.path}: there must be at least two clusters, and fewer than the {len(rows)} texts, got "
            f"{len(names)}."
        )
    return Clusters([text(row, "text") for row in rows], known)


def assign(model: Any, examples: Clusters) -> Any:
    """Columns: the known cluster, and the one found in each run."""
    found = vectors(model.encode, examples.texts).numpy()
    count = len(set(examples.known.tolist()))
    runs = [
        MiniBatchKMeans(count, batch_size=BATCH_SIZE, n_init=1, random_state=seed).fit_predict(found)
        for seed in range(RUNS)
    ]
    return np.stack([examples.known, *runs], axis=1)


def v_measure(known: Any, found: Any) -> float:
    """As scikit-learn's, of numbers in place of any labels: a bootstrap computes it thousands of times."""
    width = int(found.max()) + 1
    joint = np.bincount(known * width + found, minlength=(int(known.max()) + 1) * width).reshape(-1, width)
    joint = joint / joint.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    both, one, other = (_entropy(share) for share in (joint, rows, columns))
    mutual = one + other - both
    return 1.0 if one + other == 0 else max(0.0, 2 * mutual / (one + other))


def _entropy(share: Any) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


KIND = Kind(
    name="clustering",
    metric="V-measure",
    columns=("text", "cluster"),
    layout="test.*: text, cluster",
    read=read,
    measure=assign,
    statistic=lambda items: float(np.mean([v_measure(items[:, 0], run) for run in items.T[1:]])),
)
