"""Late chunking: one forward pass over a document, pooled chunk by chunk, so that each is read with what is around it.

A document that is longer than the encoder reads is read in windows that overlap. They are placed by the document and
the size of a chunk alone, and a chunk is pooled in the window where it is farthest from the edges: its vector does not
depend on which other chunks are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.util import truncate_embeddings
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .backend.packed_batch import batches
from .chunking import DOCUMENT_TOKENS, has_token, late_size, room
from .encoding import TOKENS_PER_TEXT, is_training, run_tokens, token_budget
from .errors import InvalidInputError
from .model import LLM2Vec
from .modules import LLM2VecTransformer
from .tokenization import TokenizedText, locate

POOLED = ("mean", "weighted_mean")  # pooling modes that a stretch of a text has


class Chunk(NamedTuple):
    """A stretch of a document, by its characters; it has a token, and so more than blanks."""

    document: str
    start: int
    stop: int


class Window(NamedTuple):
    """What one forward pass reads of a document, and the chunks that are pooled of it: number, first token, end."""

    input_ids: list[int]
    chunks: list[tuple[int, int, int]]


def require_late_chunking(model: Any) -> None:
    """Raise InvalidInputError unless `encode_chunks` takes this encoder."""
    if not isinstance(model, LLM2Vec) or not isinstance(model[0], LLM2VecTransformer):
        raise InvalidInputError(
            f"late_chunking reads the token states of an encoder of st_llm2vec.load, got a {type(model).__name__}."
        )
    if model.pooling_mode not in POOLED:
        raise InvalidInputError(
            f"late_chunking pools the tokens of each chunk, so pooling_mode must be one of {', '.join(POOLED)}, got "
            f"{model.pooling_mode!r}."
        )


def encode_chunks(
    model: LLM2Vec,
    chunks: Sequence[Chunk],
    *,
    size: int | None = None,
    prompt: str = "",
    batch_size: int = 32,
    normalize: bool = False,
) -> Any:
    """Encode chunks of documents, each read together with what is around it.

    Args:
        model: An encoder of `load` that pools by mean or weighted mean.
        chunks: n stretches of documents; those of one document share its forward pass.
        size: Tokens that a chunk has at most, which says how far windows overlap. Default: what `Chunker` takes.
        prompt: What is put before every document, or window of one; it is read, and not pooled.
        batch_size: As for `encode`.
        normalize: Vectors of unit length.

    Returns:
        float32 (n, dimension). The text's own tokens are pooled: neither special tokens nor the template.

    Raises:
        InvalidInputError: Another encoder or pooling mode, or a chunk that has no token or too many, or is no stretch
            of its document.
    """
    require_late_chunking(model)
    _require_tokens(model.tokenizer, chunks)
    if is_training(model):
        model.eval()
    of: dict[str, list[int]] = {}
    for i, chunk in enumerate(chunks):
        of.setdefault(chunk.document, []).append(i)
    windows = [
        window
        for document, numbers in of.items()
        for window in _windows(model, document, [(i, *chunks[i][1:]) for i in numbers], size, prompt)
    ]
    place = model.device
    lengths = [len(window.input_ids) for window in windows]
    waiting = sum(lengths)
    found: Any = np.empty((len(chunks), 0), dtype=np.float32)
    for batch in batches(lengths, min(batch_size * TOKENS_PER_TEXT, token_budget(model, place))):
        texts = [TokenizedText(windows[i].input_ids, lengths[i]) for i in batch]
        states = run_tokens(model, texts, place, waiting=waiting)
        waiting -= sum(lengths[i] for i in batch)
        spans = [(n, states[row, a:b]) for row, i in enumerate(batch) for n, a, b in windows[i].chunks]
        vectors = _pooled(model, [span for _, span in spans])
        if normalize:
            vectors = nn.functional.normalize(vectors, p=2, dim=1)
        if not found.size:
            found = np.empty((len(chunks), vectors.shape[1]), dtype=np.float32)
        found[[n for n, _ in spans]] = vectors.float().cpu().numpy()
    return found


def _require_tokens(tokenizer: Any, chunks: Sequence[Chunk]) -> None:
    for i, (document, start, stop) in enumerate(chunks):
        if not 0 <= start <= stop <= len(document):
            raise InvalidInputError(
                f"chunks[{i}] must be within the {len(document)} characters of its document, got {start} to {stop}."
            )
        if not has_token(tokenizer, document[start:stop]):
            raise InvalidInputError(
                f"chunks[{i}] is {document[start:stop]!r:.60}, characters {start} to {stop} of {document!r:.60}, with "
                "no token, and so no vector. Leave it out."
            )


@torch.inference_mode()
def _pooled(model: LLM2Vec, spans: list[torch.Tensor]) -> torch.Tensor:
    """What the modules after the transformer make of the tokens of each chunk: (chunks, dimension)."""
    longest = max(map(len, spans))
    mask = torch.arange(longest) < torch.tensor([len(span) for span in spans])[:, None]
    features: dict[str, Any] = {
        "token_embeddings": pad_sequence(spans, batch_first=True),  # (chunks, longest, hidden)
        "attention_mask": mask.long().to(spans[0].device),
    }
    for module in list(model)[1:]:
        features = module(features)
    vectors: torch.Tensor = features["sentence_embedding"]
    return vectors if model.truncate_dim is None else truncate_embeddings(vectors, model.truncate_dim)


def _windows(
    model: LLM2Vec, document: str, chunks: list[tuple[int, int, int]], size: int | None, prompt: str
) -> list[Window]:
    """The windows of a document that chunks (number, characters from and to) are pooled of."""
    located = locate(model.tokenizer, (prompt, document), model[0].text_template)
    head, tail = located.input_ids[: located.start], located.input_ids[located.stop :]
    count, reach = located.stop - located.start, room(model, prompt)
    size = size or min(DOCUMENT_TOKENS, late_size(reach))
    overlap = max(size + 2, reach // 4)  # a token may be shared with the chunk before, and after
    starts = [*range(0, count - reach, reach - overlap), count - reach] if count > reach else [0]
    pooled: dict[int, list[tuple[int, int, int]]] = {}
    spans = _spans(located.offsets[located.start : located.stop], chunks)
    for (number, first, last), (a, b) in zip(chunks, spans, strict=True):
        fitting = [start for start in starts if start <= a < b <= start + reach]
        if not fitting:
            raise InvalidInputError(
                f"chunks[{number}] must have 1 to {overlap} tokens of its document, got {max(b - a, 0)}: "
                f"{document[first:last]!r:.60}. Split it."
            )
        start = max(fitting, key=lambda start: _distance(start, start + reach, a, b, count))
        pooled.setdefault(start, []).append((number, len(head) + a - start, len(head) + b - start))
    ids = located.input_ids[located.start : located.stop]
    return [Window([*head, *ids[start : start + reach], *tail], found) for start, found in sorted(pooled.items())]


def _distance(start: int, stop: int, a: int, b: int, count: int) -> float:
    """How far tokens a to b are from the nearer edge of a window; the ends of the document are none."""
    return min(a - start if start else float("inf"), stop - b if stop < count else float("inf"))


def _spans(offsets: list[tuple[int, int]], chunks: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The tokens that hold a character of each chunk."""
    if not offsets:  # a document without a token
        return [(0, 0)] * len(chunks)
    starts, stops = zip(*offsets, strict=True)
    a = np.searchsorted(stops, [first for _, first, _ in chunks], side="right")
    b = np.searchsorted(starts, [last for _, _, last in chunks], side="left")
    return list(zip(a.tolist(), b.tolist(), strict=True))
