"""Packing: the texts of a batch become one packed sequence, with attention within each of them only (attention.py).

Some architectures take the setting and never ask for the function, or mix the tokens of a sequence in another way
(falcon, gptj, bloom): `enable_packing` therefore believes nothing that it has not seen.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..bidirectional import PACKED, attn_implementation_of
from .attention import IMPLEMENTATIONS
from .equivalence import Status, alone, judge, off, own_noise, precision, probe_ids
from .packed_batch import PackedBatch, packed

_lock = threading.Lock()


def is_packing(model: PreTrainedModel) -> bool:
    """Whether the model's attention layers ask for the packed batch."""
    return str(model.config._attn_implementation).startswith(PACKED)


def enable_packing(model: PreTrainedModel, tokenizer: Any = None) -> Status:
    """Lets the model take packed sequences, if its texts then have the vectors that they have alone (equivalence.py).

    Costs a forward pass of five short texts alone, one of them padded, and one of them packed.

    Args:
        model: The decoder.
        tokenizer: What makes token ids of the probe texts; without one they are arbitrary ids.

    Returns:
        Whether it does, and why not. It then runs padded batches as before, too.
    """
    with _lock:
        if is_packing(model):
            return _proven.get(model) or Status(True)
        # glibc keeps blocks up to the size of the largest one ever freed, 32 MiB at most, and fetches larger ones anew
        # for every layer (mallopt(3), M_MMAP_THRESHOLD). This one is never touched, so it takes no memory.
        torch.empty(31 * 2**20, dtype=torch.uint8)
        implementation = attn_implementation_of(model)
        if implementation not in IMPLEMENTATIONS:
            return off(f"the {implementation!r} attention implementation takes no packed sequences")
        before = [(config, config._attn_implementation) for config in _configs(model)]
        status = off("its code failed")
        was_training = model.training
        model.eval()
        try:
            status = _probe(model, PACKED + implementation, probe_ids(model, tokenizer))
        except Exception as error:  # third-party code, called in a way that it may not be made for
            status = off(f"its code takes no packed sequences ({type(error).__name__}: {str(error)[:200]})")
        finally:
            model.train(was_training)
            if not status:
                for config, name in before:
                    config._attn_implementation_internal = name
        _proven[model] = status
        return status


_proven: weakref.WeakKeyDictionary[PreTrainedModel, Status] = weakref.WeakKeyDictionary()


def disable_packing(model: PreTrainedModel) -> None:
    """Give the model its plain attention implementation back."""
    for config in _configs(model):
        config._attn_implementation_internal = attn_implementation_of(model)


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    found = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in found if isinstance(config, PretrainedConfig)}.values())


def _probe(model: PreTrainedModel, implementation: str, texts: Sequence[Sequence[int]]) -> Status:
    """Whether packed texts have the vectors that they have alone; leaves the model with `implementation`."""
    before = alone(model, texts)
    noise = own_noise(model, texts, before)
    for part in _configs(model):
        part._attn_implementation_internal = implementation
    together, calls = _together(model, texts)
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    if not calls or calls % depth:  # diffllama asks twice in each layer
        return off(f"{calls} of {depth} layers ask for the attention function")
    return judge(before, together, noise, precision(model))


def vectors_of(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Token vectors of each text, (tokens, hidden), as the model encodes them now: packed if it packs, else alone."""
    return _together(model, texts)[0] if is_packing(model) else alone(model, texts)


@torch.inference_mode()
def _together(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> tuple[list[Tensor], int]:
    """Token vectors of each text in one packed sequence, and how often an attention layer asked for it."""
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([*chain.from_iterable(texts)])
    packed_batch, ids = PackedBatch.of(mask).to(model.device), ids.to(model.device)
    with packed(packed_batch):
        inputs = {"input_ids": packed_batch.gather(ids), "position_ids": packed_batch.position_ids}
        hidden = model(**inputs, use_cache=False)[0]
    padded = packed_batch.scatter(hidden, mask.shape).float()
    return [states[: len(text)] for states, text in zip(padded, texts, strict=True)], packed_batch.calls
