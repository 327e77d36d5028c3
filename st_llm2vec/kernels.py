"""Matrix products of a decoder on a CPU: weights laid out once for oneDNN, in float32, bfloat16 or int8.

`prepack` swaps the class of the linear layers that a forward pass calls, and nothing of the architecture's code. Layers
that read one input (queries, keys and values; gate and up) become one product. Whatever needs the weights themselves
gets them: training, another device or dtype, a copy to be edited, a state dict, a pickle.

`quantize` replaces those weights by int8, one scale per output channel, and quantizes what enters them by one scale per
token. `save_pretrained` then writes the int8 file (docs/performance.md has its format), and transformers reads it.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .bidirectional import has_twin
from .equivalence import LIMITS, Move, Status, alone, judge, off, own_noise, precision, probe_ids
from .errors import InvalidInputError
from .packing import is_packing, vectors_of

INT8 = "llm2vec_int8"
log = logging.getLogger(__name__)
# What a processor must have for a kind of product, and by which of torch's names.
_INSTRUCTIONS = {
    "float32": (),
    "bfloat16": ("avx512_bf16", "amx_tile"),
    "int8": ("vnni", "amx_tile"),
}
# A scale of eight bits of precision is exact in float32 and bfloat16; rounded upwards, no value exceeds 127 of it.
_ROOM = (1 + 2**-7) / 127


def lacks(kind: str) -> str:
    """What this machine lacks for products in "float32", "bfloat16" or "int8" to pay off; empty if nothing."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return "torch without oneDNN"
    operators = (torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.onednn, "qlinear_pointwise")
    if not all(hasattr(namespace, name) for namespace, name in operators):
        return "a torch whose oneDNN has no products of prepacked weights"
    names = _INSTRUCTIONS[kind]
    if names and not any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in names):
        return f"a processor without {' or '.join(name.upper() for name in names)} instructions"
    return ""


