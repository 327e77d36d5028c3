"""An encoder run as it was asked for: the one verb of this package, on a model that has been loaded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidInputError
from ..runtime import Runtime
from .equivalence import PROBES, SHORT_PROBES, off
from .prepacked import lacks, prepack
from .quantizing import quantize as quantize_weights
from .residual import keep_residual_in_float32

if TYPE_CHECKING:
    from ..model import LLM2Vec

log = logging.getLogger(__name__)


def accelerate(model: LLM2Vec, runtime: Runtime) -> LLM2Vec:
    """Pack, prepack, quantize and compile as `runtime` says; `model[0].status` tells what is on, or why it is not.

    Raises:
        InvalidInputError: int8 was asked for on a device or on weights that it is not for.
    """
    model[0].packing = runtime.packing
    if runtime.quantize or (runtime.dtype is not None and model.device.type == "cpu"):
        _use_backend(model.eval(), runtime)
    if runtime.compile:
        model[0].compiles = True
        model.encode(PROBES, show_progress_bar=False)
        if not (compiled := model[0].status["compiled"]):
            reason = compiled.reason or model[0].status["packed"].reason
            log.warning("compile=True was left out: %s. The vectors are the same, encoding takes longer.", reason)
    return model


def widen_residual(decoder: Any) -> None:
    """Keep what runs between a decoder's matrices in float32, where these are in half precision, on a CPU."""
    if decoder.device.type == "cpu" and not lacks("bfloat16"):
        keep_residual_in_float32(decoder)


def _use_backend(model: LLM2Vec, runtime: Runtime) -> None:
    """Prepack the weights for the processor, or quantize them on request; what it cannot do is said."""
    decoder, quantize = model[0].model, runtime.quantize
    if quantize and (model.device.type != "cpu" or getattr(decoder, "is_quantized", False)):
        what = f"on {model.device}" if model.device.type != "cpu" else "int8 already, or quantized in another way"
        raise InvalidInputError(f"quantize={quantize!r} is for float weights on a CPU; these are {what}. Leave it out.")
    if quantize and not (missing := lacks("int8")):
        probes: dict[str, Any] = {"prompt": "", "convert_to_tensor": True, "show_progress_bar": False}
        dtype = runtime.dtype if isinstance(runtime.dtype, torch.dtype) else None
        texts = PROBES + SHORT_PROBES
        status = quantize_weights(decoder, lambda: model.encode(texts, **probes), dtype=dtype)
        model[0].status["quantized"] = status
        if status.reason:  # some layers are not
            model[0].status["prepacked"] = prepack(decoder, model.tokenizer)
        return
    if quantize:
        log.warning("quantize='int8' was left out, as this is %s; the model encodes in float32.", missing)
        model[0].status["quantized"] = off(missing)
    widen_residual(decoder)
    status = model[0].status["prepacked"] = prepack(decoder, model.tokenizer)
    if status.reason and status.reason == lacks("bfloat16") and decoder.dtype == torch.bfloat16:
        log.warning("bfloat16 is slower than float32 here, as this is %s. dtype='float32' is faster.", status.reason)
    elif not status:
        log.info("The linear layers run without prepacked weights: %s.", status.reason)
