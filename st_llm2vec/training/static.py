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
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InvalidInputError
from ..settings import as_count
from .principal import principal

LEARNING_RATE, LEARNING_BATCH = 3e-3, 1024
UNKNOWN = "\ufffd"  # what a part of a character decodes to


def distill_static(
    model: SentenceTransformer,
    *,
    dimensions: int = 256,
    texts: Iterable[str] | None = None,
    text_vectors: np.ndarray | None = None,
    tokenizer: Any = None,
    epochs: int = 8,
    smoothing: float = 1e-3,
    seed: int = 42,
    batch_size: int = 256,
    show_progress_bar: bool = False,
) -> SentenceTransformer:
    """Distill an encoder into static token vectors, saved in sentence-transformers' own classes.

    Each token of the vocabulary is encoded as a text of its own; the vectors are reduced to their principal components
    and weighted by `smoothing / (smoothing + p)`, p being how often the token occurs. A text is the mean of its tokens.
    With `texts`, the token vectors are then learned: the mean of a text's tokens comes near the encoder's vector of it.
    A decoder makes little of a single token, so give texts, some ten thousand of the kind that you will encode.

    Args:
        model: Any encoder; with a fast tokenizer, if `tokenizer` is not given.
        dimensions: Of the vectors; at most the encoder's.
        texts: Where tokens are counted and the vectors learned. Default: token by token only, counted by Zipf's law, as
            tokenizers number frequent tokens first.
        text_vectors: What the encoder makes of the texts (n, d), if it is known already.
        tokenizer: Another fast tokenizer, whose tokens get the vectors.
        epochs: How often the texts are read; 0 only counts in them.
        smoothing: Frequent tokens count less, the more so the smaller this is.
        seed: Of the order in which texts are read.
        batch_size, show_progress_bar: Of `encode`.

    Returns:
        A `SentenceTransformer` of one `StaticEmbedding` (vocabulary x dimensions, float32).

    Raises:
        InvalidInputError: A value that is out of range, text vectors of another shape, or no fast tokenizer.

    Source: Tulkens and van Dongen 2024, Model2Vec, and 2025, Tokenlearn (learning from texts); Arora et al. 2017, "A
    Simple but Tough-to-Beat Baseline for Sentence Embeddings" (weights).

    Example:
        >>> distill_static(model, dimensions=64).encode("how bears sleep").shape
        (64,)
    """
    width = model.get_embedding_dimension() or 0
    if as_count("dimensions", dimensions) > width:
        raise InvalidInputError(f"dimensions must be at most {width}, the encoder's, got {dimensions}.")
    if not 0 < smoothing < float("inf"):
        raise InvalidInputError(f"smoothing must be positive and finite, got {smoothing}.")
    epochs = as_count("epochs", epochs, 0)
    read = None if texts is None else list(texts)
    if text_vectors is not None and np.shape(text_vectors) != (len(read or ()), width):
        raise InvalidInputError(
            f"text_vectors must have the shape {(len(read or ()), width)} of texts, got {np.shape(text_vectors)}."
        )
    tokens = _backend(model.tokenizer if tokenizer is None else tokenizer)
    words = _words(tokens)
    if len(words) <= dimensions:
        raise InvalidInputError(f"dimensions must be fewer than the {len(words)} tokens, got {dimensions}.")
    how: dict[str, Any] = {"batch_size": batch_size, "convert_to_numpy": True, "show_progress_bar": show_progress_bar}
    vectors = model.encode(list(words.values()), **how)
    reduced = _components(np.asarray(vectors, dtype=np.float32), dimensions)
    size = tokens.get_vocab_size()
    table = torch.zeros(size, dimensions)
    ids = list(words)
    table[ids] = reduced * (smoothing / (smoothing + _frequencies(tokens, size, read)))[ids, None]
    if read and epochs:
        seen = np.array(model.encode(read, **how) if text_vectors is None else text_vectors, dtype=np.float32)
        seen /= np.linalg.norm(seen, axis=1, keepdims=True).clip(1e-12)
        table = _learned(table, _read(tokens, read), _components(seen, dimensions), epochs, seed)
    return SentenceTransformer(modules=[StaticEmbedding(tokens, embedding_weights=table)], device=str(model.device))


def _backend(tokenizer: Any) -> Any:
    """A copy of the tokenizer's fast half that truncates nothing."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidInputError(f"{type(tokenizer).__name__} is no fast tokenizer, which static vectors need.")
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    return backend


def _read(tokenizer: Any, texts: list[str]) -> list[Tensor]:
    """The tokens of each text."""
    return [
        torch.tensor(each.ids)
        for start in range(0, len(texts), 1024)
        for each in tokenizer.encode_batch(texts[start : start + 1024], add_special_tokens=False)
    ]


def _bags(tokens: list[Tensor], table: Tensor) -> Tensor:
    """The mean of each text's token vectors (n, d)."""
    starts = torch.tensor([0, *(len(each) for each in tokens[:-1])]).cumsum(0)
    return functional.embedding_bag(torch.cat(tokens), table, starts, mode="mean")


def _learned(table: Tensor, tokens: list[Tensor], targets: Tensor, epochs: int, seed: int) -> Tensor:
    """The table, turned into the targets' space and then fitted to them by their cosine."""
    kept = [i for i, each in enumerate(tokens) if len(each)]
    tokens, targets = [tokens[i] for i in kept], targets[kept]
    bags = _bags(tokens, table)
    turned = table @ torch.linalg.lstsq(functional.normalize(bags, dim=1), targets).solution
    weight = nn.Parameter(turned / bags.norm(dim=1).mean().clamp(min=1e-12))
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATE)
    chooser = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(tokens), generator=chooser), LEARNING_BATCH):
            near = functional.cosine_similarity(_bags([tokens[i] for i in batch.tolist()], weight), targets[batch])
            optimizer.zero_grad()
            (1 - near.mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return weight.detach()


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


def _components(vectors: np.ndarray, dimensions: int) -> Tensor:
    """The first principal components of the centred vectors (n, d), the strongest first."""
    mean, axes = principal([vectors], dimensions)
    return torch.from_numpy((vectors - mean) @ axes)
