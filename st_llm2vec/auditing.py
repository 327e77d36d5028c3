"""The audit: proves for every decoder layer that earlier positions see later ones, or names those that do not.

It holds the input of every decoder layer fixed, changes the last token of that input only, and asks whether the
outputs at *earlier* positions move (LLM2Vec paper, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .architectures import ARCHITECTURES
from .errors import InvalidCheckpointError, InvalidInputError, UnsupportedArchitectureError
from .notebooks import table

AUDIT_TOKENS = 8
PACKED = "packed_"  # stands before the implementation's name in the config of a model that takes packed sequences
PADDINGS = ("none", "left", "right")


@dataclass(frozen=True)
class LayerAudit:
    """One decoder layer under one attention implementation: do earlier positions see the last token?"""

    layer: int
    implementation: str
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
        lines.append(f"{'layer':>5}  {'implementation':<20}  {'padding':<7}  attention")
        for row in self.rows:
            seen = "bidirectional" if row.bidirectional else "CAUSAL"
            lines.append(f"{row.layer:>5}  {row.implementation:<20}  {row.padding:<7}  {seen}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a line for each setting, with the layers that are causal in it."""
        settings: dict[tuple[str, str], list[LayerAudit]] = {}
        for row in self.rows:
            settings.setdefault((row.implementation, row.padding), []).append(row)
        lines = (
            (*setting, len(rows), ", ".join(str(row.layer) for row in rows if not row.bidirectional) or "none")
            for setting, rows in settings.items()
        )
        caption = f"{self.model_type}: {'bidirectional' if self else 'NOT bidirectional'}"
        return table(caption, ("attention implementation", "padding", "layers", "causal layers"), lines)


def audit(model: PreTrainedModel, *, gradients: bool = False, paddings: Sequence[str] = PADDINGS) -> Audit:
    """Ask every decoder layer, without padding and with it on either side, whether earlier positions see the last.

    Args:
        model: The decoder, causal or bidirectional; it is not changed.
        gradients: Use d output[earlier] / d input[last] instead of a perturbation; needs a backward pass.
        paddings: Where the three sequences of eight tokens are padded; one forward pass each.

    Returns:
        One row per layer and padding, for the attention implementation in use.

    Example:
        >>> bool(st_llm2vec.audit(model[0].model))
        True
    """
    layers, implementation = decoder_layers(model), attn_implementation_of(model)
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
            both = [seen.get(i, False) and i not in one_sided for i in range(depth)]
            rows += [LayerAudit(i, implementation, padding, sees_all) for i, sees_all in enumerate(both)]
    finally:
        model.train(was_training)
    return Audit(text_config(model).model_type, tuple(rows))


def _audit_pass(model: PreTrainedModel, layers: list[nn.Module], mask: Tensor, gradients: bool) -> dict[int, bool]:
    """One forward pass in which each layer's own input is fixed, so that no layer hides behind the one before."""
    real = mask[0].nonzero().flatten()
    # A window that is kept hides what lies farther away, in both directions.
    reach = getattr(text_config(model), "sliding_window", None) or AUDIT_TOKENS
    earlier, last = real[:-1][-max(1, reach - 1) :], real[-1]
    seen: dict[int, bool] = {}
    inputs: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def before(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[:2] != mask.shape:
            raise UnsupportedArchitectureError(
                f"model_type {text_config(model).model_type!r} was given {tuple(mask.shape)} tokens, and its layers "
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
            # Both ways: a key that one of them turns away from every query would not be seen. The third sequence is
            # the first once more, and shows what the implementation itself makes different.
            hidden[:, last] += torch.stack([-noise, noise, -noise])
        inputs[index] = hidden
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def after(index: int, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple | list) else output
        if not hidden[:, real].isfinite().all():
            raise _not_finite(model, index)
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
            # A causal layer gives exactly the same numbers, but for implementations that split a batch unevenly. A
            # sharp and local head of a trained decoder is seen by little more than that.
            seen[index] = bool(moved.min() > 8 * unmoved.max())

    ids = torch.arange(3, 3 + AUDIT_TOKENS, device=mask.device).remainder(text_config(model).vocab_size).expand(3, -1)
    with ExitStack() as hooks, torch.set_grad_enabled(gradients):
        for i, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_pre_hook(partial(before, i), with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(partial(after, i)))
        # Only the layers are wanted: the backbone of a causal LM is enough and saves the vocabulary-sized head.
        text_decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    return seen


def _not_finite(model: PreTrainedModel, layer: int) -> InvalidCheckpointError | InvalidInputError:
    """What to say where numbers are infinite or none at all, which no comparison can tell from causal attention."""
    dtype = str(model.dtype).removeprefix("torch.")
    for name, weight in model.named_parameters():
        if weight.isnan().any() or (dtype != "float16" and weight.isinf().any()):
            return InvalidCheckpointError(
                f"{name!r} has numbers that are not finite: damaged weights. Download them again."
            )
    helps = "'bfloat16' or 'float32'" if dtype == "float16" else "'float32'"
    return InvalidInputError(
        f"The numbers that layer {layer} computes in {dtype} are not finite, and do not tell what it attends to. "
        f"dtype must be one that holds them, got {dtype!r}. Load it with dtype={helps}."
    )


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The stack of layers of the text decoder, whatever the architecture calls it."""
    depth = text_config(model).num_hidden_layers
    lists = [part for part in text_decoder(model).modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if lists:  # beside the layers, some decoders keep a norm or a projection for each of them
        largest: nn.ModuleList = max(lists, key=lambda part: sum(p.numel() for p in part.parameters()))
        return list(largest)
    raise UnsupportedArchitectureError(
        f"model_type {model.config.model_type!r} has no list of {depth} layers, so its attention cannot be audited. "
        f"Supported: {', '.join(ARCHITECTURES)} (st_llm2vec.bidirectional.ARCHITECTURES)."
    )


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The text decoder: of a multimodal model a part, of a causal LM all but the head, of others the model itself."""
    found: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    return found


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The config of the text decoder, which in a multimodal model is a part of the whole."""
    return model.config.get_text_config(decoder=True)


def attn_implementation_of(model: PreTrainedModel) -> str:
    """The attention implementation in use: "sdpa", "eager", ..."""
    return str(model.config._attn_implementation).removeprefix(PACKED)
