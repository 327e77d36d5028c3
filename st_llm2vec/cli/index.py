"""`index`: files, folders or standard input into a FAISS store, or documents out of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError, StoreExistsError, StoreNotFoundError
from . import options
from .inputs import BarOf, Files, OptionalInputs, reading_of, with_files
from .options import given, note, open_model


@with_files
def index(
    context: typer.Context,
    *,
    inputs: OptionalInputs = None,
    store: Annotated[Path, typer.Argument(help="Folder of the store, new or there already.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Alias, folder or hub id of the encoder. Default: the store's."),
    ] = None,
    files: Files,
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace documents that changed.")] = False,
    sync: Annotated[
        bool, typer.Option("--sync", help="Replace what changed, and delete what the inputs do not have.")
    ] = False,
    delete: Annotated[
        list[str] | None,
        typer.Option("--delete", metavar="ID", help="Delete a document, or all of a file. May be given again."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="flat (default) is exact; fp16, sq8, int8, hnsw, ivf, rabitq, binary or a FAISS factory string."
        ),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="cosine (default), dot or l2.")] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first so many numbers of each vector.")
    ] = None,
    commit_every: Annotated[
        int | None, typer.Option(min=1, help="Texts that are put at once; a kill costs so many. Default: 2048.")
    ] = None,
    batch_size: options.BatchSize = 32,
    compile: options.Compile = False,
    device: options.Device = None,
) -> None:
    """Read texts, split what is long, encode them, and put them into a FAISS store with what is known about them.

    Everything is read and checked before the first text is encoded. Texts that the store has are not encoded again, so
    a run that was killed goes on when it is run again.

    \b
    Examples:
      st-llm2vec index notes/ notes-store
      st-llm2vec index papers.jsonl papers-store --text-column abstract --id-column doi
      st-llm2vec index notes/ notes-store --sync
      st-llm2vec index notes-store --delete notes/old.md
    """
    if delete:
        if others := [name for name in given(context) if name not in ("delete", "store")]:
            raise typer.BadParameter(f"it goes with a STORE only, not with {others[0]}", param_hint="'--delete'")
        _delete(store, delete)
        return
    if not inputs:
        raise typer.BadParameter("give what to read, and then the store", param_hint="'INPUT... STORE'")
    if upsert and sync:
        raise typer.BadParameter("--sync replaces as --upsert does, and deletes; give one", param_hint="'--upsert'")
    reading = reading_of(inputs, files, exclude=store)
    settings: dict[str, Any] = {"kind": kind, "metric": metric, "truncate_dim": truncate_dim}
    named = _model_of(store, settings)  # before a model is loaded, which takes longer
    name = model or named or options.DEFAULT_MODEL
    encoder = open_model(name, compile=compile, device=device)
    mode = "sync" if sync else "upsert" if upsert else "add"
    _put(inputs, store, encoder, reading, files, mode, name, settings, commit_every, batch_size)


def _put(
    inputs: list[str],
    store: Path,
    encoder: Any,
    reading: Any,
    files: Files,
    mode: str,
    name: str,
    settings: dict[str, Any],
    commit_every: int | None,
    batch_size: int,
) -> None:
    from faiss_llm2vec import FaissStore

    from ..chunking import Chunker
    from ..corpus import Embed
    from ..ingestion import read_passages
    from .updating import BATCH, Update

    prompt = encoder.prompts.get("document") or ""
    chunker = Chunker(encoder, files.chunk_size, files.chunk_overlap or 0, prompt)
    with read_passages(inputs, reading, chunker, exclude=store) as passages:
        report = passages.report
        for line in (*report.errors, *report.notes):
            note(line)
        if report.skipped:
            note(f"{report.skipped} rows or files could not be read and were skipped.")
        if report.skipped and mode == "sync":
            mode = "upsert"
            note("Nothing is deleted, as what was skipped may be in the store.")
        with (
            FaissStore.open_or_create(store, encoder, mmap=True, model_name=name, **settings) as opened,
            BarOf("texts") as progress,
        ):
            embed = Embed(encoder, batch_size=batch_size, progress=progress)
            update = Update(opened, passages, mode, commit_every or BATCH)
            embed.total = update.plan()
            if embed.total:
                embed.settle(passages, prompt)
            update.apply(embed)
            if opened.stats()["kind"] != "flat":  # which has no index to build
                opened.compact()
            total = len(opened)
        said = ", ".join(f"{count} {what}" for what, count in update.counts.items())
        note(
            f"{store}: {said}; {embed.encoded} texts encoded in {embed.seconds:.1f} s, "
            f"{embed.encoded / max(embed.seconds, 1e-9):.1f} texts/s; {total} in all."
        )


def _delete(path: Path, ids: list[str]) -> None:
    from faiss_llm2vec import FaissStore

    with FaissStore.open(path, mmap=True) as store:
        found = []
        for id in ids:
            chosen = [record.id for record in [*store.get([id]), *store.get(where={"source": id})]]
            if not chosen:
                raise InvalidInputError(f"no document has the id or the source {id!r}. Nothing was deleted.")
            found += chosen
        note(f"{path}: {store.delete(list(dict.fromkeys(found)))} deleted, {len(store)} left.")


def _model_of(path: Path, settings: dict[str, Any]) -> str | None:
    """The name of the model of a store, if there is one; it must have been made with these settings."""
    from faiss_llm2vec import FaissStore

    if not _is_store(path):
        return None
    with FaissStore.open_or_create(path, None, mmap=True, **settings) as store:
        name: str | None = store.stats()["model"]
    return name


def _is_store(path: Path) -> bool:
    """Whether there is a store; nothing else may be there."""
    from faiss_llm2vec import FaissStore

    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    try:
        FaissStore.open(path, mmap=True).close()
    except StoreNotFoundError as error:
        raise StoreExistsError(f"{path} is no store, and was left as it is. Choose a new or empty folder.") from error
    return True
