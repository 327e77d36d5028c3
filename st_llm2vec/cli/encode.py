"""`encode`: files, folders or standard input in, vectors out, as one file or as shards."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .inputs import BarOf, Engine, Files, Inputs, WithEngine, Workers, reading_of, with_files
from .options import check_model, note, note_all, open_model

if TYPE_CHECKING:
    from ..corpus import CorpusSummary


class Format(str, Enum):
    """What a shard is."""

    npy = "npy"
    parquet = "parquet"


class Task(str, Enum):
    """Whose prompt a text gets."""

    document = "document"
    query = "query"


@with_files
def encode(
    *,
    inputs: Inputs,
    output: Annotated[
        Path, typer.Argument(help="One file, .npy (vectors only) or .parquet (with ids and columns); or a folder.")
    ],
    model: options.Model = options.DEFAULT_MODEL,
    files: Files,
    task: Annotated[Task | None, typer.Option("--as", help="Whose prompt the texts get. Default: document.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Put this before every text instead; it is not pooled.")] = None,
    to: Annotated[Format | None, typer.Option(help="Of the shards in a folder. Default: parquet.")] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Texts of a shard; a kill costs one at most. Default: 8192.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Vectors of unit length.")] = False,
    batch_size: options.BatchSize = 32,
    workers: Workers = None,
    engine: WithEngine = Engine.local,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    compile: options.Compile = False,
    device: options.Device = None,
) -> None:
    """Turn texts into vectors, float32, in the order of the inputs.

    Everything is read and checked before the first text is encoded. A run that was killed goes on when it is run again.
    A folder as OUTPUT gets shards and a manifest; run it again on changed inputs, and only new texts are encoded.

    \b
    Examples:
      st-llm2vec encode texts.txt vectors.npy
      st-llm2vec encode papers.jsonl papers.parquet --text-column abstract --normalize
      st-llm2vec encode questions.csv q.npy --as query --model my-encoder
      st-llm2vec encode notes/ 'papers/**/*.pdf' vectors/ --dtype bfloat16 --compile
      st-llm2vec encode papers/ vectors/ --chunk-size 64 --late-chunking --workers 4
    """
    from ..corpus import SHARD_SIZE, check_output, encode_corpus, read_corpus

    if to is not None and output.suffix.lower() in (".npy", ".parquet"):
        raise typer.BadParameter(f"{output} says by its ending what it is; give --to with a folder.", param_hint="--to")
    if task is not None and prompt is not None:
        raise typer.BadParameter(
            "--prompt takes the place of the prompt that --as chooses; give one.", param_hint="--as"
        )
    reading = reading_of(files)
    check_output(output)
    check_model(model)
    how = {"dtype": dtype, "quantize": quantize, "compile": compile, "device": device}
    with read_corpus(inputs, reading, output) as texts, BarOf("texts") as progress:
        encoder = open_model(model, max_seq_length=max_seq_length, **how)  # last, as it takes longest
        done = encode_corpus(
            encoder,
            texts,
            output,
            format=(to or Format.parquet).value,
            task=(task or Task.document).value,
            prompt=prompt,
            normalize=normalize,
            chunk_size=files.chunk_size,
            chunk_overlap=files.chunk_overlap or 0,
            late_chunking=files.late_chunking,
            batch_size=batch_size,
            workers=workers or 1,
            engine=engine.value,
            shard_size=shard_size or SHARD_SIZE,
            progress=progress,
        )
    _tell(done, output)


def _tell(done: CorpusSummary, output: Path) -> None:
    note_all(done.said)
    if done.skipped:
        note(f"{done.skipped} rows or files could not be read and were skipped.")
    if done.cut:
        note(f"{done.cut} texts are longer than the model reads and were cut. Split them with --chunk-size.")
    rate = done.encoded / max(done.seconds, 1e-9)
    note(
        f"{output}: {done.texts} vectors of {done.dimension} dimensions in {done.shards} shards; {done.encoded} texts "
        f"encoded in {done.seconds:.1f} s, {rate:.1f} texts/s."
    )
