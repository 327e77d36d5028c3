"""Enables bidirectional attention in a decoder, proves it layer by layer, and makes it causal again.

Only attributes are set (no replaced methods), so a model can still be pickled, copied and sent to worker processes,
and `config.json` carries the setting: stock transformers >= 5.2 and sentence-transformers read it back.

A flag is a wish; the audit (auditing.py) is the proof.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any, Literal, TypeVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .architectures import ARCHITECTURES, REFUSED, Architecture
from .auditing import PACKED, PADDINGS, Audit, LayerAudit, attn_implementation_of, audit, decoder_layers, text_config
from .errors import StillCausalError, UnsupportedArchitectureError

__all__ = [
    "ARCHITECTURES",
    "PACKED",
    "PADDINGS",
    "REFUSED",
    "Architecture",
    "Audit",
    "LayerAudit",
    "attn_implementation_of",
    "audit",
    "decoder_layers",
    "enable_bidirectional_attention",
    "has_twin",
    "is_bidirectional",
    "is_bidirectional_by_design",
    "needs_module_flags",
    "refuse_encoders",
    "restore_causal_attention",
    "twin",
]

M = TypeVar("M", bound=nn.Module)


def enable_bidirectional_attention(
    model: PreTrainedModel, *, sliding_window: Literal["off", "symmetric"] = "off"
) -> Audit:
    """Let every token attend to every other token of its text, and proves it.

    Costs two forward passes of three sequences of eight tokens. Calling it again is harmless.

    Args:
        model: A decoder (`AutoModel` or `AutoModelForCausalLM`), on any device, in any dtype.
        sliding_window: "off" widens windows to the whole text, as in the original implementation (parity section 3.7).
            "symmetric" keeps them, and they then reach as far to the right as to the left. A model that is
            bidirectional already, by its config (`is_causal: false`) or by its architecture, keeps its windows.

    Returns:
        The audit, true by construction.

    Raises:
        UnsupportedArchitectureError: The model is an encoder or an encoder-decoder.
        StillCausalError: Some layer stays causal; the causal mask has been restored.

    Example:
        >>> bool(st_llm2vec.enable_bidirectional_attention(model[0].model))
        True
    """
    refuse_encoders(model.config)
    # A config may say it and the code not follow (gemma): there, the usual way is gone.
    if is_bidirectional_by_design(model) and (report := audit(model, paddings=("none", "right"))):
        return report
    if sliding_window == "symmetric":
        restore_causal_attention(model)
    widen = sliding_window == "off" and not is_bidirectional(model)
    for config in _configs(model):
        causal: dict[str, Any] = getattr(config, "causal_attention", None) or {}
        layer_types = getattr(config, "layer_types", None) or ()
        if widen and getattr(config, "sliding_window", None):
            causal["sliding_window"] = config.sliding_window
            # Per-layer windows need a number; one that spans every text is no window.
            _set_window(model, config, config.max_position_embeddings if "sliding_attention" in layer_types else None)
        if "chunked_attention" in layer_types:  # llama4: a causal mask whatever the flag says
            causal["layer_types"] = layer_types
            config.layer_types = ["full_attention"] * len(layer_types)
        if causal:  # what `restore_causal_attention` puts back; travels in config.json
            config.causal_attention = causal
        config.is_causal = False
    _set_module_flags(model, is_causal=False)
    try:
        return _proven(model)
    except Exception:
        restore_causal_attention(model)
        raise


def _proven(model: PreTrainedModel) -> Audit:
    """The audit of a model that is set to be bidirectional; an error if it is not."""
    try:
        report = audit(model, paddings=("none", "right"))  # what happens at load time: texts alone, and padded batches
    except (AttributeError, TypeError) as error:  # mpt: its code asks the mask that is no longer there
        raise UnsupportedArchitectureError(
            f"model_type {model.config.model_type!r} cannot run without its causal mask with the "
            f"{attn_implementation_of(model)!r} attention implementation ({error}). Choose another with "
            "model_kwargs={'attn_implementation': ...}, or load it as it is with attention='causal'."
        ) from error
    if not report:
        why = REFUSED.get(report.model_type, "convolutions, recurrences or causal buffers, which no setting opens")
        raise StillCausalError(
            f"model_type {report.model_type!r} was asked to attend in both directions, but layers "
            f"{report.causal_layers} of {text_config(model).num_hidden_layers} still cannot see later tokens with the "
            f"{attn_implementation_of(model)!r} attention implementation: {why}. Use another decoder, for "
            f"example one of: {', '.join(ARCHITECTURES)}; or load it as it is with attention='causal'."
        )
    return report


def restore_causal_attention(model: PreTrainedModel) -> None:
    """Make the model an ordinary causal one again, window included; its outputs are those from before, bit for bit.

    Raises:
        UnsupportedArchitectureError: It is bidirectional by its architecture, and was never causal.

    Example:
        >>> st_llm2vec.restore_causal_attention(model[0].model)
        >>> bool(st_llm2vec.audit(model[0].model))
        False
    """
    if is_bidirectional_by_design(model):
        raise UnsupportedArchitectureError(
            f"model_type {text_config(model).model_type!r} is bidirectional by its architecture or its config "
            "(use_bidirectional_attention) and has no causal form. Leave attention='causal' out."
        )
    for config in _configs(model):
        for name, value in (getattr(config, "causal_attention", None) or {}).items():
            if name == "sliding_window":
                _set_window(model, config, value)
            else:
                setattr(config, name, value)
        for name in ("causal_attention", "is_causal"):
            config.__dict__.pop(name, None)
    _set_module_flags(model, is_causal=True)


def twin(module: M) -> M:
    """A second module tree over the same weights, so that two threads can attend in two directions at once.

    Parameters and buffers are shared; config and flags are the twin's own. Takes a decoder or a whole encoder.

    Example:
        causal = twin(encoder)
        causal[0].attention = "causal"
    """
    new = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    _twins.update((id(parameter), new) for parameter in module.parameters())
    return new


_twins: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def has_twin(module: nn.Module) -> bool:
    """Whether another module tree that is still in use has the same weights (`twin`)."""
    return any(id(parameter) in _twins for parameter in module.parameters())


def needs_module_flags(model: PreTrainedModel) -> bool:
    """Whether `config.json` alone leaves stock transformers causal (stablelm, nemotron): our class must set flags."""
    if is_bidirectional_by_design(model):
        return False
    stock = twin(model)
    if getattr(stock, "_supports_sdpa", False):
        stock.set_attn_implementation("sdpa")  # what stock classes choose
    for config in _configs(stock):
        config.is_causal = False
    _set_module_flags(stock, is_causal=True)
    return not audit(stock, paddings=("none",))


def is_bidirectional(model: PreTrainedModel) -> bool:
    """What the model is set to; `audit` tells what it does."""
    return getattr(text_config(model), "is_causal", True) is False or is_bidirectional_by_design(model)


def is_bidirectional_by_design(model: PreTrainedModel) -> bool:
    """Whether the model is bidirectional without us (EmbeddingGemma): its masks and windows are left as they are."""
    config = text_config(model)
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return True
    flags = [module.is_causal for module in model.modules() if _has_flag(module)]
    return getattr(config, "is_causal", True) is not False and bool(flags) and not any(flags)


def refuse_encoders(config: PretrainedConfig) -> None:
    """Raises `UnsupportedArchitectureError` for models that have no causal mask to remove."""
    if config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"model_type {config.model_type!r} is an encoder-decoder; st_llm2vec turns decoder-only models into "
            "encoders. Its encoder half is bidirectional already: load it with SentenceTransformer(...)."
        )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UnsupportedArchitectureError(
            f"model_type {config.model_type!r} is an encoder and bidirectional already: it has no causal mask. "
            "Load it with SentenceTransformer(...)."
        )


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    text = text_config(model)
    return [text] if text is model.config else [model.config, text]


def _set_window(model: PreTrainedModel, config: PretrainedConfig, window: int | None) -> None:
    # Masks follow the config; flash attention takes the copy that windowed layers keep.
    old, config.sliding_window = config.sliding_window, window
    for module in model.modules():
        if "sliding_window" in module.__dict__ and module.sliding_window == old:
            module.sliding_window = window


def _set_module_flags(model: PreTrainedModel, *, is_causal: bool) -> None:
    # Some architectures drop the config's flag on the way to the attention implementation (stablelm, nemotron), which
    # then reads the attention module's own.
    for module in model.modules():
        if _has_flag(module):
            module.is_causal = is_causal


def _has_flag(module: nn.Module) -> bool:
    return "is_causal" in module.__dict__ and not isinstance(module, PreTrainedModel)
