"""An encoder distilled into a table of token vectors: no layers, some hundred times as fast, a good deal weaker."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InvalidInputError
from ..settings import as_count, as_positive, as_texts
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
    A decoder makes little of a single token, so give texts, some ten thousand of the kind that you will encode. Their
    vectors lie in memory: 12 n d bytes for n texts and an encoder of d dimensions, 0.9 GB for 126,000 and 576.

    Args:
        model: Any encoder; with a fast tokenizer, if `tokenizer` is not given.
        dimensions: Of the vectors; at most the encoder's.
        texts: Where tokens are counted and the vectors learned; more different ones than dimensions. Default: token by
            token only, counted by Zipf's law, as tokenizers number frequent tokens first.
        text_vectors: What the encoder makes of the texts (n, d), if it is known already.
        tokenizer: Another fast tokenizer, of transformers or of tokenizers, whose tokens get the vectors.
        epochs: How often the texts are read; 0 only counts in them, and leaves the vectors as they are token by token.
        smoothing: Frequent tokens count less, the more so the smaller this is.
        seed: Of the order in which texts are read.
        batch_size, show_progress_bar: Of `encode`.

    Returns:
        A `SentenceTransformer` of one `StaticEmbedding` (vocabulary x dimensions, float32).

    Raises:
        InvalidInputError: A value that is out of range, too few texts, vectors of another shape or not finite, or no
            fast tokenizer.

    Source: Tulkens and van Dongen 2024, Model2Vec, and 2025, Tokenlearn (learning from texts); Arora et al. 2017, "A
    Simple but Tough-to-Beat Baseline for Sentence Embeddings" (weights).

    Example:
        >>> distill_static(model, dimensions=64).encode("how bears sleep").shape
        (64,)
    """
    width = model.get_embedding_dimension() or 0
    if as_count("dimensions", dimensions) > width:
        raise InvalidInputError(f"dimensions must be at most {width}, the encoder's, got {dimensions}.")
    smoothing = as_positive("smoothing", smoothing)
    epochs, seed = as_count("epochs", epochs, 0), as_count("seed", seed, 0)
    how: dict[str, Any] = {"batch_size": as_count("batch_size", batch_size), "show_progress_bar": show_progress_bar}
    tokens = _backend(model.tokenizer if tokenizer is None else tokenizer)
    words = _words(tokens)
    if len(words) <= dimensions:
        raise InvalidInputError(f"dimensions must be fewer than the {len(words)} tokens, got {dimensions}.")
    read = None if texts is None else as_texts("texts", texts)
    bags = _bags_of(tokens, read or [])
    learns = read is not None and epochs > 0
    if read is not None:
        _require_enough(read, bags, dimensions if learns else 0)
    known = None if text_vectors is None else _known(text_vectors, read or [], width, learns)
    reduced = _components(_finite("vectors of tokens", model.encode(list(words.values()), **how)), dimensions)
    size = 1 + max(tokens.get_vocab().values())  # more than there are tokens, where ids are left out
    table = torch.zeros(size, dimensions)
    ids = list(words)
    table[ids] = reduced * (smoothing / (smoothing + _frequencies(size, bags)))[ids, None]
    if learns:
        seen = known if known is not None else _finite("vectors of texts", model.encode(read or [], **how))
        targets = _components(seen / np.linalg.norm(seen, axis=1, keepdims=True).clip(1e-12), dimensions)
        table = _learned(table, bags, targets, epochs, seed)
    return SentenceTransformer(modules=[StaticEmbedding(tokens, embedding_weights=table)], device=str(model.device))


def _require_enough(texts: list[str], bags: list[Tensor], dimensions: int) -> None:
    """Raises where texts have no tokens, or are too few to tell that many dimensions: the table would span fewer."""
    different = len({text for text, bag in zip(texts, bags, strict=True) if len(bag)})
    if not different:
        raise InvalidInputError(f"texts must have one with tokens, got {len(texts)} without.")
    if different <= dimensions:
        raise InvalidInputError(
            f"texts must be more different ones than the {dimensions} dimensions to learn, got {different}. Give more "
            "texts, fewer dimensions, or epochs=0, which only counts in them."
        )


def _known(vectors: Any, texts: list[str], width: int, learns: bool) -> np.ndarray:
    """The vectors that are known already, in float32."""
    if not learns:
        raise InvalidInputError("text_vectors are learned from: give texts and epochs of at least 1 with them.")
    if np.shape(vectors) != (len(texts), width):
        raise InvalidInputError(
            f"text_vectors must have the shape {(len(texts), width)} of texts, got {np.shape(vectors)}."
        )
    return _finite("text_vectors", vectors)


def _finite(name: str, vectors: Any) -> np.ndarray:
    try:
        found = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{name} must be numbers: {error}.") from error
    if not np.isfinite(found).all():
        raise InvalidInputError(f"{name} must be finite, and number {(~np.isfinite(found)).any(1).argmax()} is not.")
    return found


def _backend(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer's fast half that neither truncates nor pads."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise InvalidInputError(
            f"tokenizer must be a fast one, which static vectors need, got {type(tokenizer).__name__}."
        )
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _bags_of(tokenizer: Tokenizer, texts: list[str]) -> list[Tensor]:
    """The tokens of each text."""
    return [
        torch.tensor(each.ids, dtype=torch.long)
        for start in range(0, len(texts), 1024)
        for each in tokenizer.encode_batch(texts[start : start + 1024], add_special_tokens=False)
    ]


def _means(tokens: list[Tensor], table: Tensor) -> Tensor:
    """The mean of each text's token vectors (n, d)."""
    starts = torch.tensor([0, *(len(each) for each in tokens[:-1])]).cumsum(0)
    return functional.embedding_bag(torch.cat(tokens), table, starts, mode="mean")


def _learned(table: Tensor, tokens: list[Tensor], targets: Tensor, epochs: int, seed: int) -> Tensor:
    """The table, turned into the targets' space and then fitted to them by their cosine; no tokens, no gradient."""
    means = _means(tokens, table)
    # "gelsd" by singular values: where texts do not span every dimension, "gelsy" fits to rounding errors.
    fit = torch.linalg.lstsq(functional.normalize(means, dim=1), targets, rcond=1e-5, driver="gelsd").solution
    turned = table @ fit
    weight = nn.Parameter(turned / means.norm(dim=1).mean().clamp(min=1e-12))
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATE)
    chooser = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(tokens), generator=chooser), LEARNING_BATCH):
            near = functional.cosine_similarity(_means([tokens[i] for i in batch.tolist()], weight), targets[batch])
            optimizer.zero_grad()
            (1 - near.mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return weight.detach()


def _words(tokenizer: Tokenizer) -> dict[int, str]:
    """Token id -> its text; special tokens and parts of characters are left out."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [id for id in sorted(tokenizer.get_vocab().values()) if id not in special]
    texts = tokenizer.decode_batch([[id] for id in ids])
    return {id: text for id, text in zip(ids, texts, strict=True) if text.strip() and UNKNOWN not in text}


def _frequencies(size: int, bags: list[Tensor]) -> Tensor:
    """Of each token: its share of the texts (each token counted once more than it occurs), or what Zipf's law says."""
    counts = torch.cat(bags).bincount(minlength=size) + 1.0 if bags else 1 / torch.arange(2, size + 2)
    return counts / counts.sum()


def _components(vectors: np.ndarray, dimensions: int) -> Tensor:
    """The first principal components of the centred vectors (n, d), the strongest first."""
    mean, axes = principal(vectors, dimensions)
    return torch.from_numpy((vectors - mean) @ axes)
