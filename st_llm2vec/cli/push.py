"""`push`: a saved encoder goes to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import megabytes, note
from .tables import print_table


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that convert or train wrote.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody read a repository that is made now.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload an LLM2Vec encoder",
    token: Annotated[str | None, typer.Option(help="One that may write. Default: that of hf auth login.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and ask the hub nothing.")] = False,
) -> None:
    """Write an encoder to the hub, in one commit: its own files, nothing else. The repository is private at first.

    \b
    Examples:
      st-llm2vec push my-encoder owner/my-encoder --dry-run
      st-llm2vec push my-encoder owner/my-encoder --public
    """
    from ..publishing import push as write

    if not dry_run:
        note(f"Writing {folder} to {repository} ...")
    done = write(folder, repository, public=public, message=message, token=token, dry_run=dry_run)
    if dry_run:
        print_table(("file", "size"), [(name, megabytes(size)) for name, size in done.sizes.items()])
    stays = f" The trainer's checkpoints stay here ({megabytes(done.left_out)})." if done.left_out else ""
    goes = "would go to" if dry_run else "are at"
    note(f"{len(done.sizes)} files, {megabytes(sum(done.sizes.values()))}, {goes} {done.url}.{stays}")
