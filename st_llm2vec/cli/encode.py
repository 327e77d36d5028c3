"""`encode`: texts in, vectors out, as .npy or .parquet."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from . import options
from .files import TEXT_COLUMN, Rows, published, read_rows, require_pyarrow
from .options import note, open_model


class Task(str, Enum):
    """Whose prompt a text gets."""

    document = "document"
    query = "query"


def encode(
    texts: Annotated[Path, typer.Argument(help=".txt (a text per line), .jsonl, .csv or .parquet.")],
    output: Annotated[Path, typer.Argument(help=".npy (vectors only) or .parquet (all columns + embedding).")],
    model: options.Model = options.DEFAULT_MODEL,
    text_column: options.TextColumn = TEXT_COLUMN,
    task: Annotated[Task, typer.Option("--as", help="Use the model's prompt for documents or for queries.")] = (
        Task.document
    ),
    prompt: Annotated[str | None, typer.Option(help="Put this before every text instead; it is not pooled.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Vectors of unit length.")] = False,
    batch_size: options.BatchSize = 32,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Turn texts into vectors, float32, in the order of the rows.

    Blank lines of .txt and .jsonl files have no vector. OUTPUT is replaced, and only once it is complete.

    \b
    Examples:
      st-llm2vec encode texts.txt vectors.npy
      st-llm2vec encode papers.jsonl papers.parquet --text-column abstract --normalize
      st-llm2vec encode questions.csv q.npy --as query --model my-encoder
    """
    write = WRITERS.get(output.suffix.lower())
    if write is None:
        raise InvalidInputError(
            f"{output} ends in {output.suffix!r}. Give an output that ends in {', '.join(WRITERS)}."
        )
    rows = read_rows(texts)
    inputs = rows.texts(text_column)
    encoder = open_model(model, max_seq_length=max_seq_length, dtype=dtype, device=device)
    embed = encoder.encode_query if task is Task.query else encoder.encode_document
    started = time.perf_counter()
    vectors = embed(
        inputs, prompt=prompt, normalize_embeddings=normalize, batch_size=batch_size, show_progress_bar=True
    )
    seconds = time.perf_counter() - started
    with published(output) as draft:
        write(draft, rows, vectors)
    note(f"{output}: {len(vectors)} vectors of {vectors.shape[1]} dimensions, {len(vectors) / seconds:.1f} texts/s.")


def _write_npy(path: Path, rows: Rows, vectors: Any) -> None:
    import numpy as np

    with path.open("wb") as file:  # np.save(path) would add .npy to the temporary name
        np.save(file, vectors)


def _write_parquet(path: Path, rows: Rows, vectors: Any) -> None:
    pyarrow = require_pyarrow()
    if "embedding" in rows.columns:
        raise InvalidInputError(f"{rows.path} has a column 'embedding' already. Rename it, or write a .npy file.")
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows.values] for name in rows.columns})
    except pyarrow.ArrowException as error:
        raise InvalidInputError(
            f"The columns of {rows.path} do not fit parquet ({error}); write a .npy file."
        ) from error
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    pyarrow.parquet.write_table(table.append_column("embedding", column), path)


WRITERS: dict[str, Callable[[Path, Rows, Any], None]] = {".npy": _write_npy, ".parquet": _write_parquet}
