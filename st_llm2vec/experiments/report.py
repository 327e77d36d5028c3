"""The report of an ablation: a table, the paired bootstrap between setups, plots; Markdown, HTML and JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import published_folder
from ..errors import InvalidInputError
from ..evaluation.intervals import Difference, Score, average, compare
from . import plots
from .ablation import SETUPS, Ablation

# What the paper claims one over the other.
COMPARISONS = (
    ("Bi", "Uni"),
    ("Bi+MNTP", "Uni"),
    ("Bi+MNTP", "Bi"),
    ("Bi+MNTP+SimCSE", "Uni+SimCSE"),
    ("Bi+MNTP+SimCSE", "Bi+SimCSE"),
    ("Bi+MNTP+SimCSE", "Bi+MNTP"),
    ("Bi+MNTP+supervised", "Uni+supervised"),
    ("Bi+MNTP+supervised", "Bi+supervised"),
    ("Bi+MNTP+SimCSE+supervised", "Bi+MNTP+SimCSE"),
)
BEST = "best"
NO_PLOTS = 'No plots: matplotlib is not installed. Install it with: pip install "st-llm2vec[bench]"'


@dataclass(frozen=True)
class Line:
    """A setup with a pooling: its scores by task, averaged over seeds."""

    setup: str
    pooling: str
    seeds: int
    scores: dict[str, Score]

    @property
    def mean(self) -> float:
        """Over the tasks; what the best pooling is chosen by."""
        return sum(score.value for score in self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class Results:
    """All that an ablation has found so far."""

    lines: tuple[Line, ...]
    tasks: tuple[str, ...]
    metrics: dict[str, str]

    def best(self, setup: str) -> Line | None:
        """The pooling with the highest mean over the tasks, of those that were scored on all of them."""
        lines = [line for line in self.lines if line.setup == setup and len(line.scores) == len(self.tasks)]
        return max(lines, key=lambda line: line.mean, default=None)

    def comparisons(self) -> Iterator[tuple[str, Difference]]:
        """The paper's comparisons, with each pooling and, of several, the best of each setup: pooling, difference."""
        by_name = {(line.setup, line.pooling): line for line in self.lines}
        poolings = list(dict.fromkeys(line.pooling for line in self.lines if line.setup in SETUPS))
        if len(poolings) > 1:
            poolings.append(BEST)
        for setup, against in COMPARISONS:
            for pooling in poolings:
                pair = [
                    self.best(name) if pooling == BEST else by_name.get((name, pooling)) for name in (setup, against)
                ]
                first, second = pair
                if first and second:
                    for task in self.tasks:
                        if task in first.scores and task in second.scores:
                            yield pooling, compare(first.scores[task], second.scores[task])


def collect(ablation: Ablation) -> Results:
    """Read the cells of an ablation that are there.

    Raises:
        InvalidInputError: None is, or one was made with other settings.
    """
    grouped: dict[tuple[str, str], list[list[Score]]] = {}
    for cell in ablation.cells():
        if found := ablation.scores(cell):
            grouped.setdefault((cell.setup, cell.pooling), []).append(found)
    if not grouped:
        raise InvalidInputError(f"{ablation.output} has no cell yet. Run the ablation first.")
    lines = []
    for (setup, pooling), runs in grouped.items():
        by_task: dict[str, list[Score]] = {}
        for run in runs:
            for score in run:
                by_task.setdefault(score.task, []).append(score)
        scores = {task: average(found) for task, found in by_task.items()}
        lines.append(Line(setup, pooling, len(runs), scores))
    tasks = tuple(task.name for task in ablation.tasks)
    return Results(tuple(lines), tasks, {task.name: task.kind.metric for task in ablation.tasks})