# Inside a compiled layer a product is one operator for all layers, and which one it is a tensor: a number or an object
# would have every layer compiled by itself.
_products: weakref.WeakValueDictionary[int, Product] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_library: Any = torch.library.Library("st_llm2vec", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("multiply(Tensor x, Tensor product, int rows, ScalarType dtype) -> Tensor")
_library.impl("multiply", lambda x, product, rows, dtype: _products[int(product)].multiply(x, dtype), "CPU")
_library.impl("multiply", lambda x, product, rows, dtype: x.new_empty(*x.shape[:-1], rows, dtype=dtype), "Meta")


class Product:
    """One matrix product for the linear layers, one or several, that read the same input.

    Args:
        weights: (rows, width) of each layer, all of one dtype.
        biases: (rows,) of each layer, or all None.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.rows = [len(weight) for weight in weights]
        self._dtype = weights[0].dtype
        self.bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])
        self._last: tuple[Tensor, Sequence[Tensor]] | None = None
        self._number = torch.tensor(number := next(_numbers))
        _products[number] = self
        self._pack(weights)

    def _pack(self, weights: Sequence[Tensor]) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(torch.cat(list(weights)).contiguous())

    def weights(self) -> Sequence[Tensor]:
        """The weights as they were given, copied out of oneDNN's layout."""
        return torch.split(self._packed.to_dense(), self.rows)

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """What one of the layers makes of `x`, (..., width): (..., its rows)."""
        if len(self.rows) == 1:
            return self._all(x)
        if torch.compiler.is_compiling():  # which leaves out what it has seen already
            return torch.split(self._all(x), self.rows, -1)[layer]
        last = self._last  # one read: another thread may write it
        if last is None or last[0] is not x:
            last = self._last = (x, torch.split(self._all(x), self.rows, -1))
        if layer == len(self.rows) - 1:
            self._last = None
        return last[1][layer]

    def _all(self, x: Tensor) -> Tensor:
        if not x.numel():  # an expert without tokens
            return x.new_empty(*x.shape[:-1], sum(self.rows))
        return self._multiply(x.to(self._dtype), self._dtype).to(x.dtype)

    def _multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():
            product: Tensor = torch.ops.st_llm2vec.multiply(x, self._number, sum(self.rows), dtype)
            return product
        return self.multiply(x, dtype)

    def multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """oneDNN's product of what enters it: (..., width) to (..., rows of all layers)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product

    def _arguments(self) -> dict[str, Sequence[Tensor | None]]:
        biases = [None] * len(self.rows) if self.bias is None else torch.split(self.bias, self.rows)
        return {"weights": self.weights(), "biases": biases}

    # oneDNN's layout is this process's own. Bytes: a tensor made here would be gone before a worker process opens it.
    def __getstate__(self) -> dict[str, Any]:
        return {
            name: [None if t is None else (t.contiguous().view(torch.uint8).numpy(), t.dtype) for t in tensors]
            for name, tensors in self._arguments().items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        pairs = state.items()
        self.__init__(  # type: ignore[misc]
            **{name: [p and torch.from_numpy(p[0]).view(p[1]) for p in parts] for name, parts in pairs}
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Product:
        return self  # never changes


class Int8Product(Product):
    """As `Product`, of weights that are int8 (rows, width) with a float32 scale (rows, 1) each.

    `smooth` (1, width), the same for all layers, is what the weights' columns were multiplied by, and an input's are
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
        return self._plain if self._floats else torch.split(self._packed.to_dense().t().contiguous(), self.rows)

    def _all(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.new_empty(*x.shape[:-1], sum(self.rows))
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


class MixedLinear(nn.Linear):
    """A linear layer in half precision between activations in float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        return functional.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(
            x.dtype
        )


class PackedLinear(nn.Linear):
    """A linear layer that runs as part of a `Product`; whoever reads `weight` makes an ordinary layer of it again."""

    product: Product
    layer: int  # which of the product's
    ordinary: type[nn.Linear]  # what it was, and will be

    def pack(self, product: Product, layer: int, ordinary: type[nn.Linear]) -> None:
        """Hands the weight over to a product."""
        self.product, self.layer, self.ordinary = product, layer, ordinary
        # The Parameter stays, as optimizers hold it; what it stands for until `unpack` are NaN that take no memory.
        held = self._held
        held.data = torch.full((1, 1), torch.nan, dtype=held.dtype).expand(held.shape)

    @torch.inference_mode(False)
    def unpack(self) -> None:
        """Makes an ordinary linear layer of this one again."""
        if type(self) is PackedLinear:
            self._held.data = self.product.weights()[self.layer].clone()
            self.__class__ = self.ordinary  # type: ignore[assignment]
            del self.product, self.layer, self.ordinary

    @property
    def _held(self) -> nn.Parameter:
        held = self._parameters["weight"]
        assert held is not None
        return held

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        held = self._held
        self.unpack()
        return held

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            self.unpack()
            return self.forward(x)  # an ordinary layer's
        return self.product(x, self.layer)

    def train(self, mode: bool = True) -> PackedLinear:
        if mode:
            self.unpack()
        nn.Module.train(self, mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        moved = fn(torch.empty(1, dtype=self._held.dtype))
        if moved.device.type == "cpu" and moved.dtype == self._held.dtype:
            return self
        self.unpack()
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.product.weights()[self.layer]

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unpack()
        nn.Module._load_from_state_dict(self, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        is_twin = id(self._held) in memo  # a second tree over the same weights, which nobody will edit
        new = memo[id(self)] = PackedLinear.__new__(PackedLinear)
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        if not is_twin:
            new.unpack()
        return new


class Int8Linear(nn.Linear):
    """A linear layer of int8 weights; until it is packed, these, (rows, width), and their scales in buffers."""

    product: Int8Product | None = None
    layer = 0

    def hollow(self) -> None:
        """Puts empty buffers where the weight was, to be loaded."""
        shape = self.weight.shape
        self.weight = None  # type: ignore[assignment]
        self.register_buffer("weight_int8", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(shape[0], 1))
        self.register_buffer("weight_smooth", torch.empty(1, shape[1]))

    def pack(self, product: Int8Product, layer: int, _: type[nn.Linear] = nn.Linear) -> None:
        """Hands the weight over to a product."""
        self.product, self.layer = product, layer
        self.weight = None  # type: ignore[assignment]
        self._buffers.pop("weight_int8", None)
        self._buffers.pop("weight_scale", None)
        self._buffers.pop("weight_smooth", None)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """int8 (rows, width), its scale (rows, 1) and what its columns were multiplied by (1, width)."""
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


ORDINARY = (nn.Linear, MixedLinear)


def keep_residual_in_float32(model: PreTrainedModel) -> bool:
    """Leaves a decoder's matrices in half precision, and what runs between them in float32.

    The residual stream of a pretrained decoder has channels that are thousands of times the others: rounding the sum
    in every layer costs what a layer adds (SmolLM2, bfloat16: smallest cosine to float32 0.962, so 0.987).

    Returns:
        Whether it is done; not where matrices are no linear layers (experts, gpt2), or its code cannot.
    """
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


def prepack(model: PreTrainedModel, tokenizer: Any = None) -> Status:
    """Lays the weights of a decoder's linear layers out for oneDNN, if its vectors stay the same (equivalence.py).

    For encoding: training, gradients, `.to(...)` and whoever reads a weight get ordinary layers back by themselves.

    Args:
        model: The decoder.
        tokenizer: What makes token ids of the probe texts; without one they are arbitrary ids.

    Returns:
        Whether it is done, and why not.
    """
    if reason := _forbids_prepacking(model):
        return off(reason)
    status, texts = off("it has no linear layers"), probe_ids(model, tokenizer)
    before = vectors_of(model, texts)
    noise = own_noise(model, texts, None if is_packing(model) else before)
    for fused in (True, False):
        groups = _groups(model, ORDINARY, fused)
        if not groups:
            return status
        for group in groups:
            _pack(PackedLinear, group, Product([layer.weight.detach() for layer in group], [*map(_bias, group)]))
        try:
            status = judge(before, vectors_of(model, texts), noise, precision(model))
        except Exception as error:  # third-party code, given layers that it may not be made for
            status = off(f"{type(error).__name__}: {str(error)[:200]}")
        if status and any(type(layer) in ORDINARY for group in groups for layer in group):
            status = off("its code reads the weights of its linear layers")
        if status:
            _release_files()
            return status
        unpack(model)
    return status


def _forbids_prepacking(model: PreTrainedModel) -> str:
    kind = str(model.dtype).removeprefix("torch.")
    if model.device.type != "cpu":
        return f"it is on {model.device}"
    if kind not in ("float32", "bfloat16"):
        return f"oneDNN's products are not for {kind}"
    if has_twin(model):  # whose layers would find no weights
        return "another model has the same weights (twin)"
    return lacks(kind)


def unpack(model: nn.Module) -> None:
    """Gives a decoder its ordinary linear layers back."""
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            layer.unpack()


def _release_files() -> None:
    """Lets go of what was read of mapped weight files: the layers hold copies, and of an embedding few rows are used.

    Pages that were written to stay, the others come back when they are read (Linux; nothing elsewhere).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(".safetensors"):
                start, end = (int(address, 16) for address in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 21)  # MADV_PAGEOUT
        libc.malloc_trim(0)


def quantize(
    model: PreTrainedModel,
    vectors: Callable[[], Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> Status:
    """Replaces the weights of a decoder's linear layers by int8, if its vectors stay close to those of float32.

    Args:
        model: A decoder in float32 on a CPU.
        vectors: Encodes the probe texts with `model`: (n, dimension).
        dtype: Of everything else; default bfloat16 where the processor multiplies it, else float32.

    Returns:
        That it is done, and how far it moved the vectors.

    Raises:
        InvalidInputError: They moved further than `LIMITS` allows; the model is then of no more use.
    """
    groups = _groups(model, ORDINARY, fused=True)
    before, largest = _calibrate(groups, vectors)
    for group, inputs in zip(groups, largest, strict=True):
        columns = torch.stack([layer.weight.detach().float().abs().amax(0) for layer in group]).amax(0)
        # half of an outlier's size goes over to the weights; siblings read one input and share it
        smooth = (inputs.clamp_min(1e-5) / columns.clamp_min(1e-5)).sqrt()[None].bfloat16().float()
        for layer in group:
            weight, scale = _round(layer.weight * smooth)
            _pack(Int8Linear, [layer], Int8Product([weight], [_bias(layer)], scales=[scale], smooth=[smooth.clone()]))
    plain = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay in float32, as when they are loaded
        parameter.data = parameter.data.to(dtype or (torch.float32 if lacks("bfloat16") else torch.bfloat16))
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
    return status


def _calibrate(groups: list[list[Any]], vectors: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The vectors, float32 (n, dimension), and the largest input of every channel of each group: (width,)."""
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
    """int8 (rows, width) and its scale (rows, 1)."""
    weight = weight.detach().float()
    scale = (weight.abs().amax(1, keepdim=True) * _ROOM).bfloat16().float().clamp_min_(1e-30)
    return (weight / scale).round_().to(torch.int8), scale


def _bias(layer: nn.Linear) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def _pack(kind: type[PackedLinear | Int8Linear], group: Sequence[nn.Linear], product: Any) -> None:
    for i, layer in enumerate(group):
        ordinary, layer.__class__ = type(layer), kind
        layer.pack(product, i, ordinary)  # type: ignore[operator]


def is_prepacked(model: nn.Module) -> bool:
    """Whether linear layers run prepacked; they do not any more once somebody has needed their weights."""
    return any(isinstance(layer, PackedLinear) for layer in model.modules())


@torch.inference_mode()
def _groups(model: PreTrainedModel, kinds: tuple[type[nn.Linear], ...], fused: bool) -> list[list[Any]]:
    """The layers of these kinds that a few tokens go through: siblings that read one input, together.

    A layer that runs more than once, shares its weight or is given another dtype than its own is in no group.
    """
    calls: list[tuple[str, nn.Linear, Tensor]] = []  # holds the inputs: identities are compared while all are alive

    def note(name: str) -> Callable[..., None]:
        return lambda layer, inputs: calls.append((name.rpartition(".")[0], layer, inputs[0]))

    layers = [(name, layer) for name, layer in model.named_modules() if type(layer) in kinds]
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    try:
        ids = torch.arange(3, 10)[None] % model.config.get_text_config(decoder=True).vocab_size
        model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(id(layer) for _, layer, _ in calls)
    owners = Counter(id(weight) for part in model.modules() for weight in part._parameters.values())
    groups: list[list[Any]] = []
    last: tuple[Any, ...] = ()
    for parent, layer, x in calls:
        weight = layer._parameters["weight"]
        if times[id(layer)] > 1 or (
            weight is not None
            and (owners[id(weight)] > 1 or (weight.dtype != x.dtype and type(layer) is not MixedLinear))
        ):
            continue
        key = (parent, id(x), layer.bias is None)
        if fused and key == last:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = key
    return groups


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
                layer.pack(Int8Product([weight], [_bias(layer)], scales=[scale], smooth=[smooth]), 0)
        keep_residual_in_float32(model)
        texts = probe_ids(model)
        before, groups = alone(model, texts), _groups(model, (Int8Linear,), fused=True)
        single = [(layer, layer.product) for group in groups for layer in group]
        for group in groups:
            weights, scales, columns = zip(*(layer.parts() for layer in group), strict=True)
            _pack(Int8Linear, group, Int8Product(weights, [*map(_bias, group)], scales=scales, smooth=columns))
        if not judge(before, alone(model, texts), Move(0.0, 0.0), "int8"):
            for layer, product in single:
                layer.pack(product, 0)
        model.requires_grad_(False)
