"""`models`: the names of encoders, what they stand for, and what is kept of them; `models remove`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from .. import aliases
from ..atomic import DRAFTS
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
      st-llm2vec models remove --superseded
    """
    if context.invoked_subcommand is not None:
        return
    sizes_by_name = kept()
    if old := sum(map(folder_size, _superseded())):
        note(
            f"{megabytes(old)} are builds of names that stand for something else by now. Delete them: "
            "st-llm2vec models remove --superseded"
        )
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
def remove(
    name: Annotated[str | None, typer.Argument(help="A name that --sizes lists.")] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Only what a name stood for before, of NAME or of all names.")
    ] = False,
) -> None:
    """Delete what is kept of a name; its next use makes it again. A process that has it open goes on with it.

    \b
    Examples:
      st-llm2vec models remove llm2vec-mistral
      st-llm2vec models remove --superseded
    """
    if name is None and not superseded:
        raise typer.BadParameter("give a name, or --superseded", param_hint="NAME")
    sizes = kept()
    if name is not None and name not in sizes:
        raise ModelNotFoundError(
            f"Nothing is kept of {name!r} in {aliases.cache_folder()}. Kept: {', '.join(sizes) or 'nothing'}."
        )
    folders = _superseded() if superseded else [aliases.cache_folder() / str(name)]
    size = 0
    for folder in folders:
        of = folder.parent.name if superseded else folder.name
        if name in (None, of):
            with aliases.lock(of):
                size += folder_size(folder)
                shutil.rmtree(folder)
    note(f"{name or 'Superseded builds'}: {megabytes(size)} deleted.")


def _superseded() -> list[Path]:
    """Builds of names that stand for something else by now; what only a program registers is not known here."""
    kept = [(alias.digest, build) for name, alias in aliases.known().items() for build in _builds(name)]
    return [build for digest, build in kept if build.name != digest]


def _builds(name: str) -> list[Path]:
    return [build for build in (aliases.cache_folder() / name).glob("*") if build.is_dir() and not build.match(DRAFTS)]


def kept() -> dict[str, int]:
    """Names that have something in the cache, and the bytes that it takes."""
    folder = aliases.cache_folder()
    sizes = {f.name: folder_size(f) for f in sorted(folder.iterdir()) if f.is_dir()} if folder.is_dir() else {}
    return {name: size for name, size in sizes.items() if size}
