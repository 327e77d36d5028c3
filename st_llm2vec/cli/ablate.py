"""`ablate`: which of LLM2Vec's steps gives what, on a decoder and data of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .options import listed, note


def ablate(
    config: Annotated[
        list[Path], typer.Option("--config", "-c", help="Recipe (TOML) with the tables that the setups train.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of the tasks.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of cells, curves and report.")],
    tasks: Annotated[str, typer.Option(help="Names, with commas between them.")] = "stsb",
    split: Annotated[str, typer.Option(help="test to report, dev to choose settings.")] = "test",
    masked_tokens: Annotated[
        Path | None, typer.Option(help="Texts (column text) of which masked tokens are to be predicted, too.")
    ] = None,
    setups: Annotated[str | None, typer.Option(help="Default: the paper's seven.")] = None,
    poolings: Annotated[
        str, typer.Option(help="Of mean, weighted_mean, last_token.")
    ] = "mean,weighted_mean,last_token",
    seeds: Annotated[str, typer.Option(help="One training for each.")] = "1,2,3",
    model: Annotated[str | None, typer.Option("--model", "-m", help="In place of the recipe's decoder.")] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Where the recipe's data files lie.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Of every training, in place of the recipe's.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Compare causal and bidirectional states, layer by layer.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Keep every encoder.")] = False,
    dtype: options.Dtype = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Report the cells that are there.")] = False,
) -> None:
    """Train and score setups x poolings x seeds, and report them. Stopped, it goes on where it was.

    Setups: Uni, Bi, Bi+MNTP, Uni+SimCSE, Bi+SimCSE, Bi+MNTP+SimCSE, Bi+MNTP+SimCSE+supervised; also Uni+supervised,
    Bi+supervised, Bi+MNTP+supervised.

    \b
    Examples:
      st-llm2vec ablate -c recipe.toml --data data --tasks stsb,scifact -o build/ablation
      st-llm2vec ablate -c recipe.toml --data data -o build/ablation --setups Uni,Bi,Bi+MNTP --seeds 1
    """
    from ..evaluation.files import Source
    from ..evaluation.tasks import Found, find
    from ..experiments.ablation import PAPER, Ablation, run_ablation
    from ..experiments.report import write_report
    from ..recipe_files import read_recipe

    said = {"model": model, "output": str(output), "data_folder": data_folder, "max_steps": max_steps}
    recipe = read_recipe(config, said)
    decoder = next(iter(recipe.stages.values())).model
    assert decoder is not None  # the recipe requires it
    found = find(data, listed(tasks), split=split)
    numbers = _numbers(seeds)
    if masked_tokens:
        found.append(Found("masked tokens", _masked_tokens(decoder), Source(masked_tokens)))
    ablation = Ablation(
        model=decoder,
        recipe=recipe,
        tasks=found,
        output=output,
        setups=listed(setups) if setups else PAPER,
        poolings=listed(poolings),
        seeds=numbers,
        dtype=dtype,
        keep=keep,
        layers=layers,
    )
    if not report_only:
        run_ablation(ablation, note)
    typer.echo(write_report(ablation) / "report.md")


def _masked_tokens(decoder: str) -> Any:
    from .. import load
    from ..experiments.masked_tokens import kind
    from ..training import language_model_head

    return kind(language_model_head(load(decoder)))  # encoders are saved without the head


def _numbers(given: str) -> tuple[int, ...]:
    if odd := [name for name in listed(given) if not name.isdigit()]:
        raise typer.BadParameter(f"must be whole numbers, such as 1,2,3, got {odd[0]!r}", param_hint="'--seeds'")
    return tuple(int(name) for name in listed(given))
