"""Runs a batch without padding: the texts stand one after another in a single row, and attention stays within each.

No architecture's code is copied. For each kernel ("sdpa", "eager", flash attention) an attention function and a mask
function are registered with transformers under `packed_<kernel>`: inside `packed(row)` they give each text to the
kernel of that name, elsewhere they are that kernel. Importing this module registers them, so a worker process that
unpickles a model has them.

Some architectures take the setting and never ask for the function, or mix the tokens of a row in another way (falcon,
gptj, bloom): `enable_packing` therefore believes nothing that it has not seen (reference: DESIGN, "Speed").
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import attend
from .bidirectional import PACKED, kernel_of
from .equivalence import Status, alone, judge, off, own_noise, precision, probe_ids

KERNELS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
# torch's bfloat16 attention on a CPU takes 1.05 to 1.7 times as long as float32's, but for AMX (2 Zen 4 cores).
_IN_FLOAT32 = not getattr(torch.cpu, "_is_amx_tile_supported", bool)()
_lock = threading.Lock()


@dataclass
class Row:
    """Where the tokens of a batch stand in one row, shortest text first.

    Attributes:
        positions: (total,) place of each of the row's tokens in the flattened (n, length) batch.
        position_ids: (1, total), from 0 in every text.
        lengths: Tokens of each text, ascending.
        calls: How often an attention layer has asked for this row.
    """

    positions: Tensor
    position_ids: Tensor
    lengths: list[int]
    calls: int = 0

    @classmethod
    def of(cls, attention_mask: Tensor) -> Row:
        """The row of a batch with this mask, (n, length), padded on either side."""
        mask = attention_mask.bool()
        if len(mask) == 1 and bool(mask.all()):  # a single query should not wait for what it does not need
            places = torch.arange(mask.shape[1], device=mask.device)
            return cls(places, places[None].clone(), [len(places)])
        lengths, order = mask.sum(1).sort(stable=True)
        places = torch.arange(mask.numel(), device=mask.device).view(mask.shape)[order]
        within = mask.cumsum(1)[order] - 1
        return cls(places[mask[order]], within[mask[order]][None], lengths.tolist())

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(texts, tokens of each) of the texts of equal length, which attention takes in one call."""
        return [(len(list(texts)), length) for length, texts in groupby(self.lengths)]

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins, and the row ends: int64 (texts + 1), on the CPU."""
        return torch.tensor([*accumulate(self.lengths, initial=0)])

    def to(self, device: torch.device | str) -> Row:
        """The same row on another device."""
        positions, position_ids = (t.to(device, non_blocking=True) for t in (self.positions, self.position_ids))
        return Row(positions, position_ids, self.lengths)

    def gather(self, batch: Tensor) -> Tensor:
        """Values of a batch, (n, length), in the row: (1, total)."""
        return batch.flatten()[self.positions][None]

    def scatter(self, row: Tensor, shape: torch.Size) -> Tensor:
        """Values of the row, (1, total, width), in a batch of `shape` (n, length): (n, length, width), 0 in pads."""
        flat = row.new_zeros(shape.numel(), row.shape[-1])
        return flat.index_copy(0, self.positions, row[0]).view(*shape, -1)


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


_current: ContextVar[Row | None] = ContextVar("st_llm2vec_row", default=None)


current_row = _current.get


@contextmanager
def packed(row: Row) -> Iterator[None]:
    """While the block runs, the attention layers called in this thread read `row`."""
    token = _current.set(row)
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
def packed_checkpoints(model: nn.Module, row: Row) -> Iterator[None]:
    """While the block runs, layers under gradient checkpointing take `row` along, to read it when they run again."""

    def with_row(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def again(*args: Any, **kwargs: Any) -> Any:  # maybe in a thread of the backward pass
                with packed(row):
                    return function(*args, **kwargs)

            return checkpoint(again, *args, **kwargs)

        return checkpointed

    layers: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    held = [(layer, found) for layer in layers if (found := getattr(layer, "_gradient_checkpointing_func", None))]
    try:
        for layer, checkpoint in held:
            layer._gradient_checkpointing_func = with_row(checkpoint)
        yield
    finally:
        for layer, checkpoint in held:
            layer._gradient_checkpointing_func = checkpoint


def _attention(kernel: str) -> Callable[..., tuple[Tensor, Any]]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        # eager is no entry of transformers' table: each architecture has its own, with its caps, sinks and biases
        function: Callable[..., tuple[Tensor, Any]] = (
            ALL_ATTENTION_FUNCTIONS.get(kernel) or sys.modules[type(module).__module__].eager_attention_forward
        )
        compiling = torch.compiler.is_compiling()
        row = None if compiling else _current.get()
        if row is None and not (compiling and attention_mask is None):
            return function(module, query, key, value, attention_mask, **kwargs)
        causal, window = _is_causal(module, kwargs), kwargs.get("sliding_window")
        special = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
        dropout = kwargs.get("dropout") or 0.0
        if kernel == "sdpa" and not special and not (compiling and dropout):
            run = partial(_attend, dropout=dropout) if row else torch.ops.st_llm2vec.attend
            slow = _IN_FLOAT32 and query.device.type == "cpu" and query.dtype == torch.bfloat16
            q, k, v = (x.float() if slow else x for x in (query, key, value))
            return run(q, k, v, kwargs.get("scaling"), causal, window).to(query.dtype), None
        if row is None:
            raise NotImplementedError(f"attention by {kernel!r} with {special or 'dropout'} is not compiled")
        row.calls += 1
        if kernel.startswith("flash"):
            return function(module, query, key, value, None, **kwargs, **_flash_arguments(row, query.device))
        heads = []
        for q, k, v in _runs(row, query, key, value):
            mask = _mask(kernel, q, causal, window)
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
    """Attention within each text of the row, by torch: (1, heads, total, dim) to (1, total, heads, dim)."""
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1], "dropout_p": dropout}
    row = _current.get()
    if row is None:  # somebody compiled a padded model, and this batch has no pads
        whole = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, **options)
        return whole.transpose(1, 2).contiguous()
    row.calls += 1
    if _has_varlen(query, value) and not dropout:
        return _varlen(row, query, key, value, scaling, is_causal, window)
    if query.is_cuda and options.pop("enable_gqa"):  # its kernels without a loss of speed take equal heads
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    heads = []
    for q, k, v in _runs(row, query, key, value):
        mask = _mask("sdpa", q, is_causal, window)
        alone = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None, **options)
        heads.append(alone.transpose(1, 2).flatten(0, 1))
    return (torch.cat(heads) if len(heads) > 1 else heads[0].contiguous())[None]


def _attend_compiled(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, is_causal: bool, window: int | None
) -> Tensor:
    """The same as an operator in compiled layers: where the row's texts end is none of the compiler's business."""
    found = None
    if row := _current.get():
        found = attend(query, key, value, row.starts, scaling=scaling, is_causal=is_causal, window=window)
    if row is None or found is None:
        return _attend(query, key, value, scaling, is_causal, window)
    row.calls += 1
    return found


_library: Any = torch.library.Library("st_llm2vec", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor q, Tensor k, Tensor v, float? scaling, bool is_causal, SymInt? window) -> Tensor")
_library.impl("attend", _attend_compiled, "CompositeExplicitAutograd")
_library.impl("attend", lambda q, k, v, *_: q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]), "Meta")


def _runs(row: Row, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each run, the (texts, heads, tokens, dim) of tensors that are (1, heads, total, dim); all are views."""
    if len(row.lengths) == 1:
        yield tensors
        return
    sizes = [texts * length for texts, length in row.runs]
    parts = [torch.split(x[0], sizes, 1) for x in tensors]
    for (texts, length), *those in zip(row.runs, *parts, strict=True):
        yield tuple(x.unflatten(1, (texts, length)).transpose(0, 1) for x in those)


