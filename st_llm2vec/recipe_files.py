"""Recipes in TOML files: keys that all stages share, then a table for each stage, in the order of training.

model = "HuggingFaceTB/SmolLM2-135M-Instruct"
output = "build/smollm2"       # every stage gets a folder of its name in it
preset = "small-decoder"

[mntp]
max_steps = 300
data.wiki = { file = "wiki.jsonl", limit = 2000 }   # from the recipe's folder, or from data_folder

[supervised]                   # starts from mntp's result; after = "..." names another stage, "" the model
data.pairs = "pairs.jsonl"
data.questions = { file = "questions.jsonl", columns = ["question", "answer"], query_prompt = "Answer: " }
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidInputError, MissingExtraError
from .recipes import FIELDS, OBJECTIVES, DataSet, TrainingSettings, unknown
from .settings import one_of

_OF_FILE = ("model", "output", "data_folder")
_OF_STAGE = ("objective", "after")


@dataclass(frozen=True)
class Recipe:
    """Stages by name, in the order of training; each starts from another one's result, or from the model."""

    stages: Mapping[str, TrainingSettings]
    after: Mapping[str, str | None]


def read_recipe(
    files: Sequence[str | os.PathLike[str]], said: Mapping[str, Any] | None = None, *, only: str | None = None
) -> Recipe:
    """Read a recipe from TOML files: keys that all stages share, and a table for each stage, in their order.

    Args:
        files: One or more; what is said in a later one replaces what an earlier one says.
        said: Fields that replace those of the files, in every stage that knows them; data_folder, too.
        only: Keep this stage alone; a model in `said` is then what it starts from.

    Raises:
        InvalidInputError: A key that is not known, a value of the wrong type or size, or something missing.
        FileNotFoundError: There is no such file.
        MissingExtraError: Python 3.10 without tomli.

    Example:
        >>> list(read_recipe(["recipe.toml"], {"seed": 7}).stages)
        ['simcse']
    """
    said = {name: value for name, value in (said or {}).items() if value is not None}
    shared: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for file in map(Path, files):
        content = read_toml(file)
        folder = file.parent / content.pop("data_folder", "")
        folder = Path(said.get("data_folder", folder))
        for name, value in content.items():
            if isinstance(value, dict):
                tables.setdefault(name, {}).update(_rooted(_stage_keys(file, name, value), folder))
            else:
                shared |= _rooted({name: value}, folder)
    known = [*FIELDS, *_OF_FILE]
    if odd := [name for name in shared if name not in known or name in ("data", *_OF_STAGE)]:
        raise unknown(str(files[0]), odd, [*known, *tables])
    shared |= {name: value for name, value in said.items() if name != "data_folder"}
    return _recipe(shared, said, tables, only)


def _recipe(shared: dict[str, Any], said: Mapping[str, Any], tables: dict[str, Any], only: str | None) -> Recipe:
    if not tables or (only is not None and only not in tables):
        wanted = repr(only) if only else "stage"
        raise InvalidInputError(f"The recipe has no table [{only or 'mntp'}] for the {wanted}; it has {list(tables)}.")
    output = shared.pop("output", None)
    if output is None:
        raise InvalidInputError("output is missing: the folder in which every stage gets a folder of its name.")
    stages: dict[str, TrainingSettings] = {}
    after: dict[str, str | None] = {}
    taken, before = set(), None
    for name, table in tables.items():
        objective = one_of("objective", table.get("objective", name), OBJECTIVES)
        start = table.get("after", before) or None
        if start is not None and start not in stages:
            raise InvalidInputError(f"[{name}] is after {start!r}, which is no table above it: {list(stages)}.")
        before = name
        fitting = {key: value for key, value in shared.items() if objective in FIELDS[key].metadata["only"]}
        taken |= set(fitting)
        own = {key: value for key, value in table.items() if key not in _OF_STAGE}
        fitting = {key: value for key, value in fitting.items() if key not in own or key in said}
        for length, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
            if length in said and other not in said:  # the one replaces the other
                own.pop(other, None)
                fitting.pop(other, None)
        values = {**own, **fitting, "output": os.path.join(output, name)}
        if start is not None and not (only and "model" in said):
            if "model" in own:
                raise InvalidInputError(f"[{name}] starts from [{start}], and names a model. Leave one of them out.")
            values["model"] = os.path.join(output, start)
        stages[name], after[name] = TrainingSettings(objective, **values), start
        stages[name].require_complete()
    if odd := sorted(set(shared) - taken):
        raise InvalidInputError(f"{odd[0]} is for {' and '.join(FIELDS[odd[0]].metadata['only'])}; no stage here is.")
    if only is not None:
        stages = {only: stages[only]}
    return Recipe(stages, {name: after[name] for name in stages})


def _stage_keys(file: Path, name: str, table: dict[str, Any]) -> dict[str, Any]:
    known = [*(key for key in FIELDS if key != "output"), *_OF_STAGE]
    if name == "data":
        raise InvalidInputError(f"{file} has data above its stages. Each names its own: write it below [mntp] or so.")
    if "objective" not in table and name not in OBJECTIVES:
        raise unknown(str(file), [name], [*OBJECTIVES, *FIELDS, *_OF_FILE])
    if odd := [key for key in table if key not in known]:
        raise unknown(f"[{name}] of {file}", odd, known)
    return table


def _rooted(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with the paths of data files starting at their folder."""
    rooted = dict(values)
    if isinstance(values.get("data"), dict):
        rooted["data"] = {name: DataSet.of(name, each, folder) for name, each in values["data"].items()}
    if isinstance(values.get("eval_file"), str):
        rooted["eval_file"] = str(folder / values["eval_file"])
    return rooted


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileNotFoundError, InvalidInputError: There is no such file, or it is no TOML.
        MissingExtraError: Python 3.10 without tomli.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingExtraError(
                'TOML files need tomli on Python 3.10. Install it with: pip install "st-llm2vec[train]"'
            ) from error
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} is not valid TOML: {error}") from error
