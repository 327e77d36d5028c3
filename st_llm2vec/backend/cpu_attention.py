"""Attention within each text of a packed sequence, in float32 on a CPU with AVX512 (cpu_attention.cpp).

torch's takes texts of equal length at a time, and two to four times as long (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build_folder import use_build_folder

LANES = 16  # float32 in a vector; heads that are narrower are left to torch
_EVERYTHING = 2**40
log = logging.getLogger(__name__)


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("heads", "shared", "dim", "width")),
        *((f"{name}_{of}", ctypes.c_int64) for name in "qkv" for of in ("head", "token")),
        *((name, ctypes.c_int64) for name in ("before", "after")),
        ("scale", ctypes.c_float),
    ]


@lru_cache
def _library() -> Any:
    """The built library; None where there is no AVX512 or it cannot be built."""
    if not getattr(torch.cpu, "_is_avx512_supported", bool)():
        return None
    if reason := use_build_folder():
        log.info("cpu_attention.cpp was not built, torch's attention is used: %s.", reason)
        return None
    try:
        from torch._inductor.codecache import CppCodeCache  # keeps what it built on the disk

        source = Path(__file__).with_name("cpu_attention.cpp").read_text(encoding="utf-8")
        return CppCodeCache.load(source, extra_flags=("-ffp-contract=fast",))
    except Exception as error:  # torch's own: a compiler that it cannot use, a version without it
        log.info("cpu_attention.cpp was not built, torch's attention is used: %s", str(error).strip()[:200])
        return None


def fits(query: Tensor, value: Tensor) -> bool:
    """Whether `attend` can take these; the first time it builds the library, which takes a second or two."""
    width = min(query.shape[-1], value.shape[-1])
    return query.device.type == "cpu" and query.dtype == torch.float32 and width >= LANES and _library() is not None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    scaling: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Attention within each text, as `scaled_dot_product_attention` computes it for each alone, where `fits`.

    Args:
        query, key, value: float32 (1, heads, total, dim), of keys and values as many heads or a divisor of them.
        cu_seqlens: int64 (texts + 1), where each text begins in the sequence, and `total`.
        scaling: Of the scores; default: 1 / sqrt(dim).
        is_causal: A token sees none after itself.
        window: Tokens at most that it sees, itself among them, if causal; else so many on either side, too.

    Returns:
        (1, total, heads, dim).

    Raises:
        ValueError: `cu_seqlens` is another batch's.
    """
    heads, total, dim = query.shape[1:]
    width = value.shape[-1]
    if int(cu_seqlens[-1]) != total:
        raise ValueError(f"cu_seqlens must end at the {total} tokens of the sequence, got {int(cu_seqlens[-1])}")
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = query.new_empty(total, heads, width)
    reach = window or _EVERYTHING
    shape = _Shape(
        *(heads, heads // key.shape[1], dim, width),
        *(x.stride(axis) for x in (query, key, value) for axis in (1, 2)),
        *((reach - 1, 0) if is_causal else (reach, reach)),
        dim**-0.5 if scaling is None else scaling,
    )
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (query, key, value, out, cu_seqlens))
    _library().attend(*pointers, ctypes.c_int64(len(cu_seqlens) - 1), ctypes.byref(shape))
    return out[None]