def _mask(kernel: str, query: Tensor, causal: bool, window: int | None) -> Tensor | None:
    """What a text may see beyond what the kernel knows: causality in eager, windows in both; (1, 1, tokens, tokens)."""
    length = query.shape[2]
    window = window or length
    if window >= length and not (causal and kernel == "eager"):
        return None
    at = torch.arange(length, device=query.device)
    ahead = at[None, :] - at[:, None]  # key minus query
    seen = (ahead <= 0) & (ahead > -window) if causal else ahead.abs() <= window
    if kernel == "sdpa":
        return seen[None, None]
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)[None, None]


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    said = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _flash_arguments(row: Row, device: torch.device) -> dict[str, Any]:
    starts = row.starts.to(device, torch.int32)
    longest = row.lengths[-1]
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
    row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, causal: bool, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    flash = _flash_arguments(row, query.device)
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


def _mask_function(kernel: str) -> Callable[..., Any]:
    def mask(*args: Any, **kwargs: Any) -> Any:
        # Inside a row there is none to make: it would be (total, total).
        return None if _current.get() is not None else ALL_MASK_ATTENTION_FUNCTIONS[kernel](*args, **kwargs)

    return mask


for _kernel in KERNELS:
    AttentionInterface.register(PACKED + _kernel, _attention(_kernel))
    AttentionMaskInterface.register(PACKED + _kernel, _mask_function(_kernel))


