"""Plots of an ablation: bars by task, learning curves, and how far each layer's states move without the causal mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .layers import FILE as LAYERS

if TYPE_CHECKING:
    from .report import Results

COLORS = ("#3b6fb6", "#d98c3f", "#5a9e6f", "#a05195", "#7f7f7f", "#c44e52", "#8c6d31")


def draw(results: Results, output: Path, folder: Path) -> list[str]:
    """Draw what there is to draw into a folder, as SVG.

    Args:
        results: The scores.
        output: The ablation's folder, with its curves and layers.
        folder: Where the plots go.

    Returns:
        The plots' names, without ending; none where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    drawn = []
    makers: dict[str, Callable[[Any], bool]] = {
        "scores": lambda figure: _bars(figure, results),
        "learning curves": lambda figure: _curves(figure, output / "curves"),
        "layers": lambda figure: _layers(figure, output / LAYERS),
    }
    for name, make in makers.items():
        figure = Figure(layout="constrained")
        if make(figure):
            figure.savefig(folder / f"{name.replace(' ', '-')}.svg", metadata={"Date": None})
            drawn.append(name.replace(" ", "-"))
    return drawn


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _bars(figure: Any, results: Results) -> bool:
    """One panel a task, one group of bars a setup, one bar a pooling; baselines are lines."""
    columns = min(3, len(results.tasks))
    height = -(-len(results.tasks) // columns)
    figure.set_size_inches(5 * columns, 3.4 * height)
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    setups = list(dict.fromkeys(line.setup for line in results.lines if line.pooling != "-"))
    poolings = list(dict.fromkeys(line.pooling for line in results.lines if line.pooling != "-"))
    width = 0.8 / max(1, len(poolings))
    for panel, task in zip(panels, results.tasks, strict=False):
        for line in results.lines:
            if task not in line.scores:
                continue
            score = line.scores[task]
            if line.pooling == "-":
                style = {"linestyle": "--" if line.setup == "BM25" else ":", "linewidth": 1, "color": "#444"}
                panel.axhline(score.value, label=line.setup, **style)
                continue
            place = setups.index(line.setup) + (poolings.index(line.pooling) - (len(poolings) - 1) / 2) * width
            error = [[score.value - score.low], [score.high - score.value]]
            first = line.setup == setups[0]
            color = COLORS[poolings.index(line.pooling) % len(COLORS)]
            panel.bar(place, score.value, width, color=color, label=line.pooling if first else None)
            panel.errorbar(place, score.value, yerr=error, color="#222", linewidth=0.8, capsize=1.5)
        panel.set_title(f"{task}, {results.metrics[task]}", fontsize=10)
        panel.set_xticks(range(len(setups)), [setup.replace("+", "\n+") for setup in setups], fontsize=7)
        _plain(panel)
    for panel in panels[len(results.tasks) :]:
        panel.remove()
    named: dict[str, Any] = {}
    for panel in panels[: len(results.tasks)]:
        handles, labels = panel.get_legend_handles_labels()
        named = {**dict(zip(labels, handles, strict=True)), **named}
    figure.legend(named.values(), named.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=6)
    return True


def _curves(figure: Any, folder: Path) -> bool:
    """The loss of every training; and, where the recipes watch a score, that score: who learns with fewer steps."""
    runs = {file.stem: _lines(file) for file in sorted(folder.glob("*.jsonl"))}
    watched = sorted({key for rows in runs.values() for row in rows for key in row if key.startswith("eval_")})
    stages = sorted({_stage(name) for name in runs})
    if not runs:
        return False
    wanted = [(stage, key) for stage in stages for key in ("loss", *watched)]
    wanted = [(s, k) for s, k in wanted if any(k in row for n, rows in runs.items() if _stage(n) == s for row in rows)]
    figure.set_size_inches(4.6 * len(wanted), 3.4)
    for panel, (stage, key) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        groups = sorted({name.rpartition("-seed-")[0] for name in runs if _stage(name) == stage})
        for name, rows in runs.items():
            group = name.rpartition("-seed-")[0]
            points = [(row["step"], row[key]) for row in rows if key in row]
            if group in groups and points:
                style = {"color": COLORS[groups.index(group) % len(COLORS)], "linewidth": 1, "alpha": 0.8}
                label = group if group not in panel.get_legend_handles_labels()[1] else None
                panel.plot(*zip(*points, strict=True), label=label, **style)
        panel.set_title(f"{stage}: {key.removeprefix('eval_')}", fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.legend(frameon=False, fontsize=7)
        _plain(panel)
    return True


def _stage(name: str) -> str:
    return next(stage for stage in ("supervised", "simcse", "mntp") if f"-{stage}" in name)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _layers(figure: Any, file: Path) -> bool:
    """Cosine similarity of causal and bidirectional hidden states, layer by layer."""
    if not file.is_file():
        return False
    figure.set_size_inches(5, 3.2)
    panel = figure.subplots()
    for color, (name, values) in zip(COLORS, json.loads(file.read_text(encoding="utf-8")).items(), strict=False):
        panel.plot(range(len(values)), values, marker="o", markersize=2.5, linewidth=1.2, color=color, label=name)
    panel.set_xlabel("layer", fontsize=8)
    panel.set_ylabel("cosine, causal and bidirectional", fontsize=8)
    panel.set_ylim(top=1.02)
    panel.legend(frameon=False, fontsize=8)
    _plain(panel)
    return True
