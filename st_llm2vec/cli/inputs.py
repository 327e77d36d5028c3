"""The options of commands that read texts from files, and the bar that shows how far they are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from ..ingestion import Reading


class Policy(str, Enum):
    """What is done about what cannot be read."""

    stop = "stop"
    skip = "skip"


class TxtAs(str, Enum):
    """What a .txt file is."""

    lines = "lines"
    document = "document"


_INPUTS = typer.Argument(
    metavar="INPUT...",
    help="Files, folders, globs in quotes, or - for standard input: .txt .md .html .pdf .json .jsonl .csv .tsv "
    ".parquet .arrow",
)
Inputs = Annotated[list[str], _INPUTS]
OptionalInputs = Annotated[list[str] | None, _INPUTS]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes that encode, each with a copy of the model. Default: 1."),
]


class Engine(str, Enum):
    """What the workers are."""

    local = "local"
    ray = "ray"


def _there(engine: Engine) -> Engine:
    """The engine, if it is installed: before the model is loaded, which takes longer."""
    from ..workers import require_engine

    require_engine(engine.value)
    return engine


WithEngine = Annotated[
    Engine,
    typer.Option(
        "--engine", callback=_there, help="Workers are processes of this machine, or actors of a Ray cluster."
    ),
]


@dataclass(frozen=True)
class Files:
    """How files are read and split; each field is an option of the commands that take `files`."""

    text_column: Annotated[
        str | None,
        typer.Option("--text-column", help="Column of the text; with commas, the first that a row has. Default: text."),
    ] = None
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Column of the id. Default: FILE:LINE, of a document FILE#CHUNK.")
    ] = None
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="A,B", help="Columns that become metadata. Default: all others.")
    ] = None
    txt: Annotated[TxtAs, typer.Option("--txt", help="Whether each line of a .txt file is a text, or all of it.")] = (
        TxtAs.lines
    )
    input_format: Annotated[
        str | None, typer.Option("--input-format", help="Read every file as if its name ended so: jsonl, csv, md ...")
    ] = None
    on_error: Annotated[
        Policy,
        typer.Option("--on-error", help="What cannot be read stops everything beforehand, or is skipped and told."),
    ] = Policy.stop
    chunk_size: Annotated[
        int | None,
        typer.Option("--chunk-size", min=1, help="Tokens of a chunk, at most. Default: 256 for documents."),
    ] = None
    chunk_overlap: Annotated[
        int | None,
        typer.Option("--chunk-overlap", min=0, help="Tokens that a chunk repeats of the one before, at most."),
    ] = None
    late_chunking: Annotated[
        bool,
        typer.Option("--late-chunking", help="Read documents whole, or in long windows, and pool them chunk by chunk."),
    ] = False


def with_files(command: options.Command) -> options.Command:
    """Give a command one option for every field of `Files`; it takes them together, as `files`."""
    found = inspect.signature(Files, eval_str=True).parameters
    return options.in_place_of("files", list(found.values()), lambda said: Files(**said))(command)


def reading_of(files: Files) -> Reading:
    """How inputs are read."""
    from ..ingestion import ENDINGS, Reading
    from ..readers import TEXT_COLUMN

    ending = None if files.input_format is None else f".{files.input_format.lower().lstrip('.')}"
    if ending is not None and ending not in ENDINGS:
        kinds = ", ".join(each[1:] for each in ENDINGS)
        raise typer.BadParameter(f"must be one of {kinds}, got {files.input_format!r}", param_hint="'--input-format'")
    columns = options.listed(files.text_column)
    if files.text_column is not None and not columns:
        raise typer.BadParameter(f"must name a column, got {files.text_column!r}", param_hint="'--text-column'")
    return Reading(
        text_columns=columns or (TEXT_COLUMN,),
        id_column=files.id_column,
        metadata=None if files.metadata is None else options.listed(files.metadata),
        whole_txt=files.txt is TxtAs.document,
        ending=ending,
        on_error=files.on_error.value,
    )


class BarOf:
    """A bar of progress on stderr, with the rate and the time left; call it with what is done and what there is."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        if options.quiet():
            return
        if self._bar is None:
            self._bar = tqdm(total=total, unit=f" {self._unit}", smoothing=0.1)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> BarOf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
