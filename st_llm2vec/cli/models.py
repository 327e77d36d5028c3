"""`models`: the names of encoders, what they stand for, and what is kept of them; `models remove`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from .. import aliases
from ..errors import ModelNotFoundError
from .options import folder_size, megabytes, note
from .tables import print_table

app = typer.Typer(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    sizes: Annotated[bool, typer.Option("--sizes", help="Only what takes room on the disk, and where.")] = False,
) -> None:
    """List the encoders that have a name of their own: what each stands for, and its size if it is kept here.

    The first use of a name downloads and merges it; later uses open what is kept. Any decoder works, too: give its
    folder or hub id wherever a command takes a model.

    \b
    Examples:
      st-llm2vec models
      st-llm2vec models --sizes
      st-llm2vec models remove llm2vec-mistral
    """
    if context.invoked_subcommand is not None:
        return
    sizes_by_name = kept()
    if sizes:
        rows = [(name, megabytes(size), str(aliases.cache_folder() / name)) for name, size in sizes_by_name.items()]
        print_table(("name", "size", "folder"), [*rows, ("all", megabytes(sum(sizes_by_name.values())), "")])
        return
    rows = []
    for name, alias in aliases.known().items():
        size = folder_size(Path(alias.model)) if alias.is_encoder else sizes_by_name.get(name, 0)
        rows.append((name, str(alias), megabytes(size) if size else "-"))
    print_table(("name", "stands for", "on disk"), rows)


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="A name that --sizes lists.")]) -> None:
    """Delete what is kept of a name; its next use makes it again.

    \b
    Example:
      st-llm2vec models remove llm2vec-mistral
    """
    sizes = kept()
    if name not in sizes:
        raise ModelNotFoundError(
            f"Nothing is kept of {name!r} in {aliases.cache_folder()}. Kept: {', '.join(sizes) or 'nothing'}."
        )
    with aliases.lock(name):
        shutil.rmtree(aliases.cache_folder() / name)
    note(f"{name}: {megabytes(sizes[name])} deleted.")


def kept() -> dict[str, int]:
    """Names that have something in the cache, and the bytes that it takes."""
    folder = aliases.cache_folder()
    sizes = {f.name: folder_size(f) for f in sorted(folder.iterdir()) if f.is_dir()} if folder.is_dir() else {}
    return {name: size for name, size in sizes.items() if size}
