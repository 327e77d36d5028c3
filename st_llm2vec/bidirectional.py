"""Opens the causal mask of a decoder, proves layer by layer that it is open, and closes it again.

Only attributes are set (no replaced methods), so a model can still be pickled, copied and sent to worker processes,
and `config.json` carries the setting: stock transformers >= 5.2 and sentence-transformers read it back.

A flag is a wish; the audit is the proof. It holds the input of every decoder layer fixed, changes the last token of
that input only, and asks whether the outputs at *earlier* positions move (LLM2Vec paper, section 2.1).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .errors import StillCausalError, UnsupportedArchitectureError

M = TypeVar("M", bound=nn.Module)


class Architecture(NamedTuple):
    """What is known of a `model_type`: the attention kernels that its audit runs through in the tests."""

    kernels: tuple[str, ...]


# The architectures that open with each set of kernels.
_OPENS: dict[tuple[str, ...], str] = {
    ("sdpa", "eager", "flex_attention"): """
        apertus arcee biogpt bitnet cohere cohere2 ctrl cwm deepseek_v2 deepseek_v3 diffllama ernie4_5 exaone4 gemma
        gemma3_text gemma4_text glm glm4 glm4_moe gpt_neox granite granitemoe helium hunyuan_v1_dense internlm3 jais2
        llama llama4_text minicpm3 ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3 opt phi phi3
        phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2 youtu
    """,
    ("sdpa", "eager"): "falcon gpt2 gpt_bigcode olmoe persimmon stablelm",
    ("sdpa", "flex_attention"): "modernbert-decoder",
    ("eager", "flex_attention"): "gemma2 vaultgemma",  # soft-capped scores: no sdpa kernel
    ("eager",): "bloom codegen gpt_neox_japanese gpt_oss gptj xglm",
}
# Audited in the tests, every row. Other decoders are audited when they are loaded, and accepted if they pass.
ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(kernels)
    for name, kernels in sorted((name, kernels) for kernels, names in _OPENS.items() for name in names.split())
}

_STAYS_CAUSAL = {
    "a recurrence over the tokens before": "bamba granitemoehybrid jamba mamba nemotron_h recurrent_gemma rwkv xlstm",
    "linear attention, a recurrence over the tokens before": "kimi_linear minimax olmo_hybrid qwen3_5_text qwen3_next",
    "short convolutions over the tokens before": "lfm2 lfm3",
    "a causal mask inside the attention module, which config.json cannot open": "gpt_neo openai-gpt",
    "a causal mask made by the model itself, around prompt tokens of its own": "cpmant",
    "a recurrence (mamba) stands beside the attention of every layer": "falcon_h1",
    "a convolution and a delayed value stand inside the attention of every layer": "zaya",
}
# Refused by the audit, every row; here is only why.
REFUSED: dict[str, str] = dict(sorted((name, why) for why, names in _STAYS_CAUSAL.items() for name in names.split()))

AUDIT_TOKENS = 8
PACKED = "packed_"  # stands before the kernel's name in the config of a model that takes rows (packing.py)
PADDINGS = ("none", "left", "right")


@dataclass(frozen=True)
class LayerAudit:
    """One decoder layer under one attention kernel: do earlier positions see the last token?"""

    layer: int
    kernel: str
    padding: str  # "none", "left" or "right"
    bidirectional: bool


@dataclass(frozen=True)
class Audit:
    """The audit of a model; true when every layer is bidirectional with and without padding."""

    model_type: str
    rows: tuple[LayerAudit, ...]

    def __bool__(self) -> bool:
        return bool(self.rows) and all(row.bidirectional for row in self.rows)

    @property
    def causal_layers(self) -> list[int]:
        """Layers in which some position cannot see a later token, in at least one of the settings."""
        return sorted({row.layer for row in self.rows if not row.bidirectional})

    def __str__(self) -> str:
        lines = [f"{self.model_type}: {'bidirectional' if self else 'NOT bidirectional'}"]
        lines.append(f"{'layer':>5}  {'kernel':<20}  {'padding':<7}  attention")
        for row in self.rows:
            seen = "bidirectional" if row.bidirectional else "CAUSAL"
            lines.append(f"{row.layer:>5}  {row.kernel:<20}  {row.padding:<7}  {seen}")
        return "\n".join(lines)


def enable_bidirectional_attention(
    model: PreTrainedModel, *, sliding_window: Literal["off", "symmetric"] = "off"
) -> Audit:
    """Lets every token attend to every other token of its text, and proves it.

    Costs two forward passes of three rows of eight tokens. Calling it again is harmless.

    Args:
        model: A decoder (`AutoModel` or `AutoModelForCausalLM`), on any device, in any dtype.
        sliding_window: "off" widens windows to the whole text, as in the original implementation (parity section 3.7).
            "symmetric" keeps them, and they then reach as far to the right as to the left. A model whose config says
            `is_causal: false` already keeps the windows that it says.

    Returns:
        The audit, true by construction.

    Raises:
        UnsupportedArchitectureError: The model is an encoder or an encoder-decoder.
        StillCausalError: Some layer stays causal; the model has been closed again.
    """
    refuse_encoders(model.config)
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
        report = audit(model, paddings=("none", "right"))  # what happens at load time: texts alone, and padded batches
    except Exception as error:
        restore_causal_attention(model)
        if not isinstance(error, AttributeError | TypeError):  # mpt: its code asks the mask that is no longer there
            raise
        raise UnsupportedArchitectureError(
            f"model_type {model.config.model_type!r} cannot run without its causal mask with the "
            f"{kernel_of(model)!r} kernel ({error}). Choose another with "
            "model_kwargs={'attn_implementation': ...}, or load it as it is with attention='causal'."
        ) from error
    if not report:
        restore_causal_attention(model)
        why = REFUSED.get(report.model_type, "convolutions, recurrences or causal buffers, which no setting opens")
        raise StillCausalError(
            f"model_type {report.model_type!r} was asked to attend in both directions, but layers "
            f"{report.causal_layers} of {_config(model).num_hidden_layers} still cannot see later tokens with the "
            f"{kernel_of(model)!r} kernel: {why}. Use another decoder, for example one of: "
            f"{', '.join(ARCHITECTURES)}; or load it as it is with attention='causal'."
        )
    return report


def restore_causal_attention(model: PreTrainedModel) -> None:
    """Makes the model an ordinary causal one again, window included; its outputs are those from before, bit for bit."""
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
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def needs_module_flags(model: PreTrainedModel) -> bool:
    """Whether `config.json` alone leaves stock transformers causal (stablelm, nemotron): our class must set flags."""
    stock = twin(model)
    if getattr(stock, "_supports_sdpa", False):
        stock.set_attn_implementation("sdpa")  # what stock classes choose
    for config in _configs(stock):
        config.is_causal = False
    _set_module_flags(stock, is_causal=True)
    return not audit(stock, paddings=("none",))


def is_bidirectional(model: PreTrainedModel) -> bool:
    """What the model is set to; `audit` tells what it does."""
    return getattr(_config(model), "is_causal", True) is False


def kernel_of(model: PreTrainedModel) -> str:
    """The attention kernel in use: "sdpa", "eager", ..."""
    return str(model.config._attn_implementation).removeprefix(PACKED)


def refuse_encoders(config: PretrainedConfig) -> None:
    """Raises `UnsupportedArchitectureError` for models that have no causal mask to open."""
    if config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"model_type {config.model_type!r} is an encoder-decoder; st_llm2vec turns decoder-only models into "
            "encoders. Its encoder half is bidirectional already: load it with SentenceTransformer(...)."
        )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UnsupportedArchitectureError(
            f"model_type {config.model_type!r} is an encoder and bidirectional already: there is nothing to open. "
            "Load it with SentenceTransformer(...)."
        )


def audit(model: PreTrainedModel, *, gradients: bool = False, paddings: Sequence[str] = PADDINGS) -> Audit:
    """Asks every decoder layer, without padding and with it on either side, whether earlier positions see the last.

    Args:
        model: The decoder, opened or not; it is not changed.
        gradients: Use d output[earlier] / d input[last] instead of a perturbation; needs a backward pass.
        paddings: Where the three rows of eight tokens are padded; one forward pass each.

    Returns:
        One row per layer and padding, for the attention kernel in use.
    """
    layers, kernel = decoder_layers(model), kernel_of(model)
    depth = len(layers)
    # Beside or inside an attention that sees everything (falcon_h1, zaya): half of such a layer is still causal.
    one_sided = {
        i
        for i, layer in enumerate(layers)
        if any(isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1 for module in layer.modules())
    }
    rows = []
    was_training = model.training
    model.eval()
    try:
        for padding in paddings:
            mask = torch.ones(3, AUDIT_TOKENS, dtype=torch.long)
            if padding != "none":
                mask[:, slice(0, 2) if padding == "left" else slice(-2, None)] = 0
            seen = _audit_pass(model, layers, mask.to(model.device), gradients)
            rows += [LayerAudit(i, kernel, padding, seen.get(i, False) and i not in one_sided) for i in range(depth)]
    finally:
        model.train(was_training)
    return Audit(_config(model).model_type, tuple(rows))


def _audit_pass(model: PreTrainedModel, layers: list[nn.Module], mask: Tensor, gradients: bool) -> dict[int, bool]:
    """One forward pass in which each layer's own input is fixed, so that no layer hides behind the one before."""
    real = mask[0].nonzero().flatten()
    earlier, last = real[:-1], real[-1]
    seen: dict[int, bool] = {}
    inputs: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def before(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[:2] != mask.shape:
            raise UnsupportedArchitectureError(
                f"model_type {_config(model).model_type!r} was given {tuple(mask.shape)} tokens, and its layers "
                f"something of shape {tuple(hidden.shape)}, so its attention cannot be audited. Load it as it is "
                "with attention='causal'."
            )
        # Eight times the same vector: attention is spread over all, where a saturated softmax would hide the last.
        hidden = hidden.detach()[:1, last : last + 1].repeat(*hidden.shape[:2], 1)
        if gradients:
            hidden.requires_grad_()
        else:
            noise = torch.randn(hidden.shape[-1], generator=generator).to(hidden)
            noise *= hidden[0].abs().mean().clamp_min(1e-3) / 4
            # Both ways: a key that one of them turns away from every query would not be seen. The third row is
            # the first once more, and shows what the kernel itself makes different.
            hidden[:, last] += torch.stack([-noise, noise, -noise])
        inputs[index] = hidden
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def after(index: int, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple | list) else output
        if gradients:
            # Not the plain sum: behind a layer norm it is a constant.
            weights = torch.randn(hidden.shape[-1], generator=generator).to(hidden)
            moved = [
                torch.autograd.grad(hidden[0, i] @ weights, inputs[index], retain_graph=True)[0][0, last]
                for i in earlier
            ]
            seen[index] = all(bool(g.abs().max() > 0) for g in moved)
        else:
            moved, unmoved = ((hidden[0, earlier] - hidden[i, earlier]).abs().amax(-1) for i in (1, 2))
            # A causal layer gives exactly the same numbers, but for kernels that split rows unevenly. A sharp and
            # local head of a trained decoder is seen by little more than that.
            seen[index] = bool(moved.min() > 8 * unmoved.max())

    ids = torch.arange(3, 3 + AUDIT_TOKENS, device=mask.device).remainder(_config(model).vocab_size).expand(3, -1)
    with ExitStack() as hooks, torch.set_grad_enabled(gradients):
        for i, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_pre_hook(partial(before, i), with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(partial(after, i)))
        # Only the layers are wanted: the backbone of a causal LM is enough and saves the vocabulary-sized head.
        backbone = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        backbone(input_ids=ids, attention_mask=mask, use_cache=False)
    return seen


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The stack of decoder layers, whatever the architecture calls it."""
    depth = _config(model).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise UnsupportedArchitectureError(
        f"model_type {model.config.model_type!r} has no list of {depth} layers, so its attention cannot be audited. "
        f"Supported: {', '.join(ARCHITECTURES)} (st_llm2vec.bidirectional.ARCHITECTURES)."
    )


def _config(model: PreTrainedModel) -> PretrainedConfig:
    return model.config.get_text_config(decoder=True)


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    text = _config(model)
    return [text] if text is model.config else [model.config, text]


def _set_window(model: PreTrainedModel, config: PretrainedConfig, window: int | None) -> None:
    # Masks follow the config; flash attention takes the copy that windowed layers keep.
    old, config.sliding_window = config.sliding_window, window
    for module in model.modules():
        if "sliding_window" in module.__dict__ and module.sliding_window == old:
            module.sliding_window = window


def _set_module_flags(model: PreTrainedModel, *, is_causal: bool) -> None:
    # Some architectures drop the config's flag on the way to the kernel (stablelm, nemotron); the kernel then reads
    # the attention module's own.
    for module in model.modules():
        if "is_causal" in module.__dict__ and not isinstance(module, PreTrainedModel):
            module.is_causal = is_causal
