"""BM25, the ranking without vectors that every retriever is measured against: that of SQLite, with stemming."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from types import TracebackType


class BM25:
    """Ranks documents by the words that they share with a query.

    Okapi BM25 (k1 = 1.2, b = 0.75) of SQLite's FTS5, over words in lower case, stemmed after Porter.
    Use it in a `with`.

    Example:
        with BM25(["a cat sat", "dogs bark"]) as index:
            index.search("the cats", 10)  # [(0, 0.51)]
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._database = sqlite3.connect(":memory:")
        self._database.execute("CREATE VIRTUAL TABLE documents USING fts5(text, tokenize='porter unicode61')")
        self._database.executemany("INSERT INTO documents (rowid, text) VALUES (?, ?)", enumerate(documents))

    def __enter__(self) -> BM25:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    def search(self, query: str, k: int, among: tuple[int, int] | None = None) -> list[tuple[int, float]]:
        """The best documents of a query.

        Args:
            query: Text; each of its words may match.
            k: How many at most.
            among: First document and the one after the last; default: all.

        Returns:
            Positions and scores, best first; documents without any of the words are not there.
        """
        words = sorted(set(re.findall(r"\w+", query.lower())))
        if not words:
            return []
        first, last = among or (0, 2**62)
        found = self._database.execute(
            "SELECT rowid, -bm25(documents) AS score FROM documents WHERE documents MATCH ? AND rowid >= ? "
            "AND rowid < ? ORDER BY score DESC, rowid LIMIT ?",
            (" OR ".join(words), first, last, k),
        )
        return [(int(position), float(score)) for position, score in found]
