"""`explore`: a store as one HTML page that needs no network: a map of its texts, search, and the nearest of each.

The page is explore.html with the data put in as JSON. Its script is small and plain, so that one file is all there is;
texts reach the page through `textContent` only, and a content security policy keeps it from asking for anything else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..atomic import published
from ..errors import InvalidInputError, MissingExtraError
from .options import note
from .search import read_condition
from .terminal import escaped_all

if TYPE_CHECKING:
    from faiss_llm2vec import FaissStore

PAGE = Path(__file__).with_name("explore.html")
MARK = "__DATA__"
PERPLEXITY = 30  # of t-SNE: about how many neighbours a point has
BLOCK = 1024  # rows of similarities at once
METHODS = ("tsne", "pca")
MOST_LABELS, TEXTS_PER_LABEL, LABEL_WORDS = 12, 15, 2  # of clusters
WORD = r"(?u)\b[^\W\d_]{3,24}\b"  # that may be in a label: letters alone


def explore(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The page to write.")],
    color_by: Annotated[str | None, typer.Option(help="Field of the metadata that gives the colours.")] = None,
    where: Annotated[str | None, typer.Option(help="Filter on the metadata, as JSON.")] = None,
    method: Annotated[str, typer.Option(help="tsne keeps neighbours together; pca is fast.")] = "tsne",
    neighbours: Annotated[int, typer.Option(min=1, help="How many of the nearest each text knows.")] = 10,
    limit: Annotated[
        int, typer.Option(min=1, help="Draw at most this many, chosen at random but always the same.")
    ] = 5000,
) -> None:
    """Write a store as one HTML page: a map of its texts, search, and the nearest of each.

    \b
    Examples:
      st-llm2vec explore notes-store -o notes.html
      st-llm2vec explore papers-store -o papers.html --color-by year --where '{"lang": "en"}'
    """
    from faiss_llm2vec import FaissStore

    if method not in METHODS:
        raise typer.BadParameter(f"must be one of {', '.join(METHODS)}, got {method!r}", param_hint="'--method'")
    with FaissStore.open(store) as opened:
        data = page_data(opened, read_condition(where), color_by, method, neighbours, limit)
    with published(output) as draft:
        draft.write_text(page(data), encoding="utf-8")
    note(f"{output}: {len(data['texts'])} of {data['total']} texts. Open it in a browser.")


def page(data: dict[str, Any]) -> str:
    """The HTML page that shows `data`."""
    # Inside <script>, only a "<" could end the element; JSON writes it in another way just as well.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return PAGE.read_text(encoding="utf-8").replace(MARK, text)


def page_data(
    store: FaissStore, where: dict[str, Any] | None, color_by: str | None, method: str, neighbours: int, limit: int
) -> dict[str, Any]:
    """What the page shows, as JSON can hold it: parallel lists, and the rows of the nearest by cosine similarity.

    Raises:
        InvalidInputError: No document matches, or none has the field of `color_by`.
    """
    where = {} if where is None else where
    records = store.get(where=where)
    vectors = store.vectors(where=where)
    if not records:
        raise InvalidInputError(f"{store.path}: there are no documents to show.")
    if color_by is not None and not any(color_by in record.metadata for record in records):
        fields = sorted({name for record in records for name in record.metadata})
        raise InvalidInputError(f"no document has a field {color_by!r}. There are {', '.join(fields) or 'none'}.")
    total = len(records)
    if total > limit:
        chosen = np.sort(np.random.default_rng(0).permutation(total)[:limit])
        records, vectors = [records[row] for row in chosen], vectors[chosen]
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    nearest, scores = _nearest(units, neighbours)
    points = _map(units, method)
    shown = {  # the page would hide or reorder what a terminal does
        "title": store.path.name,
        "field": color_by,
        "ids": [record.id for record in records],
        "texts": [record.text for record in records],
        "metadata": [record.metadata for record in records],
        "labels": _labels(points, [record.text for record in records]),
    }
    return {
        **escaped_all(shown),
        "total": total,
        "points": np.round(points, 4).tolist(),
        "nearest": nearest.tolist(),
        "scores": np.round(scores.astype(float), 3).tolist(),
    }


def _nearest(units: Any, k: int) -> tuple[Any, Any]:
    """Rows and cosine similarities of the `k` nearest of each row but itself, (rows, min(k, rows - 1))."""
    k = min(k, len(units) - 1)
    found, scores = [], []
    for start in range(0, len(units), BLOCK):
        block = units[start : start + BLOCK] @ units.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf
        best = np.argsort(-block, axis=1, kind="stable")[:, :k]
        found.append(best)
        scores.append(np.take_along_axis(block, best, axis=1))
    return np.concatenate(found), np.concatenate(scores)


def _map(units: Any, method: str) -> Any:
    """Points in the unit square, (rows, 2)."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError(
            'explore needs scikit-learn. Install it with: pip install "st-llm2vec[explore]"'
        ) from error
    rows = len(units)
    if method == "pca" or rows < 4:  # too few to have neighbourhoods
        points = np.zeros((rows, 2))
        size = min(2, *units.shape)
        points[:, :size] = PCA(size, random_state=0).fit_transform(units) if rows > 1 else 0
    else:
        perplexity = min(PERPLEXITY, (rows - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(units)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-12)


def _labels(points: Any, texts: list[str]) -> list[list[Any]]:
    """Words that tell the clusters of a map from one another: (x, y, words) of each, the largest cluster first.

    Clusters are those of k-means on the map, so that a label stands where its points are. Its words are those whose
    share of texts there adds most to the divergence from their share of all texts.
    """
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import CountVectorizer

    count = min(MOST_LABELS, len(texts) // TEXTS_PER_LABEL)
    if count < 2:
        return []
    cluster = KMeans(count, n_init=4, random_state=0).fit_predict(points)
    sizes = np.bincount(cluster, minlength=count)
    vectorizer = CountVectorizer(stop_words="english", token_pattern=WORD, binary=True)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # no word in any text
        return []
    having = np.stack([np.asarray(counts[cluster == i].sum(axis=0))[0] for i in range(count)])  # (clusters, words)
    share = having / np.maximum(sizes, 1)[:, None]
    weight = share * np.log(np.maximum(share, 1e-9) / (having.sum(axis=0) / len(texts)))
    words = vectorizer.get_feature_names_out()
    found = []
    for i in np.argsort(-sizes, kind="stable"):
        best: list[str] = []
        for j in np.argsort(-weight[i], kind="stable"):
            if len(best) == LABEL_WORDS or not having[i, j]:
                break
            if not any(words[j].startswith(word) or word.startswith(words[j]) for word in best):  # thread, threads
                best.append(words[j])
        middle = np.median(points[cluster == i], axis=0)
        found.append([*np.round(middle, 4).tolist(), ", ".join(best)])
    return found
