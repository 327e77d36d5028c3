"""Options that several commands share, and how a model is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import escaped, message

if TYPE_CHECKING:
    from ..model import LLM2Vec

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
PoolingMode = Annotated[
    str | None, typer.Option("--pooling-mode", help="mean, weighted_mean, last_token, eos_token or bos_token.")
]
Quantize = Annotated[
    str | None, typer.Option("--quantize", help="int8: round the weights, on a CPU, if the vectors stay close.")
]
Template = Annotated[
    str | None,
    typer.Option("--template", help="none, llama-3, llama-2, mistral, gemma, chatml; chat: the tokenizer's own."),
]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column of the text (a .txt file has one: text).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def open_model(name: str, **options: Any) -> LLM2Vec:
    """`st_llm2vec.load`, with a word on stderr because it may take a while."""
    from .. import load

    note(f"Loading {name} ...")
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and writing weights; downloads keep theirs
    return load(name, **options)


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def megabytes(size: int) -> str:
    """A size in bytes, as people read it."""
    return f"{size / 1e6:,.1f} MB"


def note(text: str) -> None:
    """Something to know that is no result: to stderr."""
    typer.echo(message(text), err=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as the terminal; numbers are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        numeric = all(row[i].replace(".", "").lstrip("-").isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))  # as text: [brackets] in it are no markup
    Console().print(table)
