"""`encode`: texts in, vectors out, as .npy or .parquet."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..corpus import encode_shard, published, writer_of
from ..errors import InvalidInputError
from ..readers import READERS, TEXT_COLUMN, read_rows
from . import options
from .options import note, open_model


class Format(str, Enum):
    """What each file of a folder becomes."""

    npy = "npy"
    parquet = "parquet"


class Task(str, Enum):
    """Whose prompt a text gets."""

    document = "document"
    query = "query"


def encode(
    texts: Annotated[Path, typer.Argument(help=".txt (a text per line), .jsonl, .csv, .parquet; or a folder of them.")],
    output: Annotated[
        Path, typer.Argument(help=".npy (vectors only) or .parquet (all columns + embedding); a folder for a folder.")
    ],
    model: options.Model = options.DEFAULT_MODEL,
    text_column: options.TextColumn = TEXT_COLUMN,
    task: Annotated[Task, typer.Option("--as", help="Use the model's prompt for documents or for queries.")] = (
        Task.document
    ),
    prompt: Annotated[str | None, typer.Option(help="Put this before every text instead; it is not pooled.")] = None,
    to: Annotated[Format, typer.Option(help="What each file of a folder becomes.")] = Format.npy,
    normalize: Annotated[bool, typer.Option("--normalize", help="Vectors of unit length.")] = False,
    batch_size: options.BatchSize = 32,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    compile: options.Compile = False,
    device: options.Device = None,
) -> None:
    """Turn texts into vectors, float32, in the order of the rows.

    Blank lines of .txt and .jsonl files have no vector. OUTPUT is replaced, and only once it is complete. The files of
    a folder are shards: those that are done already are passed over, so that a run that was killed can be run again.

    \b
    Examples:
      st-llm2vec encode texts.txt vectors.npy
      st-llm2vec encode papers.jsonl papers.parquet --text-column abstract --normalize
      st-llm2vec encode questions.csv q.npy --as query --model my-encoder
      st-llm2vec encode corpus/ vectors/ --to parquet --dtype bfloat16 --compile
    """
    sources = [texts]
    if texts.is_dir():
        sources = sorted(path for path in texts.iterdir() if path.suffix.lower() in READERS)
        if not sources:
            raise InvalidInputError(f"{texts} has no file that ends in {', '.join(READERS)}.")
    targets = {source: output / f"{source.name}.{to.value}" if texts.is_dir() else output for source in sources}
    write = writer_of(targets[sources[0]])
    rows = read_rows(sources[0])  # before the model, which takes longer to load
    inputs = rows.texts(text_column)
    how = {"dtype": dtype, "quantize": quantize, "compile": compile, "device": device}
    encoder = open_model(model, max_seq_length=max_seq_length, **how)

    def embed(batch: list[str]) -> Any:
        encode = encoder.encode_query if task is Task.query else encoder.encode_document
        return encode(
            batch, prompt=prompt, normalize_embeddings=normalize, batch_size=batch_size, show_progress_bar=True
        )

    started = time.perf_counter()
    if not texts.is_dir():
        vectors = embed(inputs)
        with published(output) as draft:
            write(draft, rows, vectors)
        rate = len(vectors) / (time.perf_counter() - started)
        note(f"{output}: {len(vectors)} vectors of {vectors.shape[1]} dimensions, {rate:.1f} texts/s.")
        return
    setting = {
        "fingerprint": encoder.fingerprint,
        "task": task.value,
        "prompt": prompt,
        "normalize": normalize,
        "dtype": dtype,
    }
    encoded = [
        encode_shard(source, target, embed, text_column=text_column, setting=setting)
        for source, target in targets.items()
    ]
    done = sum(count > 0 for count in encoded)
    rate = sum(encoded) / (time.perf_counter() - started)
    note(f"{output}: {done} of {len(sources)} shards encoded, the others were done; {rate:.1f} texts/s.")
