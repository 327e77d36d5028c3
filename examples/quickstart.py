"""Index the documentation of Python's standard library and ask it questions, offline.

make demo                           with llm2vec-tiny
make demo MODEL=llm2vec-smollm2     with a better encoder, whose decoder has to be fetched once (models/smollm2)
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from sentence_transformers import SentenceTransformer
from stdlib_docs import passages

import st_llm2vec  # noqa: F401 - turns the plugin on: SentenceTransformer knows "llm2vec-tiny"
from faiss_llm2vec import FaissStore

MODEL = os.environ.get("MODEL") or "llm2vec-tiny"
STORE = Path("build/quickstart-store")
ANSWERS = 3
QUESTIONS = [
    "how do I compress a file",
    "run tasks in parallel processes",
    "parse command line arguments",
    "send an email",
    "read a table of comma separated values",
    "measure how long a piece of code takes",
    "make a temporary directory",
    "compare two texts and show the differences",
    "download a web page",
    "compute the average and the median of numbers",
]

# 1. Passages: each is a docstring with the name of what it documents.
documents = passages()
texts = [f"{document.name}: {document.text}" for document in documents]

# 2. The encoder.
model = SentenceTransformer(MODEL)

# 3. Encode the passages into a store on disk. A store is never overwritten, so one of an earlier run goes first.
shutil.rmtree(STORE, ignore_errors=True)
started = time.perf_counter()
with FaissStore.create(STORE, model) as store:
    store.add(
        texts,
        ids=[document.name for document in documents],
        metadata=[{"module": document.module} for document in documents],
        show_progress=True,
    )
seconds = time.perf_counter() - started
tokens = sum(min(len(ids), model.max_seq_length) for ids in model.tokenizer(texts)["input_ids"])

# 4. Open the store again, as another process would, and ask.
with FaissStore.open(STORE, model) as store:
    for question, hits in zip(QUESTIONS, store.search_batch(QUESTIONS, k=ANSWERS), strict=True):
        print(f"\n{question}")
        for rank, hit in enumerate(hits, 1):
            print(f"  {rank}. {hit.score:.3f}  {hit.text[:110]}")

print(
    f"\n{len(texts)} passages, {tokens} tokens encoded and stored in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s"
)
print(f"The index lies in {STORE.resolve()}; ask it more: st-llm2vec search {STORE} 'your question'")
