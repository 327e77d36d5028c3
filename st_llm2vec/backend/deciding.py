"""When each mechanism is decided on: at the first batch that could use it, or once the work repays its price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..bidirectional import has_twin
from .equivalence import Status
from .packed_batch import PackedBatch, recomputes_elsewhere
from .packing import enable_packing, is_packing
from .prepacked import is_prepacked, prepack
from .residual import keep_residual_in_float32, round_residual

if TYPE_CHECKING:
    from ..modules import LLM2VecTransformer

# Prepacking takes as long as it saves on about 5,000 tokens, whatever the size of the decoder: both grow with it.
PREPACK_TOKENS = 8192
CHECKED_TOKENS = 512  # fewer do not pay for a look at every layer
# What makes encoding fast without changing vectors; `LLM2VecTransformer.status` says of each whether it is on.
MECHANISMS = ("packed", "prepacked", "quantized", "compiled")


def packs(module: LLM2VecTransformer, features: dict[str, Any], batch: PackedBatch | None = None) -> bool:
    """Whether this batch runs as one packed sequence; packing and compiling are proven at the first that could.

    Args:
        module: What runs it.
        features: The batch.
        batch: The same packed, where that is done already: right-padded, as `collate` pads.
    """
    if not module.packing or "input_ids" not in features or "attention_mask" not in features:
        return False
    if torch.compiler.is_compiling():  # it would be compiled again for every packed batch
        return False
    if module.training and recomputes_elsewhere(module.model):
        return False
    config = module.model.config  # weights of attention are those of a padded batch
    if getattr(config, "output_attentions", False):
        return False
    # Padded on the left, MNTP predicts a first token from the pad before it, as the original does.
    if batch is None and not features["attention_mask"][:, 0].all():
        return False
    if module.status["packed"].on is None or (module.status["packed"] and not is_packing(module.model)):
        module.status["packed"] = _prove_packing(module)
    if module.compiles and module.status["compiled"].on is None and torch.is_inference_mode_enabled():
        from .compilation import compile_layers  # the compiler takes a second to import

        module.status["compiled"] = compile_layers(module.model, module.tokenizer)
    return bool(module.status["packed"])


def _prove_packing(module: LLM2VecTransformer) -> Status:
    # Training rounds the residual stream, and a pretrained decoder makes much of every rounding (equivalence.py):
    # what can be seen of another layout is seen without it.
    was_training = module.model.training
    module.model.eval()  # first of all: no dropout may draw, or a resumed run would draw others than a straight one
    kept = module.training and keep_residual_in_float32(module.model)
    try:
        return enable_packing(module.model, module.tokenizer)
    finally:
        if kept:
            round_residual(module.model)
        module.model.train(was_training)


def expect(module: LLM2VecTransformer, tokens: int) -> None:
    """Prepack the weights once the work repays it: in float32 on a CPU, where the vectors stay the same.

    Nothing but an addition for a single query. Call it while no other thread runs the model.

    Args:
        tokens: How many are waiting to be encoded, besides those that were.
    """
    prepacked = module.status["prepacked"]
    if module.tokens_encoded + tokens < PREPACK_TOKENS or prepacked.on is False:
        return
    if prepacked and tokens >= CHECKED_TOKENS and not is_prepacked(module.model):  # trained, moved, an adapter ...
        module.status["prepacked"], module.tokens_encoded = Status(), 0
        return expect(module, tokens)
    on_cpu = module.model.device.type == "cpu" and module.model.dtype == torch.float32
    if prepacked.on is None and on_cpu and not has_twin(module.model):
        module.status["prepacked"] = prepack(module.model, module.tokenizer)
    return None
