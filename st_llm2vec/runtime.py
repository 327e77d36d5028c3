"""`Runtime`: how an encoder is run, on what and in which precision; checked before anything is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import InvalidInputError
from .settings import as_flag, one_of

DTYPES = ("float32", "bfloat16", "float16", "float64")
AUTO = "auto"  # as the weights are stored
# Arguments of `from_pretrained` that have a place of their own, or none: code of a checkpoint is never run, and only
# safetensors are read.
_ELSEWHERE = {
    "cache_dir": "load(cache_folder=...)",
    "token": "load(token=...)",
    "revision": "load(revision=...)",
    "local_files_only": "load(local_files_only=...)",
    "subfolder": "the subfolder's own path",
    "trust_remote_code": "a decoder that transformers knows: no code of a checkpoint is run",
    "use_safetensors": "safetensors: no other weights are read",
}


@dataclass(frozen=True)
class Runtime:
    """How an encoder is run: arguments of `load` that change its speed and memory, and not what it reads.

    Raises:
        InvalidInputError: A value of the wrong type, one that is not known, or two that exclude each other.
    """

    dtype: torch.dtype | str | None = None
    quantize: str | None = None
    packing: bool = True
    compile: bool = False
    device: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._take("packing", as_flag("packing", self.packing))
        self._take("compile", as_flag("compile", self.compile))
        if self.quantize is not None:
            one_of("quantize", self.quantize, ("int8",))
        self._take("model_kwargs", self._checked_kwargs(self.model_kwargs))
        self._take("dtype", as_dtype(self.dtype))
        if self.quantize and self.dtype == AUTO:
            raise InvalidInputError("dtype must be float32, bfloat16 or float16 with quantize='int8', got 'auto'.")
        self._take("device", self._checked_device(self.device))

    @property
    def stored_dtype(self) -> torch.dtype | str | None:
        """The dtype that weights are read in; int8 is made of float32."""
        return torch.float32 if self.quantize else self.dtype

    def _take(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _checked_kwargs(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"model_kwargs must be arguments by name, got {given!r} ({type(given).__name__}).")
        options = dict(given)
        for name, place in _ELSEWHERE.items():
            if options.pop(name, None) not in (None, name == "use_safetensors"):
                raise InvalidInputError(f"model_kwargs[{name!r}] must be left out, got {given[name]!r}. Use {place}.")
        named = {name: options.pop(name) for name in ("dtype", "torch_dtype") if options.get(name) is not None}
        if self.dtype is not None:
            named = {"dtype": self.dtype, **{f"model_kwargs[{name!r}]": value for name, value in named.items()}}
        if len(named) > 1:
            said = " and ".join(f"{name}={value!r}" for name, value in named.items())
            raise InvalidInputError(f"dtype must be given once, got {said}.")
        self._take("dtype", next(iter(named.values()), None))
        return options

    def _checked_device(self, device: Any) -> str | None:
        if device is None:
            return "cpu" if self.quantize else None
        try:
            if isinstance(device, bool) or not isinstance(device, str | torch.device):
                raise TypeError(f"it is a {type(device).__name__}")
            kind = torch.device(device).type
            if kind == "meta":
                raise TypeError("nothing can be computed there")
        except (RuntimeError, TypeError) as error:
            said = str(error).partition("\n")[0]
            raise InvalidInputError(
                f"device must be a name such as 'cpu', 'cuda:1' or 'mps', got {device!r} ({said})."
            ) from error
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(kind, True):
            raise InvalidInputError(
                f"device must be one that is here, got {str(device)!r}. Use 'cpu', or leave it out."
            )
        if "device_map" in self.model_kwargs:
            raise InvalidInputError(
                f"device must be left out with model_kwargs['device_map'], which places weights, got {str(device)!r}."
            )
        if self.quantize and kind != "cpu":
            raise InvalidInputError(
                f"device must be 'cpu' with quantize={self.quantize!r}, got {str(device)!r}. Leave one of them out."
            )
        return str(device)


def as_dtype(dtype: Any) -> torch.dtype | str | None:
    """Return a floating-point dtype of torch, "auto" or None.

    Raises:
        InvalidInputError: Anything else.
    """
    if dtype is None or dtype == AUTO:
        return dtype  # type: ignore[no-any-return]
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype | str) else None
    if name not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join((*DTYPES, AUTO))}, got {dtype!r}.")
    found: torch.dtype = getattr(torch, name)
    return found


def as_torch_dtype(dtype: Any) -> torch.dtype | None:
    """Return a floating-point dtype of torch; None for None and "auto"."""
    found = as_dtype(dtype)
    return found if isinstance(found, torch.dtype) else None
