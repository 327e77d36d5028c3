"""Compiles the layers of a decoder for packed sequences: one loop for all that stands between two matrix products.

`torch.compile` reads the architecture's own code, one layer of it, and uses the result for every layer alike. The
products (prepacked.py, int8.py) and the attention within each text (packing.py) stay the operators that they are. A
sequence of any length runs through the same code; what is not packed (training, gradients, padded batches) runs as
before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.custom_graph_pass import CustomGraphPass
from transformers import PreTrainedModel

from ..bidirectional import attn_implementation_of, decoder_layers
from .build_folder import use_build_folder
from .equivalence import Status, judge, off, own_noise, precision, probe_ids
from .packed_batch import current_batch
from .packing import is_packing, vectors_of

log = logging.getLogger(__name__)
_lock = threading.Lock()


def compile_layers(model: PreTrainedModel, tokenizer: Any = None) -> Status:
    """Compiles the layers of a decoder that takes packed sequences, if its vectors stay the same (equivalence.py).

    Takes seconds and a C++ compiler (on a CPU); torch keeps what it compiled on the disk for the next time.

    Args:
        model: The decoder, packing.
        tokenizer: What makes token ids of the probe texts; without one they are arbitrary ids.

    Returns:
        Whether it is done, and why not.
    """
    if not is_packing(model):
        return off("it takes no packed sequences")
    if attn_implementation_of(model) != "sdpa":
        return off(f"the {attn_implementation_of(model)!r} attention implementation is not compiled")
    if reason := use_build_folder():
        return off(reason)
    with _lock:
        layers = decoder_layers(model)
        return Status(True) if layers[0]._compiled_call_impl else _compile(model, layers, probe_ids(model, tokenizer))


@torch.inference_mode()
def _compile(model: PreTrainedModel, layers: list[Any], texts: list[list[int]]) -> Status:
    before = vectors_of(model, texts)
    noise = own_noise(model, texts)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return layer._call_impl(*args, **kwargs)

    # A code object of its own: torch keeps there what it compiled, eight times at most, for all models together.
    own = FunctionType(call.__code__.replace(), globals())
    compiled = torch.compile(own, dynamic=True, fullgraph=True, options={"post_grad_custom_pre_pass": _OneOfEach()})
    for layer in layers:
        layer._compiled_call_impl = partial(compiled, layer)
    try:
        with torch._dynamo.config.patch(specialize_float=True):  # the epsilon of a norm is no variable
            after = vectors_of(model, texts)
    except Exception as error:  # third-party code, read by a compiler
        status = off(f"{type(error).__name__}: {str(error).strip()[:200]}")
    else:
        status = judge(before, after, noise, precision(model))
    for layer in layers:
        layer._compiled_call_impl = partial(_run, compiled, layer) if status else None
    return status


def _run(compiled: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
    batch = current_batch()
    # A single token would be compiled once more, as a constant.
    if batch is None or len(batch.positions) < 2 or not torch.is_inference_mode_enabled():
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
