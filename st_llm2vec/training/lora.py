"""LoRA, one stage at a time: a stage's adapter is merged before the next one is added, in the order of training.

Full-parameter training needs nothing from here: train the model that `load` returns.
"""

from __future__ import annotations

from peft import LoraConfig

from ..errors import InvalidInputError
from ..model import LLM2Vec, merged_copy

# All seven projections of a Llama-like layer, as in the original package.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(model: LLM2Vec, stage: str, *, r: int = 16, alpha: int | None = None, dropout: float = 0.05) -> LoraConfig:
    """Freezes the model and adds a trainable LoRA adapter for one stage.

    Args:
        model: The encoder, without an unmerged adapter.
        stage: Name of the adapter, for example "mntp", "simcse" or "supervised".
        r: Rank.
        alpha: The adapter's weight is alpha / r; default 2 r, as in the original package.
        dropout: On the input of every LoRA branch, while training only.

    Raises:
        InvalidInputError: The previous stage has not been merged.
    """
    decoder = model[0].model
    if getattr(decoder, "_hf_peft_config_loaded", False):
        raise InvalidInputError(
            f"The model still carries the adapter {model.active_adapters()[0]!r}; a new stage is trained on top of the "
            "merged one. Call merge_lora(model) first."
        )
    linear = {name.rpartition(".")[2] for name, _ in decoder.named_modules()}
    targets = [name for name in PROJECTIONS if name in linear]
    config = LoraConfig(
        r=r, lora_alpha=alpha or 2 * r, lora_dropout=dropout, target_modules=targets or "all-linear", bias="none"
    )
    model.add_adapter(config, adapter_name=stage)
    return config


def merge_lora(model: LLM2Vec) -> None:
    """Merges the trained adapter into the weights (in float32) and records the stage; all weights train again."""
    decoder = model[0].model
    if not getattr(decoder, "_hf_peft_config_loaded", False):
        raise InvalidInputError("The model has no adapter to merge. add_lora(model, stage) adds one.")
    stages = model.active_adapters()
    model[0].model = merged_copy(decoder)
    model[0].model.requires_grad_(True)
    model.provenance.setdefault("stages", []).extend(stages)
