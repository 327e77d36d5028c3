"""The paper's ablation: {causal, bidirectional} x steps x poolings x seeds, each cell trained, scored and kept.

Cells share what they can: MNTP is trained once for all poolings, SimCSE once for all that builds on it. A cell that was
scored is a file in OUTPUT/cells, so a run that was stopped goes on where it was; an encoder is deleted when nothing
builds on it any more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic import only_writer
from ..backend.equivalence import PROBES
from ..errors import InvalidInputError
from ..evaluation.baselines import static_model
from ..evaluation.intervals import Score, score
from ..evaluation.report import BM25, STATIC
from ..evaluation.tasks import Found
from ..loading import load
from ..recipe_files import Recipe
from ..recipes import TrainingSettings
from ..settings import as_count
from ..training.records import write_json
from ..training.run import train_stage
from .layers import FILE, layer_cosines


class Setup(NamedTuple):
    """Which attention, and which steps on top of the decoder."""

    attention: str
    stages: tuple[str, ...]


SETUPS: dict[str, Setup] = {
    "Uni": Setup("causal", ()),
    "Bi": Setup("bidirectional", ()),
    "Bi+MNTP": Setup("bidirectional", ("mntp",)),
    "Uni+SimCSE": Setup("causal", ("simcse",)),
    "Bi+SimCSE": Setup("bidirectional", ("simcse",)),
    "Bi+MNTP+SimCSE": Setup("bidirectional", ("mntp", "simcse")),
    "Uni+supervised": Setup("causal", ("supervised",)),
    "Bi+supervised": Setup("bidirectional", ("supervised",)),
    "Bi+MNTP+supervised": Setup("bidirectional", ("mntp", "supervised")),
    "Bi+MNTP+SimCSE+supervised": Setup("bidirectional", ("mntp", "simcse", "supervised")),
}
PAPER = ("Uni", "Bi", "Bi+MNTP", "Uni+SimCSE", "Bi+SimCSE", "Bi+MNTP+SimCSE", "Bi+MNTP+SimCSE+supervised")
POOLINGS = ("mean", "weighted_mean", "last_token")
POOLED = ("simcse", "supervised")  # what such a stage learns depends on the pooling
NO_POOLING = "-"


class Cell(NamedTuple):
    """One row of the table, in one run: untrained setups have no seed, baselines no pooling."""

    setup: str
    pooling: str
    seed: int | None

    @property
    def name(self) -> str:
        """Of the cell's file."""
        return "__".join([self.setup, self.pooling, *([] if self.seed is None else [f"seed-{self.seed}"])])


class _Node(NamedTuple):
    """An encoder that is trained once; pooling is None while no stage depends on it, seed while nothing is trained."""

    attention: str
    stages: tuple[str, ...] = ()
    pooling: str | None = None
    seed: int | None = None

    @property
    def folder(self) -> str:
        names = (self.attention, *self.stages, self.pooling, None if self.seed is None else f"seed-{self.seed}")
        return "-".join(name for name in names if name)


