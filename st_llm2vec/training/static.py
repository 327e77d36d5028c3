"""An encoder distilled into a table of token vectors: no layers, some hundred times as fast, a good deal weaker."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor

from ..errors import InvalidInputError
from ..settings import as_count

UNKNOWN = "\ufffd"  # what a part of a character decodes to


def distill_static(
    model: SentenceTransformer,
    *,
    dimensions: int = 256,
    texts: Iterable[str] | None = None,
    smoothing: float = 1e-3,
    batch_size: int = 256,
    show_progress_bar: bool = False,
) -> SentenceTransformer:
    """Distill an encoder into static token vectors, saved in sentence-transformers' own classes.

    Each token of the vocabulary is encoded as a text of its own; the vectors are reduced to their principal components
    and weighted by `smoothing / (smoothing + p)`, p being how often the token occurs. A text is the mean of its tokens.

    Args:
        model: Any encoder with a fast tokenizer.
        dimensions: Of the vectors; at most the encoder's.
        texts: Where tokens are counted. Default: Zipf's law, as tokenizers number frequent tokens first.
        smoothing: Frequent tokens count less, the more so the smaller this is.
        batch_size, show_progress_bar: Of `encode`.

    Returns:
        A `SentenceTransformer` of one `StaticEmbedding` (vocabulary x dimensions, float32).

    Raises:
        InvalidInputError: dimensions, smoothing, or a tokenizer that is not a fast one.

    Example:
        >>> distill_static(model, dimensions=64).encode("how bears sleep").shape
        (64,)

    Source: Tulkens and van Dongen 2024, Model2Vec; Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for
    Sentence Embeddings" (weights).

    Example:
        static = distill_static(st_llm2vec.load("llm2vec-tiny"), dimensions=64)
        static.save_pretrained("llm2vec-static")
    """
    width = model.get_embedding_dimension() or 0
    if as_count("dimensions", dimensions) > width:
        raise InvalidInputError(f"dimensions must be at most {width}, the encoder's, got {dimensions}.")
    if not 0 < smoothing < float("inf"):
        raise InvalidInputError(f"smoothing must be positive and finite, got {smoothing}.")
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidInputError(f"{type(model.tokenizer).__name__} is no fast tokenizer, which static vectors need.")
    tokenizer = copy.deepcopy(backend)
    tokenizer.no_truncation()
    words = _words(tokenizer)
    if len(words) <= dimensions:
        raise InvalidInputError(f"dimensions must be fewer than the {len(words)} tokens, got {dimensions}.")
    vectors = model.encode(
        list(words.values()), batch_size=batch_size, convert_to_numpy=True, show_progress_bar=show_progress_bar
    )
    reduced = _principal(torch.from_numpy(np.asarray(vectors, dtype=np.float32)), dimensions)
    size = tokenizer.get_vocab_size()
    weights = smoothing / (smoothing + _frequencies(tokenizer, size, texts))
    table = torch.zeros(size, dimensions)
    ids = list(words)
    table[ids] = reduced * weights[ids, None]
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device=str(model.device))


def _words(tokenizer: Any) -> dict[int, str]:
    """Token id -> its text; special tokens and parts of characters are left out."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [id for id in sorted(tokenizer.get_vocab().values()) if id not in special]
    texts = tokenizer.decode_batch([[id] for id in ids])
    return {id: text for id, text in zip(ids, texts, strict=True) if text.strip() and UNKNOWN not in text}


def _frequencies(tokenizer: Any, size: int, texts: Iterable[str] | None) -> Tensor:
    """Of each token: its share of `texts` (each token counted once more than it occurs), or what Zipf's law says."""
    if texts is None:
        counts = 1 / torch.arange(2, size + 2)
    else:
        found = Counter(id for text in texts for id in tokenizer.encode(text, add_special_tokens=False).ids)
        counts = torch.tensor([found[id] + 1.0 for id in range(size)])
    return counts / counts.sum()


def _principal(vectors: Tensor, dimensions: int) -> Tensor:
    """The first principal components of centred vectors (n, d), the strongest first."""
    centred = vectors - vectors.mean(0)
    _, axes = torch.linalg.eigh((centred.T @ centred).double())
    components: Tensor = centred @ axes.flip(1)[:, :dimensions].float()
    return components
