"""A search: what may be asked, checked, and the hits among the contents of a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from faiss_llm2vec import inputs, lexical, reranking
from faiss_llm2vec.connections import named
from faiss_llm2vec.contents import Contents
from faiss_llm2vec.diversity import diverse
from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import Vectors
from faiss_llm2vec.records import Hit
from faiss_llm2vec.reranking import Reranker
from st_llm2vec.errors import InvalidInputError

# Mode -> whether it compares vectors, and whether it looks for the words of the query.
MODES = {"dense": (True, False), "hybrid": (True, True), "bm25": (False, True)}
_WIDEST = 1e6  # as wide as an index is; more would leave the range of FAISS's integers
_DEPTH = 100  # documents that each half of a hybrid search ranks, at least
_RANK = 60  # of reciprocal-rank fusion: as in Cormack et al. (2009), and everywhere since


class SearchOptions(TypedDict, total=False):
    """What a search may be asked for besides its queries and `k`; each option may be left out.

    Attributes:
        where: Only documents that match this filter (filters.py) are returned, in every mode.
        mode: "dense", the default, compares vectors; "bm25" looks for the words of the query; "hybrid" does both and
            adds up reciprocal ranks. The first search by words makes a word index, which takes a while for many
            documents.
        score_threshold: Only hits with at least this score are returned.
        mmr: From 1.0 (relevance only) to 0.0 (diversity only): pick `k` of the `fetch_k` best by maximal marginal
            relevance over cosine similarities. Hits then come in the order they were picked.
        rerank: A cross-encoder, or its name, that puts the `fetch_k` best into its own order, with its scores.
        fetch_k: Candidates for `mmr` or `rerank`, max(20, 4 k) by default.
        effort: How many times wider than usual an index is searched: more recall, more time. Flat is exact anyway.
        with_vectors: Give each hit its vector.
    """

    where: Mapping[str, Any] | None
    mode: str
    score_threshold: float | None
    mmr: float | None
    rerank: Reranker | str | None
    fetch_k: int | None
    effort: float
    with_vectors: bool


def asked(k: int, options: Mapping[str, Any]) -> Search:
    """The search for `k` documents with the options of `SearchOptions` that were given.

    Raises:
        InvalidInputError: There is no such option, or it makes no sense.
    """
    known = SearchOptions.__annotations__
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise InvalidInputError(f"A search has no option {name!r}.{meant} Options: {', '.join(known)}.")
    return Search(k, **options)


@dataclass
class Search:
    """`SearchOptions` with their defaults, checked.

    Raises:
        InvalidInputError: An option makes no sense, alone or with another.
    """

    k: int
    where: Mapping[str, Any] | None = None
    mode: str = "dense"
    score_threshold: float | None = None
    mmr: float | None = None
    rerank: Any = None
    fetch_k: int | None = None
    effort: float = 1.0
    with_vectors: bool = False

    def __post_init__(self) -> None:
        self.k = inputs.whole("k", self.k)
        self.fetch_k = None if self.fetch_k is None else inputs.whole("fetch_k", self.fetch_k)
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise InvalidInputError(f"mode must be one of {', '.join(MODES)}, got mode={self.mode!r}.")
        self.by_vector, self.by_words = MODES[self.mode]
        if self.mmr is not None:
            allowed = "a number from 0.0 (diversity) to 1.0 (relevance)"
            self.mmr = inputs.real("mmr", self.mmr, lambda m: 0 <= m <= 1, allowed)
            if not self.by_vector:
                raise InvalidInputError(f"mmr compares vectors, which mode={self.mode!r} does not. Use mode='hybrid'.")
            if self.rerank is not None:
                raise InvalidInputError("mmr and rerank each choose the order of the hits. Give one of them.")
        if self.score_threshold is not None:
            self.score_threshold = inputs.real(
                "score_threshold", self.score_threshold, lambda s: not np.isnan(s), "a number"
            )
        allowed = "a positive number (2.0: twice as wide)"
        self.effort = min(inputs.real("effort", self.effort, lambda e: 0 < e < np.inf, allowed), _WIDEST)
        self.rerank = None if self.rerank is None else reranking.opened(self.rerank)

    @property
    def candidates(self) -> int:
        """How many documents to choose among, for a query."""
        if self.mmr is None and self.rerank is None:
            return self.k
        return max(self.k, self.fetch_k or max(20, 4 * self.k))

    def hits(self, contents: Contents, texts: Sequence[str], vectors: Any) -> list[list[Hit]]:
        """The best documents for each query.

        Args:
            texts: Of the queries, where the mode or the reranker reads them.
            vectors: Of the queries, (n, dimension), where the mode compares them.
        """
        count = len(texts if vectors is None else vectors)
        if not count:
            return []
        if self.by_vector:
            vectors = inputs.checked_vectors(vectors, count, contents.manifest)
        among = None if self.where is None else contents.matching(self.where)
        rankings = [self._by_vector(contents, vectors, among)] if self.by_vector else []
        if self.by_words:
            rankings.append(self._by_words(contents, texts, among))
        found = [_fused(halves, self.candidates) for halves in zip(*rankings, strict=True)]
        if self.rerank is not None:
            found = reranking.reranked(self.rerank, contents.database, texts, found)
        results = []
        for i, (scores, docids) in enumerate(found):
            keep = np.flatnonzero(scores >= (-np.inf if self.score_threshold is None else self.score_threshold))
            if self.mmr is not None:
                keep = keep[diverse(vectors[i], contents.vectors(docids[keep]), self.k, self.mmr)]
            keep = keep[: self.k]
            results.append(_hits(contents, docids[keep], scores[keep], self.with_vectors))
        return results

    @property
    def _depth(self) -> int:
        return max(self.candidates, _DEPTH) if self.by_vector and self.by_words else self.candidates

    def _by_vector(self, contents: Contents, vectors: Vectors, among: Ids | None) -> list[tuple[Vectors, Ids]]:
        scores, found = contents.nearest(vectors, self._depth, among, self.effort)
        return [(row[ids >= 0], ids[ids >= 0]) for row, ids in zip(scores, found, strict=True)]

    def _by_words(self, contents: Contents, texts: Sequence[str], among: Ids | None) -> list[tuple[Vectors, Ids]]:
        with named(contents.database.path):
            return [lexical.best(contents.database.sql, text, self._depth, among) for text in texts]


def _fused(rankings: Sequence[tuple[Vectors, Ids]], k: int) -> tuple[Vectors, Ids]:
    """The best `k` of one ranking as they are; of several by reciprocal-rank fusion, whose sums are then the scores."""
    if len(rankings) == 1:
        scores, docids = rankings[0]
        return scores[:k], docids[:k]
    docids = np.unique(np.concatenate([docids for _, docids in rankings]))
    sums = np.zeros(len(docids))
    for _, ranked in rankings:
        sums[np.searchsorted(docids, ranked)] += 1 / (_RANK + 1 + np.arange(len(ranked)))
    order = np.lexsort((docids, -sums))[:k]  # equal sums: the older document first
    return sums[order].astype(np.float32), docids[order]


def _hits(contents: Contents, docids: Ids, scores: Vectors, with_vectors: bool) -> list[Hit]:
    rows = contents.database.rows(docids.tolist())
    vectors = vectors_or_none(contents, docids, with_vectors)
    return [
        Hit(id=row.id, text=row.text, score=float(score), metadata=row.labels, vector=vector)
        for row, score, vector in zip(rows, scores, vectors, strict=True)
    ]


def vectors_or_none(contents: Contents, docids: Sequence[int] | Ids, wanted: bool) -> Iterable[Vectors | None]:
    """A vector for each document if they are wanted, else None for each."""
    return contents.vectors(np.array(docids, dtype=np.int64)) if wanted else [None] * len(docids)
