"""Attention within each text of a packed sequence: one row of `TABLE` for each way to compute it.

No architecture's code is copied. For each implementation ("sdpa", "eager", flash attention) an attention function and a
mask function are registered with transformers under `packed_<implementation>`: inside `packed(batch)` they attend
within each text, by the first row that applies; elsewhere they are that implementation. Importing this module registers
them, so a worker process that unpickles a model has them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..bidirectional import PACKED
from .cpu_attention import attend, fits
from .dropout import attend_with_dropout
from .packed_batch import PackedBatch, current_batch

IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
# torch's bfloat16 attention on a CPU takes 1.05 to 1.7 times as long as float32's, but for AMX (2 Zen 4 cores).
_IN_FLOAT32 = not getattr(torch.cpu, "_is_amx_tile_supported", bool)()


@dataclass(frozen=True)
class Call:
    """What a layer hands to its attention.

    Attributes:
        query, key, value: (1, heads, total, dim), of keys and values as many heads or a divisor of them.
        scaling: Of the scores; default: 1 / sqrt(dim).
        is_causal: A token sees none after itself.
        window: Tokens at most that it sees, itself among them, if causal; else so many on either side, too.
        dropout: Share of the weights that are dropped.
        compiled: Whether the layer is compiled.
        plain: The model's own attention function, with all that the layer said; None where that is nothing else.
        implementation: The attention implementation that the model was loaded with.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float | None
    is_causal: bool
    window: int | None
    dropout: float = 0.0
    compiled: bool = False
    plain: Callable[..., tuple[Tensor, Any]] | None = None
    implementation: str = "sdpa"


def _texts(batch: PackedBatch, call: Call) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values of each run of equal texts, (texts, heads, tokens, dim); all are views."""
    tensors = (call.query, call.key, call.value)
    if len(batch.lengths) == 1:
        yield tensors
        return
    sizes = [texts * length for texts, length in batch.runs]
    parts = [torch.split(x[0], sizes, 1) for x in tensors]
    for (texts, length), *those in zip(batch.runs, *parts, strict=True):
        yield tuple(x.unflatten(1, (texts, length)).transpose(0, 1) for x in those)


def _mask(implementation: str, query: Tensor, causal: bool, window: int | None) -> Tensor | None:
    """What a text may see, where the function does not know: causality in eager, windows; (1, 1, tokens, tokens)."""
    length = query.shape[2]
    window = window or length
    if window >= length and not (causal and implementation == "eager"):
        return None
    at = torch.arange(length, device=query.device)
    ahead = at[None, :] - at[:, None]  # key minus query
    seen = (ahead <= 0) & (ahead > -window) if causal else ahead.abs() <= window
    if implementation == "sdpa":
        return seen[None, None]
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)[None, None]


def _by_own_function(batch: PackedBatch, call: Call) -> Tensor:
    """The model's own function, of texts of equal length at a time: it knows its caps, sinks and biases."""
    assert call.plain is not None
    heads = []
    for q, k, v in _texts(batch, call):
        mask = _mask(call.implementation, q, call.is_causal, call.window)
        heads.append(call.plain(q, k, v, mask)[0].flatten(0, 1))
    return torch.cat(heads)[None]


def _by_flash_attention(batch: PackedBatch, call: Call) -> Tensor:
    assert call.plain is not None
    ends = batch.device_cu_seqlens.to(call.query.device)
    longest = batch.lengths[-1]
    where = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return call.plain(call.query, call.key, call.value, None, **where)[0]


def _by_sdpa(batch: PackedBatch, call: Call) -> Tensor:
    """torch's, of texts of equal length at a time."""
    options: dict[str, Any] = {
        "scale": call.scaling,
        "enable_gqa": call.query.shape[1] != call.key.shape[1],
        "dropout_p": call.dropout,
    }
    if call.query.is_cuda and options.pop("enable_gqa"):  # its kernels without a loss of speed take equal heads
        shared = call.query.shape[1] // call.key.shape[1]
        key, value = (x.repeat_interleave(shared, 1) for x in (call.key, call.value))
        call = replace(call, key=key, value=value)
    heads = []
    for q, k, v in _texts(batch, call):
        mask = _mask("sdpa", q, call.is_causal, call.window)
        causal = call.is_causal and mask is None
        alone = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, **options)
        heads.append(alone.transpose(1, 2).flatten(0, 1))
    return (torch.cat(heads) if len(heads) > 1 else heads[0].contiguous())[None]