def is_packing(model: PreTrainedModel) -> bool:
    """Whether the model's attention layers ask for the row."""
    return str(model.config._attn_implementation).startswith(PACKED)


def enable_packing(model: PreTrainedModel, tokenizer: Any = None) -> Status:
    """Lets the model take packed sequences, if its texts then have the vectors that they have alone (equivalence.py).

    Costs a forward pass of five short texts alone, one of them padded, and one of them packed.

    Args:
        model: The decoder.
        tokenizer: What makes token ids of the probe texts; without one they are arbitrary ids.

    Returns:
        Whether it does, and why not. It then runs padded batches as before, too.
    """
    with _lock:
        if is_packing(model):
            return _proven.get(model) or Status(True)
        # glibc keeps blocks up to the size of the largest one ever freed, 32 MiB at most, and fetches larger ones anew
        # for every layer (mallopt(3), M_MMAP_THRESHOLD). This one is never touched, so it takes no memory.
        torch.empty(31 * 2**20, dtype=torch.uint8)
        kernel = kernel_of(model)
        if kernel not in KERNELS:
            return off(f"the {kernel!r} attention implementation takes no packed sequences")
        before = [(config, config._attn_implementation) for config in _configs(model)]
        status = off("its code failed")
        was_training = model.training
        model.eval()
        try:
            status = _probe(model, PACKED + kernel, probe_ids(model, tokenizer))
        except Exception as error:  # third-party code, called in a way that it may not be made for
            status = off(f"its code takes no packed sequences ({type(error).__name__}: {str(error)[:200]})")
        finally:
            model.train(was_training)
            if not status:
                for config, implementation in before:
                    config._attn_implementation_internal = implementation
        _proven[model] = status
        return status


_proven: weakref.WeakKeyDictionary[PreTrainedModel, Status] = weakref.WeakKeyDictionary()


def disable_packing(model: PreTrainedModel) -> None:
    """Gives the model its plain kernel back."""
    for config in _configs(model):
        config._attn_implementation_internal = kernel_of(model)


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    found = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in found if isinstance(config, PretrainedConfig)}.values())


def _probe(model: PreTrainedModel, packed_kernel: str, texts: Sequence[Sequence[int]]) -> Status:
    """Whether packed texts have the vectors that they have alone; leaves the model with `packed_kernel`."""
    before = alone(model, texts)
    noise = own_noise(model, texts, before)
    for part in _configs(model):
        part._attn_implementation_internal = packed_kernel
    together, calls = _together(model, texts)
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    if not calls or calls % depth:  # diffllama asks twice in each layer
        return off(f"{calls} of {depth} layers ask for the attention function")
    return judge(before, together, noise, precision(model))


def vectors_of(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Token vectors of each text, (tokens, hidden), as the model encodes them now: packed if it packs, else alone."""
    return _together(model, texts)[0] if is_packing(model) else alone(model, texts)


@torch.inference_mode()
def _together(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> tuple[list[Tensor], int]:
    """Token vectors of each text in one packed sequence, and how often an attention layer asked for it."""
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([*chain.from_iterable(texts)])
    row, ids = Row.of(mask).to(model.device), ids.to(model.device)
    with packed(row):
        hidden = model(input_ids=row.gather(ids), position_ids=row.position_ids, use_cache=False)[0]
    batch = row.scatter(hidden, mask.shape).float()
    return [states[: len(text)] for states, text in zip(batch, texts, strict=True)], row.calls
