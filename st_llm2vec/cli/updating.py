"""A store brought in line with passages: what is new, changed or gone, in batches that are each durable once done.

What a killed run has put into the store is unchanged for the next one, so that it goes on where the kill was. Batches
begin at the same passages in every run: the store becomes what an undisturbed run makes of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from ..ingestion import Passage, Passages

if TYPE_CHECKING:
    from faiss_llm2vec import FaissStore

    from ..corpus import Embed

BATCH = 2048  # passages of a commit: what a kill costs at most
MODES = ("add", "upsert", "sync")
_NEW, _CHANGED, _RELABELLED, _UNCHANGED = range(4)
_SHOWN = 3


class Update:
    """What separates a store from passages. `plan` finds it, and changes nothing; `apply` removes it.

    Args:
        store: A store, open with its model.
        passages: What it shall hold.
        mode: "add" refuses changed documents, "upsert" replaces them, "sync" also deletes what the passages lack.
        batch: Passages of a commit.
    """

    def __init__(self, store: FaissStore, passages: Passages, mode: str, batch: int = BATCH) -> None:
        self._store, self._passages, self._mode, self._batch = store, passages, mode, batch
        self._states: Counter[int] = Counter()
        self.deleted = 0
        self._sql = passages.sql
        self._sql.executescript(
            "CREATE TABLE states (n INTEGER PRIMARY KEY, state INTEGER);"
            "CREATE TABLE stale (id TEXT PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE known (hash BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID;"
            "CREATE TABLE kept (n INTEGER PRIMARY KEY, vector BLOB);"
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many documents are added, updated, unchanged and deleted."""
        states = self._states
        return {
            "added": states[_NEW],
            "updated": states[_CHANGED] + states[_RELABELLED],
            "unchanged": states[_UNCHANGED],
            "deleted": self.deleted,
        }

    def plan(self) -> int:
        """Compare, and become the writer of the store.

        Returns:
            How many texts are to be encoded.

        Raises:
            InvalidInputError: Documents of the store would have to be replaced, and the mode is "add".
            StoreLockedError: Another process writes to the store.
        """
        self._store.delete([])  # deletes nothing; from here on, nobody else changes the store
        if len(self._store) == 0:
            self._states[_NEW] = len(self._passages)
            return self._states[_NEW]
        for rows in self._passages.numbered(self._batch):
            known = {record.id: record for record in self._store.get([passage.id for _, passage in rows])}
            states = [(n, _state(passage, known.get(passage.id))) for n, passage in rows]
            self._sql.executemany("INSERT INTO states VALUES (?, ?)", states)
            self._states.update(state for _, state in states)
        stale = self._absent() if self._mode == "sync" else self._left_of_longer_ones()
        self._sql.executemany("INSERT OR IGNORE INTO stale VALUES (?)", ((id,) for id in stale))
        self.deleted = self._sql.execute("SELECT count(*) FROM stale").fetchone()[0]
        if self._mode == "add":
            self._refuse_changes()
        self._keep_vectors()
        kept: int = self._sql.execute("SELECT count(*) FROM kept").fetchone()[0]
        return self._states[_NEW] + self._states[_CHANGED] - kept

    def apply(self, embed: Embed) -> None:
        """Encode and put, batch by batch; then delete."""
        for rows in self._passages.numbered(self._batch):
            first, last = rows[0][0], rows[-1][0]
            found = dict(self._sql.execute("SELECT n, state FROM states WHERE n BETWEEN ? AND ?", (first, last)))
            todo = [(n, passage, found.get(n, _NEW)) for n, passage in rows if found.get(n) != _UNCHANGED]
            if todo:
                passages = [passage for _, passage, _ in todo]
                self._store.upsert(
                    [passage.text for passage in passages],
                    ids=[passage.id for passage in passages],
                    metadata=[passage.metadata for passage in passages],
                    vectors=self._vectors(todo, embed),
                )
        stale = [id for (id,) in self._sql.execute("SELECT id FROM stale")]
        for start in range(0, len(stale), self._batch):
            self._store.delete(stale[start : start + self._batch])

    def _vectors(self, todo: list[tuple[int, Passage, int]], embed: Embed) -> Any:
        first, last = todo[0][0], todo[-1][0]
        kept = dict(self._sql.execute("SELECT n, vector FROM kept WHERE n BETWEEN ? AND ?", (first, last)))
        old = {n: np.frombuffer(vector, np.float32) for n, vector in kept.items()}
        relabelled = [(n, passage.id) for n, passage, state in todo if state == _RELABELLED]
        if relabelled:
            vectors = self._store.vectors([id for _, id in relabelled])
            old |= {n: vector for (n, _), vector in zip(relabelled, vectors, strict=True)}
        new = embed([passage.text for n, passage, _ in todo if n not in old])
        if not old:
            return new
        dimension = len(next(iter(old.values())))  # of the store, which may have cut them
        vectors = np.empty((len(todo), dimension), dtype=np.float32)
        fresh = np.array([n not in old for n, _, _ in todo])
        vectors[fresh] = new[:, :dimension] if len(new) else 0
        vectors[~fresh] = np.stack([old[n] for n, _, _ in todo if n in old])
        return vectors

    def _refuse_changes(self) -> None:
        changed = self._sql.execute(
            "SELECT id FROM passages JOIN states USING (n) WHERE state IN (?, ?) ORDER BY n", (_CHANGED, _RELABELLED)
        )
        ids = [id for (id,) in changed] + [id for (id,) in self._sql.execute("SELECT id FROM stale")]
        if ids:
            shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
            raise InvalidInputError(
                f"Give --upsert to replace documents, or --sync to also delete what the input lacks: {shown} changed "
                f"since {self._store.path.name} was made. Nothing was encoded."
            )

    def _absent(self) -> Iterator[str]:
        """Documents that no passage is."""
        for records in self._store.scan():
            ids = [record.id for record in records]
            here = self._passages.having(ids)
            yield from (id for id in ids if id not in here)

    def _left_of_longer_ones(self) -> Iterator[str]:
        """Chunks of the passages' documents from when those were longer, or not split."""
        rows = self._sql.execute("SELECT parent, count(*), min(id) FROM passages GROUP BY parent").fetchall()
        for start in range(0, len(rows), self._batch):
            asked: dict[str, tuple[str, int]] = {}
            for parent, count, first in rows[start : start + self._batch]:
                split = first != parent
                asked |= {f"{parent}#{count + 1 if split else 1}": (parent, count + 1 if split else 1)}
                asked |= {parent: (parent, 0)} if split else {}
            found = [record for record in self._store.get(list(asked)) if not self._passages.having([record.id])]
            for record in found:
                parent, chunk = asked[record.id]
                if chunk == 0:
                    yield record.id
                elif "chunk" in record.metadata:
                    yield from self._from(parent, chunk)

    def _from(self, parent: str, chunk: int) -> Iterator[str]:
        """The chunks of a document in the store, from one on."""
        while self._store.get([f"{parent}#{chunk}"]):
            yield f"{parent}#{chunk}"
            chunk += 1

    def _keep_vectors(self) -> None:
        """Vectors of texts that move to another id, from documents that go or change."""
        if not self._states[_NEW] + self._states[_CHANGED]:
            return
        for records in self._store.scan():
            moving = self._moving([record.id for record in records])
            texts = ((_hash(record.text), record.id) for record in records if record.id in moving)
            self._sql.executemany("INSERT OR IGNORE INTO known VALUES (?, ?)", texts)
        if self._sql.execute("SELECT 1 FROM known LIMIT 1").fetchone() is None:
            return
        for rows in self._passages.numbered(self._batch):
            first, last = rows[0][0], rows[-1][0]
            state = dict(self._sql.execute("SELECT n, state FROM states WHERE n BETWEEN ? AND ?", (first, last)))
            wanted = {n: _hash(passage.text) for n, passage in rows if state[n] in (_NEW, _CHANGED)}
            ids = {}
            for n, key in wanted.items():
                if row := self._sql.execute("SELECT id FROM known WHERE hash = ?", (key,)).fetchone():
                    ids[n] = row[0]
            unique = list(dict.fromkeys(ids.values()))
            if unique:
                vectors = dict(zip(unique, self._store.vectors(unique), strict=True))
                kept = ((n, vectors[id].tobytes()) for n, id in ids.items())
                self._sql.executemany("INSERT INTO kept VALUES (?, ?)", kept)

    def _moving(self, ids: list[str]) -> set[str]:
        """Documents that no passage is, or whose text changes."""
        rows = self._sql.execute(
            "SELECT id FROM passages JOIN states USING (n) WHERE state != ? AND id IN (SELECT value FROM json_each(?))",
            (_CHANGED, json.dumps(ids)),
        )
        return set(ids) - {id for (id,) in rows}


def _state(passage: Passage, record: Any) -> int:
    if record is None:
        return _NEW
    if record.text != passage.text:
        return _CHANGED
    return _UNCHANGED if record.metadata == passage.metadata else _RELABELLED


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