def write_report(ablation: Ablation) -> Path:
    """Write OUTPUT/report: report.md, report.html, report.json and the plots.

    Returns:
        The folder.
    """
    results = collect(ablation)
    folder = ablation.output / "report"
    with published_folder(folder) as draft:
        drawn = plots.draw(results, ablation.output, draft)
        (draft / "report.md").write_text(markdown(ablation, results, drawn), encoding="utf-8")
        (draft / "report.html").write_text(page(ablation, results, draft, drawn), encoding="utf-8")
        (draft / "report.json").write_text(json.dumps(as_dict(results), indent=2) + "\n", encoding="utf-8")
    return folder


def as_dict(results: Results) -> dict[str, Any]:
    """The numbers, without draws."""
    lines = [
        {"setup": line.setup, "pooling": line.pooling, "seeds": line.seeds}
        | {"scores": {task: score.to_dict() for task, score in line.scores.items()}}
        for line in results.lines
    ]
    return {"lines": lines, "differences": [{"pooling": p, **d.to_dict()} for p, d in results.comparisons()]}


def table(results: Results) -> list[Sequence[str]]:
    """Header and rows: setup, pooling, seeds, and value and interval on each task."""
    names = (f"{task}, {results.metrics[task]}" for task in results.tasks)
    rows = [
        (line.setup, line.pooling, str(line.seeds), *(_figure(line.scores.get(task)) for task in results.tasks))
        for line in results.lines
    ]
    return [("setup", "pooling", "seeds", *names), *rows]


def _figure(score: Score | None) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" if score else ""


def differences(results: Results) -> list[Sequence[str]]:
    """Header and rows of the paper's comparisons."""
    rows: list[Sequence[str]] = [("comparison", "pooling", "task", "difference", "95 % interval", "verdict")]
    for pooling, found in results.comparisons():
        verdict = "not significant" if not found.excludes_zero else "higher" if found.value > 0 else "lower"
        interval = f"{found.low:+.3f} to {found.high:+.3f}"
        names = f"{found.model} over {found.against}"
        rows.append((names, pooling, found.task, f"{found.value:+.3f}", interval, verdict))
    return rows


def _words(ablation: Ablation) -> list[str]:
    splits = ", ".join(sorted({task.source.split for task in ablation.tasks}))
    steps = [f"{name} {stage['max_steps'] or stage.epochs} steps" for name, stage in ablation.recipe.stages.items()]
    return [
        f"Decoder: {Path(ablation.model).name}. Seeds: {', '.join(map(str, ablation.seeds))}. Split: {splits}. "
        f"Training: {'; '.join(steps) or 'none'}.",
        "Intervals are 95 % bootstrap intervals over what was scored and, where something was trained, over seeds. "
        "Differences are paired: both setups see the same draws. Pooling 'best' is the one with the highest mean over "
        "these tasks, chosen for each setup on this split.",
    ]


def markdown(ablation: Ablation, results: Results, drawn: Sequence[str]) -> str:
    """The report in Markdown, with the plots beside it."""
    parts = ["# Ablation", *_words(ablation), "## Scores", _markdown(table(results))]
    rows = differences(results)
    if len(rows) > 1:
        parts += ["## Differences", _markdown(rows)]
    parts += [f"![{name}]({name}.svg)" for name in drawn] or [NO_PLOTS]
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left}
div{overflow-x:auto}svg{max-width:100%;height:auto}"""


def page(ablation: Ablation, results: Results, folder: Path, drawn: Sequence[str]) -> str:
    """The report as one HTML page, plots inside."""
    parts = ["<h1>Ablation</h1>", *(f"<p>{html.escape(text)}</p>" for text in _words(ablation))]
    parts += ["<h2>Scores</h2>", _html(table(results))]
    rows = differences(results)
    if len(rows) > 1:
        parts += ["<h2>Differences</h2>", _html(rows)]
    for name in drawn:
        svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
        parts.append(f"<h2>{html.escape(name)}</h2><div>{svg[svg.index('<svg') :]}</div>")
    parts += [] if drawn else [f"<p>{html.escape(NO_PLOTS)}</p>"]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Ablation</title><style>{STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _html(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<div><table>" + line(rows[0], "th") + "".join(line(row, "td") for row in rows[1:]) + "</table></div>"
