"""int8: weights rounded to one scale per output channel, and what enters them to one scale per token.

`quantize` replaces the weights of a decoder's linear layers. `save_pretrained` then writes the int8 file
(docs/performance.md has its format), and transformers reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..bidirectional import decoder_layers
from ..errors import InvalidInputError
from .equivalence import LIMITS, Move, Status, alone, judge, probe_ids
from .prepacked import Product, bias_of, lacks, sibling_groups, swap
from .residual import ORDINARY, keep_residual_in_float32

INT8 = "llm2vec_int8"
NEAR = 0.05  # of a vector's length: half of what is allowed, as texts are many and probe texts few
# A scale of eight bits of precision is exact in float32 and bfloat16; rounded upwards, no value exceeds 127 of it.
_ROOM = (1 + 2**-7) / 127


class Int8Product(Product):
    """As `Product`, of weights that are int8 (out, in) with a float32 scale (out, 1) each.

    `smooth` (1, in), the same for all layers, is what the weights' columns were multiplied by, and an input's are
    divided by (SmoothQuant): channels of outliers then take less of the range of int8.

    Where the processor has no int8 products it multiplies the same weights in float32.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *,
        scales: Sequence[Tensor],
        smooth: Sequence[Tensor],
    ) -> None:
        self.scales, self.smooth = list(scales), list(smooth)
        self._inverse = 1 / smooth[0]
        self._floats: Product | None = None
        super().__init__(weights, biases)

    def _pack(self, weights: Sequence[Tensor]) -> None:
        if lacks("int8"):
            self._plain = [weight.clone() for weight in weights]
            floats = [weight * scale * self._inverse for weight, scale in zip(weights, self.scales, strict=True)]
            self._floats = Product(floats, [None] * len(floats))
            return
        self._scale = torch.cat(self.scales).flatten()
        self._zeros = torch.zeros(len(self._scale), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(torch.cat(list(weights)).contiguous(), None)

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
            product = self._multiply(quantized.bitwise_xor_(128), x.dtype)
            product = product.mul_(scale.to(x.dtype)).view(*x.shape[:-1], -1)
        return product if self.bias is None else product.add_(self.bias.to(x.dtype))

    def multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The same of bytes, zero at 128, in float32 or bfloat16."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(x, 1.0, 128), *(self._packed, self._scale, self._zeros, None), *(1.0, 0, dtype, "none", [], "")
        )
        return product

    def _arguments(self) -> dict[str, Sequence[Tensor | None]]:
        return {**super()._arguments(), "scales": self.scales, "smooth": self.smooth}


class Int8Linear(nn.Linear):
    """A linear layer of int8 weights; until it is packed, these, (out, in), and their scales in buffers."""

    product: Int8Product | None = None
    layer = 0

    def hollow(self) -> None:
        """Puts empty buffers where the weight was, to be loaded."""
        shape = self.weight.shape
        self.weight = None  # type: ignore[assignment]
        self.register_buffer("weight_int8", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(shape[0], 1))
        self.register_buffer("weight_smooth", torch.empty(1, shape[1]))

    def pack(self, product: Int8Product, layer: int, ordinary: type[nn.Linear] = nn.Linear) -> None:
        """Hand the weight over to a product."""
        self.product, self.layer = product, layer
        self.weight = None  # type: ignore[assignment]
        self._buffers.pop("weight_int8", None)
        self._buffers.pop("weight_scale", None)
        self._buffers.pop("weight_smooth", None)

    def put_back(self, weight: nn.Parameter) -> None:
        """Make an ordinary linear layer of this one again."""
        del self.product, self.layer
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self.weight = weight

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """int8 (out, in), its scale (out, 1) and what its columns were multiplied by (1, in)."""
        if (product := self.product) is not None:
            return product.weights()[self.layer], product.scales[self.layer], product.smooth[self.layer]
        scale, smooth = (self.get_buffer(f"weight_{name}").float() for name in ("scale", "smooth"))
        return self.get_buffer("weight_int8"), scale, smooth

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
        for name, part in zip(("int8", "scale", "smooth"), self.parts(), strict=True):
            destination[f"{prefix}weight_{name}"] = part


