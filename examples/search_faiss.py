"""A FAISS store from Python: add texts with metadata, search, filter, reopen."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sentence_transformers import SentenceTransformer

import st_llm2vec  # noqa: F401 - turns the plugin on
from faiss_llm2vec import FaissStore

MODEL = "llm2vec-tiny"
DOCUMENTS = {
    "bears": ("Brown bears sleep through most of the winter.", "animals"),
    "geese": ("Wild geese fly south before the first snow.", "animals"),
    "rates": ("The central bank raised interest rates again.", "money"),
    "rent": ("Rents in the capital have doubled in ten years.", "money"),
    "snow": ("Heavy snow closed the mountain pass on Monday.", "weather"),
}

# 1. The encoder.
model = SentenceTransformer(MODEL)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "store"

    # 2. Make a store and add texts. What add() has returned for is on the disk.
    with FaissStore.create(path, model, kind="flat", metric="cosine") as store:
        store.add(
            [text for text, _ in DOCUMENTS.values()],
            ids=list(DOCUMENTS),
            metadata=[{"topic": topic} for _, topic in DOCUMENTS.values()],
        )

    # 3. Open it again: the store refuses a model other than its own.
    with FaissStore.open(path, model) as store:
        # 4. Search by meaning.
        for hit in store.search("What do animals do when it gets cold?", k=3):
            print(f"{hit.score:.3f}  {hit.id:6} {hit.text}")

        # 5. Search among some of the documents only.
        for hit in store.search("cold winter", k=3, where={"topic": "weather"}):
            print(f"{hit.score:.3f}  {hit.id:6} {hit.text}  {hit.metadata}")
