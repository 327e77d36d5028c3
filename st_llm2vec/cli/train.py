"""`train`: the steps of LLM2Vec, each from files to a saved encoder; every setting of a recipe is an option."""

from __future__ import annotations

import inspect
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..recipe_files import Recipe, read_recipe
from ..recipes import FIELDS, OBJECTIVES, DataSet, TrainingSettings
from .options import in_place_of, listed, note

ALL = "all"
StageName = Enum("StageName", {name: name for name in (*OBJECTIVES, ALL)}, type=str)  # type: ignore[misc]


_ROWS = {name: row.metadata for name, row in FIELDS.items() if row.metadata["kind"]}


def _option(name: str, kind: type, said: str, only: tuple[str, ...]) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    said = said if only == OBJECTIVES else f"{', '.join(only)}: {said[0].lower()}{said[1:]}"
    names = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    metavar = "A,B" if kind is list else None
    one = str if kind is list else kind
    annotation: Any = Annotated[one | None, typer.Option(names, help=said, metavar=metavar)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _listed(_ROWS[name]["kind"], value) for name, value in values.items() if value is not None}


def _listed(kind: type, value: Any) -> Any:
    if kind is not list:
        return value
    return [int(part) if part.isdigit() else part for part in listed(value)]


_OPTIONS = [_option(name, row["kind"], row["help"], row["only"]) for name, row in _ROWS.items()]


@in_place_of("said", _OPTIONS, _said)  # an option for every field of `TrainingSettings`
def train(
    stage: Annotated[StageName, typer.Argument(help=f"{', '.join(OBJECTIVES)}; all: a recipe's.", show_default=False)],
    model: Annotated[str | None, typer.Argument(help="Alias, folder or hub id to start from.")] = None,
    texts: Annotated[Path | None, typer.Argument(help=".txt, .jsonl, .csv or .parquet.")] = None,
    output: Annotated[Path | None, typer.Argument(help="Folder of the trained encoder and its checkpoints.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="Recipe (TOML) in place of the arguments; a later one adds to it."),
    ] = None,
    recipe_model: Annotated[str | None, typer.Option("--model", "-m", help="In place of the recipe's model.")] = None,
    recipe_output: Annotated[
        Path | None, typer.Option("--output", "-o", help="In place of the recipe's: a folder of stages.")
    ] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Where the recipe's data files lie.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            "--text-column",
            help="mntp, simcse: the text's column (text). supervised: anchor,positive,negatives; distill: texts or "
            "such pairs (all, in their order).",
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="mntp: read TEXTS while training, in place of all of it before.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUTPUT.")] = False,
    *,
    said: dict[str, Any],
) -> None:
    """Train one step, or all steps of a recipe; the next one starts from its OUTPUT.

    mntp: masked next-token prediction on plain text.
    simcse: each text is its own positive.
    supervised: pairs, or triplets with hard negatives.
    distill: the vectors of a --teacher, on texts or pairs.
    all: the stages of a recipe in their order; with --resume, those that are finished are skipped.

    \b
    Examples:
      st-llm2vec train mntp Qwen/Qwen3-0.6B wiki.txt step2 --max-steps 1000
      st-llm2vec train simcse step2 sentences.txt step3 --eval-file sts-dev.jsonl
      st-llm2vec train supervised step2 pairs.jsonl step3 --columns question,answer
      st-llm2vec train distill step2 texts.jsonl step3 --teacher all-MiniLM-L6-v2 --columns text
      st-llm2vec train mntp Qwen/Qwen3-0.6B wiki.txt step2 --resume
      st-llm2vec train all --config recipe.toml --output encoders
    """
    named = [value for value in (model, texts, output, columns) if value is not None]
    if config:
        if named or stream:
            raise typer.BadParameter(
                "MODEL, TEXTS, OUTPUT, --columns and --stream are in the recipe; replace them by --model and --output",
                param_hint="'--config'",
            )
        said |= {"model": recipe_model, "output": recipe_output, "data_folder": data_folder}
        recipe = read_recipe(config, said, only=None if stage.value == ALL else stage.value)
    elif stage.value == ALL:
        raise typer.BadParameter("all takes a recipe, such as --config recipe.toml", param_hint="'STAGE'")
    elif model is None or texts is None or output is None:
        raise typer.BadParameter("give MODEL TEXTS OUTPUT, or a recipe with --config", param_hint="'STAGE'")
    elif recipe_model or recipe_output or data_folder:
        raise typer.BadParameter("--model, --output and --data-folder go with --config", param_hint="'STAGE'")
    else:
        data = {texts.stem: DataSet(str(texts), listed(columns) or None, stream=stream or None)}
        settings = TrainingSettings(stage.value, model, data, str(output), **said)
        settings.require_complete()
        recipe = Recipe({stage.value: settings}, {stage.value: None})
    _run(recipe, resume)


def _run(recipe: Recipe, resume: bool) -> None:
    from transformers.utils import logging

    from ..training import train_all

    logging.disable_progress_bar()  # of loading and writing weights; downloads keep theirs
    for name, result in train_all(recipe, resume=resume, log=note).items():
        for score, after in result.after.items():
            typer.echo(f"{name}: {score} {result.before[score]:.4f} before, {after:.4f} after {result.steps} steps")
