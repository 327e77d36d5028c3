"""A batch without padding: where its texts stand in one packed sequence, and who reads that while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class PackedBatch:
    """Where the tokens of a batch stand in one packed sequence, shortest text first.

    Attributes:
        positions: (total,) place of each of the sequence's tokens in the flattened (n, length) batch.
        position_ids: (1, total), from 0 in every text.
        lengths: Tokens of each text, ascending.
        calls: How often an attention layer has asked for this batch.
    """

    positions: Tensor
    position_ids: Tensor
    lengths: list[int]
    calls: int = 0
    _by_head: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, attention_mask: Tensor) -> PackedBatch:
        """Pack a batch with this mask, (n, length), padded on either side."""
        mask = attention_mask.to("cpu", torch.bool)  # a GPU would be waited for at each step below
        if len(mask) == 1 and bool(mask.all()):  # a single query should not wait for what it does not need
            places = torch.arange(mask.shape[1])
            return cls(places, places[None].clone(), [len(places)]).to(attention_mask.device)
        lengths, order = mask.sum(1).sort(stable=True)
        places = torch.arange(mask.numel()).view(mask.shape)[order]
        within = mask.cumsum(1)[order] - 1
        batch = cls(places[mask[order]], within[mask[order]][None], lengths.tolist())
        return batch.to(attention_mask.device)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(texts, tokens of each) of the texts of equal length, which attention takes in one call."""
        return [(len(list(texts)), length) for length, texts in groupby(self.lengths)]

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Where each text begins, and the last one ends: int64 (texts + 1), on the CPU."""
        return torch.tensor([*accumulate(self.lengths, initial=0)])

    @cached_property
    def device_cu_seqlens(self) -> Tensor:
        """The same where the batch is, int32, as flash attention reads it: copied once, and not by every layer."""
        return self.cu_seqlens.to(self.positions.device, torch.int32, non_blocking=True)

    def by_head(self, heads: int) -> tuple[Tensor, Tensor]:
        """An order of (total x heads) rows in which the tokens of a text's head stand together; and the way back."""
        if heads not in self._by_head:
            rows = torch.arange(len(self.positions) * heads).view(-1, heads)
            parts = zip(torch.split(rows, [texts * length for texts, length in self.runs]), self.runs, strict=True)
            order = torch.cat([part.view(*run, heads).transpose(1, 2).flatten() for part, run in parts])
            self._by_head[heads] = order, order.argsort()
        return self._by_head[heads]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        if self.positions.device == torch.device(device):
            return self
        positions, position_ids = (t.to(device, non_blocking=True) for t in (self.positions, self.position_ids))
        return PackedBatch(positions, position_ids, self.lengths)

    def gather(self, batch: Tensor) -> Tensor:
        """Values of a padded batch, (n, length), in the packed sequence: (1, total)."""
        return batch.flatten()[self.positions][None]

    def scatter(self, sequence: Tensor, shape: torch.Size) -> Tensor:
        """Values of the sequence, (1, total, width), in a padded batch of `shape`: (n, length, width), 0 in pads."""
        flat = sequence.new_zeros(shape.numel(), sequence.shape[-1])
        return flat.index_copy(0, self.positions, sequence[0]).view(*shape, -1)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts with these numbers of tokens, longest first, in batches of at most `budget` tokens (or one)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        # counted as if padded to the longest, which is what a model that cannot pack will do
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def one_ahead(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Iterator[Any]]:
    """The function's values, the next of which is worked out in a thread while the caller has the last."""
    if len(items) < 2:  # a single query should not wait for a thread
        yield map(function, items)
        return
    with ThreadPoolExecutor(1) as pool:

        def values() -> Iterator[Any]:
            coming = pool.submit(function, items[0])
            for item in items[1:]:
                value, coming = coming.result(), pool.submit(function, item)
                yield value
            yield coming.result()

        yield values()


_current: ContextVar[PackedBatch | None] = ContextVar("st_llm2vec_packed_batch", default=None)
current_batch = _current.get


@contextmanager
def packed(batch: PackedBatch) -> Iterator[None]:
    """While the block runs, the attention layers called in this thread read `batch`."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def recomputes_elsewhere(model: nn.Module) -> bool:
    """Whether layers run again in the backward pass where no packed sequence can be given to them (FSDP's wrapper)."""
    return any(
        hasattr(module, "_checkpoint_wrapped_module")
        or (getattr(module, "gradient_checkpointing", False) and not hasattr(module, "_gradient_checkpointing_func"))
        for module in model.modules()
    )


@contextmanager
def packed_checkpoints(model: nn.Module, batch: PackedBatch) -> Iterator[None]:
    """While the block runs, layers under gradient checkpointing take `batch` along, to read it when they run again."""

    def with_batch(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def again(*args: Any, **kwargs: Any) -> Any:  # maybe in a thread of the backward pass
                with packed(batch):
                    return function(*args, **kwargs)

            return checkpoint(again, *args, **kwargs)

        return checkpointed

    layers: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    held = [(layer, found) for layer in layers if (found := getattr(layer, "_gradient_checkpointing_func", None))]
    try:
        for layer, checkpoint in held:
            layer._gradient_checkpointing_func = with_batch(checkpoint)
        yield
    finally:
        for layer, checkpoint in held:
            layer._gradient_checkpointing_func = checkpoint
