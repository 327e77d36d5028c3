"""Attention within each text of a packed sequence: one row of a table for each attention implementation.

No architecture's code is copied. For each implementation ("sdpa", "eager", flash attention) an attention function and a
mask function are registered with transformers under `packed_<implementation>`: inside `packed(batch)` they give each
text to the implementation of that name, elsewhere they are that implementation. Importing this module registers them,
so a worker process that unpickles a model has them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..bidirectional import PACKED
from .cpu_attention import attend
from .packed_batch import PackedBatch, current_batch

IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
# torch's bfloat16 attention on a CPU takes 1.05 to 1.7 times as long as float32's, but for AMX (2 Zen 4 cores).
_IN_FLOAT32 = not getattr(torch.cpu, "_is_amx_tile_supported", bool)()


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
        causal, window = _is_causal(module, kwargs), kwargs.get("sliding_window")
        special = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
        dropout = kwargs.get("dropout") or 0.0
        if implementation == "sdpa" and not special and not (compiling and dropout):
            run = partial(_attend, dropout=dropout) if batch else torch.ops.st_llm2vec.attend
            slow = _IN_FLOAT32 and query.device.type == "cpu" and query.dtype == torch.bfloat16
            q, k, v = (x.float() if slow else x for x in (query, key, value))
            return run(q, k, v, kwargs.get("scaling"), causal, window).to(query.dtype), None
        if batch is None:
            raise NotImplementedError(f"attention by {implementation!r} with {special or 'dropout'} is not compiled")
        batch.calls += 1
        if implementation.startswith("flash"):
            return function(module, query, key, value, None, **kwargs, **_flash_arguments(batch, query.device))
        heads = []
        for q, k, v in _runs(batch, query, key, value):
            mask = _mask(implementation, q, causal, window)
            heads.append(function(module, q, k, v, mask, **kwargs)[0].flatten(0, 1))
        return torch.cat(heads)[None], None  # (1, total, heads, dim)

    return attention


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    is_causal: bool,
    window: int | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention within each text of the packed batch, by torch: (1, heads, total, dim) to (1, total, heads, dim)."""
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1], "dropout_p": dropout}
    batch = current_batch()
    if batch is None:  # somebody compiled a padded model, and this batch has no pads
        whole = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, **options)
        return whole.transpose(1, 2).contiguous()
    batch.calls += 1
    if _has_varlen(query, value) and not dropout:
        return _varlen(batch, query, key, value, scaling, is_causal, window)
    if query.is_cuda and options.pop("enable_gqa"):  # its kernels without a loss of speed take equal heads
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    heads = []
    for q, k, v in _runs(batch, query, key, value):
        mask = _mask("sdpa", q, is_causal, window)
        alone = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None, **options)
        heads.append(alone.transpose(1, 2).flatten(0, 1))
    return (torch.cat(heads) if len(heads) > 1 else heads[0].contiguous())[None]


def _attend_compiled(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, is_causal: bool, window: int | None
) -> Tensor:
    """The same as an operator in compiled layers: where the texts end is none of the compiler's business."""
    found = None
    if batch := current_batch():
        found = attend(query, key, value, batch.cu_seqlens, scaling=scaling, is_causal=is_causal, window=window)
    if batch is None or found is None:
        return _attend(query, key, value, scaling, is_causal, window)
    batch.calls += 1
    return found


_library: Any = torch.library.Library("st_llm2vec", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor q, Tensor k, Tensor v, float? scaling, bool is_causal, SymInt? window) -> Tensor")
_library.impl("attend", _attend_compiled, "CompositeExplicitAutograd")
_library.impl("attend", lambda q, k, v, *_: q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]), "Meta")


def _runs(batch: PackedBatch, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each run, the (texts, heads, tokens, dim) of tensors that are (1, heads, total, dim); all are views."""
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


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    said = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _flash_arguments(batch: PackedBatch, device: torch.device) -> dict[str, Any]:
    starts = batch.cu_seqlens.to(device, torch.int32)
    longest = batch.lengths[-1]
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}


def _has_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether torch's own flash attention over texts of different lengths can do this layer (CUDA, half precision)."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == value.shape[-1] <= 256
        and hasattr(torch.nn.attention, "varlen")
    )


def _varlen(
    batch: PackedBatch,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    flash = _flash_arguments(batch, query.device)
    ends, longest = flash["cu_seq_lens_q"], flash["max_length_q"]
    window = window or longest
    # transformers' causal window counts the token itself, its symmetric one does not
    reach = (min(window - 1, longest), 0) if causal else (min(window, longest),) * 2
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (total, heads, dim)
    out = varlen_attn(
        *(q, k, v, ends, ends, longest, longest),
        scale=scaling,
        window_size=reach if window < longest or reach[1] == 0 else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _mask_function(implementation: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        # A packed batch has none: it would be (total, total).
        return None if current_batch() is not None else ALL_MASK_ATTENTION_FUNCTIONS[implementation](*args, **kwargs)

    return mask


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(PACKED + _name, _attention(_name))
    AttentionMaskInterface.register(PACKED + _name, _mask_function(_name))


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(PACKED + _name, _attention(_name))
    AttentionMaskInterface.register(PACKED + _name, _mask_function(_name))
