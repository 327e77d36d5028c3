"""Rerankers: a cross-encoder, which reads query and document together, puts candidates into its own order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from faiss_llm2vec.database import Database
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import Vectors
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError


class Reranker(Protocol):
    """What gives pairs of query and document a score, the higher the better; every `CrossEncoder` is one."""

    def predict(self, inputs: list[tuple[str, str]]) -> Any:
        """Scores, (len(inputs),)."""
        ...


def opened(reranker: Any) -> Reranker:
    """Return a reranker, which was given itself or by name.

    Raises:
        ModelNotFoundError: There is no cross-encoder of that name with weights as safetensors.
        InvalidInputError: It is neither a name nor has it `predict`.
    """
    if isinstance(reranker, str):
        return _loaded(reranker)
    if not callable(getattr(reranker, "predict", None)):
        raise InvalidInputError(
            f"rerank must be the name of a cross-encoder, or one with predict(pairs), got a {type(reranker).__name__}."
        )
    return reranker  # type: ignore[no-any-return]


@lru_cache(maxsize=1)  # for the next search
def _loaded(name: str) -> Reranker:
    from sentence_transformers import CrossEncoder

    try:
        reranker: Reranker = CrossEncoder(name, model_kwargs={"use_safetensors": True})  # no pickles
        return reranker
    except OSError as error:
        raise ModelNotFoundError(
            f"rerank={name!r} cannot be opened as a cross-encoder with weights as safetensors ({error}). Give a folder "
            "or a hub id such as 'cross-encoder/ms-marco-MiniLM-L6-v2'."
        ) from error


def reranked(
    reranker: Reranker, database: Database, queries: Sequence[str], found: Sequence[tuple[Vectors, Ids]]
) -> list[tuple[Vectors, Ids]]:
    """The documents found for each query, in the reranker's order and with its scores.

    Raises:
        InvalidInputError: It does not give one finite number per pair.
    """
    pairs = [
        (query, row.text)
        for query, (_, docids) in zip(queries, found, strict=True)
        for row in database.rows(docids.tolist())
    ]
    if not pairs:
        return list(found)
    scores = np.asarray(reranker.predict(pairs), dtype=np.float32)
    if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
        raise InvalidInputError(
            f"rerank must give one finite number per pair of texts, got shape {scores.shape} for {len(pairs)} pairs. "
            "A reranker has one label."
        )
    results, start = [], 0
    for _, docids in found:
        own = scores[start : start + len(docids)]
        start += len(docids)
        order = np.argsort(-own, kind="stable")
        results.append((own[order], docids[order]))
    return results
