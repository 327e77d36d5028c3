"""Texts to vectors: tokenized ahead in a thread, sorted by length, packed into batches of a token budget."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.util import batch_to_device, truncate_embeddings
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .backend.deciding import expect
from .backend.packed_batch import PackedBatch, batches, one_ahead
from .tokenization import TokenizedText

if TYPE_CHECKING:
    from .model import LLM2Vec

CHUNK = 8192  # texts that are tokenized at once, ahead of the model
TOKENS_PER_TEXT = 64  # a batch holds batch_size times as many
CPU_TOKENS = 1024  # at most, on a CPU: what a layer makes of more leaves its cache (float32: a tenth slower)
TOKENS = 65_536  # at most elsewhere
COMPILED_CPU_TOKENS = 2048  # compiled layers make less of them, and are called less often


@torch.inference_mode()
def encode_texts(
    model: LLM2Vec,
    inputs: list[Any],
    *,
    prompt: str | None,
    batch_size: int,
    show_progress_bar: bool,
    save_to_cpu: bool,
    normalize_embeddings: bool,
    truncate_dim: int | None,
    place: torch.device,
    **kwargs: Any,
) -> Tensor:
    """Vectors of n texts: (n, dimension), in the order of the texts."""
    transformer = model[0]
    if is_training(model):  # eval() takes a single query milliseconds
        model.eval()
    budget = min(batch_size * TOKENS_PER_TEXT, token_budget(model, place))
    starts = range(0, len(inputs), CHUNK)
    found = torch.empty(0, device="cpu" if save_to_cpu else place)
    prompt_length = transformer._get_prompt_length(prompt, **kwargs)
    bar = tqdm(total=len(inputs), desc="Texts", unit=" texts", disable=not show_progress_bar)

    def tokenized(first: int) -> Any:
        return transformer.tokenized(inputs[first : first + CHUNK], prompt, first=first, **kwargs)

    with bar, one_ahead(tokenized, starts) as chunks:
        for first, texts in zip(starts, chunks, strict=True):
            lengths = [len(text.input_ids) for text in texts]
            waiting = sum(lengths)
            for batch in batches(lengths, budget):
                vectors = run_batch(model, [texts[i] for i in batch], place, prompt_length, waiting=waiting, **kwargs)
                waiting -= sum(lengths[i] for i in batch)
                if truncate_dim is not None:
                    vectors = truncate_embeddings(vectors, truncate_dim)
                if normalize_embeddings:
                    vectors = nn.functional.normalize(vectors, p=2, dim=1)
                if not len(found):
                    found = vectors.new_empty((len(inputs), vectors.shape[1]), device=found.device)
                found[torch.tensor(batch, device=found.device) + first] = vectors.to(found.device)
                bar.update(len(batch))
                if show_progress_bar:
                    on = [name for name, status in transformer.status.items() if status]
                    bar.set_postfix_str(", ".join(on) or "padded", refresh=False)
    return found


def run_batch(
    model: LLM2Vec,
    texts: Sequence[TokenizedText],
    place: torch.device,
    prompt_length: int | None = None,
    *,
    waiting: int = 0,
    **kwargs: Any,
) -> Tensor:
    """Encode texts that are tokenized already, in one forward pass.

    Args:
        model: The encoder.
        texts: n texts.
        place: The model's device.
        prompt_length: Tokens of the prompt that all of them begin with.
        waiting: Tokens that are to be encoded now, these included: whether prepacking weights repays its price.

    Returns:
        (n, dimension), on the model's device.
    """
    found: Tensor = _run(model, model[0], texts, place, prompt_length, waiting, **kwargs)["sentence_embedding"]
    return found


def run_tokens(model: LLM2Vec, texts: Sequence[TokenizedText], place: torch.device, *, waiting: int = 0) -> Tensor:
    """As `run_batch`, but return the last hidden states: (n, length, hidden), padded on the right."""
    found: Tensor = _run(model[0], model[0], texts, place, None, waiting)["token_embeddings"]
    return found


@torch.inference_mode()
def _run(
    runs: Any,
    transformer: Any,
    texts: Sequence[TokenizedText],
    place: torch.device,
    prompt_length: int | None,
    waiting: int,
    **kwargs: Any,
) -> Any:
    features = transformer.collate(texts, prompt_length)
    packed_batch = PackedBatch.of(features["attention_mask"]).to(place)
    features = {**batch_to_device(features, place), "packed_batch": packed_batch}
    with _in_use(transformer, waiting):
        features = runs(features, **kwargs)  # through __call__, for compile()
    transformer.tokens_encoded += sum(packed_batch.lengths)
    return features


def token_budget(model: LLM2Vec, place: torch.device) -> int:
    """Tokens that one forward pass takes at most."""
    if place.type != "cpu":
        return TOKENS
    return COMPILED_CPU_TOKENS if model[0].status["compiled"] else CPU_TOKENS


_gate = threading.Lock()
_running: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


@contextmanager
def _in_use(transformer: Any, waiting: int) -> Iterator[None]:
    """Lets the transformer change its layers for the tokens that wait, unless another thread is running them."""
    with _gate:
        if not _running.get(transformer):
            expect(transformer, waiting)
        _running[transformer] = _running.get(transformer, 0) + 1
    try:
        yield
    finally:
        with _gate:
            _running[transformer] -= 1


def is_training(module: nn.Module) -> bool:
    """Whether any part of it is, in a tenth of the time that a loop over `modules()` takes."""
    left: list[nn.Module | None] = [module]
    while left:
        part = left.pop()
        if part is not None:
            if part.training:
                return True
            left.extend(part._modules.values())
    return False
