"""Several stores searched as one: parts of a corpus that is too large for one folder, or made by different people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from faiss_llm2vec import inputs
from faiss_llm2vec.records import Hit
from faiss_llm2vec.searching import SearchOptions
from faiss_llm2vec.store import FaissStore
from st_llm2vec.errors import InvalidInputError, StoreMismatchError


def search_stores(
    stores: Sequence[FaissStore], query: Any, k: int = 10, *, vector: Any = None, **options: Unpack[SearchOptions]
) -> list[tuple[FaissStore, Hit]]:
    """Return the best documents of several open stores for one query, each with its store, best first.

    The query is encoded once. Stores are compared by the scores of their hits, so they must have the same model and
    metric, and words count only where a reranker gives the final scores.

    Args:
        stores: At least one; equal scores come in their order.
        query: A text, or a vector (dimension,).
        k: How many documents in all.
        vector: The vector of a query that is a text, instead of encoding it.
        options: As for `FaissStore.search`, but for `mmr`.

    Raises:
        StoreMismatchError: The stores have different models, metrics or dimensions.
        InvalidInputError: No stores, several queries, or options whose scores say nothing across stores.

    Example:
        >>> with FaissStore.create("notes", model) as notes, FaissStore.create("papers", model) as papers:
        ...     ids = notes.add(["Bears hibernate."]) + papers.add(["Rates rose."])
        ...     [(store.path.name, hit.text) for store, hit in search_stores([notes, papers], "Do bears sleep?", k=1)]
        [('notes', 'Bears hibernate.')]
    """
    k = inputs.whole("k", k)
    if not isinstance(stores, Sequence) or not stores or any(not isinstance(store, FaissStore) for store in stores):
        raise InvalidInputError(f"stores must be a list of at least one open FaissStore, got {stores!r:.80}.")
    if not isinstance(query, str):
        inputs.one_vector(query)
    if options.get("mmr") is not None:
        raise InvalidInputError("mmr chooses among the documents of one store; leave it out for several.")
    if options.get("mode", "dense") != "dense" and options.get("rerank") is None:
        raise InvalidInputError(
            f"mode={options['mode']!r} gives scores that mean something within one store only. Add rerank=, whose "
            "scores are the same everywhere, or search with mode='dense'."
        )
    for name in ("fingerprint", "metric", "dimension"):
        found = {store.stats()[name] for store in stores}
        found -= {None} if name == "dimension" else set()  # of a store that is empty
        if len(found) > 1:
            raise StoreMismatchError(
                f"the stores were made with different {name}s ({', '.join(sorted(map(repr, found)))}), so their scores "
                "cannot be compared. Search them one by one."
            )
    if isinstance(query, str) and vector is None and options.get("mode") != "bm25":
        inputs.check_query(query)
        encoder = next((store.model for store in stores if store.model is not None), None) or stores[0].encoder()
        vector = encoder.encode_query([query])[0]
    hits = [(store, hit) for store in stores for hit in store.search(query, k, vector=vector, **options)]
    return sorted(hits, key=lambda pair: -pair[1].score)[:k]
