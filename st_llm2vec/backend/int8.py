"""int8: weights rounded to one scale per output channel, and what enters them to one scale per token.

A few input channels, the outliers, are multiplied in float32: they would take the range of all others.

quantizing.py puts these layers into a decoder. `save_pretrained` then writes the int8 file (docs/performance.md has its
format), and transformers reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import InvalidCheckpointError, InvalidInputError
from .equivalence import Move, alone, judge, probe_ids
from .prepacked import Product, bias_of, lacks, sibling_groups, swap
from .residual import keep_residual_in_float32

INT8 = "llm2vec_int8"
OUTLIERS = 16  # input channels of a layer, at most, that are multiplied in float32
# A scale of eight bits of precision is exact in float32 and bfloat16; rounded upwards, no value exceeds 127 of it.
_ROOM = (1 + 2**-7) / 127


class Rounded(NamedTuple):
    """One layer's weight in int8, but for the columns of its input's outliers.

    Attributes:
        int8: (out, in); 0 in the outliers' columns.
        scale: (out, 1), float32.
        smooth: (1, in), what the columns were multiplied by, and an input's channels are divided by (SmoothQuant):
            large channels then take less of the range of int8. The same for all layers that share an input.
        outliers: (k,) channels of the input that are multiplied in float32 (LLM.int8()); the same, too.
        columns: (out, k), their columns in float32.
    """

    int8: Tensor
    scale: Tensor
    smooth: Tensor
    outliers: Tensor
    columns: Tensor

    @classmethod
    def of(cls, weight: Tensor, smooth: Tensor, outliers: Tensor) -> Rounded:
        """Round a weight, (out, in)."""
        weight = weight.detach().float()
        rest = (weight * smooth).index_fill_(1, outliers, 0.0)
        scale = (rest.abs().amax(1, keepdim=True) * _ROOM).bfloat16().float().clamp_min_(1e-30)
        return cls((rest / scale).round_().to(torch.int8), scale, smooth, outliers, weight[:, outliers])

    @classmethod
    def empty(cls, out_features: int, in_features: int) -> Rounded:
        """Make room for one that will be read from a file."""
        k = outliers_of(in_features)
        int8, outliers = torch.empty(out_features, in_features, dtype=torch.int8), torch.empty(k, dtype=torch.int64)
        return cls(
            int8, torch.empty(out_features, 1), torch.empty(1, in_features), outliers, torch.empty(out_features, k)
        )


class Int8Product(Product):
    """As `Product`, of rounded weights; where the processor has no int8 products, of the same weights in float32.

    Args:
        weights: (out, in) of each layer, int8.
        biases: As for `Product`.
        scales, smooth, outliers, columns: The rest of each layer's `Rounded`.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *,
        scales: Sequence[Tensor],
        smooth: Sequence[Tensor],
        outliers: Sequence[Tensor],
        columns: Sequence[Tensor],
    ) -> None:
        self.scales, self.smooth, self.outliers = list(scales), list(smooth), list(outliers)
        self._columns = torch.cat(list(columns))
        self._inverse = (1 / smooth[0]).index_fill_(1, outliers[0], 0.0)  # outliers take nothing of the range of int8
        self._floats: Product | None = None
        super().__init__(weights, biases)

    @classmethod
    def of(cls, group: Sequence[nn.Linear], rounded: Sequence[Rounded]) -> Int8Product:
        """Make the product of layers that share an input."""
        weights, scales, smooth, outliers, columns = zip(*rounded, strict=True)
        biases = [*map(bias_of, group)]
        return cls(weights, biases, scales=scales, smooth=smooth, outliers=outliers, columns=columns)

    def _pack(self, weights: Sequence[Tensor]) -> None:
        if lacks("int8"):
            self._plain = [weight.clone() for weight in weights]
            floats = [weight * scale * self._inverse for weight, scale in zip(weights, self.scales, strict=True)]
            floats = [w.index_copy_(1, self.outliers[0], c) for w, c in zip(floats, self.columns, strict=True)]
            self._floats = Product(floats, [None] * len(floats))
            return
        self._scale = torch.cat(self.scales).flatten()
        self._zeros = torch.zeros(len(self._scale), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(torch.cat(list(weights)).contiguous(), None)

    @property
    def columns(self) -> Sequence[Tensor]:
        """The outliers' columns of each layer: (out, k)."""
        return torch.split(self._columns, self.out_features)

    def weights(self) -> Sequence[Tensor]:
        return self._plain if self._floats else torch.split(self._packed.to_dense().t().contiguous(), self.out_features)

    def _all(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.new_empty(*x.shape[:-1], sum(self.out_features))
        if self._floats:
            product = self._floats._all(x.float()).to(x.dtype)
        else:
            flat = x.reshape(-1, x.shape[-1]) * self._inverse  # float32
            top = flat.abs().amax(1, keepdim=True).float().clamp_min_(1e-30)
            scale = (top * _ROOM).bfloat16()  # (tokens, 1); NaN and infinity live on in it
            # Divided in float32: bfloat16 could round to 128. oneDNN has no fast path for signed activations, so the
            # bytes go from -127..127 to 1..255, zero at 128; torch casts to int8 nine times as fast as to uint8.
            quantized = (flat * scale.float().reciprocal_()).round_().to(torch.int8).view(torch.uint8)
            product = self._multiply(quantized.bitwise_xor_(128), x.dtype).mul_(scale.to(x.dtype))
            large = x.reshape(-1, x.shape[-1]).index_select(1, self.outliers[0])
            product = product.addmm_(large, self._columns.t().to(x.dtype)).view(*x.shape[:-1], -1)
        return product if self.bias is None else product.add_(self.bias.to(x.dtype))

    def multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The same of bytes, zero at 128, in float32 or bfloat16."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(x, 1.0, 128), *(self._packed, self._scale, self._zeros, None), *(1.0, 0, dtype, "none", [], "")
        )
        return product

    def _arguments(self) -> dict[str, Sequence[Tensor | None]]:
        parts = {"scales": self.scales, "smooth": self.smooth, "outliers": self.outliers, "columns": self.columns}
        return {**super()._arguments(), **parts}


class Int8Linear(nn.Linear):
    """A linear layer of int8 weights; until it is packed, these, (out, in), and their scales in buffers."""

    product: Int8Product | None = None
    layer = 0

    def hollow(self) -> None:
        """Put empty buffers where the weight was, to be loaded."""
        empty = Rounded.empty(*self.weight.shape)
        self.weight = None  # type: ignore[assignment]
        for name, part in empty._asdict().items():
            self.register_buffer(f"weight_{name}", part)

    def pack(self, product: Int8Product, layer: int, ordinary: type[nn.Linear] = nn.Linear) -> None:
        """Hand the weight over to a product."""
        self.product, self.layer = product, layer
        self.weight = None  # type: ignore[assignment]
        for name in Rounded._fields:
            self._buffers.pop(f"weight_{name}", None)

    def put_back(self, weight: nn.Parameter) -> None:
        """Make an ordinary linear layer of this one again."""
        del self.product, self.layer
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self.weight = weight

    def rounded(self) -> Rounded:
        """The weight, from the product or from what was loaded."""
        if (product := self.product) is not None:
            parts = (product.weights(), product.scales, product.smooth, product.outliers, product.columns)
            return Rounded(*(part[self.layer] for part in parts))
        stored = Rounded(*(self.get_buffer(f"weight_{name}") for name in Rounded._fields))
        return Rounded(*(part.float() if part.is_floating_point() else part for part in stored))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (self.training or x.requires_grad):
            raise InvalidInputError(
                "A model in int8 cannot be trained: its weights are rounded. Load it without quantize, train that, "
                "and quantize the result: load(folder, quantize='int8')."
            )
        assert self.product is not None
        return self.product(x, self.layer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if self.product is not None and (device := fn(torch.empty(1)).device).type != "cpu":
            raise InvalidInputError(
                f"A model in int8 runs on CPUs only and cannot go to {device}. Load the weights that it was made from "
                f"with device={device.type!r} and without quantize."
            )
        if self.product is None:  # being loaded
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in self.rounded()._asdict().items():
            destination[f"{prefix}weight_{name}"] = part


def outliers_of(in_features: int) -> int:
    """How many input channels of a layer are multiplied in float32."""
    return min(OUTLIERS, max(1, in_features // 8))


@register_quantization_config(INT8)
class Int8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says about int8 weights.

    Args:
        modules_to_not_convert: Linear layers whose weights are not int8.
    """

    def __init__(self, modules_to_not_convert: Sequence[str] = (), **_: Any) -> None:
        self.quant_method = INT8
        self.modules_to_not_convert = list(modules_to_not_convert)


@register_quantizer(INT8)
class Int8Quantizer(HfQuantizer):  # type: ignore[misc]
    """Reads int8 files through transformers' `from_pretrained`."""

    is_trainable = False

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for name, layer in model.named_modules():
            if type(layer) is nn.Linear and name not in self.quantization_config.modules_to_not_convert:
                layer.__class__ = Int8Linear
                layer.hollow()  # type: ignore[operator]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, Int8Linear) and layer.product is None:
                rounded = layer.rounded()
                channels = rounded.outliers.tolist()
                if len(set(channels) & set(range(layer.in_features))) < len(channels):
                    raise InvalidCheckpointError(
                        f"{name}.weight_outliers must be different channels in [0, {layer.in_features}), got "
                        f"{str(channels)[:80]}. Make the int8 folder again: load(..., quantize='int8')."
                    )
                layer.pack(Int8Product.of([layer], [rounded]), 0)
        keep_residual_in_float32(model)
        texts = probe_ids(model)
        before, groups = alone(model, texts), sibling_groups(model, (Int8Linear,), fused=True)
        single = [(layer, layer.product) for group in groups for layer in group]
        for group in groups:
            swap(Int8Linear, group, Int8Product.of(group, [layer.rounded() for layer in group]))
        if not judge(before, alone(model, texts), Move(0.0, 0.0), "int8"):
            for layer, product in single:
                layer.pack(product, 0)
        model.requires_grad_(False)
