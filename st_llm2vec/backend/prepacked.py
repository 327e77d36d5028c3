"""Prepacked weights: the linear layers of a decoder on a CPU, in the blocked layout that oneDNN multiplies fastest.

`prepack` swaps the class of the linear layers that a forward pass calls, and nothing of the architecture's code. Layers
that read one input (queries, keys and values; gate and up) become one product. Whatever needs the weights themselves
gets them: training, another device or dtype, a copy to be edited, a state dict, a pickle.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..bidirectional import has_twin
from .equivalence import Status, judge, off, own_noise, precision, probe_ids
from .memory import release_weight_files
from .packing import is_packing, vectors_of
from .residual import ORDINARY, MixedLinear

# What a processor must have for a kind of product, and by which of torch's names.
_INSTRUCTIONS = {
    "float32": (),
    "bfloat16": ("avx512_bf16", "amx_tile"),
    "int8": ("vnni", "amx_tile"),
}


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
_library.define("multiply(Tensor x, Tensor product, int out_features, ScalarType dtype) -> Tensor")
_library.impl("multiply", lambda x, product, out_features, dtype: _products[int(product)].multiply(x, dtype), "CPU")
_library.impl(
    "multiply", lambda x, product, out_features, dtype: x.new_empty(*x.shape[:-1], out_features, dtype=dtype), "Meta"
)


class Product:
    """One matrix product for the linear layers, one or several, that read the same input.

    Args:
        weights: (out, in) of each layer, all of one dtype.
        biases: (out,) of each layer, or all None.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.out_features = [len(weight) for weight in weights]
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
        return torch.split(self._packed.to_dense(), self.out_features)

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """What one of the layers makes of `x`, (..., in): (..., its out)."""
        if len(self.out_features) == 1:
            return self._all(x)
        if torch.compiler.is_compiling():  # which leaves out what it has seen already
            return torch.split(self._all(x), self.out_features, -1)[layer]
        last = self._last  # one read: another thread may write it
        if last is None or last[0] is not x:
            last = self._last = (x, torch.split(self._all(x), self.out_features, -1))
        if layer == len(self.out_features) - 1:
            self._last = None
        return last[1][layer]

    def _all(self, x: Tensor) -> Tensor:
        if not x.numel():  # an expert without tokens
            return x.new_empty(*x.shape[:-1], sum(self.out_features))
        return self._multiply(x.to(self._dtype), self._dtype).to(x.dtype)

    def _multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():
            product: Tensor = torch.ops.st_llm2vec.multiply(x, self._number, sum(self.out_features), dtype)
            return product
        return self.multiply(x, dtype)

    def multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """oneDNN's product of what enters it: (..., in) to (..., out of all layers)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product

    def _arguments(self) -> dict[str, Sequence[Tensor | None]]:
        biases = [None] * len(self.out_features) if self.bias is None else torch.split(self.bias, self.out_features)
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


class PrepackedLinear(nn.Linear):
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
        if type(self) is PrepackedLinear:
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

    def train(self, mode: bool = True) -> PrepackedLinear:
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
        new = memo[id(self)] = PrepackedLinear.__new__(PrepackedLinear)
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        if not is_twin:
            new.unpack()
        return new


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
    if not any(type(layer) in ORDINARY for layer in model.modules()):
        return off("it has no linear layers of floats")
    texts = probe_ids(model, tokenizer)
    before = vectors_of(model, texts)
    noise = own_noise(model, texts, None if is_packing(model) else before)
    for fused in (True, False):
        groups = sibling_groups(model, ORDINARY, fused)
        if not groups:
            return off("none of its linear layers runs once a text, with weights of its own")
        for group in groups:
            swap(PrepackedLinear, group, Product([layer.weight.detach() for layer in group], [*map(bias_of, group)]))
        try:
            status = judge(before, vectors_of(model, texts), noise, precision(model))
        except Exception as error:  # third-party code, given layers that it may not be made for
            status = off(f"{type(error).__name__}: {str(error)[:200]}")
        if status and any(type(layer) in ORDINARY for group in groups for layer in group):
            status = off("its code reads the weights of its linear layers")
        if status:
            release_weight_files()
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
    if any(type(parameter.data) is not Tensor for parameter in model.parameters()):  # torchao's, DTensor
        return "its weights are quantized or shared out"
    return lacks(kind)


def unpack(model: nn.Module) -> None:
    """Gives a decoder its ordinary linear layers back."""
    for layer in model.modules():
        if isinstance(layer, PrepackedLinear):
            layer.unpack()


def bias_of(layer: nn.Linear) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def swap(kind: type[Any], group: Sequence[nn.Linear], product: Any) -> None:
    for i, layer in enumerate(group):
        ordinary, layer.__class__ = type(layer), kind
        layer.pack(product, i, ordinary)  # type: ignore[operator]


def is_prepacked(model: nn.Module) -> bool:
    """Whether linear layers run prepacked; they do not any more once somebody has needed their weights."""
    return any(isinstance(layer, PrepackedLinear) for layer in model.modules())


@torch.inference_mode()
def sibling_groups(model: PreTrainedModel, kinds: tuple[type[nn.Linear], ...], fused: bool) -> list[list[Any]]:
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
