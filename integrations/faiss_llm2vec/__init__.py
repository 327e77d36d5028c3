"""A durable vector store on FAISS: texts, metadata and vectors in one folder.

from faiss_llm2vec import FaissStore

with FaissStore.create("my-store", model) as store:
    store.add(["Bears hibernate.", "Rates rose again."], metadata=[{"topic": "animals"}, {"topic": "money"}])
    store.search("What do animals do in winter?", k=1, where={"topic": "animals"})

A store is a folder:

store.db              texts, metadata and the manifest (SQLite); database.py says why a change is all or nothing
segments/*.faiss      vectors, in stock FAISS files that never change once written
lock                  held by the one writer; the system frees it when the process ends, however it ends

The files of this package:

store.py      FaissStore: what users call
changing.py   how it is changed
reading.py    how it is read
searching.py  what a search may be asked for, and its hits
access.py     threads, the writer's lock, and processes that were forked
making.py     how a store comes to be in a folder
change.py     what a change does
contents.py   rows, manifest and segments of one moment, and the change that replaces them
database.py   texts, metadata and the manifest in SQLite; its COMMIT is the one commit point
inspection.py looking at a whole store: what it is, what is wrong, what can be saved
connections.py  how the database is opened: frozen, within bounds, or as a copy
rows.py       a document as a row, with a checksum
manifest.py   what a store is and which files belong to it, checked where it is read
files.py      regular files only, and FAISS files read within bounds
segments.py   vectors in immutable FAISS files, and searching them
kinds.py      the table of index kinds, FAISS factory strings, quantised kinds, recommend_kind
filters.py    `where` filters: their meaning, and how they become ids
inputs.py     what callers may hand in: checked, or refused with a reason
models.py     what a store remembers of its model, and opening it by its name
lexical.py    the word index: BM25 by SQLite
reranking.py  cross-encoders
several.py    several stores searched as one
diversity.py  maximal marginal relevance
records.py    Record, Hit
lock.py       one writer at a time
"""

from __future__ import annotations

from st_llm2vec.errors import MissingExtraError

try:
    import faiss  # noqa: F401
except ImportError as error:
    raise MissingExtraError('faiss_llm2vec needs faiss. Install it with: pip install "st-llm2vec[faiss]"') from error

from faiss_llm2vec.kinds import recommend_kind
from faiss_llm2vec.records import Hit, Record
from faiss_llm2vec.searching import SearchOptions
from faiss_llm2vec.several import search_stores
from faiss_llm2vec.store import FaissStore

__all__ = ["FaissStore", "Hit", "Record", "SearchOptions", "recommend_kind", "search_stores"]
