"""Defaults of options from the user's own file, `config.toml` beside `aliases.json`: a table for each command.

[index]
model = "llm2vec-smollm2"
chunk-size = 200

What the command line says comes before what the file says. A name that no command has is an error.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .. import aliases
from ..errors import InvalidInputError
from ..recipe_files import read_toml


def config_file() -> Path:
    """The user's defaults: `$ST_LLM2VEC_HOME/config.toml`, else `st_llm2vec/config.toml` in ~/.config."""
    return aliases.config_file().with_name("config.toml")


def defaults(app: Any) -> dict[str, Any]:
    """Defaults by command and parameter, as click's `default_map` takes them; empty where there is no file.

    Raises:
        InvalidInputError: The file is no TOML, or names a command or option that there is none of.
    """
    file = config_file()
    return _checked(file, "", app, read_toml(file)) if file.is_file() else {}


def _checked(file: Path, name: str, command: Any, content: dict[str, Any]) -> dict[str, Any]:
    below = getattr(command, "commands", {})
    options = {} if not name else _options(command)
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in below and isinstance(value, dict):
            found[key] = _checked(file, f"{name} {key}".strip(), below[key], value)
        elif key.replace("_", "-") in options and not isinstance(value, dict):
            found[options[key.replace("_", "-")]] = value
        else:
            known = [*below, *options]
            close = get_close_matches(key, known, 1)
            meant = f"Did you mean {close[0]!r}? " if close else ""
            what = f"[{name}] has no option" if name else "there is no command"
            raise InvalidInputError(f"{meant}{file}: {what} {key!r}. Known: {', '.join(known)}.")
    return found


def _options(command: Any) -> dict[str, str]:
    """The parameters of a command by the full names of their options, without dashes before them."""
    named = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    return {max(each.opts, key=len).lstrip("-"): each.name for each in named}
