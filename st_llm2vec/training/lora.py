"""LoRA, one stage at a time: a stage's adapter is merged before the next one is added, in the order of training.

Full-parameter training needs nothing from here: train the model that `load` returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..auditing import text_decoder
from ..checkpoints import NOT_SAVED
from ..errors import InvalidInputError
from ..merging import merged_copy
from ..model import LLM2Vec
from ..settings import as_count, as_share
from .lora_linear import speed_up

# All seven projections of a Llama-like layer, as in the original package.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What chooses among experts by a handful of scores is no projection, and some of it returns more than a tensor.
ROUTERS = ("gate", "router", "shared_expert_gate")
EXPERTS_ONCE = ("gate_proj", "up_proj", "down_proj")
DROPOUT = 0.05


class LoraTargets(NamedTuple):
    """What of a decoder LoRA adapts, as peft names it."""

    modules: list[str]  # linear layers
    parameters: list[str]  # the experts of a mixture, all of a layer in one parameter, and layers that are named so


def lora_targets(decoder: PreTrainedModel, names: Sequence[str] | None = None) -> LoraTargets:
    """Choose what LoRA adapts: every linear layer of the text decoder but routers, and every expert.

    Args:
        decoder: The decoder; of a multimodal one, the text decoder alone is adapted.
        names: Linear layers or experts' parameters by the ends of their names; default: the seven projections of a
            Llama-like layer where all seven are there, as in the original package, else all linear layers; experts.

    Raises:
        InvalidInputError: A name that nothing ends with, or no list of names.
    """
    text = text_decoder(decoder)
    prefix = next(f"{name}." if name else "" for name, module in decoder.named_modules() if module is text)
    linear, experts = [], []
    for path, module in text.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(module, nn.Linear | Conv1D):
            if path.rpartition(".")[2] not in ROUTERS:
                linear.append(path)
        elif not isinstance(module, nn.modules.conv._ConvNd):
            experts += [f"{path}.{name}" for name, p in module.named_parameters(recurse=False) if p.ndim == 3]
    if isinstance(names, str) or (names is not None and not names):
        raise InvalidInputError(f"target_modules must be a list of names, such as ['q_proj'], got {names!r}.")
    if names is None:
        ends = {path.rpartition(".")[2] for path in linear}
        chosen = set(PROJECTIONS) if ends.issuperset(PROJECTIONS) else ends
        linear = [path for path in linear if path.rpartition(".")[2] in chosen]
    else:
        for name in names:
            if not any(_ends_with(path, name) for path in (*linear, *experts)):
                known = sorted({path.rpartition(".")[2] for path in (*linear, *experts)})
                raise InvalidInputError(f"target_modules must be of {known} for this decoder, got {name!r}.")
        linear = [path for path in linear if _ends_with(path, *names)]
        experts = [path for path in experts if _ends_with(path, *names)]
    if experts:
        # Of a mixture, peft takes these names for experts that had a layer each once, and forgets the layers here.
        renamed = [path for path in linear if path.rpartition(".")[2] in EXPERTS_ONCE]
        linear = [path for path in linear if path not in renamed]
        experts += [f"{path}.weight" for path in renamed]
    return LoraTargets(
        _shortest(linear, [name for name, _ in decoder.named_modules()]),
        _shortest(experts, [name for name, _ in decoder.named_parameters()]),
    )


def _ends_with(path: str, *names: str) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _shortest(paths: list[str], everything: list[str]) -> list[str]:
    """The ends of the paths, where they name these and nothing else, else the paths."""
    for parts in (1, 2, 3):
        ends = sorted({".".join(path.split(".")[-parts:]) for path in paths})
        if {path for path in everything if _ends_with(path, *ends)} == set(paths):
            return ends
    return paths


def add_lora(
    model: LLM2Vec,
    stage: str,
    *,
    r: int = 16,
    alpha: int | None = None,
    dropout: float | None = None,
    target_modules: Sequence[str] | None = None,
    seed: int = 42,
) -> LoraConfig:
    """Freeze the model and add a trainable LoRA adapter, in float32, for one stage.

    Args:
        model: The encoder, without an unmerged adapter.
        stage: What the card calls it, for example "mntp", "simcse" or "supervised".
        r: Rank.
        alpha: The adapter's weight is alpha / r; default 2 r, as in the original package.
        dropout: On the input of every LoRA branch, while training only; default 0.05, or 0 for a mixture of experts
            whose experts are one parameter, which has no such input.
        target_modules: What is adapted, by the ends of names; default: see `lora_targets`. The model card says it.
        seed: Of the adapter's first weights.

    Raises:
        InvalidInputError: The previous stage has not been merged, or a setting has no sane value.

    Example:
        >>> config = add_lora(model, "mntp", r=4)
        >>> config.r, config.lora_alpha
        (4, 8)
    """
    decoder = model[0].model
    if getattr(decoder, "_hf_peft_config_loaded", False):
        raise InvalidInputError(
            f"The model still carries the adapter of {model.provenance.get('stages', ['a stage'])[-1]!r}; a new stage "
            "is trained on top of the merged one. Call merge_lora(model) first."
        )
    require_trainable(decoder)
    if not isinstance(stage, str) or not stage:
        raise InvalidInputError(f"stage must be a name, such as 'mntp', got {stage!r}.")
    r, seed = as_count("r", r), as_count("seed", seed, 0)
    alpha = 2 * r if alpha is None else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise InvalidInputError(f"alpha must be greater than 0, got {alpha!r}.")
    dropout = None if dropout is None else as_share("dropout", dropout)
    targets = lora_targets(decoder, target_modules)
    if targets.parameters and dropout:
        raise InvalidInputError(
            f"dropout must be 0 where {targets.parameters} are adapted (experts in one parameter have no input of "
            f"their own to drop), got {dropout!r}."
        )
    if not any(targets):
        raise InvalidInputError(
            f"model_type {decoder.config.model_type!r} has no linear layer to adapt. Train in full."
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=(0.0 if targets.parameters else DROPOUT) if dropout is None else dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in decoder.modules()),
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(config)  # under the name "default", which the trainer looks for when it resumes
    for parameter in decoder.parameters():  # of the adapter alone: bfloat16 would round most of a step away
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    speed_up(decoder)
    model.provenance.setdefault("stages", []).append(stage)
    adapted = {"stage": stage, "r": r, "alpha": alpha, "targets": [*targets.modules, *targets.parameters]}
    model.provenance.setdefault("lora", []).append(adapted)
    return config


def require_trainable(decoder: nn.Module) -> None:
    """Refuse quantized weights that gradients do not pass: ours of int8. Those of bitsandbytes do (QLoRA)."""
    if getattr(decoder, "is_quantized", False) and not getattr(decoder.hf_quantizer, "is_trainable", False):
        raise InvalidInputError("A quantized model cannot be trained. Load it without quantize.")


def merge_lora(model: LLM2Vec) -> None:
    """Merge the trained adapter into the weights, in float32; all weights are trainable again.

    Save the model and load it again before the next stage if that stage is to be resumable.

    Raises:
        InvalidInputError: There is no adapter, or the weights are quantized.

    Example:
        >>> config = add_lora(model, "mntp")
        >>> merge_lora(model)  # after training
    """
    decoder = model[0].model
    if not getattr(decoder, "_hf_peft_config_loaded", False):
        raise InvalidInputError("The model has no adapter to merge. add_lora(model, stage) adds one.")
    if getattr(decoder, "is_quantized", False):
        raise InvalidInputError(
            "An adapter is not merged into quantized weights, which would be rounded again. Save it with "
            "model[0].model.save_pretrained(folder), and load(base, adapter=folder) merges it into the float weights."
        )
    merged = merged_copy(decoder)
    merged.requires_grad_(True)
    # A next stage's checkpoints name their base. On the raw decoder, resuming would lose this stage without a word.
    merged.name_or_path = f"{model.provenance['stages'][-1]}{NOT_SAVED}"
    model[0].model = merged