def _by_varlen(batch: PackedBatch, call: Call) -> Tensor:
    """torch's own flash attention over texts of different lengths, in one call."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = batch.device_cu_seqlens.to(call.query.device), batch.lengths[-1]
    window = call.window or longest
    # transformers' causal window counts the token itself, its symmetric one does not
    reach = (min(window - 1, longest), 0) if call.is_causal else (min(window, longest),) * 2
    q, k, v = (x[0].transpose(0, 1) for x in (call.query, call.key, call.value))  # (total, heads, dim)
    out = varlen_attn(
        *(q, k, v, ends, ends, longest, longest),
        scale=call.scaling,
        window_size=reach if window < longest or reach[1] == 0 else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _by_our_own(batch: PackedBatch, call: Call) -> Tensor:
    """cpu_attention.cpp."""
    reads: dict[str, Any] = {"scaling": call.scaling, "is_causal": call.is_causal, "window": call.window}
    return attend(call.query, call.key, call.value, batch.cu_seqlens, **reads)


def _by_dropout(batch: PackedBatch, call: Call) -> Tensor:
    """Ours, with dropout, on a CPU (dropout.py)."""
    masks = [_mask("eager", call.query[:, :, :n], call.is_causal, call.window) for _, n in batch.runs]
    added = [None if mask is None else mask[0, 0] for mask in masks]
    options: dict[str, Any] = {"scaling": call.scaling, "dropped": call.dropout, "masks": added}
    return attend_with_dropout(call.query, call.key, call.value, batch, **options)


def _has_varlen(call: Call) -> bool:
    return (
        call.query.is_cuda
        and call.query.dtype in (torch.float16, torch.bfloat16)
        and call.query.shape[-1] == call.value.shape[-1] <= 256
        and hasattr(torch.nn.attention, "varlen")
        and not call.dropout
    )


class Row(NamedTuple):
    """One way to attend within each text of a packed sequence."""

    name: str
    applies: Callable[[Call], bool]
    attend: Callable[[PackedBatch, Call], Tensor]
    """(1, heads, total, dim) of queries, keys and values to (1, total, heads, dim)."""


# The first row that applies is taken. `plain` is None where the call says all there is to say.
TABLE: list[Row] = [
    Row("flash attention", lambda call: call.implementation.startswith("flash"), _by_flash_attention),
    Row("own function", lambda call: call.plain is not None, _by_own_function),
    Row("varlen", _has_varlen, _by_varlen),
    Row("dropout", lambda call: bool(call.dropout) and call.query.device.type == "cpu", _by_dropout),
    Row("cpu_attention.cpp", lambda call: call.compiled and fits(call.query, call.value), _by_our_own),
    Row("sdpa", lambda call: True, _by_sdpa),
]


def within_texts(batch: PackedBatch, call: Call) -> Tensor:
    """Attend within each text of the packed batch: (1, total, heads, dim)."""
    batch.calls += 1
    return next(row for row in TABLE if row.applies(call)).attend(batch, call)


def _attention(implementation: str) -> Callable[..., tuple[Tensor, Any]]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        # eager is no entry of transformers' table: each architecture has its own, with its caps, sinks and biases
        function: Callable[..., tuple[Tensor, Any]] = (
            ALL_ATTENTION_FUNCTIONS.get(implementation) or sys.modules[type(module).__module__].eager_attention_forward
        )
        compiling = torch.compiler.is_compiling()
        batch = None if compiling else current_batch()
        if batch is None and not (compiling and attention_mask is None):
            return function(module, query, key, value, attention_mask, **kwargs)
        reads = (kwargs.get("scaling"), _is_causal(module, kwargs), kwargs.get("sliding_window"))
        special = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
        dropout, dtype = kwargs.get("dropout") or 0.0, query.dtype
        ordinary = implementation == "sdpa" and not special
        if ordinary and _IN_FLOAT32 and query.device.type == "cpu" and dtype == torch.bfloat16:
            query, key, value = (x.float() for x in (query, key, value))
        if batch is not None:
            plain = None if ordinary else partial(function, module, **kwargs)
            call = Call(query, key, value, *reads, dropout, plain=plain, implementation=implementation)
            return within_texts(batch, call).to(dtype), None
        if not ordinary or dropout:
            raise NotImplementedError(f"attention by {implementation!r} with {special or 'dropout'} is not compiled")
        return torch.ops.st_llm2vec.attend(query, key, value, *reads).to(dtype), None

    return attention


def _attend_compiled(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, is_causal: bool, window: int | None
) -> Tensor:
    """The same as an operator in compiled layers: where the texts end is none of the compiler's business."""
    if batch := current_batch():
        return within_texts(batch, Call(query, key, value, scaling, is_causal, window, compiled=True))
    # somebody compiled a padded model, and this batch has no pads
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    whole = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, **options)
    return whole.transpose(1, 2).contiguous()


_library: Any = torch.library.Library("st_llm2vec", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor q, Tensor k, Tensor v, float? scaling, bool is_causal, SymInt? window) -> Tensor")
_library.impl("attend", _attend_compiled, "CompositeExplicitAutograd")
_library.impl("attend", lambda q, k, v, *_: q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]), "Meta")


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    said = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _mask_function(implementation: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        # A packed batch has none: it would be (total, total).
        return None if current_batch() is not None else ALL_MASK_ATTENTION_FUNCTIONS[implementation](*args, **kwargs)

    return mask


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(PACKED + _name, _attention(_name))
    AttentionMaskInterface.register(PACKED + _name, _mask_function(_name))
