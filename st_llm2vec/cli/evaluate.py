"""`eval`: scores on tasks that lie in plain files, with intervals, and the baselines below them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .options import listed, note, open_any
from .tables import print_table

if TYPE_CHECKING:
    from ..evaluation.intervals import Score


def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Aliases, folders, hub ids, of any encoder; the first is compared with all.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="A file, the folder of one task, or a folder of tasks.", exists=True)
    ] = None,
    tasks: Annotated[str, typer.Option(help="Names of tasks in a folder of tasks, with commas between them.")] = "",
    split: Annotated[str, typer.Option(help="test to report, dev to choose settings.")] = "test",
    kind: Annotated[
        str | None, typer.Option(help="What your own files are, of the kinds below. Default: by their columns.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=YOURS", help="A column with another name: sentence1=question. May be given again."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also score BM25 and the models' own input embeddings.")
    ] = True,
    prompt_eol: Annotated[
        str | None, typer.Option(metavar="DECODER", help="Also score this decoder untrained, asked for one word.")
    ] = None,
    mteb: Annotated[
        str | None, typer.Option(metavar="TASK,TASK", help="Run these tasks of mteb in place of --data.")
    ] = None,
    instructions: Annotated[
        bool,
        typer.Option("--instructions", help="With --mteb: give every text but a document the paper's instruction."),
    ] = False,
    static_floor: Annotated[bool, typer.Option("--static-floor", hidden=True)] = False,
    as_json: options.AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Score models on your own files or on public sets: values, 95 % intervals, and what they must beat.

    Files end in .jsonl, .jsonl.xz, .csv, .tsv or .parquet. By their columns they are:

    \b
      sts                  test.*: sentence1, sentence2, score
      pair_classification  test.*: sentence1, sentence2, label (1 or 0)
      retrieval            corpus.*: _id, title, text; queries.*: _id, text;
                           qrels-test.*: query_id, corpus_id, score
                           (or BEIR's qrels/test.tsv); or pairs: query, document
      reranking            test.*: query, positive, negative
      classification       train.*, test.*: text, label (of one file, half trains)
      clustering           test.*: text, cluster
      words, spans         train.*, test.*: tokens, tags (lists of texts)

    \b
    Examples:
      st-llm2vec eval my-encoder --data pairs.csv
      st-llm2vec eval my-encoder other-encoder --data my-corpus/ --json
      st-llm2vec eval my-encoder --data faq.csv --column query=question --column document=answer
      st-llm2vec eval llm2vec-tiny --tasks stsb,scifact --data data
      st-llm2vec eval llm2vec-mistral --mteb STSBenchmark,SciFact --instructions
    """
    if (data is None) == (mteb is None):
        raise typer.BadParameter("one of --data and --mteb says what is scored", param_hint="'--data'")
    if mteb is not None:
        _on_mteb(models, listed(mteb), instructions, as_json, dtype=dtype, device=device)
        return
    if instructions:
        raise typer.BadParameter("goes with --mteb", param_hint="'--instructions'")
    assert data is not None  # or mteb is
    from ..evaluation import evaluate as evaluate_tasks
    from ..evaluation.tasks import find

    names = listed(tasks)
    which: dict[str, Any] = {"split": split, "kind": kind, "columns": _columns(column or [])}
    for task in find(data, names, **which):  # what is wrong with them is said before a model is loaded
        task.kind.read(task.source)
    opened = _opened(models, prompt_eol, dtype, device)
    report = evaluate_tasks(opened, names, data, **which, baselines=baselines or static_floor, on_score=_tell)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif markdown:
        typer.echo(report.to_markdown())
    else:
        print_table(*report.table())


def _tell(score: Score) -> None:
    note(f"{score.task}, {score.model}: {score.value:.4f} {score.metric}")


def _opened(models: list[str], decoder: str | None, dtype: str | None, device: str | None) -> dict[str, Any]:
    """Models by their names, and the decoder that is asked for one word."""
    from ..evaluation import prompt_eol

    opened: dict[str, Any] = {name: open_any(name, dtype=dtype, device=device) for name in dict.fromkeys(models)}
    if decoder:
        opened[f"PromptEOL, {decoder} untrained"] = prompt_eol(decoder, dtype=dtype, device=device)
    return opened


def _on_mteb(
    models: list[str], tasks: tuple[str, ...], instructions: bool, as_json: bool, **options: str | None
) -> None:
    from ..evaluation.on_mteb import evaluate_mteb, require_tasks

    found = require_tasks(tasks)  # before a model is loaded
    rows: list[tuple[str, str, str, float]] = []
    for name in dict.fromkeys(models):
        results = evaluate_mteb(open_any(name, **options), found, instructions=instructions, name=Path(name).name)
        rows += [
            (result.task_name, name, result.task.metadata.main_score, float(result.get_score()))
            for result in results.task_results
        ]
    if as_json:
        keys = ("task", "model", "metric", "value")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        print_table(("task", "model", "metric", "value"), [(*row[:3], f"{row[3]:.4f}") for row in rows])


def _columns(given: list[str]) -> dict[str, str]:
    for text in given:
        if not all(text.partition("=")[::2]):
            said = f"must be OURS=YOURS, such as sentence1=question, got {text!r}"
            raise typer.BadParameter(said, param_hint="'--column'")
    return {text.partition("=")[0]: text.partition("=")[2] for text in given}
