"""What a GPU has to show, in steps of under nine minutes that start at once and need no network: `make gpu`.

    python benchmarks/gpu.py                           every step that is left, in the order of the table
    python benchmarks/gpu.py --budget 560              those that fit into 560 seconds; call it again for the others
    python benchmarks/gpu.py --step encode-7b --again  one of them once more
    python benchmarks/gpu.py --device cpu --quick      the same steps on tiny shapes: do they run?
    python benchmarks/gpu.py --document                the table in docs/gpu-and-7b.md, of the lines that are there

Each step ends as a JSON line in build/gpu/results.jsonl: its figures, or why there are none. A step that has a line
without an error is not run again. What `make model` and recipes/prepare.py have made is used where it is there: without
the first the 135M shape has random weights, without the second the recipe is left out, and their lines say so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads import ROOT, docstrings, real_or_random

MOST = 540  # seconds of a step: commands on lent machines end after ten minutes
PAGE = ROOT / "docs" / "gpu-and-7b.md"
RECORD = ROOT / "docs" / "gpu-results.jsonl"
BEGIN, END = "<!-- gpu.py writes from here -->\n", "<!-- to here -->\n"
RECIPE = ["recipes/smollm2/llm2vec-smollm2.toml", "recipes/smollm2/gpu.toml"]
Figures = list[dict[str, Any]]


def encoded(out: Path) -> Figures:
    """The rows of run.py."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    keys = ("variant", "tokens_per_second", "spread", "against_stock", "of_limit", "cosine", "peak_mib", "told")
    return [
        {"shape": shape, "workload": workload, **{key: row[key] for key in keys}}
        for shape, workloads in results.items()
        for workload, rows in workloads.items()
        for row in rows
    ]


def trained(out: Path) -> Figures:
    """The rows of training.py."""
    lines = (out / "training.jsonl").read_text(encoding="utf-8").splitlines()
    keys = ("stage", "variant", "dtype", "tokens_per_second", "against_stock", "of_limit")
    return [{key: row[key] for key in keys} for row in map(json.loads, lines)]


def scored(out: Path) -> Figures:
    """What the stages of the recipe scored, from the settings that each leaves."""
    found = []
    for file in sorted(out.glob("recipe/*/training/settings.json"), key=lambda file: file.stat().st_mtime):
        told = json.loads(file.read_text(encoding="utf-8"))
        found.append({"stage": file.parent.parent.name, **{key: told[key] for key in ("steps", "before", "after")}})
    return found


@dataclass(frozen=True)
class Step:
    """One command: `{python}`, `{device}`, `{out}`, `{real}` (a decoder's folder) and `{recipe}` are filled in.

    Attributes:
        seconds: It is ended after so many.
        quick: What stands in place of the command's end, from the first of its own options on, to try it on a CPU.
        read: Its figures, from the folder that it writes to.
        needs: A path without which it is left out.
    """

    name: str
    seconds: int
    command: str
    options: str = ""
    quick: str = ""
    read: Callable[[Path], Figures] = lambda out: []
    needs: str = ""


ENCODE = "{python} benchmarks/run.py --device {device} --out {out}"
TRAIN = "{python} benchmarks/training.py --device {device} --out {out}"
STAGE = "{python} -m st_llm2vec train {stage} {recipe} --model {real} --output {out}/recipe --resume"
TINY = "--shape tiny --workload short --tokens 300 --rounds 1 --variant"
STEPS = [
    Step("tests", 300, "{python} -m pytest tests/test_gpu.py"),
    Step("models", 400, "{python} benchmarks/workloads.py --device {device} --out {out}", "0.6b 7b", "tiny"),
    Step(
        "encode-135m",
        MOST,
        ENCODE,
        "--shape 135m --tokens 60000 --rounds 5 --variant ours stock limit",
        f"{TINY} ours stock limit",
        encoded,
    ),
    Step(
        "encode-0.6b",
        MOST,
        ENCODE,
        "--shape 0.6b --tokens 60000 --rounds 5 --variant ours stock limit",
        f"{TINY} ours",
        encoded,
    ),
    Step(
        "encode-7b",
        MOST,
        ENCODE,
        "--shape 7b --workload short passages documents --tokens 60000 --rounds 3 --variant"
        " 'ours bfloat16' 'stock bfloat16' 'limit bfloat16'",
        f"{TINY} 'ours bfloat16' 'stock bfloat16'",
        encoded,
    ),
    Step(
        "encode-7b-compiled",
        MOST,
        ENCODE,
        "--shape 7b --workload short passages documents --tokens 60000 --rounds 3 --variant"
        " 'ours bfloat16' 'ours compiled bfloat16' 'limit bfloat16'",
        f"{TINY} 'ours compiled bfloat16'",
        encoded,
    ),
    Step(
        "encode-7b-flash",
        MOST,
        ENCODE,
        "--shape 7b --workload short passages documents --tokens 60000 --rounds 3 --variant"
        " 'ours bfloat16' 'stock flash bfloat16'",
        f"{TINY} 'ours bfloat16'",
        encoded,
    ),
    Step("train-135m", MOST, TRAIN, "--shape 135m --batch 128", "--shape tiny --quick", trained),
    Step("train-0.6b", MOST, TRAIN, "--shape 0.6b --batch 64", "--shape tiny --quick --dtype float32", trained),
    Step(
        "train-7b",
        MOST,
        TRAIN,
        "--shape 7b --batch 32 --rounds 3 --stage mntp supervised",
        "--shape tiny --quick --stage mntp",
        trained,
    ),
    *(
        Step(f"recipe-{stage}", MOST, STAGE.replace("{stage}", stage), read=scored, needs="{data}")
        for stage in ("mntp", "simcse", "supervised")
    ),
]


