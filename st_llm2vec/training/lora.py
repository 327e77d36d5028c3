"""LoRA, one stage at a time: a stage's adapter is merged before the next one is added, in the order of training.

Full-parameter training needs nothing from here: train the model that `load` returns.
"""

from __future__ import annotations

from peft import LoraConfig

from ..checkpoints import NOT_SAVED
from ..errors import InvalidInputError
from ..merging import merged_copy
from ..model import LLM2Vec

# All seven projections of a Llama-like layer, as in the original package.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(model: LLM2Vec, stage: str, *, r: int = 16, alpha: int | None = None, dropout: float = 0.05) -> LoraConfig:
    """Freezes the model and adds a trainable LoRA adapter for one stage.

    Args:
        model: The encoder, without an unmerged adapter.
        stage: What the card calls it, for example "mntp", "simcse" or "supervised".
        r: Rank.
        alpha: The adapter's weight is alpha / r; default 2 r, as in the original package.
        dropout: On the input of every LoRA branch, while training only.

    Raises:
        InvalidInputError: The previous stage has not been merged.
    """
    decoder = model[0].model
    if getattr(decoder, "_hf_peft_config_loaded", False):
        raise InvalidInputError(
            f"The model still carries the adapter of {model.provenance.get('stages', ['a stage'])[-1]!r}; a new stage "
            "is trained on top of the merged one. Call merge_lora(model) first."
        )
    linear = {name.rpartition(".")[2] for name, _ in decoder.named_modules()}
    targets = [name for name in PROJECTIONS if name in linear]
    config = LoraConfig(
        r=r, lora_alpha=alpha or 2 * r, lora_dropout=dropout, target_modules=targets or "all-linear", bias="none"
    )
    model.add_adapter(config)  # under the name "default", which the trainer looks for when it resumes
    model.provenance.setdefault("stages", []).append(stage)
    return config


def merge_lora(model: LLM2Vec) -> None:
    """Merges the trained adapter into the weights, in float32; all weights are trainable again.

    Save the model and load it again before the next stage if that stage is to be resumable.
    """
    decoder = model[0].model
    if not getattr(decoder, "_hf_peft_config_loaded", False):
        raise InvalidInputError("The model has no adapter to merge. add_lora(model, stage) adds one.")
    merged = merged_copy(decoder)
    merged.requires_grad_(True)
    # A next stage's checkpoints name their base. On the raw decoder, resuming would lose this stage without a word.
    merged.name_or_path = f"{model.provenance['stages'][-1]}{NOT_SAVED}"
    model[0].model = merged
