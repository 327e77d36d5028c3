"""A store brought in line with passages: what is new, changed or gone, in batches that are each durable once done.

What a killed run has put into the store is unchanged for the next one, so that it goes on where the kill was. Batches
begin at the same passages in every run: the store becomes what an undisturbed run makes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from ..ingestion import Passage, Passages, content_of
from ..shards import hash_of

if TYPE_CHECKING:
    from faiss_llm2vec import FaissStore

    from ..embedding import Embed
    from ..stored_vectors import StoredVectors

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
        encodes: Their vectors have to be encoded: those of texts that moved to another id are taken from the store.
    """

    def __init__(
        self, store: FaissStore, passages: Passages, mode: str, batch: int = BATCH, *, encodes: bool = True
    ) -> None:
        self._store, self._passages, self._mode, self._batch, self._encodes = store, passages, mode, batch, encodes
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
        for passages in self._passages.batches(self._batch):
            known = {record.id: record for record in self._store.get([passage.id for passage in passages])}
            states = [(passage.number, _state(passage, known.get(passage.id))) for passage in passages]
            self._sql.executemany("INSERT INTO states VALUES (?, ?)", states)
            self._states.update(state for _, state in states)
        stale = self._absent() if self._mode == "sync" else self._left_of_longer_ones()
        self._sql.executemany("INSERT OR IGNORE INTO stale VALUES (?)", ((id,) for id in stale))
        self.deleted = self._sql.execute("SELECT count(*) FROM stale").fetchone()[0]
        if self._mode == "add":
            self._refuse_changes()
        if self._encodes:
            self._keep_vectors()
        kept: int = self._sql.execute("SELECT count(*) FROM kept").fetchone()[0]
        return self._states[_NEW] + self._states[_CHANGED] - kept

    def apply(self, embed: Embed | StoredVectors) -> None:
        """Encode and put, batch by batch; then delete."""
        for (todo, old), _, new in embed.each(self._todo()):
            self._store.upsert(
                [passage.text for passage in todo],
                ids=[passage.id for passage in todo],
                metadata=[passage.metadata for passage in todo],
                vectors=_joined(todo, old, new),
            )
        stale = [id for (id,) in self._sql.execute("SELECT id FROM stale")]
        for start in range(0, len(stale), self._batch):
            self._store.delete(stale[start : start + self._batch])

    def _todo(self) -> Iterator[tuple[tuple[list[Passage], dict[int, Any]], list[Passage]]]:
        """What is to be put, with the vectors that are there already; and the passages that have none."""
        for passages in self._passages.batches(self._batch):
            first, last = passages[0].number, passages[-1].number
            found = dict(self._sql.execute("SELECT n, state FROM states WHERE n BETWEEN ? AND ?", (first, last)))
            todo = [passage for passage in passages if found.get(passage.number) != _UNCHANGED]
            if not todo:
                continue
            kept = self._sql.execute("SELECT n, vector FROM kept WHERE n BETWEEN ? AND ?", (first, last))
            old = {n: np.frombuffer(vector, np.float32) for n, vector in kept}
            relabelled = {passage.number: passage.id for passage in todo if found.get(passage.number) == _RELABELLED}
            if relabelled:
                old |= dict(zip(relabelled, self._store.vectors(list(relabelled.values())), strict=True))
            yield (todo, old), [passage for passage in todo if passage.number not in old]

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
            found = ((hash_of(_content(record)), record.id) for record in records if record.id in moving)
            self._sql.executemany("INSERT OR IGNORE INTO known VALUES (?, ?)", found)
        if self._sql.execute("SELECT 1 FROM known LIMIT 1").fetchone() is None:
            return
        for passages in self._passages.batches(self._batch):
            first, last = passages[0].number, passages[-1].number
            state = dict(self._sql.execute("SELECT n, state FROM states WHERE n BETWEEN ? AND ?", (first, last)))
            todo = [passage for passage in passages if state[passage.number] in (_NEW, _CHANGED)]
            ids = {}
            for passage in todo:
                key = hash_of(passage.content)
                if row := self._sql.execute("SELECT id FROM known WHERE hash = ?", (key,)).fetchone():
                    ids[passage.number] = row[0]
            unique = list(dict.fromkeys(ids.values()))
            if unique:
                vectors = dict(zip(unique, self._store.vectors(unique), strict=True))
                kept = ((n, vectors[id].tobytes()) for n, id in ids.items())
                self._sql.executemany("INSERT INTO kept VALUES (?, ?)", kept)

    def _moving(self, ids: list[str]) -> set[str]:
        """Documents that no passage is, or whose text changes."""
        staying = "SELECT 1 FROM passages JOIN states USING (n) WHERE id = ? AND state != ?"
        return {id for id in ids if not self._sql.execute(staying, (id, _CHANGED)).fetchone()}


def _state(passage: Passage, record: Any) -> int:
    if record is None:
        return _NEW
    if _content(record) != passage.content:
        return _CHANGED
    return _UNCHANGED if record.metadata == passage.metadata else _RELABELLED


def _content(record: Any) -> str:
    return content_of(record.text, record.metadata)


def _joined(todo: list[Passage], old: dict[int, Any], new: Any) -> Any:
    """The vectors of all that is to be put, in its order."""
    if not old:
        return new
    dimension = len(next(iter(old.values())))  # of the store, which may have cut them
    vectors = np.empty((len(todo), dimension), dtype=np.float32)
    fresh = np.array([passage.number not in old for passage in todo])
    vectors[fresh] = new[:, :dimension] if len(new) else 0
    vectors[~fresh] = np.stack([old[passage.number] for passage in todo if passage.number in old])
    return vectors
