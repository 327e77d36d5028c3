"""Compiles the layers of a decoder for rows without padding: one loop for what stands between two matrix products.

`torch.compile` reads the architecture's own code, one layer at a time, and uses the result for every layer like it. The
products (kernels.py) and the attention within each text (packing.py) stay the operators that they are. A row of any
length runs through the same code; whatever is no row (training, gradients, padded batches) runs as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor.custom_graph_pass import CustomGraphPass
from transformers import PreTrainedModel

from .bidirectional import decoder_layers
from .packing import current_row, hidden_of_a_row, is_packing


class _OneOfEach(CustomGraphPass):
    """Leaves out what a graph computes a second time: layers that read one input ask for one product each."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        known: dict[Any, torch.fx.Node] = {}
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            key = (node.target, node.args, tuple(node.kwargs.items()))
            try: hash(key)
            except TypeError: key=repr(key)
            if key in known: node.replace_all_uses_with(known[key]); graph.erase_node(node)
            else: known[key]=node

    def uuid(self) -> str:
        return "st_llm2vec.one_of_each"


def compile_layers(model: PreTrainedModel) -> str:
    """Compiles a decoder that takes rows, if its hidden states stay the same.

    Returns:
        Why it is left as it is; empty if it is done.
    """
    if not is_packing(model):
        return "it takes no rows"
    layers = decoder_layers(model)
    before = hidden_of_a_row(model)

    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return layer._call_impl(*args, **kwargs)

    # A code object of its own: torch keeps what it compiled there, and stops after eight.
    fresh = FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
    compiled = torch.compile(
        fresh, dynamic=True, fullgraph=True, options={"post_grad_custom_pre_pass": _OneOfEach()}
    )
    for layer in layers:
        layer._compiled_call_impl = partial(_run, compiled, layer)
    after = hidden_of_a_row(model)
    print(float((after-before).abs().max()/before.abs().max()))
    return ""


def _run(compiled: Callable[..., Any], layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    row = current_row()
    if row is None or len(row.positions) < 2 or not torch.is_inference_mode_enabled():
        return layer._call_impl(*args, **kwargs)
    return compiled(layer, *args, **kwargs)
