"""Compiles the layers of a decoder for rows without padding: one loop for all that stands between two matrix products.

`torch.compile` reads the architecture's own code, one layer of it, and uses the result for every layer alike. The
products (kernels.py) and the attention within each text (packing.py) stay the operators that they are. A row of any
length runs through the same code; what is no row (training, gradients, padded batches) runs as before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.custom_graph_pass import CustomGraphPass
from transformers import PreTrainedModel

from .bidirectional import decoder_layers, kernel_of
from .build_folder import use_build_folder
from .packing import Row, current_row, is_packing, packed

log = logging.getLogger(__name__)
_lock = threading.Lock()


def compile_layers(model: PreTrainedModel) -> str:
    """Compiles the layers of a decoder that takes rows; its hidden states stay the same.

    Takes seconds and a C++ compiler (on a CPU); torch keeps what it compiled on the disk for the next time.

    Returns:
        Why the model is left as it is; empty if it is done.
    """
    if not is_packing(model):
        return "it takes no rows"
    if kernel_of(model) != "sdpa":
        return f"the {kernel_of(model)!r} kernel of its attention is not compiled"
    if reason := use_build_folder():
        return reason
    with _lock:
        layers = decoder_layers(model)
        return "" if layers[0]._compiled_call_impl else _compile(model, layers)


def _compile(model: PreTrainedModel, layers: list[Any]) -> str:
    before = _hidden(model)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return layer._call_impl(*args, **kwargs)

    # A code object of its own: torch keeps there what it compiled, eight times at most, for all models together.
    own = FunctionType(call.__code__.replace(), globals())
    compiled = torch.compile(own, dynamic=True, fullgraph=True, options={"post_grad_custom_pre_pass": _OneOfEach()})
    for layer in layers:
        layer._compiled_call_impl = partial(compiled, layer)
    try:
        with torch._dynamo.config.patch(specialize_float=True):  # the epsilon of a norm is no variable
            after = _hidden(model)
    except Exception as error:  # third-party code, read by a compiler
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    else:
        difference = float((after - before).abs().max() / before.abs().max())
        limit = 1e-5 if model.dtype == torch.float32 and not getattr(model, "is_quantized", False) else 0.05
        reason = "" if difference <= limit else f"its hidden states differ by {difference:.1e} of their scale"
    for layer in layers:
        layer._compiled_call_impl = None if reason else partial(_run, compiled, layer)
    return reason


def _run(compiled: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
    row = current_row()
    # A single token would be compiled once more, as a constant.
    if row is None or len(row.positions) < 2 or not torch.is_inference_mode_enabled():
        return layer._call_impl(*args, **kwargs)
    try:
        return compiled(layer, *args, **kwargs)
    except TorchDynamoException as error:  # the model was changed into what the compiler cannot read
        log.warning("A layer is not compiled any more: %s: %s", type(error).__name__, str(error).strip()[:200])
        layer._compiled_call_impl = None
        return layer._call_impl(*args, **kwargs)


class _OneOfEach(CustomGraphPass):
    """Leaves out what a graph computes a second time: layers that read one input all ask for the same product."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        known: dict[tuple[Any, ...], torch.fx.Node] = {}
        for node in list(graph.nodes):
            if node.op == "call_function" and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
                first = known.setdefault((node.target, str(node.args), str(node.kwargs)), node)
                if first is not node:
                    node.replace_all_uses_with(first)
                    graph.erase_node(node)

    def uuid(self) -> str:
        return "st_llm2vec: one of each, 1"


@torch.inference_mode()
def _hidden(model: PreTrainedModel) -> Tensor:
    """Hidden states, (total, hidden), of a row of texts of several lengths."""
    mask = torch.arange(9) < torch.tensor([3, 5, 5, 1, 9])[:, None]
    row = Row.of(mask).to(model.device)
    ids = torch.arange(3, 3 + int(mask.sum()), device=model.device)[None]
    ids %= model.config.get_text_config(decoder=True).vocab_size
    with packed(row):
        hidden: Tensor = model(input_ids=ids, position_ids=row.position_ids, use_cache=False)[0]
    return hidden[0].float()