@dataclass(frozen=True)
class Ablation:
    """What is compared.

    Args:
        model: The decoder.
        recipe: How each stage (mntp, simcse, supervised) is trained; its seeds are replaced.
        tasks: What every cell is scored on.
        output: Folder of cells, curves and report.
        setups: Names of `SETUPS`.
        poolings: Of `POOLINGS`.
        seeds: One training for each.
        dtype: In which encoders are scored; default: as `load` has it.
        keep: Keep every encoder.
        layers: Compare hidden states with and without the causal mask, of the decoder and after MNTP.

    Raises:
        InvalidInputError: A name that is not known, a stage that the recipe lacks, or a seed twice.
    """

    model: str
    recipe: Recipe
    tasks: Sequence[Found]
    output: Path
    setups: tuple[str, ...] = PAPER
    poolings: tuple[str, ...] = POOLINGS
    seeds: tuple[int, ...] = (1, 2, 3)
    dtype: str | None = None
    keep: bool = False
    layers: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (("setups", self.setups, tuple(SETUPS)), ("poolings", self.poolings, POOLINGS)):
            if not given or (odd := [each for each in given if each not in known]):
                raise InvalidInputError(
                    f"{what} must be of {', '.join(known)}, got {', '.join(odd) if given else 'none'}."
                )
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise InvalidInputError(f"seeds must be different numbers, got {list(self.seeds)}.")
        for seed in self.seeds:
            as_count("seed", seed, 0)
        needed = {stage for name in self.setups for stage in SETUPS[name].stages}
        if missing := sorted(needed - set(self.recipe.stages)):
            raise InvalidInputError(f"The recipe has no table [{missing[0]}], which these setups train.")
        if not self.tasks:
            raise InvalidInputError("tasks must name at least one.")

    def cells(self) -> list[Cell]:
        """All cells, setup by setup, the baselines first."""
        found = [Cell(name, NO_POOLING, None) for name in (BM25, STATIC) if self._tasks(name)]
        for name in self.setups:
            seeds: tuple[int | None, ...] = self.seeds if SETUPS[name].stages else (None,)
            found += [Cell(name, pooling, seed) for pooling in self.poolings for seed in seeds]
        return found

    def settings(self, node: Any) -> TrainingSettings:
        """How the last stage of a node is trained."""
        stage = self.recipe.stages[node.stages[-1]]
        parent = _parent(node)
        own = {"attention": None, "pooling_mode": node.pooling}
        if not parent.stages:
            own["attention"] = node.attention
        start = str(self.output / "encoders" / parent.folder) if parent.stages else self.model
        output = str(self.output / "encoders" / node.folder)
        return replace(stage, model=start, output=output, seed=node.seed, **own)

    def told(self, cell: Cell) -> dict[str, Any]:
        """All that a cell's scores follow from, without the machine's paths."""
        setup = SETUPS.get(cell.setup, Setup("bidirectional", ()))
        stages = {name: self.recipe.stages[name].to_dict() for name in setup.stages}
        for stage in stages.values():
            for each in stage["data"].values():
                each["file"] = Path(each["file"]).name
            for name in ("model", "output", "seed"):
                stage.pop(name, None)
        splits = sorted({task.source.split for task in self.tasks})
        told = {"model": Path(self.model).name, "dtype": self.dtype, "splits": splits, "stages": stages}
        return told | cell._asdict()

    def _tasks(self, setup: str) -> list[Found]:
        if setup == BM25:
            return [task for task in self.tasks if task.kind.bm25]
        return [task for task in self.tasks if setup != STATIC or task.kind.static]

    def file(self, cell: Cell) -> Path:
        """Where the scores of a cell lie."""
        return self.output / "cells" / f"{cell.name}.json"

    def scores(self, cell: Cell) -> list[Score]:
        """The scores of a cell that are there.

        Raises:
            InvalidInputError: They were made with other settings.
        """
        file = self.file(cell)
        if not file.is_file():
            return []
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["told"] != json.loads(json.dumps(self.told(cell))):
            raise InvalidInputError(f"{file} was made with other settings. Give the same ones, or another output.")
        return [Score.from_dict(each) for each in content["scores"]]

    def missing(self, cell: Cell) -> list[Found]:
        """The tasks that a cell is still to be scored on."""
        there = {each.task for each in self.scores(cell)}
        return [task for task in self._tasks(cell.setup) if task.name not in there]


def run_ablation(ablation: Ablation, log: Callable[[str], None] = lambda line: None) -> None:
    """Train and score every cell that is not there yet.

    Raises:
        InvalidInputError: A cell in the output was made with other settings, or another run is writing the output.
    """
    with only_writer(ablation.output):
        _run(ablation, log)


def _run(ablation: Ablation, log: Callable[[str], None]) -> None:
    examples = {task.name: task.kind.read(task.source) for task in ablation.tasks}
    todo = {cell: missing for cell in ablation.cells() if (missing := ablation.missing(cell))}
    log(f"{len(todo)} of {len(ablation.cells())} cells to do.")
    runner = _Runner(ablation, examples, todo, log)
    for attention in ("causal", "bidirectional"):
        runner.visit(_Node(attention))
    runner.baselines()