def quantize(
    model: PreTrainedModel,
    vectors: Callable[[], Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> Status:
    """Round a decoder's weights to int8 from that layer on from which its vectors stay close to those of float32.

    What the first layers compute decides which token becomes the attention sink, whose activations are thousands of
    times the others: there any rounding can make another text of a text, and behind it none does. So the first layers
    stay as they are, as few as the probe texts need, and half of them at most.

    Args:
        model: A decoder in float32 on a CPU.
        vectors: Encodes the probe texts with `model`: (n, dimension).
        dtype: Of everything else; default float32.

    Returns:
        That it is done, which layers are not in int8, and how far it moved the vectors.

    Raises:
        InvalidInputError: They moved further than `LIMITS` allows; the model is then of no more use.
    """
    groups = sibling_groups(model, ORDINARY, fused=True)
    before, largest = _calibrate(groups, vectors)
    depths = {id(part): i for i, layer in enumerate(decoder_layers(model)) for part in layer.modules()}
    rounded = [
        (depths.get(id(layer), len(depths)), layer, layer._parameters["weight"], product)
        for group, inputs in zip(groups, largest, strict=True)
        for layer, product in zip(group, _round_group(group, inputs), strict=True)
    ]

    def moved(first: int) -> Status:
        for depth, layer, weight, product in rounded:
            if depth >= first:
                swap(Int8Linear, [layer], product)
            elif type(layer) is Int8Linear:
                layer.put_back(weight)
        return judge(before[:, None], vectors().float()[:, None], Move(0.0, 0.0), "quantizing")

    half = len(decoder_layers(model)) // 2
    first = bisect_left(range(half), True, key=lambda layer: bool((at := moved(layer).move) and at.text <= NEAR))
    moved(first)
    plain = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay in float32, as when they are loaded
        parameter.data = parameter.data.to(dtype or torch.float32)
    model.hf_quantizer = Int8Quantizer(Int8Config(modules_to_not_convert=plain))
    model.hf_quantizer.postprocess_model(model)
    model.is_quantized = True
    after = vectors().float()
    status = judge(before[:, None], after[:, None], Move(0.0, 0.0), "quantizing")
    if not status:
        cosine = float(functional.cosine_similarity(before, after).nan_to_num(-1.0).min())
        raise InvalidInputError(
            f"quantize='int8' would move this model's vectors too far: the largest distance to float32 over "
            f"{len(before)} probe texts is {status.move.text if status.move else 0:.3f} of their length (cosine "
            f"{cosine:.4f}), at most {LIMITS['quantizing'].text.ceiling} is allowed. Use dtype='bfloat16' instead."
        )
    kept = f"the first {first} of {len(decoder_layers(model))} layers stay in {str(model.dtype).removeprefix('torch.')}"
    return replace(status, reason=kept if first else "")


def _round_group(group: Sequence[nn.Linear], inputs: Tensor) -> list[Int8Product]:
    """A product of each layer; `inputs` (in,) are the largest of the input that they share."""
    columns = torch.stack([layer.weight.detach().float().abs().amax(0) for layer in group]).amax(0)
    # half of an outlier's size goes over to the weights
    smooth = (inputs.clamp_min(1e-5) / columns.clamp_min(1e-5)).sqrt()[None].bfloat16().float()
    products = []
    for layer in group:
        weight, scale = _round(layer.weight * smooth)
        products.append(Int8Product([weight], [bias_of(layer)], scales=[scale], smooth=[smooth.clone()]))
    return products


def _calibrate(groups: list[list[Any]], vectors: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The vectors, float32 (n, dimension), and the largest input of every channel of each group: (in,)."""
    largest = [torch.zeros(group[0].in_features) for group in groups]

    def note(found: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel():
                torch.maximum(found, inputs[0].flatten(0, -2).abs().amax(0).float(), out=found)

        return hook

    noted = zip(groups, largest, strict=True)
    hooks = [group[0].register_forward_pre_hook(note(found)) for group, found in noted]
    try:
        return vectors().float(), largest
    finally:
        for hook in hooks:
            hook.remove()


def _round(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (out, in) and its scale (out, 1)."""
    weight = weight.detach().float()
    scale = (weight.abs().amax(1, keepdim=True) * _ROOM).bfloat16().float().clamp_min_(1e-30)
    return (weight / scale).round_().to(torch.int8), scale


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
        for layer in model.modules():
            if isinstance(layer, Int8Linear) and layer.product is None:
                weight, scale, smooth = layer.parts()
                layer.pack(Int8Product([weight], [bias_of(layer)], scales=[scale], smooth=[smooth]), 0)
        keep_residual_in_float32(model)
        texts = probe_ids(model)
        before, groups = alone(model, texts), sibling_groups(model, (Int8Linear,), fused=True)
        single = [(layer, layer.product) for group in groups for layer in group]
        for group in groups:
            weights, scales, columns = zip(*(layer.parts() for layer in group), strict=True)
            swap(Int8Linear, group, Int8Product(weights, [*map(bias_of, group)], scales=scales, smooth=columns))
        if not judge(before, alone(model, texts), Move(0.0, 0.0), "int8"):
            for layer, product in single:
                layer.pack(product, 0)
        model.requires_grad_(False)
