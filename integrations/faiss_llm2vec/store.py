"""FaissStore: add, change, delete, filter and search documents in one folder that survives crashes.

    store.db              texts, metadata and the manifest (SQLite); database.py says why a change is all or nothing
    segments/*.faiss      vectors, in stock FAISS files that never change once written
    lock                  held by the one writer; the system frees it when the process ends, however it ends

A store starts as a reader of what it opened, and becomes the writer at its first change. The folder can be copied or
moved whenever nothing writes to it. It needs a local file system: SQLite's write-ahead log needs one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faiss_llm2vec import access, inputs, making, models
from faiss_llm2vec.access import changes
from faiss_llm2vec.change import Change
from faiss_llm2vec.kinds import METRICS, kind_of
from faiss_llm2vec.manifest import Manifest
from faiss_llm2vec.reader import StoreReader
from faiss_llm2vec.records import Document, Documents
from st_llm2vec.errors import InvalidInputError, StoreError
from st_llm2vec.types import Encoder


@dataclass
class _Difference:
    """What separates the store from the documents that `index` was given."""

    change: Change  # without vectors
    vectors: dict[str, int]  # text -> id of a document that has it, and so its vector, already
    counts: dict[str, int]

    @property
    def texts(self) -> list[str]:
        """Texts to encode."""
        return [document.text for document in self.change.documents if document.text not in self.vectors]


class FaissStore(StoreReader):
    """Documents and their vectors in a folder. Make one with `create` or `open`; use it in a `with` block.

    One store object may be shared by threads. Writing is for one store object at a time, on the whole machine.
    """

    # -- opening and closing -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: Encoder | str | None,
        *,
        kind: str = "flat",
        metric: str = "cosine",
        truncate_dim: int | None = None,
        fingerprint: str | None = None,
    ) -> FaissStore:
        """Makes a store in a folder that does not exist yet, or is empty (a new volume), and opens it.

        Args:
            model: encoder of texts, the name of one for `st_llm2vec.load`, or None for a store of bare vectors.
            kind: a row of `faiss_llm2vec.kinds.KINDS` or a FAISS factory string: "flat" and small stores are exact, the
                others trade recall for speed or memory; `recommend_kind` chooses.
            metric: "cosine" (vectors are normalised), "dot" or "l2"; see `Hit` for the scores.
            truncate_dim: keep the first so many numbers of each vector, for models trained to allow it (Matryoshka).
            fingerprint: what tells the model from others, where it cannot do so itself or there is none.

        Raises:
            StoreExistsError: There is something at `path`; it was left as it is.
        """
        path = access.absolute(path)
        if metric not in METRICS:
            raise InvalidInputError(f"metric={metric!r} is unknown. Choose one of {', '.join(METRICS)}.")
        making.check_free(path)
        if (kind_of(kind).factory or "").startswith("B") and metric != "cosine":
            raise InvalidInputError(f"kind={kind!r} keeps signs, which know no lengths: use metric='cosine'.")
        model = models.loaded_model(model)
        dimension = model_dimension = models.dimension_of(model)
        if truncate_dim is not None:
            truncate_dim = inputs.whole("truncate_dim", truncate_dim)
            if model_dimension is not None and truncate_dim > model_dimension:
                raise InvalidInputError(f"truncate_dim={truncate_dim} is more than the model's {model_dimension}.")
            dimension = None if model_dimension is None else truncate_dim
        if dimension is not None:
            kind_of(kind, dimension)
        manifest = Manifest(
            kind=kind,
            metric=metric,
            dimension=dimension,
            truncate_dim=truncate_dim,
            model_dimension=model_dimension,
            fingerprint=models.fingerprint_of(model, fingerprint),
            prompts=models.prompts_of(model),
            pooling=models.pooling_of(model),
        )
        making.make(path, manifest)
        return cls.open(path, model, fingerprint=fingerprint)

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Encoder | str | None = None,
        *,
        recover: bool = False,
        mmap: bool = False,
        fingerprint: str | None = None,
    ) -> FaissStore:
        """Opens a store as it was after the last change that was acknowledged.

        Opening compares the checksum of the manifest, the set of documents, SQLite's structure and the sha256 of each
        segment. The content of a document is compared when it is read, and by `verify`.

        Args:
            model: the encoder the store was made with, its name, or None to search by vector only.
            recover: serve what is sound of a damaged store, read-only, and list the rest in `missing`. The folder is
                left as it is. Documents whose vectors are lost can still be read by `get`, and encoded again.
            mmap: map the vectors instead of reading them, and compare only the sizes of the files: opens at once.
            fingerprint: what to compare with the store's, in place of the model's own.

        Raises:
            StoreNotFoundError: There is no store.
            StoreCorruptedError: A file is damaged or missing; the message names it.
            StoreMismatchError: The store was made with another model, or has another dimension.
        """
        store = cls(access.absolute(path), models.loaded_model(model), mmap=mmap, recover=recover)
        try:
            store._stated = fingerprint
            models.check_same(store.path, store._contents.manifest, store.model, fingerprint)
        except BaseException:
            store.close()
            raise
        return store

    # -- changing ------------------------------------------------------------------------------------------------------

    @changes
    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        vectors: Any = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Adds documents, all or none; they are on the disk when this returns.

        Args:
            ids: one new id per text; random ones by default.
            metadata: one flat dict (or None) per text: str, bool, None, numbers, and lists of those.
            vectors: float (len(texts), dimension), instead of encoding the texts.
            show_progress: have the model show a progress bar.

        Returns:
            The ids, in the order of the texts.

        Raises:
            InvalidInputError: An id exists already or twice, or an argument makes no sense. Nothing was added.
            StoreLockedError: Another writer has this store open.
        """
        return self._put(texts, ids, metadata, vectors, show_progress, replacing=False)

    @changes
    def upsert(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        vectors: Any = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Like `add`, but replaces the documents whose id exists: text, metadata and vector."""
        return self._put(texts, ids, metadata, vectors, show_progress, replacing=True)

    @changes
    def index(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        skip_unchanged: bool = True,
        show_progress: bool = False,
    ) -> dict[str, int]:
        """Makes the store hold exactly these documents, in one change, encoding only texts that are new or changed.

        A text that the store has under another id is not encoded either: documents may move.

        Args:
            skip_unchanged: False encodes every text again.

        Returns:
            How many documents were "added", "updated", "unchanged" and "deleted". A document whose metadata alone
            changed is "updated", without being encoded.
        """
        documents = inputs.documents(texts, ids, metadata)
        if not documents:
            raise InvalidInputError("index() got no texts, which would delete everything. Type store.delete(where={}).")
        encoded: dict[str, Any] = {}  # text -> vector
        while True:
            with self._writing():
                difference = self._difference(documents, skip_unchanged)
                texts_to_encode = list(dict.fromkeys(text for text in difference.texts if text not in encoded))
                if not texts_to_encode:
                    return self._made_so(difference, encoded)
            # Outside of the mutex: other threads go on searching. Should one of them change the store meanwhile, the
            # difference is taken again.
            vectors = inputs.floats(self._encoded(texts_to_encode, show_progress))
            encoded.update(zip(texts_to_encode, inputs.one_per_text(vectors, len(texts_to_encode)), strict=True))

    @changes
    def delete(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Deletes the documents with these ids, or that match the filter, or both if both are given.

        Ids that do not exist are passed over; `where={}` matches all documents.

        Returns:
            How many documents were deleted.
        """
        if ids is None and where is None:
            raise InvalidInputError("delete() needs ids= or where=; delete(where={}) deletes every document.")
        with self._writing():
            docids = self._contents.selected(ids, where)
            if docids:
                self._contents.commit(Change(remove=docids))
        return len(docids)

    @changes
    def compact(self) -> None:
        """Merges all segments into one without the vectors of deleted documents, and builds the kind's index over it.

        Takes the time of writing all vectors again and, meanwhile, their size in memory. Does nothing where there is
        nothing to gain.
        """
        with self._writing():
            segments = self._contents.segments
            if len(segments) > 1 or any(not segment.alive.all() for segment in segments):
                self._contents.commit(Change(merge=segments))
                self._contents.database.vacuum()

    # -- inside: changing ----------------------------------------------------------------------------------------------

    def _put(
        self,
        texts: Sequence[str],
        ids: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any] | None] | None,
        vectors: Any,
        show_progress: bool,
        *,
        replacing: bool,
    ) -> list[str]:
        documents = inputs.documents(texts, ids, metadata)
        if not documents:
            return []
        given = [] if ids is None else documents.ids  # random ones are new
        if vectors is None:
            # Before encoding, which may take hours: the lock, and ids that exist.
            with self._writing():
                self._replaced(given, replacing)
            vectors = self._encoded(documents.texts, show_progress)
        with self._writing():
            change = Change(remove=self._replaced(given, replacing), documents=documents)
            self._set_vectors(change, vectors)
            self._contents.commit(change)
        return documents.ids

    def _replaced(self, ids: list[str], replacing: bool) -> list[int]:
        known = self._contents.database.docids(ids)
        if known and not replacing:
            raise InvalidInputError(
                f"ids {inputs.few(known)} exist already; nothing was added. Replace documents with store.upsert(...)."
            )
        return list(known.values())

    def _difference(self, documents: Documents, skip_unchanged: bool) -> _Difference:
        given = {document.id: document for document in documents}
        texts = {document.text for document in documents} if skip_unchanged else set()
        settled, replaced, vanished = set(), [], []
        relabel: dict[int, Document] = {}
        vectors: dict[str, int] = {}
        for row in self._contents.database.everything():
            if not row.sound:
                self._contents.database.rows([row.docid])  # says what is wrong
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
        return _Difference(
            Change(remove=[*vanished, *replaced], documents=put, relabel=relabel),
            vectors=vectors,
            counts={
                "added": len(put) - len(replaced),
                "updated": len(replaced) + len(relabel),
                "unchanged": len(settled) - len(relabel),
                "deleted": len(vanished),
            },
        )

    def _made_so(self, difference: _Difference, encoded: dict[str, Any]) -> dict[str, int]:
        """Commits a difference, whose texts have a vector in the store or in `encoded`."""
        change = difference.change
        texts = [document.text for document in change.documents]
        if texts:
            fresh = np.array([text in encoded for text in texts])
            kept = [difference.vectors[text] for text in texts if text not in encoded]
            rows = self._contents.vectors(np.array(kept, dtype=np.int64))
            if fresh.any():
                new = np.stack([encoded[text] for text in texts if text in encoded])
                change.model_dimension = self._contents.manifest.model_dimension or new.shape[1]
                checked = self._checked(new, len(new))
                change.vectors = np.empty((len(texts), checked.shape[1]), dtype=np.float32)
                change.vectors[fresh] = checked
                change.vectors[~fresh] = rows if kept else 0
            else:
                change.vectors = rows
        if texts or change.relabel or change.remove:
            self._contents.commit(change)
        return difference.counts

    def _set_vectors(self, change: Change, vectors: Any) -> None:
        given = inputs.floats(vectors)
        change.vectors = inputs.checked_vectors(given, len(change.documents), self._contents.manifest)
        change.model_dimension = self._contents.manifest.model_dimension or given.shape[1]

    def _writing(self) -> AbstractContextManager[None]:
        """A change of this store object as the writer, on the newest state."""
        if self._recover:
            raise StoreError(
                f"{self.path} was opened with recover=True, which only reads. Write what store.get(where={{}}) returns "
                "to a new store, or restore the files named in store.missing and open it again."
            )
        return self._access.writing(lambda manifest: models.check_same(self.path, manifest, self.model, self._stated))
