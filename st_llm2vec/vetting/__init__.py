"""Vets the files of a checkpoint, which may come from anywhere, before any library opens them.

    files.py      regular files, links, names of files, JSON
    fields.py     what the JSON files may hold: types, sizes, what transformers would fetch or run
    provenance.py what is said of an encoder's origin, and written on cards
    tokens.py     tokenizer.json: patterns and replacements that end
    chat.py       chat templates, rendered apart
    gguf.py       headers of GGUF files: lengths and counts that the file has
    weights.py    a config against the files of its weights: sizes, and kernels from the hub

docs/untrusted-files.md says what is refused and why. Nothing here repairs anything: a file is opened as it is, or not.
"""

from __future__ import annotations

from pathlib import Path

from .chat import render_apart
from .fields import CONTENTS, named_weights, own_attention, require_config, require_fields
from .files import can_be_path, leaves, opening, read_json, require_below, require_file, require_files, require_shallow
from .gguf import require_sane_gguf
from .tokens import require_finite_pattern, require_sane_tokenizer
from .weights import require_finite_adapter, require_held, require_no_kernels

__all__ = [
    "can_be_path",
    "leaves",
    "named_weights",
    "opening",
    "own_attention",
    "read_json",
    "render_apart",
    "require_below",
    "require_config",
    "require_file",
    "require_files",
    "require_finite_adapter",
    "require_finite_pattern",
    "require_held",
    "require_no_kernels",
    "require_safe",
    "require_sane_gguf",
    "require_shallow",
]
_MODULES = 64  # in one modules.json; published encoders have two to five


def require_safe(folder: Path) -> None:
    """Raises where a folder holds what must not be opened; reads its JSON files only.

    Raises:
        InvalidCheckpointError: Links, names, types, sizes or patterns that no saved checkpoint has.
    """
    folders = _folders(folder)
    for place in folders:
        require_files(place)
    for place in folders:
        for file, (kind, _) in CONTENTS.items():
            content = read_json(place / file, kind)
            require_shallow(place / file, content)
            require_fields(place / file, content)
    files = read_json(folder / "tokenizer_config.json").get("fast_tokenizer_files") or []
    for name in {"tokenizer.json", *files}:
        require_sane_tokenizer(folder / name)


def _folders(folder: Path) -> list[Path]:
    """The folder itself, and those below it that sentence-transformers and transformers read."""
    file = folder / "modules.json"
    modules = read_json(file, list)
    require_fields(file, modules[:_MODULES])
    require_fields(file, modules)
    below = [require_below(file, module["path"]) for module in modules]
    below.append(folder / "additional_chat_templates")
    return [folder, *(place for place in dict.fromkeys(below) if place != folder and place.is_dir())]
