"""A vector store on FAISS that keeps what it acknowledged: texts, metadata and vectors in one folder.

from faiss_llm2vec import FaissStore

with FaissStore.create("my-store", model) as store:
    store.add(["Bears hibernate.", "Rates rose again."], metadata=[{"topic": "animals"}, {"topic": "money"}])
    store.search("What do animals do in winter?", k=1, where={"topic": "animals"})

store.py      FaissStore: what users call
database.py   texts, metadata and the manifest in SQLite; its COMMIT is the one commit point
segments.py   vectors in immutable FAISS files, and searching them
kinds.py      the table of index kinds
filters.py    `where` filters: their meaning, and how they become ids
"""

from __future__ import annotations

from st_llm2vec.errors import MissingExtraError

try:
    import faiss  # noqa: F401
except ImportError as error:
    raise MissingExtraError('faiss_llm2vec needs faiss. Install it with: pip install "st-llm2vec[faiss]"') from error

from faiss_llm2vec.store import FaissStore, Hit, Record

__all__ = ["FaissStore", "Hit", "Record"]
