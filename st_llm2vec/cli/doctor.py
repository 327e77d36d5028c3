"""`doctor`: whether an encoder is what it says."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from . import options
from .options import open_model
from .terminal import escaped


def doctor(
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id of the encoder.")] = options.DEFAULT_MODEL,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Examine an encoder: attention layer by layer, batches, padding, reopening, instructions; exit 1 on a failure.

    \b
    Examples:
      st-llm2vec doctor llm2vec-tiny
      st-llm2vec doctor my-encoder --json
    """
    from ..evaluation.diagnosis import doctor as examine

    report = examine(open_model(model, dtype=dtype, device=device), model)
    shown = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else str(report)
    typer.echo(escaped(shown, keep="\n"))
    if not report.ok:
        raise typer.Exit(1)
