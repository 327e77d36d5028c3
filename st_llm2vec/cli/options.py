"""Options that several commands share, and how a model is opened."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import aliases
from ..errors import InvalidCheckpointError, InvalidInputError, ModelNotFoundError, UnsupportedArchitectureError
from ..settings import EncoderSettings
from .terminal import message
from .wording import options_of, reworded

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ..model import LLM2Vec

Command = Callable[..., None]

DEFAULT_MODEL = "llm2vec-tiny"

BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts at once.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps. Default: the best there is.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16. Default: float32 on a CPU, else the model's own."),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the layers: faster; takes seconds and a C++ compiler."),
]
MaxSeqLength = Annotated[int | None, typer.Option("--max-seq-length", min=1, help="Cut texts to this many tokens.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Alias, folder or hub id of the encoder.")]
Quantize = Annotated[
    str | None, typer.Option("--quantize", help="int8: round the weights, on a CPU, if the vectors stay close.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def in_place_of(
    name: str, options: Sequence[inspect.Parameter], gathered: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Give a command options where it has the parameter `name`, which takes them together.

    Args:
        name: A parameter of the command.
        options: As typer reads them.
        gathered: Makes of their values what the parameter takes.
    """

    def decorated(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        split = [options if each.name == name else [each] for each in signature.parameters.values()]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in split for each in part]

        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            said = {option.name: given.pop(option.name) for option in options}
            command(**given, **{name: gathered(said)})

        del with_options.__wrapped__
        with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_options

    return decorated


def with_settings(command: Command) -> Command:
    """Give a command one option for every setting of an encoder; it takes them together, as `settings`."""
    options = [_option(row.name, row.metadata["kind"], row.metadata["help"]) for row in fields(EncoderSettings)]
    return in_place_of("settings", options, _settings)(command)


def _settings(said: dict[str, Any]) -> EncoderSettings:
    return EncoderSettings(**{**said, "prompts": _prompts(said["prompts"]) if said["prompts"] else None})


def _option(name: str, kind: type, said: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    if kind is dict:
        annotation: Any = Annotated[
            list[str] | None, typer.Option("--prompt", metavar="NAME=TEXT", help=f"{said} May be given again.")
        ]
    else:
        names = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        annotation = Annotated[kind | None, typer.Option(names, help=said)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _prompts(given: Sequence[str]) -> dict[str, str]:
    for text in given:
        if not text.partition("=")[1]:
            raise typer.BadParameter(f"must be NAME=TEXT, as 'query=Find: ' is, got {text!r}", param_hint="'--prompt'")
    return {text.partition("=")[0]: text.partition("=")[2] for text in given}


def open_model(name: str, **options: Any) -> LLM2Vec:
    """`st_llm2vec.load`, with a word on stderr because it may take a while."""
    from .. import load

    with _meant(name):
        loading(name)
        return load(name, **options)


def open_any(name: str, *, dtype: str | None = None, device: str | None = None) -> SentenceTransformer:
    """A model of ours, or any other that sentence-transformers saved, as it was saved: to compare, to mine with."""
    try:
        return open_model(name, dtype=dtype, device=device)
    except (UnsupportedArchitectureError, InvalidCheckpointError):
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.util import is_sentence_transformer_model, load_file_path

        from ..checkpoints import SETTINGS_FILE

        if load_file_path(name, SETTINGS_FILE) or not is_sentence_transformer_model(name):  # ours, but damaged; or none
            raise
        saved = load_file_path(name, "config_sentence_transformers.json")  # old models have none
        kind = json.loads(Path(saved).read_text("utf-8")).get("model_type") if saved else None
        if kind not in (None, "SentenceTransformer"):
            raise InvalidInputError(f"MODEL must be a SentenceTransformer, got {name!r}, which is a {kind}.") from None
    model = SentenceTransformer(name, device=device, model_kwargs={"use_safetensors": True})
    if dtype is None and model.device.type != "cpu":
        return model
    return model.to(getattr(torch, dtype or "float32"))


def check_model(name: str) -> None:
    """Raise an error for a name of our kind that is not known; others are asked for when the model is opened."""
    with _meant(name):
        aliases.find(name)


@contextmanager
def _meant(name: str) -> Iterator[None]:
    """Say which name was meant where there is no such model."""
    try:
        yield
    except ModelNotFoundError as error:
        if close := get_close_matches(name, aliases.known(), 1):
            raise ModelNotFoundError(f"Did you mean {close[0]!r}? {error}") from error
        raise


def loading(name: str) -> None:
    """Say that a model is loaded, in the place of the host's bars, and first of all what a large one takes."""
    if cost := cost_of(name):
        note(cost)
    note(f"Loading {name} ...")
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and writing weights; downloads keep theirs


def cost_of(name: str) -> str:
    """What a published name takes: downloads and disk where it has not been made, and memory; else nothing."""
    start = next((each for each in aliases.BILLIONS if name == each or name.startswith(f"{each}-")), None)
    alias = aliases.find(name)
    if start is None or alias is None or alias != aliases.ALIASES.get(name):
        return ""
    half, place = 2 * aliases.BILLIONS[start], aliases.kept_folder(name, alias)
    memory = f"{name} takes {half:.1f} GB of memory in bfloat16, {2 * half:.1f} GB in float32 (the default on a CPU)."
    if place.is_dir():
        return memory
    there = next(folder for folder in place.parents if folder.is_dir())
    free = shutil.disk_usage(there).free / 1e9
    return (
        f"{memory} The first use downloads {half:.1f} GB and keeps {half:.1f} GB more in {aliases.cache_folder()} "
        f"({free:.1f} GB free)."
    )


def given(context: typer.Context) -> list[str]:
    """The parameters that the command line has, as it has to call them."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    # By its name: typer may bring a click of its own.
    return [name.replace("_", "-") for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def listed(given: str | None) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def megabytes(size: int) -> str:
    """A size in bytes, as people read it."""
    return f"{size / 1e6:,.1f} MB"


_quiet = False


def quiet(wanted: bool | None = None) -> bool:
    """Whether results and errors only are shown; `wanted` changes it."""
    global _quiet  # noqa: PLW0603  (of the process, as stderr is)
    _quiet = _quiet if wanted is None else wanted
    return _quiet


def note(text: str) -> None:
    """Something to know that is no result: to stderr, unless --quiet."""
    if not _quiet:
        typer.echo(message(text), err=True)


def note_all(lines: Iterable[str]) -> None:
    """`note` what the library says, in the words of the command line."""
    from . import app

    options = options_of(typer.main.get_command(app))
    for line in lines:
        note(reworded(line, options))
