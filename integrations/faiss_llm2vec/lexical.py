"""The word index of a store: BM25 by SQLite's FTS5, in the same database and transaction as the texts.

It is made by the first search that needs it, and every change keeps it up from then on; the table `words` has no texts
of its own (`content='docs'`). English endings are cut (Porter), accents and case do not count; in a script without
blanks between words, a sentence is one word, which only a query for all of it finds.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence

import numpy as np

from faiss_llm2vec.filters import Ids
from faiss_llm2vec.kinds import Vectors
from st_llm2vec.errors import StoreError

NAME = "words"
SCHEMA = (
    f"CREATE VIRTUAL TABLE {NAME} USING fts5(text, content='docs', content_rowid='docid', "
    "tokenize='porter unicode61 remove_diacritics 2')"
)
_WORD = re.compile(r"\w+")
_MOST_WORDS = 512  # of a query; SQLite's parser takes a few thousand


def compiled_in() -> bool:
    """Whether the SQLite of this Python has FTS5."""
    with sqlite3.connect(":memory:") as sql:
        found = sql.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone()
    sql.close()
    return found is not None


def require() -> None:
    """Raise StoreError where SQLite lacks FTS5."""
    if not compiled_in():
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} of this Python was built without FTS5, which searching for words needs. "
            "Use another build of Python, or mode='dense' on a store that has no word index."
        )


def exists(sql: sqlite3.Connection) -> bool:
    """Whether a database has a word index."""
    return sql.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (NAME,)).fetchone() is not None


def make(sql: sqlite3.Connection) -> None:
    """Index all texts of a database, durably on return; in the transaction that is open, which it ends, or its own."""
    if not sql.in_transaction:
        sql.execute("BEGIN")
    try:
        sql.execute(SCHEMA)
        sql.execute(f"INSERT INTO {NAME}({NAME}) VALUES ('rebuild')")  # noqa: S608  (a name of ours)
        sql.execute("COMMIT")
    except BaseException:
        sql.execute("ROLLBACK")
        raise


def add(sql: sqlite3.Connection, docids: Sequence[int], texts: Sequence[str]) -> None:
    """Index documents."""
    sql.executemany(f"INSERT INTO {NAME}(rowid, text) VALUES (?, ?)", zip(docids, texts, strict=True))  # noqa: S608


def remove(sql: sqlite3.Connection, documents: Iterable[tuple[int, str]]) -> None:
    """Take documents out; their texts must be those that were indexed."""
    query = f"INSERT INTO {NAME}({NAME}, rowid, text) VALUES ('delete', ?, ?)"  # noqa: S608
    sql.executemany(query, documents)


def optimize(sql: sqlite3.Connection) -> None:
    """Merge the parts of the index into one."""
    sql.execute(f"INSERT INTO {NAME}({NAME}) VALUES ('optimize')")  # noqa: S608


def best(sql: sqlite3.Connection, query: str, k: int, among: Ids | None) -> tuple[Vectors, Ids]:
    """Scores (BM25, the higher the better) and ids of the documents that have a word of the query, best first.

    Args:
        k: How many at most.
        among: Ids that may be returned, or None for all.
    """
    words = list(dict.fromkeys(_WORD.findall(query.lower())))[:_MOST_WORDS]
    if not words or (among is not None and not len(among)):
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    # Quoted, so that AND, NEAR, * and the like are words and not operators; \w has no quotes.
    bound: list[object] = [" OR ".join(f'"{word}"' for word in words)]
    only = ""
    if among is not None:
        only = "AND rowid IN (SELECT value FROM json_each(?))"
        bound.append(f"[{','.join(map(str, among.tolist()))}]")
    # `rank` is the negative BM25; the older document first where it is the same.
    statement = f"SELECT rowid, -rank FROM {NAME} WHERE {NAME} MATCH ? {only} ORDER BY rank, rowid LIMIT ?"  # noqa: S608
    rows = sql.execute(statement, (*bound, k)).fetchall()
    return np.array([row[1] for row in rows], dtype=np.float32), np.array([row[0] for row in rows], dtype=np.int64)


def difference(sql: sqlite3.Connection) -> str | None:
    """Say how the index differs from one made anew of the texts; None if it does not."""
    fresh = sqlite3.connect("", isolation_level=None)
    try:
        fresh.execute("CREATE TABLE docs (docid INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        fresh.executemany("INSERT INTO docs VALUES (?, ?)", sql.execute("SELECT docid, text FROM docs"))
        make(fresh)
        sizes = f"SELECT id, sz FROM {NAME}_docsize ORDER BY id"  # noqa: S608
        if fresh.execute(sizes).fetchall() != sql.execute(sizes).fetchall():
            return "the word index is not over the documents of the store"
        for connection in (fresh, sql):
            connection.execute(f"CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, {NAME}, row)")
        words = "SELECT * FROM temp.vocabulary"
        if fresh.execute(words).fetchall() != sql.execute(words).fetchall():
            return "the word index has other words than the texts"
    finally:
        fresh.close()
        sql.execute("DROP TABLE IF EXISTS temp.vocabulary")
    return None
