"""The residual stream of a decoder in half precision, kept in float32 between its matrices."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .equivalence import alone, probe_ids

log = logging.getLogger(__name__)


class MixedLinear(nn.Linear):
    """A linear layer in half precision between activations in float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        return functional.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(
            x.dtype
        )


ORDINARY = (nn.Linear, MixedLinear)


def keep_residual_in_float32(model: PreTrainedModel) -> bool:
    """Leaves a decoder's matrices in half precision, and what runs between them in float32.

    The residual stream of a pretrained decoder has channels that are thousands of times the others: rounding the sum
    in every layer costs what a layer adds (SmolLM2, bfloat16: smallest cosine to float32 0.962, so 0.987).

    Returns:
        Whether it was done; not where it is already, matrices are no linear layers (experts, gpt2), or its code cannot.
    """
    if keeps_residual_in_float32(model):
        return False
    parts = [(m, m._parameters.values()) for m in model.modules() if not isinstance(m, nn.Linear | nn.Embedding)]
    vectors = [p for _, parameters in parts for p in parameters if p is not None]
    if model.dtype not in (torch.bfloat16, torch.float16) or any(p.ndim > 1 for p in vectors):
        return False
    linear = [layer for layer in model.modules() if type(layer) is nn.Linear]
    tables = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    half = model.dtype
    for parameter in vectors:
        parameter.data = parameter.data.float()
    for layer in linear:
        layer.__class__ = MixedLinear
    for table in tables:
        table.__dict__["beside"] = vectors[:1]
        table.register_forward_hook(_widen)
    try:
        alone(model, probe_ids(model)[:2])
    except Exception as error:  # third-party code that looks at dtypes
        log.info("The residual stream stays in %s: %s", half, str(error)[:200])
        for parameter in vectors:
            parameter.data = parameter.data.to(half)
        for layer in linear:
            layer.__class__ = nn.Linear
        return False
    return True


def keeps_residual_in_float32(model: nn.Module) -> bool:
    """Whether a decoder's matrices are in half precision, and what runs between them in float32."""
    return any(getattr(layer, "ordinary", type(layer)) is MixedLinear for layer in model.modules())


def round_residual(model: nn.Module) -> None:
    """Undo `keep_residual_in_float32`: training finds one dtype, as the checkpoints that it resumes from have."""
    mixed: list[nn.Linear] = [layer for layer in model.modules() if type(layer) is MixedLinear]
    for layer in mixed:
        layer.__class__ = nn.Linear
    for module in model.modules() if mixed else ():
        if not isinstance(module, nn.Linear | nn.Embedding):
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.data = parameter.data.to(mixed[0].weight.dtype)


def _widen(table: nn.Embedding, _: Any, output: Tensor) -> Tensor:
    # `.to(dtype)` makes everything one dtype again, this too
    beside = table.__dict__["beside"]
    return output.float() if not beside or beside[0].dtype == torch.float32 else output