class _Runner:
    """Walks the tree of encoders: a stage's result is scored, built on, and deleted."""

    def __init__(
        self, ablation: Ablation, examples: dict[str, Any], todo: dict[Cell, list[Found]], log: Callable[[str], None]
    ) -> None:
        self.ablation, self.examples, self.todo, self.log = ablation, examples, todo, log

    def visit(self, node: _Node) -> None:
        """Train an encoder where its cells, or those of what builds on it, need it; score it; go on."""
        if not self._needed(node):
            return
        folder = self.ablation.output / "encoders" / node.folder
        if node.stages:
            train_stage(self.ablation.settings(node), resume=True, log=self.log)
            self._keep_curve(node, folder)
        if self.ablation.layers and node.attention == "bidirectional" and node.stages in ((), ("mntp",)):
            self._compare_layers(node, str(folder if node.stages else self.ablation.model))
        for cell in _cells(node, self.ablation):
            if cell in self.todo:
                name = str(folder if node.stages else self.ablation.model)
                dtype = self.ablation.dtype
                self._score(cell, load(name, pooling_mode=cell.pooling, attention=node.attention, dtype=dtype))
        for child in _children(node, self.ablation):
            self.visit(child)
        if node.stages and not self.ablation.keep:
            shutil.rmtree(folder)

    def baselines(self) -> None:
        """BM25, and the decoder's own input embeddings."""
        for cell in [cell for cell in self.todo if cell.pooling == NO_POOLING]:
            if cell.setup == BM25:
                ranked = [(task, task.kind.bm25) for task in self.todo[cell]]
                self._write(cell, [(task, rank(self.examples[task.name])) for task, rank in ranked if rank])
            else:
                self._score(cell, static_model(load(self.ablation.model, dtype=self.ablation.dtype)))

    def _needed(self, node: _Node) -> bool:
        cells = _cells(node, self.ablation)
        return any(cell in self.todo for cell in cells) or any(map(self._needed, _children(node, self.ablation)))

    def _score(self, cell: Cell, model: Any) -> None:
        model.eval()
        self._write(cell, [(task, task.kind.measure(model, self.examples[task.name])) for task in self.todo[cell]])

    def _write(self, cell: Cell, measured: list[tuple[Found, Any]]) -> None:
        scores = self.ablation.scores(cell)
        for task, items in measured:
            scores.append(score(cell.setup, task.name, task.kind.metric, items, task.kind.statistic))
            self.log(f"{cell.name}: {task.name} {scores[-1].value:.4f}")
        content = {"told": self.ablation.told(cell), "scores": [each.to_dict(draws=True) for each in scores]}
        write_json(self.ablation.file(cell), content)

    def _compare_layers(self, node: _Node, name: str) -> None:
        file = self.ablation.output / FILE
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        label = "Bi+MNTP" if node.stages else "the decoder"
        if label not in known:
            write_json(file, {**known, label: layer_cosines(name, PROBES, dtype=self.ablation.dtype)})

    def _keep_curve(self, node: _Node, folder: Path) -> None:
        kept = self.ablation.output / "curves" / f"{node.folder}.jsonl"
        if (folder / "training" / "curve.jsonl").is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "training" / "curve.jsonl", kept)


def _parent(node: _Node) -> _Node:
    """What a stage starts from."""
    stages = node.stages[:-1]
    pooled = any(stage in POOLED for stage in stages)
    return _Node(node.attention, stages, node.pooling if pooled else None, node.seed if stages else None)


def _nodes(ablation: Ablation) -> Iterator[tuple[_Node, str]]:
    """Every encoder that a setup ends in, and the setup's name."""
    for name in ablation.setups:
        setup = SETUPS[name]
        pooled = any(stage in POOLED for stage in setup.stages)
        for pooling in ablation.poolings if pooled else (None,):
            for seed in ablation.seeds if setup.stages else (None,):
                yield _Node(setup.attention, setup.stages, pooling, seed), name


def _cells(node: _Node, ablation: Ablation) -> list[Cell]:
    return [
        Cell(name, pooling, node.seed)
        for each, name in _nodes(ablation)
        if each == node
        for pooling in ([node.pooling] if node.pooling else ablation.poolings)
    ]


def _children(node: _Node, ablation: Ablation) -> list[_Node]:
    found = []
    for end, _ in _nodes(ablation):
        child = end
        while child.stages and _parent(child) != node:
            child = _parent(child)
        if child.stages:
            found.append(child)
    return list(dict.fromkeys(found))
