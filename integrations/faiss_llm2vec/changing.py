"""How a store is changed: documents put, replaced, synchronised, deleted; each call one change, on the newest state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from faiss_llm2vec import inputs, lexical
from faiss_llm2vec.access import Access, changes
from faiss_llm2vec.change import Change
from faiss_llm2vec.connections import named
from faiss_llm2vec.contents import Contents
from faiss_llm2vec.models import StoreModel
from faiss_llm2vec.records import Document, Documents
from faiss_llm2vec.segments import mergeable
from st_llm2vec.errors import InvalidInputError, StoreError, StoreLockedError


class Writer:
    """What `FaissStore` does to its contents, with its model."""

    def __init__(self, access: Access, model: StoreModel) -> None:
        self._access = access
        self._model = model

    @changes
    def put(
        self, documents: Documents, ids: Sequence[str] | None, vectors: Any, show_progress: bool, *, replacing: bool
    ) -> list[str]:
        """Add documents, or replace those whose id exists, and return their ids.

        Args:
            ids: As the caller gave them; without, those of `documents` are random, and so new.
            vectors: Of the documents; None encodes them.
        """
        if not documents:
            return []
        given = [] if ids is None else documents.ids
        if vectors is None:
            # Before encoding, which may take hours: the lock, and ids that exist.
            with self._writing():
                self._replaced(given, replacing)
            vectors = self._encoded(documents.texts, show_progress)
        with self._writing():
            change = Change(remove=self._replaced(given, replacing), documents=documents)
            floats, manifest = inputs.floats(vectors), self._contents.manifest
            change.vectors = inputs.checked_vectors(floats, len(documents), manifest)
            change.model_dimension = manifest.model_dimension or floats.shape[1]
            self._commit(change)
        return documents.ids

    @changes
    def sync(self, documents: Documents, skip_unchanged: bool, show_progress: bool) -> dict[str, int]:
        """Make the store hold exactly these documents, and return how many were added, updated, ..."""
        if not documents:
            raise InvalidInputError("index() got no texts, which would delete everything. Type store.delete(where={}).")
        encoded: dict[str, Any] = {}  # text -> vector
        while True:
            with self._writing():
                difference = Difference.of(self._contents, documents, skip_unchanged)
                texts = list(dict.fromkeys(text for text in difference.texts if text not in encoded))
                if not texts:
                    if change := difference.change_with(self._contents, encoded):
                        self._commit(change)
                    return difference.counts
            # Outside of the mutex: other threads go on searching. Should one of them change the store meanwhile, the
            # difference is taken again.
            vectors = inputs.floats(self._encoded(texts, show_progress))
            encoded.update(zip(texts, inputs.one_per_text(vectors, len(texts)), strict=True))

    @changes
    def delete(self, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> int:
        """Delete documents, and return how many."""
        inputs.check_chosen("delete", ids, where)
        with self._writing():
            docids = self._contents.selected(ids, where)
            if docids:
                self._commit(Change(remove=docids))
        return len(docids)

    @changes
    def compact(self) -> None:
        """Merge segments, up to a size that fits in memory, where there is anything to gain."""
        while True:
            with self._writing():
                group = mergeable(self._contents.segments)
                if not group:
                    return
                self._commit(Change(merge=group))
                if not mergeable(self._contents.segments):
                    self._contents.database.vacuum()

    def index_words(self) -> None:
        """Make the word index, if there is none in what is seen: in the store, or in a copy where it cannot be written.

        This store object then sees the newest state, and is the writer only if it was before.

        Raises:
            StoreLockedError: Another writer has this store open.
            StoreError: SQLite lacks FTS5, or the disk is full.
        """
        lexical.require()
        with self._access.reading():
            database = self._contents.database
            if not database.private and not os.access(database.path, os.W_OK):
                database.keep_a_copy()
            if lexical.exists(database.sql) or database.private:
                return self._make_words()
        try:
            with self._access.claimed(keep=False), self._access.writing(self._model.check):
                self._make_words()
        except StoreLockedError as error:
            raise StoreLockedError(
                f"{self._access.path} has no word index yet, and another store object is writing. Search there with "
                f"mode='hybrid' once, which makes it, and call refresh() here; or close the other. ({error})"
            ) from error

    def _make_words(self) -> None:
        with named(self._contents.database.path):
            if not lexical.exists(self._contents.database.sql):
                lexical.make(self._contents.database.sql)

    @property
    def _contents(self) -> Contents:
        return self._access.contents

    def _writing(self) -> AbstractContextManager[None]:
        """A change of this store object as the writer, on the newest state."""
        if self._access.recovers:
            raise StoreError(
                f"{self._access.path} was opened with recover=True, which only reads. Write what store.get(where={{}}) "
                "returns to a new store, or restore the files named in store.missing and open it again."
            )
        return self._access.writing(self._model.check)

    def _commit(self, change: Change) -> None:
        change.model = self._model.name, self._model.revision
        self._contents.commit(change)

    def _replaced(self, ids: list[str], replacing: bool) -> list[int]:
        known = self._contents.database.docids(ids)
        if known and not replacing:
            raise InvalidInputError(
                f"ids {inputs.few(known)} exist already; nothing was added. Replace documents with store.upsert(...)."
            )
        return list(known.values())

    def _encoded(self, texts: list[str], show_progress: bool) -> Any:
        options: dict[str, Any] = {"show_progress_bar": True} if show_progress else {}
        return self._model.open(self._contents.manifest, "encode texts").encode_document(texts, **options)


@dataclass
class Difference:
    """What separates a store from the documents that `index` was given."""

    change: Change  # without vectors
    vectors: dict[str, int]  # text -> id of a document that has it, and so its vector, already
    counts: dict[str, int]

    @classmethod
    def of(cls, contents: Contents, documents: Documents, skip_unchanged: bool) -> Difference:
        """Compare the documents of a store with those that it shall hold."""
        given = {document.id: document for document in documents}
        texts = {document.text for document in documents} if skip_unchanged else set()
        settled, replaced, vanished = set(), [], []
        relabel: dict[int, Document] = {}
        vectors: dict[str, int] = {}
        for row in contents.database.everything():
            if not row.sound:
                contents.database.rows([row.docid])  # says what is wrong
            if row.text in texts:
                vectors[row.text] = row.docid
            document = given.get(row.id)
            if document is None:
                vanished.append(row.docid)
            elif not skip_unchanged or row.text != document.text:
                replaced.append(row.docid)
            else:
                settled.add(row.id)
                if row.metadata != document.metadata:
                    relabel[row.docid] = document
        put = Documents.of(document for document in documents if document.id not in settled)
        return cls(
            Change(remove=[*vanished, *replaced], documents=put, relabel=relabel),
            vectors=vectors,
            counts={
                "added": len(put) - len(replaced),
                "updated": len(replaced) + len(relabel),
                "unchanged": len(settled) - len(relabel),
                "deleted": len(vanished),
            },
        )

    @property
    def texts(self) -> list[str]:
        """Texts to encode."""
        return [document.text for document in self.change.documents if document.text not in self.vectors]

    def change_with(self, contents: Contents, encoded: dict[str, Any]) -> Change | None:
        """The change with its vectors, each from the store or from `encoded`; None if there is nothing to change."""
        change = self.change
        texts = [document.text for document in change.documents]
        if texts:
            fresh = np.array([text in encoded for text in texts])
            kept = [self.vectors[text] for text in texts if text not in encoded]
            rows = contents.vectors(np.array(kept, dtype=np.int64))
            if fresh.any():
                new = np.stack([encoded[text] for text in texts if text in encoded])
                change.model_dimension = contents.manifest.model_dimension or new.shape[1]
                checked = inputs.checked_vectors(new, len(new), contents.manifest)
                change.vectors = np.empty((len(texts), checked.shape[1]), dtype=np.float32)
                change.vectors[fresh] = checked
                change.vectors[~fresh] = rows if kept else 0
            else:
                change.vectors = rows
        return change if texts or change.relabel or change.remove else None
