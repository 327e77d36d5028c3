"""`index`: files, folders or standard input into a FAISS store, or documents out of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..embedding import Embed, Encode
from ..errors import InvalidInputError, StoreExistsError, StoreNotFoundError
from ..ingestion import Passages, read_texts, split
from . import options
from .inputs import BarOf, Engine, Files, OptionalInputs, WithEngine, Workers, reading_of, with_files
from .options import check_model, given, note, note_all, open_model

if TYPE_CHECKING:
    from .updating import Update

Kind = Annotated[
    str | None,
    typer.Option(help="flat (default) is exact; fp16, sq8, int8, hnsw, ivf, rabitq, binary or a FAISS factory string."),
]
_OF_VECTORS = ("from-vectors", "store", "upsert", "sync", "kind", "metric", "truncate-dim", "commit-every")
_COMMIT_BYTES = 1 << 28  # of vectors that are there already and are put at once: each commit builds an index of its own


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
    from_vectors: Annotated[
        Path | None,
        typer.Option("--from-vectors", metavar="DIR", help="Take texts and vectors from a folder that encode wrote."),
    ] = None,
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace documents that changed.")] = False,
    sync: Annotated[
        bool, typer.Option("--sync", help="Replace what changed, and delete what the inputs do not have.")
    ] = False,
    delete: Annotated[
        list[str] | None,
        typer.Option("--delete", metavar="ID", help="Delete a document, or all of a file. May be given again."),
    ] = None,
    kind: Kind = None,
    metric: Annotated[str | None, typer.Option(help="cosine (default), dot or l2.")] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first so many numbers of each vector.")
    ] = None,
    commit_every: Annotated[
        int | None, typer.Option(min=1, help="Texts that are put at once; a kill costs so many. Default: 2048.")
    ] = None,
    batch_size: options.BatchSize = 32,
    workers: Workers = None,
    engine: WithEngine = Engine.local,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
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
      st-llm2vec index --from-vectors vectors/ big-store --kind ivf
      st-llm2vec index notes-store --delete notes/old.md
    """
    _require_one_purpose(given(context))
    if delete:
        _delete(store, delete)
        return
    mode = "sync" if sync else "upsert" if upsert else "add"
    settings: dict[str, Any] = {"kind": kind, "metric": metric, "truncate_dim": truncate_dim}
    if from_vectors:
        _put_vectors(from_vectors, store, mode, settings, commit_every)
        return
    reading = reading_of(files)
    named = _model_of(store, settings)
    name = model or named or options.DEFAULT_MODEL
    check_model(name)
    how = {"dtype": dtype, "quantize": quantize, "compile": compile, "device": device}
    with read_texts(inputs or [], reading, exclude=store) as passages, BarOf("texts") as progress:
        encoder = open_model(name, max_seq_length=max_seq_length, **how)  # last, as it takes longest
        encode = Encode(encoder, batch_size=batch_size)
        split(passages, encode.chunker(files.chunk_size, files.chunk_overlap or 0, late=files.late_chunking))
        embed = Embed(encode, workers=workers or 1, engine=engine.value, progress=progress)
        done = _put(passages, store, embed, encoder, name, mode, settings, commit_every)
    note(done)


def _require_one_purpose(said: list[str]) -> None:
    """To delete, to take vectors or to encode texts: options of one do not go with another."""
    if "delete" in said and (others := [name for name in said if name not in ("delete", "store")]):
        raise typer.BadParameter(f"it goes with a STORE only, not with {others[0]}", param_hint="'--delete'")
    if {"upsert", "sync"} <= set(said):
        raise typer.BadParameter("--sync replaces as --upsert does, and deletes; give one", param_hint="'--upsert'")
    if not {"delete", "from-vectors", "inputs"} & set(said):
        raise typer.BadParameter("give what to read, and then the store", param_hint="'INPUT... STORE'")
    if "from-vectors" in said and (others := [name for name in said if name not in _OF_VECTORS]):
        raise typer.BadParameter(f"it is encoded already: leave {others[0]} out", param_hint="'--from-vectors'")


def _put(
    passages: Passages,
    path: Path,
    embed: Embed,
    encoder: Any,
    name: str,
    mode: str,
    settings: dict[str, Any],
    commit_every: int | None,
) -> str:
    """Bring the store in line with the passages, and return what to say of it."""
    from faiss_llm2vec import FaissStore

    from .updating import BATCH, Update

    embed.settle(passages)
    report = passages.report
    note_all([*report.errors, *report.notes])
    if report.skipped:
        note(f"{report.skipped} rows or files could not be read and were skipped.")
    if report.skipped and mode == "sync":
        mode = "upsert"
        note("Nothing is deleted, as what was skipped may be in the store.")
    with FaissStore.open_or_create(path, encoder, mmap=True, model_name=name, **settings) as store:
        update = Update(store, passages, mode, commit_every or BATCH)
        embed.total = update.plan()
        update.apply(embed)
        note_all(embed.idle("commit", "--commit-every"))
        if store.stats()["kind"] != "flat":  # which has no index to build
            store.compact()
        rate = f"{embed.encoded / max(embed.seconds, 1e-9):.1f} texts/s"
        encoded = f"{embed.encoded} texts encoded in {embed.seconds:.1f} s, {rate}"
        return f"{path}: {_counted(update)}; {encoded}; {len(store)} in all."


def _put_vectors(folder: Path, path: Path, mode: str, settings: dict[str, Any], commit_every: int | None) -> None:
    from faiss_llm2vec import FaissStore

    from ..stored_vectors import StoredVectors
    from .updating import Update

    with BarOf("texts") as progress:
        stored = StoredVectors(folder, progress)
        if stored.normalized and (metric := _metric_of(path, settings)) != "cosine":
            raise InvalidInputError(
                f"{folder} was encoded with --normalize, and with metric {metric!r} lengths count, which queries and "
                "further documents keep. Encode without it, or make a store with metric cosine."
            )
        with (
            stored.passages() as passages,
            FaissStore.open_or_create(
                path, None, mmap=True, fingerprint=stored.fingerprint, model_name=stored.model, **settings
            ) as store,
        ):
            batch = commit_every or max(1, _COMMIT_BYTES // (4 * stored.dimension))
            update = Update(store, passages, mode, batch, encodes=False)
            stored.total = update.plan()
            update.apply(stored)
            done = f"{path}: {_counted(update)}; {len(store)} in all."
    note(done)
    how = [f"--dtype {stored.dtype:.20}"] if stored.dtype != "float32" else []
    if how := how + ["--quantize int8"] * stored.quantized:
        note(f"Search it with {' '.join(how)}, as it was encoded.")


def _metric_of(path: Path, settings: dict[str, Any]) -> str:
    """The metric of a store that is there, or of the one that will be made."""
    from faiss_llm2vec import FaissStore

    if not _is_store(path):
        return settings["metric"] or "cosine"
    with FaissStore.open(path, mmap=True) as store:
        return str(store.stats()["metric"])


def _counted(update: Update) -> str:
    return ", ".join(f"{count} {what}" for what, count in update.counts.items())


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
    """The name of the model of a store, if there is one; the settings must be those of it, or of a store at all."""
    from faiss_llm2vec import FaissStore
    from faiss_llm2vec.making import check_kind

    if not _is_store(path):
        check_kind(settings["kind"] or "flat", settings["metric"] or "cosine")
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
