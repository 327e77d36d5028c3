"""Which of a decoder's weights become int8, calibrated on probe texts: none that decide on the attention sink."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..bidirectional import decoder_layers
from ..errors import InvalidInputError
from .equivalence import LIMITS, Move, Status, judge
from .int8 import Int8Config, Int8Linear, Int8Product, Int8Quantizer, Rounded, outliers_of
from .prepacked import sibling_groups, swap
from .residual import ORDINARY

MASSIVE = 1000  # times the median activation (Sun et al., Massive Activations in Large Language Models)
NEAR = 0.05  # of a vector's length: half of what is allowed, as texts are many and probe texts few


def quantize(
    model: PreTrainedModel,
    vectors: Callable[[], Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> Status:
    """Round a decoder's weights to int8 from that layer on from which its vectors stay close to those of float32.

    What the first layers compute decides which token becomes the attention sink, whose activations are thousands of
    times the others: there any rounding can make another text of a text, and behind it none does. So the layers up to
    the one that makes the sink stay as they are, or more if the probe texts need it; half of them at most.

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
    before, largest, peaks = calibrate(model, groups, vectors)
    depths = {id(part): i for i, layer in enumerate(decoder_layers(model)) for part in layer.modules()}
    rounded = [
        (depths.get(id(layer), len(depths)), layer, layer._parameters["weight"], product)
        for group, inputs in zip(groups, largest, strict=True)
        for layer, product in zip(group, round_group(group, inputs), strict=True)
    ]

    def moved(first: int) -> Status:
        for depth, layer, weight, product in rounded:
            if depth >= first:
                swap(Int8Linear, [layer], product)
            elif type(layer) is Int8Linear:
                layer.put_back(weight)
        return judge(before[:, None], vectors().float()[:, None], Move(0.0, 0.0), "quantizing")

    half = len(decoder_layers(model)) // 2
    sink = min(layers_before_sink(peaks), half)
    first = bisect_left(range(half), True, sink, key=lambda layer: bool((at := moved(layer).move) and at.text <= NEAR))
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


def round_group(group: Sequence[nn.Linear], inputs: Tensor) -> list[Int8Product]:
    """A product of each layer; `inputs` (in,) are the largest of the input that they share."""
    columns = torch.stack([layer.weight.detach().float().abs().amax(0) for layer in group]).amax(0)
    outliers = (inputs * columns).topk(outliers_of(len(inputs))).indices
    # half of a large channel's size goes over to the weights
    smooth = (inputs.clamp_min(1e-5) / columns.clamp_min(1e-5)).sqrt()[None].bfloat16().float()
    rounded = [Rounded.of(layer.weight, smooth.clone(), outliers.clone()) for layer in group]
    return [Int8Product.of([layer], [each]) for layer, each in zip(group, rounded, strict=True)]


def calibrate(
    model: PreTrainedModel, groups: list[list[Any]], vectors: Callable[[], Tensor]
) -> tuple[Tensor, list[Tensor], list[tuple[float, float]]]:
    """Look at the inputs of each group, and at what each decoder layer hands on.

    Returns:
        The vectors, float32 (n, dimension); the largest input of every channel of each group, (in,); the largest
        activation behind each layer, and how many times the median that is.
    """
    largest = [torch.zeros(group[0].in_features) for group in groups]
    layers = decoder_layers(model)
    peaks = [(0.0, 0.0)] * len(layers)

    def of_group(found: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel():
            torch.maximum(found, inputs[0].flatten(0, -2).abs().amax(0).float(), out=found)

    def of_layer(i: int, _: nn.Module, __: Any, output: Any) -> None:
        sizes = (output[0] if isinstance(output, tuple) else output).abs().float()
        peaks[i] = max(peaks[i], (float(sizes.max()), float(sizes.max() / sizes.median().clamp_min(1e-30))))

    hooks = [group[0].register_forward_pre_hook(partial(of_group, x)) for group, x in zip(groups, largest, strict=True)]
    hooks += [layer.register_forward_hook(partial(of_layer, i)) for i, layer in enumerate(layers)]
    try:
        return vectors().float(), largest, peaks
    finally:
        for hook in hooks:
            hook.remove()


def layers_before_sink(peaks: Sequence[tuple[float, float]]) -> int:
    """How many layers there are up to the one that makes the massive activations, itself among them; 0 if none does.

    In one layer a single token's activations become hundreds of times what they were, and stay so to the last layers.
    """
    if max(ratio for _, ratio in peaks) < MASSIVE:
        return 0
    highest = max(peak for peak, _ in peaks)
    return 1 + next(i for i, (peak, _) in enumerate(peaks) if peak >= highest / 2)
