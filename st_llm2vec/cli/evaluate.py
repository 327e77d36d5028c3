"""`eval`: scores on tasks that lie in plain files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import open_model, print_table


def evaluate(
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id of the encoder.")],
    data: Annotated[Path, typer.Option(help="Folder with one folder per task.", exists=True, file_okay=False)],
    tasks: Annotated[str, typer.Option(help="Names, with commas between them.")] = "stsb",
    split: Annotated[str, typer.Option(help="test to report, dev to choose settings.")] = "test",
    static_floor: Annotated[
        bool, typer.Option("--static-floor", help="Also score the mean of the model's own input embeddings.")
    ] = False,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Score a model: Spearman correlation for similarity, nDCG@10 for retrieval.

    \b
    Examples:
      st-llm2vec eval llm2vec-tiny --tasks stsb,scifact --data data
      st-llm2vec eval my-encoder --tasks stsb --data data --static-floor --json
    """
    from ..evaluation import evaluate as evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    scores = evaluate_tasks(
        open_model(model, dtype=dtype, device=device), names, data, split=split, static_floor=static_floor
    )
    if as_json:
        typer.echo(json.dumps([asdict(score) for score in scores], indent=2))
        return
    rows = [(score.task, score.metric, f"{score.value:.4f}", str(score.n)) for score in scores]
    print_table(("task", "metric", "value", "n"), rows)
