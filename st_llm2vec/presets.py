"""Settings of the training stages as data: each objective's defaults, the paper's four families, small decoders.

The paper's numbers: LLM2Vec (arXiv 2404.05961), section 2 and appendix, and train_configs/ of the original package.
"""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

# What an objective is trained with where nothing is said: the paper's settings, on one GPU.
DEFAULTS: dict[str, Values] = {
    "mntp": {
        "max_steps": 1000,
        "batch_size": 32,
        "learning_rate": 5e-5,
        "scheduler": "linear",
        "eval_steps": 100,
        "save_steps": 200,
        "seed": 42,
        "lora_r": 16,
        "mask_probability": 0.2,
    },
    "simcse": {
        "max_steps": 1000,
        "batch_size": 128,
        "learning_rate": 3e-5,
        "scheduler": "linear",
        "save_steps": 200,
        "seed": 42,
        "lora_r": 16,
        "scale": 20.0,
        "attention_dropout": 0.3,
    },
    "supervised": {
        "max_steps": 1000,
        "batch_size": 64,
        "learning_rate": 2e-4,
        "scheduler": "linear",
        "warmup_steps": 300,
        "seed": 42,
        "lora_r": 16,
        "scale": 50.0,
    },
    # Not of the paper: what is usual for a small student with precomputed targets.
    "distill": {
        "max_steps": 1000,
        "batch_size": 64,
        "learning_rate": 2e-4,
        "scheduler": "cosine",
        "warmup_steps": 50,
        "save_steps": 200,
        "seed": 42,
        "lora_r": 16,
        "distance": "cosine",
        "contrast_weight": 0.0,
        "scale": 20.0,
    },
}

# Ours, and what SentenceTransformerTrainingArguments calls them.
_TRAINERS = {
    **dict.fromkeys(("max_steps", "learning_rate", "warmup_steps", "eval_steps", "save_steps", "seed")),
    "batch_size": "per_device_train_batch_size",
    "scheduler": "lr_scheduler_type",
}


def trainer_arguments(objective: str) -> Values:
    """Return an objective's defaults as arguments of the host's trainer."""
    told = {_TRAINERS[name] or name: value for name, value in DEFAULTS[objective].items() if name in _TRAINERS}
    return told | ({"eval_strategy": "steps"} if "eval_steps" in told else {})


# 512 pairs are one batch here; the paper has 64 in each of 8 processes.
_PAPER: dict[str, Values] = {
    "all": {
        "lora_r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
    "mntp": {"max_seq_length": 512},
    "simcse": {"max_seq_length": 128},
    "supervised": {"max_seq_length": 512, "batch_size": 512, "mini_batch_size": 32},
}


def _family(model: str, **stages: Values) -> dict[str, Values]:
    """The paper's settings with the decoder, and what differs for it."""
    merged: dict[str, Values] = {name: {**values, **stages.get(name, {})} for name, values in _PAPER.items()}
    return {**merged, "all": {**merged["all"], "model": model}}


# By name, then by objective; "all" holds what the stages share.
PRESETS: dict[str, dict[str, Values]] = {
    "sheared-llama-1.3b": _family("princeton-nlp/Sheared-LLaMA-1.3B", simcse={"batch_size": 32}),
    "llama-2-7b": _family("meta-llama/Llama-2-7b-chat-hf"),
    "mistral-7b": _family("mistralai/Mistral-7B-Instruct-v0.2", mntp={"mask_probability": 0.8, "all_mask": True}),
    "llama-3-8b": _family("meta-llama/Meta-Llama-3-8B-Instruct"),
    # About 135 M parameters on a few CPU cores: short texts, few steps, high learning rates, no dropout in LoRA.
    "small-decoder": {
        "all": {"lora_r": 16, "lora_dropout": 0.0, "dtype": "bfloat16", "warmup_steps": 20},
        "mntp": {"max_steps": 300, "batch_size": 16, "learning_rate": 3e-4, "max_seq_length": 128, "save_steps": 25},
        "simcse": {
            "max_steps": 300,
            "batch_size": 64,
            "learning_rate": 1e-4,
            "max_seq_length": 64,
            "attention_dropout": 0.15,
            "save_steps": 50,
        },
        "supervised": {
            "max_steps": 1000,
            "batch_size": 48,
            "learning_rate": 4e-4,
            "scheduler": "cosine",
            "max_seq_length": 96,
            "scale": 20.0,
            "save_steps": 50,
        },
        "distill": {"batch_size": 48, "learning_rate": 4e-4, "max_seq_length": 96, "save_steps": 50},
    },
}
