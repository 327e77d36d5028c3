"""A LoRA layer that trains fast: few passes over the activations, none of them in another dtype than theirs.

peft casts what enters the branch to float32, multiplies it there by a matrix of 16 columns, and casts back: on a CPU
that takes a third of the layer's time. Here the branch is computed in the dtype of the activations and accumulated into
the layer's output, and so are its gradients; the adapter itself stays in float32 for the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional

from ..backend.dropout import keep_mask


def speed_up(model: nn.Module) -> int:
    """Let the LoRA layers of a model train fast, where they are plain ones on a linear layer; how many they are."""
    layers = [layer for layer in model.modules() if type(layer) is lora.Linear]
    plain = [layer for layer in layers if isinstance(layer.base_layer, nn.Linear)]
    for layer in plain:
        layer.__class__ = LoraLinear
    return len(plain)


class LoraLinear(lora.Linear):  # type: ignore[misc]
    """As peft's: W x + scaling B A dropout(x). Whatever is not the plain case is left to peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the dtype of the frozen layer's."""
        name = self._plain_adapter()
        if name is None or args or kwargs:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        base, kind = self.base_layer, x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        if x.dtype != dtype:
            if not torch.is_autocast_enabled(kind):
                return super().forward(x)  # type: ignore[no-any-return]
            x = x.to(dtype)
        drop = self.lora_dropout[name]
        dropped = drop.p if self.training and isinstance(drop, nn.Dropout) else 0.0
        adapter = (self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])
        out: Tensor = _Lora.apply(x, *self._frozen(dtype), *adapter, dropped)  # type: ignore[no-untyped-call]
        return out

    def _plain_adapter(self) -> str | None:
        """The one adapter in use, if nothing about this call is special."""
        active = self.active_adapters
        if len(active) != 1 or self.disable_adapters or self.merged or torch.compiler.is_compiling():
            return None
        name: str = active[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        parts = (self.base_layer, self.lora_A[name], self.lora_B[name])
        # Not so: shards, quantized layers, layers of another stage of encoding, and modules that somebody watches.
        if any(type(part) is not nn.Linear or part._forward_pre_hooks or part._forward_hooks for part in parts):
            return None
        if any(type(part.weight) is not nn.Parameter or part.weight.ndim != 2 for part in parts):
            return None
        base = self.base_layer
        return None if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad) else name

    def _frozen(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the frozen layer in a dtype; what autocast would cast anew in every pass is kept."""
        weight, bias = self.base_layer.weight, self.base_layer.bias
        if weight.dtype == dtype:
            return weight, bias
        key = (dtype, weight.data_ptr(), weight._version)
        if self.__dict__.get("_cast", (None,))[0] != key:
            with torch.inference_mode(False):  # an evaluation may be the first to ask, and the backward pass the next
                cast = (weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype))
            self.__dict__["_cast"] = (key, *cast)
        return self.__dict__["_cast"][1:]  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_cast"}


class _Lora(torch.autograd.Function):
    """W x + b + scaling B A dropout(x), and the gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropped: float,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            read = flat = x.reshape(-1, x.shape[-1])
            down, up, keep = a.to(x.dtype), b.to(x.dtype), None
            if dropped:
                keep, scaling = keep_mask(flat, dropped).to(x.dtype), scaling / (1 - dropped)
                read = flat * keep
            inner = read @ down.t()  # (tokens, r)
            out = functional.linear(flat, weight, bias).addmm_(inner, up.t(), alpha=scaling)
        ctx.save_for_backward(read, weight, down, up, inner, keep)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        read, weight, down, up, inner, keep = ctx.saved_tensors
        g, g_x = gradient.reshape(-1, gradient.shape[-1]), None
        with torch.autocast(gradient.device.type, enabled=False):
            g_inner = (g @ up).mul_(ctx.scaling)  # (tokens, r)
            g_up = (inner.t() @ g).t().float().mul_(ctx.scaling)
            g_down = (g_inner.t() @ read).float()
            if ctx.needs_input_grad[0]:
                g_x = g @ weight
                g_x = g_x.addmm_(g_inner, down) if keep is None else g_x.addcmul_(g_inner @ down, keep)
                g_x = g_x.view(ctx.shape)
        return g_x, None, None, g_down, g_up, None, None
