"""Texts of any number to vectors: read and checked as a whole, then encoded shard by shard, resumed after a kill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import only_writer
from .embedding import Embed, Encode, Progress
from .encoders import lasting_name, open_encoder
from .errors import InvalidInputError
from .ingestion import ENDINGS, Passages, Reading, Records, read_texts, split
from .readers import TEXT_COLUMN
from .settings import as_count, as_flag
from .shard_files import COLUMNS
from .shards import FORMATS, Shards, manifest_of
from .workers import require_engine

SHARD_SIZE = 8192  # texts of a shard
TASKS = ("document", "query")
_NOT_WRITTEN = (*ENDINGS, ".npz", ".pt", ".safetensors", ".h5", ".pkl", ".db", ".faiss")  # no names of folders


@dataclass(frozen=True)
class CorpusSummary:
    """What a run of `encode_corpus` did.

    Args:
        path: The output.
        texts: Vectors in it.
        dimension: Of a vector.
        encoded: Texts that were encoded in this run; the others were there.
        shards: Files of vectors.
        seconds: Time that encoding took.
        skipped: Rows and files that could not be read and were passed over.
        cut: Texts that the encoder reads the start of.
        said: What else should be known: the errors passed over, files of other kinds, columns of several types,
            workers without work.
    """

    path: Path
    texts: int
    dimension: int
    encoded: int
    shards: int
    seconds: float
    skipped: int
    cut: int
    said: tuple[str, ...]


def encode_corpus(
    model: Any,
    inputs: str | Path | Iterable[Any] | Passages,
    output: str | Path,
    *,
    format: str = "parquet",
    text_column: str | Sequence[str] = TEXT_COLUMN,
    id_column: str | None = None,
    metadata: str | Sequence[str] | None = None,
    on_error: str = "stop",
    task: str = "document",
    prompt: str | None = None,
    normalize: bool = False,
    chunk_size: int | None = None,
    chunk_overlap: int = 0,
    late_chunking: bool = False,
    batch_size: int = 32,
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    engine: str = "local",
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> CorpusSummary:
    """Encode a corpus into shards of vectors, going on where an earlier run was stopped.

    Args:
        model: An encoder, or its name.
        inputs: Files, folders and globs (.txt, .md, .html, .pdf, .json, .jsonl, .csv, .tsv, .parquet, .arrow), or rows:
            a data set of `datasets`, any iterable of dicts, or `Records` of texts; or what `read_corpus` has read.
        output: A folder, new or of an earlier run; or one file that ends in .parquet or .npy (vectors only).
        format: Of the shards: "parquet" (id, text, metadata, embedding) or "npy" (with a .jsonl beside each).
        text_column: Column of the text; of several, the first that a row has.
        id_column: Column of the id. Default: FILE:LINE for rows, FILE#CHUNK for documents.
        metadata: Columns to keep. Default: all.
        on_error: "stop" at what cannot be read, before anything is encoded, or "skip".
        task: "document" or "query": whose prompt the texts get.
        prompt: What is put before every text instead.
        normalize: Vectors of unit length.
        chunk_size: Tokens of a chunk, at most; documents are always split (256), rows only if this is given.
        chunk_overlap: Tokens that a chunk may repeat of the one before.
        late_chunking: Read each document whole, or in windows as long as the encoder reads, and pool it chunk by chunk.
            Rows are split as documents are; a chunk has at most half of the tokens that the encoder reads.
        batch_size: As for `encode`.
        shard_size: Texts of a shard: what a kill costs at most, for every worker.
        workers: Processes that encode, each with a copy of the encoder; with engine="ray" actors of a cluster. Two
            shards for each are in memory at most, however slow one of them is.
        engine: "local" or "ray".
        progress: Called with the texts that are done and those that are to be encoded in all.
        reading: All about reading in one, in the place of `text_column` to `on_error`.

    Returns:
        Counts, and what was passed over.

    Raises:
        InvalidInputError: Something cannot be read, the output is that of another model or setting, or another run
            is writing it. Nothing was encoded.
        WorkerError: A worker died, and so did the one that was given its shard. Shards that were done are kept.

    Example:
        >>> done = st_llm2vec.encode_corpus(model, [{"text": "Bears hibernate."}, {"text": "Rates rose."}], "vectors")
        >>> done.texts, done.dimension
        (2, 256)
    """
    _check_options(task, format, {"shard_size": shard_size, "batch_size": batch_size}, prompt)
    require_engine(engine)
    normalize, late_chunking = as_flag("normalize", normalize), as_flag("late_chunking", late_chunking)
    kept = None if metadata is None else _names(metadata)
    reading = reading or Reading(_names(text_column), id_column, kept, on_error=on_error)
    target = Path(output)
    single = check_output(target)
    with only_writer(target), read_corpus(inputs, reading, target) as passages:
        encoder: Any = open_encoder(model)  # after the texts were checked, as it takes longer
        encode = Encode(encoder, task=task, prompt=prompt, normalize=normalize, batch_size=batch_size)
        embed = Embed(encode, workers=workers, engine=engine, progress=progress)
        called = model if isinstance(model, str) else _name_of(encoder)
        by_name = f"{type(encoder).__name__} {Path(called or '').name}".strip()  # as a store tells it from others, too
        setting = {
            "fingerprint": getattr(encoder, "fingerprint", None) or by_name,
            "task": task,
            "prompt": prompt,
            "normalize": normalize,
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "quantized": bool(getattr(getattr(encoder[0], "model", None), "is_quantized", False)),
            "format": single or format,
            "late_chunking": late_chunking or None,  # as in a manifest that does not know of it
        }
        about = dict(zip(("model", "revision"), lasting_name(called) if called else (None, None), strict=True))
        parts = target.with_name(f".{target.name}.parts") if single else target
        folder = Shards(parts, setting, about, working=bool(single))
        split(
            passages, encode.chunker(chunk_size, chunk_overlap, split_rows=chunk_size is not None, late=late_chunking)
        )
        _check_passages(passages, single, overlap_alone=bool(chunk_overlap) and chunk_size is None)
        embed.settle(passages)
        entries = folder.write(passages, embed, shard_size)
        if single:
            folder.join(entries, target)
        else:
            folder.finish(entries)
        return _summary(target, passages, embed, entries)


def read_corpus(inputs: Any, reading: Reading, target: Path) -> Passages:
    """Read and check what `encode_corpus` takes, in its place: all that needs no encoder; close it.

    Raises:
        InvalidInputError: Something cannot be read, or a column is what the output calls its own.
    """
    if isinstance(inputs, Passages):
        return inputs  # it was here before
    with ExitStack() as stack:
        passages = stack.enter_context(read_texts(_sources(inputs), reading, exclude=target))
        if taken := [name for name in COLUMNS if name in passages.columns]:
            raise InvalidInputError(
                f"rows have a column {taken[0]!r}, which is what the output calls its own. Choose the columns to keep "
                "(metadata), or say that it is the id (id_column)."
            )
        stack.pop_all()
    return passages


def check_output(target: Path) -> str | None:
    """Return the format of an output that is one file; None of a folder.

    Raises:
        InvalidInputError: It cannot be written, is somebody else's, or another run is writing it.
    """
    ending = target.suffix.lower()
    if (single := ending[1:] if ending[1:] in FORMATS else None) and target.is_dir():
        raise InvalidInputError(f"{target} is a folder, and its name that of a file. Choose another name.")
    if single is None and ending in _NOT_WRITTEN and not target.exists():
        raise InvalidInputError(f"output must be a folder, or a file that ends in .parquet or .npy, got {target}.")
    if single is None:
        manifest_of(target)
    with only_writer(target):  # said before anything is read
        return single


def _summary(target: Path, passages: Passages, embed: Embed, entries: list[dict[str, Any]]) -> CorpusSummary:
    report = passages.report
    return CorpusSummary(
        path=target,
        texts=len(passages),
        dimension=entries[0]["dimension"],
        encoded=embed.encoded,
        shards=len(entries),
        seconds=embed.seconds,
        skipped=report.skipped,
        cut=passages.cut,
        said=(*report.errors, *report.notes, *embed.idle("shard", "shard_size")),
    )


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _check_options(task: str, format: str, counts: dict[str, int], prompt: str | None) -> None:
    for name, value, allowed in (("task", task, TASKS), ("format", format, FORMATS)):
        if value not in allowed:
            raise InvalidInputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    for name, count in counts.items():
        as_count(name, count)
    if prompt is not None and not isinstance(prompt, str):
        raise InvalidInputError(f"prompt must be a text, got {prompt!r:.60}.")


def _name_of(encoder: Any) -> str | None:
    name = getattr(getattr(encoder, "transformers_model", None), "name_or_path", None)
    return name or None


def _sources(inputs: Any) -> Any:
    if isinstance(inputs, str | Path):
        return [inputs]
    paths = isinstance(inputs, list | tuple) and all(isinstance(item, str | Path) for item in inputs)
    return inputs if paths or isinstance(inputs, Records) else Records(inputs)


def _check_passages(passages: Passages, single: str | None, overlap_alone: bool) -> None:
    if overlap_alone and "chunk" not in passages.fields:
        raise InvalidInputError("chunk_overlap must be 0 without chunk_size: no text is split here.")
    if single == "npy" and (passages.report.skipped or "chunk" in passages.fields):
        raise InvalidInputError(
            "a .npy file holds vectors only, and with chunks or skipped rows nobody knows whose they are. Give an "
            "output that ends in .parquet, or a folder."
        )
