"""A fingerprint that the caller stated counts wherever models are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from faiss_llm2vec import FaissStore


class _Model:
    fingerprint = "own"

    def encode_query(self, texts: list[str], **options: object) -> np.ndarray:
        return np.ones((len(texts), 4), np.float32)

    encode_document = encode_query


def test_refresh_compares_the_stated_fingerprint(tmp_path: Path) -> None:
    with FaissStore.create(tmp_path / "store", _Model(), fingerprint="stated") as store:
        store.add(["a"])
        store.refresh()
        assert len(store) == 1
