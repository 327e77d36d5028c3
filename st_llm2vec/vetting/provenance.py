"""What an encoder's file may say of its origin: all of it is written on the card of what is made of it."""

from __future__ import annotations

import math
import re
from typing import Any

_WORD = re.compile(r"[\w.+-]{1,100}")  # the name of a stage or of a module: nothing that marks up a card


def is_number(value: Any) -> bool:
    """Return whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Return whether it is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_provenance(value: Any) -> bool:
    """What is written on model cards of an encoder that is made of this one has the form that we give it."""
    if not isinstance(value, dict):
        return False
    license_name, stages = value.get("license"), value.get("stages") or []
    lists = (value.get(name, []) for name in ("lora", "stages", "training", "checkpoints"))
    return (
        (license_name is None or (isinstance(license_name, str) and bool(re.fullmatch(r"[\w.+-]{1,64}", license_name))))
        and all(isinstance(rows, list) for rows in lists)
        and all(map(_is_stage, value.get("lora") or []))
        and all(map(_is_training, value.get("training") or []))
        and all(isinstance(stage, str) and _WORD.fullmatch(stage) for stage in stages)
        and isinstance(value.get("base_model") or "", str)
        and all(map(_is_source, value.get("checkpoints") or []))
        and isinstance(value.get("gguf", {}), dict)
    )


def _is_stage(row: Any) -> bool:
    """A row of the table that a card has of adapters."""
    if not isinstance(row, dict) or not row.keys() >= {"stage", "r", "alpha", "targets"}:
        return False
    targets = row["targets"]
    words = [row["stage"], *(targets if isinstance(targets, list) else [None])]
    known = all(isinstance(word, str) and _WORD.fullmatch(word) for word in words)
    return known and is_number(row["r"]) and is_number(row["alpha"])


def _is_source(row: Any) -> bool:
    """A checkpoint that an encoder was made of."""
    return (
        isinstance(row, dict)
        and row.keys() >= {"name", "commit"}
        and isinstance(row["name"], str)
        and (row["commit"] is None or isinstance(row["commit"], str))
    )


def _is_training(row: Any) -> bool:
    """What a card tells of a stage that was trained."""
    if not isinstance(row, dict) or not row.keys() >= {"settings", "data", "steps", "before", "after"}:
        return False
    settings, data, before, after = (row[name] for name in ("settings", "data", "before", "after"))
    if not all(isinstance(each, dict) for each in (settings, data, before, after)) or not is_number(row["steps"]):
        return False
    words = [settings.get("objective"), *after]
    scores = (*after.values(), *(before.get(name) for name in after))
    return (
        all(isinstance(word, str) and _WORD.fullmatch(word) for word in words)
        and all(isinstance(each, dict) and is_whole(each.get("rows", 0)) for each in data.values())  # a stream has none
        and is_whole(settings.get("seed"))
        and all(isinstance(score, (int, float)) for score in scores)  # nan, too: of constant vectors
    )
