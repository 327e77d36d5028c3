"""FaissStore: add, change, delete, filter and search documents in one folder that survives crashes.

A store starts as a reader of what it opened, and becomes the writer at its first change. The folder can be copied or
moved whenever nothing writes to it. It needs a local file system: SQLite's write-ahead log needs one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import Self, Unpack

from faiss_llm2vec import access, inputs, inspection, making
from faiss_llm2vec.changing import Writer
from faiss_llm2vec.kinds import Vectors
from faiss_llm2vec.models import StoreModel
from faiss_llm2vec.reading import Reader
from faiss_llm2vec.records import Hit, Record
from faiss_llm2vec.searching import SearchOptions, asked
from st_llm2vec.errors import InvalidInputError, StoreExistsError, StoreMismatchError
from st_llm2vec.types import Encoder


class FaissStore:
    """Documents and their vectors in a folder. Make one with `create` or `open`; use it in a `with` block.

    One store object may be shared by threads. Writing is for one store object at a time, on the whole machine.

    Example:
        >>> with FaissStore.create("my-store", model) as store:
        ...     store.add(["Bears hibernate."], ids=["bears"]), store.search("Who sleeps?", k=1)[0].text
        (['bears'], 'Bears hibernate.')
    """

    def __init__(self, path: Path, *, mmap: bool, recover: bool) -> None:
        self.path = access.absolute(path)  # whatever the working folder becomes
        self._access = access.Access(self.path, mmap=mmap, recover=recover)
        self._model = StoreModel(self.path)
        self._writer = Writer(self._access, self._model)
        self._reader = Reader(self._access, self._model, self._writer)

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
        model_name: str | None = None,
    ) -> FaissStore:
        """Make a store in a folder that does not exist yet, or is empty (a new volume), and open it.

        Args:
            path: The folder.
            model: Encoder of texts, the name of one for `st_llm2vec.load`, or None for a store of bare vectors.
            kind: A row of `faiss_llm2vec.kinds.KINDS` or a FAISS factory string: "flat" and small stores are exact, the
                others trade recall for speed or memory; `recommend_kind` chooses.
            metric: "cosine" (vectors are normalised), "dot" or "l2"; see `Hit` for the scores.
            truncate_dim: Keep the first so many numbers of each vector, for models trained to allow it (Matryoshka).
            fingerprint: What tells the model from others, where it cannot do so itself or there is none.
            model_name: What the store records as the name of its model, in place of what the model says.

        Raises:
            StoreExistsError: There is something at `path`; it was left as it is.
        """
        encoder = making.make(access.absolute(path), model, kind, metric, truncate_dim, fingerprint, model_name)
        return cls.open(path, encoder, fingerprint=fingerprint)

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Encoder | str | None = None,
        *,
        recover: bool = False,
        mmap: bool = False,
        fingerprint: str | None = None,
        model_name: str | None = None,
    ) -> FaissStore:
        """Open a store as the last durable change left it.

        Opening compares the checksum of the manifest, the set of documents, SQLite's structure and the sha256 of each
        segment. The content of a document is compared when it is read, and by `verify`.

        Args:
            path: The folder.
            model: The encoder the store was made with, or its name. With None, the one that the store names is opened
                at the first text to encode, if it is on this machine; nothing is downloaded unless it is named here.
            recover: Serve what is sound of a damaged store, read-only, and list the rest in `missing`. The folder is
                left as it is. Documents whose vectors are lost can still be read by `get`, and encoded again.
            mmap: Map the vectors instead of reading them, and compare only the sizes of the files: opens at once.
            fingerprint: What to compare with the store's, in place of the model's own.
            model_name: As in `create`, for a store that has no name of its model yet; recorded by the next change.

        Raises:
            StoreNotFoundError: There is no store.
            StoreCorruptedError: A file is damaged or missing; the message names it.
            StoreMismatchError: The store was made with another model, or has another dimension.
        """
        store = cls(access.absolute(path), mmap=mmap, recover=recover)
        try:
            store._model.give(model, model_name, fingerprint)
            store._model.check(store._access.contents.manifest)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        model: Encoder | str | None,
        *,
        kind: str | None = None,
        metric: str | None = None,
        truncate_dim: int | None = None,
        mmap: bool = False,
        fingerprint: str | None = None,
        model_name: str | None = None,
    ) -> FaissStore:
        """Open the store at a path, or make it if there is none.

        Args:
            path, model, fingerprint, model_name: As in `create`; mmap as in `open`.
            kind, metric, truncate_dim: As in `create`, with its defaults; a store that is there must have those given.

        Raises:
            StoreMismatchError: The store was made with another model, kind, metric or truncate_dim.
        """
        asked = {"kind": kind, "metric": metric, "truncate_dim": truncate_dim}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        with (
            suppress(StoreExistsError),  # as it mostly does, or somebody else has made it by now
            cls.create(path, model, fingerprint=fingerprint, model_name=model_name, **given) as made,
        ):
            model = made.model
        store = cls.open(path, model, mmap=mmap, fingerprint=fingerprint, model_name=model_name)
        for name, value in given.items():
            if (found := getattr(store._access.contents.manifest, name)) != value:
                store.close()
                raise StoreMismatchError(f"{name} must be {found!r}, which {path} has, got {value!r}. Leave it out.")
        return store

    @property
    def model(self) -> Encoder | None:
        """The encoder; None as long as none was given or needed."""
        return self._model.encoder

    def encoder(self, **options: Any) -> Encoder:
        """Return the encoder; if none was given, open it by the name that the store records, with options of `load`.

        Raises:
            ModelNotFoundError: It is not on this machine; nothing was downloaded.
            StoreMismatchError: What has this name here is another model.
            InvalidInputError: The store does not know its model.
        """
        return self._model.open(self._access.contents.manifest, "encode texts", **options)

    @property
    def missing(self) -> tuple[str, ...]:
        """What `open(recover=True)` could not read; empty for a sound store."""
        return self._access.contents.missing

    def refresh(self) -> None:
        """Go on to what the store holds now; else, a store object goes on seeing what it opened.

        A store object that stays open for long should be refreshed now and then: as long as one sees an old state,
        the write-ahead log has to keep what was written since.

        Raises:
            StoreMismatchError: Another store is in this place now, made with another model.
            StoreCorruptedError: A file is damaged or missing. What was seen before can still be read.
        """
        self._access.refresh(self._model.check)

    def close(self) -> None:
        """Free the files and the writer's lock. Every change that returned is durable already."""
        self._access.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        vectors: Any = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Add documents, all or none, and return their ids; they are on the disk when this returns.

        Args:
            texts: The documents.
            ids: One new id per text; random ones by default.
            metadata: One flat dict (or None) per text: str, bool, None, numbers, and lists of those.
            vectors: Float (len(texts), dimension), instead of encoding the texts.
            show_progress: Have the model show a progress bar.

        Raises:
            InvalidInputError: An id exists already or twice, or an argument makes no sense. Nothing was added.
            StoreLockedError: Another writer has this store open.
        """
        return self._writer.put(inputs.documents(texts, ids, metadata), ids, vectors, show_progress, replacing=False)

    def upsert(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        vectors: Any = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Add documents as `add` does, and replace those whose id exists: text, metadata and vector."""
        return self._writer.put(inputs.documents(texts, ids, metadata), ids, vectors, show_progress, replacing=True)

    def index(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        skip_unchanged: bool = True,
        show_progress: bool = False,
    ) -> dict[str, int]:
        """Make the store hold exactly these documents, in one change, encoding only texts that are new or changed.

        A text that the store has under another id is not encoded either: documents may move.

        Args:
            texts, ids, metadata, show_progress: As in `add`.
            skip_unchanged: False encodes every text again.

        Returns:
            How many documents were "added", "updated" (or their metadata alone), "unchanged" and "deleted".
        """
        return self._writer.sync(inputs.documents(texts, ids, metadata), skip_unchanged, show_progress)

    def delete(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Delete the documents with these ids, or that match the filter, or both if both are given; return how many.

        Ids that do not exist are passed over; `where={}` matches all documents.
        """
        return self._writer.delete(ids, where)

    def compact(self) -> None:
        """Merge segments without the vectors of deleted documents, and build the kind's index over each.

        A segment has up to 1 GiB of vectors, which are in memory while its index is built. Does nothing where there is
        nothing to gain.
        """
        self._writer.compact()

    def search(self, query: Any, k: int = 10, *, vector: Any = None, **options: Unpack[SearchOptions]) -> list[Hit]:
        """Return the best documents for one query, best first; fewer than `k` where fewer match.

        Args:
            query: A text, or a vector (dimension,); see `search_batch` for several.
            k: How many.
            vector: The vector of a query that is a text, instead of encoding it.
            options: where, mode, score_threshold, mmr, rerank, fetch_k, effort, with_vectors: see `SearchOptions`.

        Raises:
            InvalidInputError: The query has no text, or an option makes no sense.
        """
        search, (queries, single) = asked(k, options), inputs.queries(query)
        if not single:
            message = "search() is for one query; for several, type store.search_batch(queries, k)."
            warnings.warn(message, DeprecationWarning, stacklevel=2)
        results = self._reader.search(search, queries, None if vector is None else inputs.one_vector(vector))
        return results[0] if single else results  # type: ignore[return-value]

    def search_batch(
        self, queries: Any, k: int = 10, *, vectors: Any = None, **options: Unpack[SearchOptions]
    ) -> list[list[Hit]]:
        """Return the best documents for each of several queries, as `search` does for one.

        Args:
            queries: A list of texts or of vectors, or an array (n, dimension).
            k, options: As in `search`.
            vectors: (n, dimension), of queries that are texts, instead of encoding them.
        """
        search, (checked, single) = asked(k, options), inputs.queries(queries)
        if single:
            raise InvalidInputError(
                f"search_batch() is for a list of queries, got {queries!r:.80}. For one, type store.search(query, k)."
            )
        return self._reader.search(search, checked, vectors)

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        with_vectors: bool = False,
    ) -> list[Record]:
        """Return the documents with these ids, in their order, or all that match a filter, oldest first, or both.

        Ids that do not exist are passed over; `limit` stops after so many.
        """
        return self._reader.get(ids, where, limit, with_vectors)

    def scan(self, size: int = 1024) -> Iterator[list[Record]]:
        """Yield all documents there are now, oldest first, so many at once: memory stays flat.

        Raises:
            StoreCorruptedError: A document is damaged, or was deleted meanwhile.
        """
        return self._reader.scan(size)

    def vectors(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> Vectors:
        """Return the vectors of the documents that `get` returns, in the same order: (documents, dimension) float32."""
        return self._reader.vectors(ids, where)

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """Return how many documents there are, or match a filter."""
        return self._reader.count(where)

    def __len__(self) -> int:
        return self.count()

    def verify(self) -> list[str]:
        """Read every byte of the store and return what is wrong with it; an empty list means that it is sound."""
        return self._reader.verify()

    def stats(self) -> dict[str, Any]:
        """Return what the store is and what it costs; bytes in memory are those of the vectors that are not mapped."""
        return self._reader.stats()

    def __repr__(self) -> str:
        return f"FaissStore({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return a table of what the store is, for notebooks."""
        return inspection.as_html(self.path, None if self._access.closed else self.stats())
