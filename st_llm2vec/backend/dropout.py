"""Dropout on a CPU, where torch draws a number for every value, on one core: what is kept, and attention that drops.

torch has no attention with dropout for a CPU but single operators, some forty of them forward and backward for every
length of text. Here they are eight of each length, and the others run once for all texts of the packed sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import mul
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .packed_batch import PackedBatch


def keep_mask(x: Tensor, dropped: float) -> Tensor:
    """What dropout keeps of every value of `x`, bool: each by itself, with probability 1 - dropped.

    torch draws on one core of a CPU, a number for every value. 16 of 64 random bits are enough for one: the probability
    is met to 2**-17.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - dropped)
    seed = int(torch.randint(2**62, ()))  # of torch's generator: a resumed run and a recomputed layer draw the same
    bits = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-x.numel() // 4), dtype=np.uint64)
    draws = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape)
    return draws >= min(round(dropped * 2**16), 2**16 - 1) - 2**15


def attend_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: PackedBatch,
    *,
    scaling: float | None = None,
    dropped: float = 0.0,
    masks: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Attention within each text, as `scaled_dot_product_attention` computes it for each alone, with its gradients.

    Args:
        query, key, value: (1, heads, total, dim), of keys and values as many heads or a divisor of them. Where their
            dtypes differ, as autocast leaves them after the rotary embedding, the widest is that of all.
        batch: Where the texts are.
        scaling: Of the scores; default: 1 / sqrt(dim).
        dropped: Share of the weights that are dropped, in [0, 1).
        masks: What is added to the scores of the texts of each run, (tokens, tokens) or None.

    Returns:
        (1, total, heads, dim).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    masks = masks or [None] * len(batch.runs)
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    out: Tensor = _Attention.apply(query, key, value, batch, scaling, dropped, masks)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """softmax(scaling Q K^T + mask), dropped, times V, of all texts; a run of equal texts is one batch of products."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: PackedBatch,
        scaling: float,
        dropped: float,
        masks: Sequence[Tensor | None],
    ) -> Tensor:
        runs = _Runs(batch, query.shape[1], key.shape[1])
        q, k = runs.rows(query).mul(scaling), runs.rows(key)
        v = runs.rows(value).div(1 - dropped)  # in place of all weights that are kept
        weights = q.new_empty(runs.n_scores)
        for (of_query, of_key), mask, score in zip(runs.split(q, k), masks, runs.scores(weights), strict=True):
            torch.bmm(of_query, of_key.transpose(1, 2), out=score)
            if mask is not None:
                score.view(len(score), -1, *mask.shape).add_(mask)
            torch.softmax(score, -1, out=score)
        keep = keep_mask(weights, dropped)
        out = q.new_empty(len(q), v.shape[-1])
        kept = runs.scores(torch.where(keep, weights, 0.0))
        for (of_value, to), weight in zip(runs.split(v, out), kept, strict=True):
            torch.bmm(weight, of_value, out=to)
        ctx.save_for_backward(q, k, v, weights, keep)
        ctx.runs, ctx.scaling, ctx.dropped = runs, scaling, dropped
        return runs.tokens(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, keep = ctx.saved_tensors
        runs: _Runs = ctx.runs
        g = runs.rows(gradient.transpose(1, 2))
        g_weights = torch.empty_like(weights)
        for (of_out, of_value), g_weight in zip(runs.split(g, v), runs.scores(g_weights), strict=True):
            torch.bmm(of_out, of_value.transpose(1, 2), out=g_weight)
        torch.where(keep, g_weights, g_weights.new_zeros(()), out=g_weights)
        kept = torch.where(keep, weights, 0.0)
        g_q, g_k, g_v = (torch.empty_like(x) for x in (q, k, v))
        squares = zip(*(runs.scores(x) for x in (weights, kept, g_weights)), strict=True)
        for one, (weight, used, g_score) in zip(runs.split(q, k, g, g_q, g_k, g_v), squares, strict=True):
            of_query, of_key, of_out, to_query, to_key, to_value = one
            torch.bmm(used.transpose(1, 2), of_out, out=to_value)
            torch._softmax_backward_data(g_score, weight, -1, weight.dtype, grad_input=g_score)
            torch.bmm(g_score, of_key, out=to_query)
            torch.bmm(g_score.transpose(1, 2), of_query, out=to_key)
        found = (g_q.mul_(ctx.scaling), g_k, g_v.div_(1 - ctx.dropped))
        return (*(runs.tokens(x).transpose(1, 2) for x in found), None, None, None, None)


class _Runs:
    """Rows in which the tokens of a text's head stand together, and the scores of each run of equal texts.

    Heads that share a key are one matrix of their tokens.
    """

    def __init__(self, batch: PackedBatch, heads: int, key_heads: int) -> None:
        self.batch, self.groups = batch, heads // key_heads
        self.matrices = [texts * key_heads for texts, _ in batch.runs]
        self.lengths = [length for _, length in batch.runs]
        self.areas = [n * self.groups * m**2 for n, m in zip(self.matrices, self.lengths, strict=True)]
        self.n_scores = sum(self.areas)

    def rows(self, x: Tensor) -> Tensor:
        """(1, heads, total, dim) to (heads x total, dim)."""
        flat = x[0].transpose(0, 1).reshape(-1, x.shape[-1])
        return flat.index_select(0, self.batch.by_head(x.shape[1])[0])

    def tokens(self, rows: Tensor) -> Tensor:
        """(heads x total, dim) to (1, total, heads, dim)."""
        heads = len(rows) // len(self.batch.positions)
        return rows.index_select(0, self.batch.by_head(heads)[1]).view(1, -1, heads, rows.shape[-1])

    def split(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Such rows of several tensors, (matrices, tokens of the heads in one, dim) of each run."""
        parts = []
        for x in tensors:
            of_one = len(x) // sum(map(mul, self.matrices, self.lengths))  # heads in a matrix
            pieces = torch.split(x, [n * m * of_one for n, m in zip(self.matrices, self.lengths, strict=True)])
            parts.append([piece.view(n, -1, x.shape[-1]) for piece, n in zip(pieces, self.matrices, strict=True)])
        return zip(*parts, strict=True)

    def scores(self, flat: Tensor) -> list[Tensor]:
        """Memory for all scores, (matrices, tokens of the heads in one, tokens) of each run."""
        shapes = zip(self.matrices, self.lengths, torch.split(flat, self.areas), strict=True)
        return [x.view(n, self.groups * m, m) for n, m, x in shapes]
