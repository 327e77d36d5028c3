"""`mine`: hard negatives for pairs, for `train supervised`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..atomic import published
from ..recipes import DataSet
from . import options
from .options import listed, note, open_any


def mine(
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id of an encoder that finds candidates.")],
    pairs: Annotated[Path, typer.Argument(help=".jsonl, .csv or .parquet: an anchor and a positive.")],
    output: Annotated[Path, typer.Argument(help=".jsonl to write: the pairs with negative_1, negative_2, ...")],
    columns: Annotated[
        str | None, typer.Option(help="anchor,positive. Default: the two columns that there are.")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Texts to take negatives from, besides all positives.")] = None,
    corpus_column: Annotated[str | None, typer.Option(help="Column of the corpus (text).")] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Of each pair; pairs with fewer are left out.")] = 7,
    margin: Annotated[float, typer.Option(help="Of the positive's similarity that a negative stays below it.")] = 0.05,
    max_score: Annotated[float | None, typer.Option(help="No negative is more similar than this.")] = None,
    min_score: Annotated[float | None, typer.Option(help="None is less similar than this.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Of the nearest texts, leave out this many.")] = 0,
    depth: Annotated[int | None, typer.Option(min=1, help="Look at this many of the nearest texts.")] = None,
    sampling: Annotated[str, typer.Option(help="top or random of those that are left.")] = "top",
    seed: Annotated[int, typer.Option(help="Of random sampling.")] = 42,
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Find hard negatives: texts near an anchor, a margin below its positive.

    \b
    Examples:
      st-llm2vec mine step2 pairs.jsonl triplets.jsonl --negatives 3
      st-llm2vec mine step2 pairs.jsonl mined.jsonl --columns question,answer --corpus passages.jsonl
    """
    from ..training import mining

    if output.suffix != ".jsonl":
        raise typer.BadParameter(f"{output} must end in .jsonl", param_hint="'OUTPUT'")
    if output.exists():
        raise FileExistsError(f"{output} exists already and was left as it is. Choose another file.")
    if corpus_column and corpus is None:
        raise typer.BadParameter("it is the column of --corpus", param_hint="'--corpus-column'")
    how = mining.Mining(negatives, margin, max_score, min_score, skip, depth, sampling, seed)
    names = listed(columns)
    read = mining.read_pairs(DataSet(str(pairs), names or None))
    others = mining.read_corpus(DataSet(str(corpus), (corpus_column,) if corpus_column else None)) if corpus else None
    encoder = open_any(model, dtype=dtype, device=device)
    found = mining.mine(read, encoder, how, corpus=others, batch_size=batch_size)
    with published(output) as draft:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        draft.write_text("".join(lines), encoding="utf-8")
    note(f"{output}: {len(found):,} of {len(read.rows):,} pairs with {negatives} negatives each.")