def tiny_recipe(folder: Path) -> list[str]:
    """A recipe of two steps a stage on docstrings, for `--quick`; its options."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text for text, _ in zip(docstrings(), range(64), strict=False)]
    for name, columns in {"texts": ("text",), "pairs": ("anchor", "positive")}.items():
        rows = (dict.fromkeys(columns, text) for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = ["max_steps = 2", "batch_size = 4", "max_seq_length = 32", "cpu = true"]
    for stage, after, name in (("mntp", "", "texts"), ("simcse", "mntp", "texts"), ("supervised", "mntp", "pairs")):
        lines += [f"[{stage}]", *([f'after = "{after}"'] if after else []), f'data.{name} = "{name}.jsonl"']
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--config", str(folder / "recipe.toml")]


def run(step: Step, words: dict[str, str], quick: bool, log: Path) -> dict[str, Any]:
    """Run one step; its line."""
    started = time.monotonic()
    command = " ".join(filter(None, (step.command, step.quick if quick and step.quick else step.options)))
    line: dict[str, Any] = {"step": step.name, "device": words["device"], "quick": quick, "machine": words["machine"]}
    line["weights"] = words["weights"] if "135m" in step.name or "recipe" in step.name else "random weights"
    needed = step.needs.format(**words)
    if needed and not Path(needed).exists():
        return {**line, "error": f"left out: {needed} is not there (recipes/prepare.py writes it)"}
    with log.open("w", encoding="utf-8") as output:
        environment = {**os.environ, "ST_LLM2VEC_DEVICE": words["device"], "HF_HUB_OFFLINE": "1"}
        path = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TOKENIZERS_PARALLELISM": "false"}
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", "exec " + command.format(**words)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                timeout=step.seconds,
                check=False,
            )
            error = f"it ended with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            error = f"it was ended after {step.seconds} seconds"
    line["seconds"] = round(time.monotonic() - started, 1)
    last = next((t for t in reversed(log.read_text(errors="replace").splitlines()) if t.strip()), "")
    if error:
        return {**line, "error": f"{error}: {last[:300]}"}
    return {**line, "figures": step.read(Path(words["out"])) or [{"said": last[:300]}]}


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown of the last line of each step."""
    latest = {line["step"]: line for line in lines}
    if not latest:
        return "Not measured yet: no GPU was at hand.\n"
    rows = ["| step | | figures |", "| --- | --- | --- |"]
    for line in latest.values():
        for figures in line.get("figures") or [{"error": line.get("error", "")}]:
            named = [figures.get(key) for key in ("shape", "workload", "stage", "variant")]
            shown = {key: value for key, value in figures.items() if value is not None and value not in named}
            cells = ", ".join(f"{key} {_short(value)}" for key, value in shown.items())
            rows.append(f"| {line['step']} | {' '.join(filter(None, named))} | {cells} |")
    machines = dict.fromkeys(f"{line['machine']}; {line['weights']}" for line in latest.values())
    return "\n".join([*rows, "", *(f"{machine}." for machine in machines)]) + "\n"


def document(lines: Sequence[dict[str, Any]]) -> None:
    """Keep the lines in docs/ and put their table into the page."""
    RECORD.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(lines) + END + rest.partition(END)[2], encoding="utf-8")


def machine(device: str) -> str:
    """The GPU and the versions that matter, or the processor."""
    import run as benchmark
    import torch

    said = benchmark.machine()
    return f"{torch.cuda.get_device_name()}, {said}" if device.startswith("cuda") else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="Tiny shapes and few steps: does it run?")
    parser.add_argument("--step", nargs="+", choices=[step.name for step in STEPS])
    parser.add_argument("--again", action="store_true", help="Steps that have their line, too")
    parser.add_argument("--budget", type=float, default=float("inf"), help="Seconds: steps that would pass it wait")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "data", help="Of the recipe (recipes/prepare.py)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--document", action="store_true", help="Write the table of docs/gpu-and-7b.md only")
    args = parser.parse_args()
    results = args.out.resolve() / "results.jsonl"
    if args.document:
        document([line for line in lines_of(results) if not line["quick"]])
        return
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "There is no GPU here that torch can use (torch.cuda.is_available() is False), so nothing was measured. "
            "To try the steps on this processor: python benchmarks/gpu.py --device cpu --quick"
        )
    results.parent.mkdir(parents=True, exist_ok=True)
    real, weights = real_or_random("tiny" if args.quick else "135m", results.parent)
    recipe = tiny_recipe(results.parent / "data") if args.quick else [w for file in RECIPE for w in ("--config", file)]
    data = str(results.parent / "data" if args.quick else args.data.resolve())
    words = {
        "python": sys.executable,
        "device": args.device,
        "out": str(results.parent),
        "real": str(real),
        "weights": weights,
        "recipe": " ".join([*recipe, "--data-folder", data]),
        "data": data,
        "machine": machine(args.device),
    }
    done = {(line["step"], line["device"], line["quick"]) for line in lines_of(results) if "error" not in line}
    started, failed = time.monotonic(), []
    for step in STEPS:
        wanted = not args.step or step.name in args.step
        if not wanted or ((step.name, args.device, args.quick) in done and not args.again):
            continue
        if time.monotonic() - started + step.seconds > args.budget:
            print(f"{step.name} may take {step.seconds} seconds and waits for the next call.", flush=True)
            continue
        print(f"{step.name}: at most {step.seconds} seconds ...", flush=True)
        line = run(step, words, args.quick, results.parent / f"{step.name}.log")
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        failed += [step.name] if "error" in line else []
    if failed:
        raise SystemExit(f"Without figures: {', '.join(failed)}. What they said is in {results.parent}/STEP.log")


if __name__ == "__main__":
    main()
