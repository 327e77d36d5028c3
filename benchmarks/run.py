"""Measures this project, its peers and the machine's limit, taking turns in one run: `make bench`.

    python benchmarks/run.py --data DIR                         # 135M shape, all workloads, all variants (40 minutes)
    python benchmarks/run.py --quick                            # a first impression, under five minutes
    python benchmarks/run.py --shape 0.6b --variant ours stock limit --workload short
    python benchmarks/run.py --device cuda --shape 7b --variant ours stock limit
    python benchmarks/run.py --model FOLDER                     # a decoder or encoder of your own

Each variant runs in a process of its own (worker.py), all are warm, and one at a time works: round by round, in another
order each time. Figures are medians over the rounds; a ratio is the median of the ratios within each round.

What makes it fair: everyone gets the same weights and texts, tokenizes them within its time (the limit does not), runs
the same token ids, the closing special token included, and pools the mean of all of them. Everyone uses the same number
of threads (OMP_NUM_THREADS, or all cores). Batch sizes are tuned per workload on the texts themselves, and llama.cpp's
number of sequences at once is; this project and the limit have nothing to tune. Who gives other vectors than stock
float32 (smallest cosine below 0.99, and below that of stock in bfloat16) is not compared. The 135M shape has real
weights, untrained, where `make model` has made them; the first lines say which. Peers come as wheels: llama.cpp's is
built for AVX2 only, which its row says; built from source for the machine it would be faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from workloads import ROOT, SHAPES, WORKLOADS, bidirectional, count_tokens, make_texts, real_or_random

HERE = Path(__file__).resolve().parent
WORKER = HERE / "worker.py"
BASELINE = "stock float32"
PATIENCE = 600  # seconds for an answer; who takes longer is left out
SAME = 0.99  # the smallest cosine to the baseline of vectors that are worth a comparison; or that of:
ROUNDED = "stock bfloat16"

# Variant -> the environment that it runs in; None is this one.
VARIANTS: dict[str, str | None] = {
    "ours float32": None,
    "ours bfloat16": None,
    "ours int8": None,
    "ours compiled float32": None,
    "ours compiled float32 causal": None,
    "ours compiled bfloat16": None,
    "ours compiled int8": None,
    # load(name): weights as the file has them. After the others: pages that a second process has mapped cannot be let
    # go, so whoever lays weights out anew would be charged for both.
    "ours default float32": None,
    "stock float32": None,
    "stock bfloat16": None,
    "stock flash bfloat16": None,
    "original bfloat16": "original",
    "onnxruntime int8": "peers",
    "openvino bfloat16": "peers",
    "openvino int8": "peers",
    "llama.cpp bfloat16": "peers",
    "limit float32": None,
    "limit bfloat16": None,
    "limit int8": None,
}
CPU_ONLY = ("int8", "onnxruntime", "openvino", "llama.cpp")
CUDA_ONLY = ("flash",)
# (a, b, workload -> the least that b's time must be of a's); every workload has a floor against stock of the same type.
EVERY = dict.fromkeys(WORKLOADS, 0.95)
COMPARISONS: list[tuple[str, str, dict[str, float]]] = [
    ("ours default float32", "stock float32", EVERY),
    ("ours float32", "stock float32", EVERY),
    ("ours bfloat16", "stock bfloat16", EVERY),
    ("ours int8", "stock float32", EVERY),
    ("ours compiled float32", "stock float32", {**EVERY, "short": 1.6, "passages": 1.3}),
    ("ours compiled float32", "limit float32", {"short": 0.85, "passages": 0.85}),
    ("ours compiled float32", "ours float32", {}),
    ("ours compiled float32", "ours compiled float32 causal", {}),
    ("ours compiled bfloat16", "stock bfloat16", {**EVERY, "short": 1.6, "passages": 1.35}),
    ("ours compiled bfloat16", "stock float32", {"short": 3.0}),
    ("ours compiled bfloat16", "original bfloat16", {"short": 1.4}),
    ("ours compiled bfloat16", "openvino bfloat16", {"short": 1.25}),
    ("ours compiled bfloat16", "llama.cpp bfloat16", {}),
    ("ours compiled bfloat16", "ours bfloat16", {}),
    ("ours compiled bfloat16", "limit bfloat16", {}),
    ("ours compiled int8", "stock float32", {**EVERY, "short": 4.2}),
    ("ours compiled int8", "onnxruntime int8", {"short": 1.15}),
    ("ours compiled int8", "openvino int8", {}),
    ("ours compiled int8", "ours int8", {}),
    ("ours compiled int8", "limit int8", {}),
]
# Environment -> what is installed, command by command; torch first and pinned (see the Makefile). Wheels only, but for
# llm2vec, which is pure Python: a build from source could take longer than the measurement.
WHEELS = ["--only-binary", ":all:"]
ENVIRONMENTS = {
    # Without its training dependencies; it asks for transformers <= 4.44.2.
    "original": [
        [*WHEELS, "torch=={torch}"],
        [*WHEELS, "transformers==4.44.2", "peft==0.13.2"],
        ["--no-deps", "llm2vec==0.2.3"],
    ],
    "peers": [
        [*WHEELS, "torch=={torch}"],
        [*WHEELS, "transformers=={transformers}"],
        [*WHEELS, "onnx", "onnxruntime"],
        [*WHEELS, "openvino"],
        [*WHEELS, "nncf"],
        [*WHEELS, "gguf", "xllamacpp"],
    ],
}


def environment(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which is made if it is not there; what fails to install is left out."""
    python = folder / name / "bin" / "python"
    if not (folder / name / ".ready").is_file():
        print(f"Making the environment {name!r} (once) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        pins = {package: version(package).split("+")[0] for package in ("torch", "transformers")}
        with (folder / f"{name}.log").open("w") as log:
            for packages in ENVIRONMENTS[name]:
                wanted = [package.format(**pins) for package in packages]
                command = [python, "-m", "pip", "install", "--quiet", *wanted]
                if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                    print(f"  pip install {' '.join(wanted)} failed: {folder / name}.log", flush=True)
        (folder / name / ".ready").touch()
    return python


class Worker:
    """One variant in its process."""

    def __init__(self, name: str, folder: Path, device: str, environments: Path, log: Path) -> None:
        self.name, self.log = name, log
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        python: Path | str = sys.executable
        env.pop("PYTHONPATH", None)
        if VARIANTS[name]:
            python = environment(str(VARIANTS[name]), environments)
        else:
            env["PYTHONPATH"] = str(ROOT)
        command = [python, WORKER, name, folder, device]
        with log.open("w") as errors:
            if name.startswith(("onnxruntime", "openvino", "llama.cpp")):
                subprocess.run([*command, "--prepare"], stdout=errors, stderr=errors, env=env, check=False)
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
            )
        self.packages: list[str] = self._reply()["packages"]

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({key: str(value) for key, value in command.items()}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            raise RuntimeError(f"no answer in {PATIENCE} seconds")
        if not (line := self.process.stdout.readline()):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else "the process ended")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def stop(self) -> None:
        self.process.kill()  # nothing is left to write, and freeing a model's memory piece by piece takes time
        self.process.wait()


class Progress:
    """How long it takes still, by the share of the tokens that are done; tuning counts as TUNING rounds."""

    TUNING = 8

    def __init__(self, tokens: dict[str, int], rounds: int) -> None:
        self.tokens, self.rounds, self.start = tokens, rounds, time.monotonic()
        self.done, self.whole = 0, sum(tokens.values()) * (self.TUNING + rounds)

    def tell(self, workload: str, rounds: int, what: str) -> None:
        self.done += self.tokens[workload] * rounds
        minutes = (time.monotonic() - self.start) / 60
        left = minutes * (self.whole - self.done) / self.done
        print(f"  {what}; {minutes:.0f} min so far, about {left:.0f} min left", flush=True)


def measure(
    workers: list[Worker], workload: str, texts: list[str], rounds: int, out: Path, progress: Progress
) -> list[dict[str, Any]]:
    """A row of figures for each worker that lasts."""
    tokens = progress.tokens[workload]
    file = out / f"{workload}.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    how = "each" if workload == "query" else "all"
    alive, told, seconds, peaks = [], {}, {}, {}
    for worker in workers:
        try:
            told[worker.name] = worker.ask(do=how, texts=file, vectors=out / f"{worker.name}.npy")["told"]
            alive.append(worker)
        except (RuntimeError, BrokenPipeError) as error:  # noqa: PERF203
            print(f"  {worker.name} is left out: {str(error)[:200]}", flush=True)
    progress.tell(workload, progress.TUNING, f"{workload}: batch sizes chosen")
    for turn in range(rounds):
        for worker in random.Random(turn).sample(alive, len(alive)):
            try:
                reply = worker.ask(do=how, texts=file)
            except (RuntimeError, BrokenPipeError) as error:
                print(f"  {worker.name} is left out: {str(error)[:200]}", flush=True)
                alive.remove(worker)
                seconds.pop(worker.name, None)
                continue
            seconds.setdefault(worker.name, []).append(reply["seconds"])
            peaks[worker.name] = reply["peak_mib"]
        progress.tell(workload, 1, f"{workload}: round {turn + 1} of {rounds}")
    rows = []
    reference = out / f"{BASELINE}.npy"
    same = SAME
    if {BASELINE, ROUNDED} <= set(seconds):  # untrained real weights: rounding moves some texts far, for everyone
        same = min(same, _cosine(out / f"{ROUNDED}.npy", reference))
    for name, turns in seconds.items():
        times = np.array([sum(turn) for turn in turns])
        each = np.concatenate(turns) * 1000
        quartiles = np.percentile(times, [25, 75])
        is_model = not name.startswith("limit") and "causal" not in name
        cosine = _cosine(out / f"{name}.npy", reference) if is_model and BASELINE in seconds else None
        valid = cosine is None or cosine >= same
        row = {
            "variant": name,
            "tokens_per_second": tokens / np.median(times),
            "spread": float((quartiles[1] - quartiles[0]) / np.median(times)),
            "texts_per_second": len(texts) / np.median(times),
            "p50_ms": float(np.percentile(each, 50)) if how == "each" else None,
            "p95_ms": float(np.percentile(each, 95)) if how == "each" else None,
            "cosine": cosine,
            "peak_mib": peaks[name],
            "times": times.tolist(),
            "valid": valid,
            "told": told[name] if valid else f"WRONG VECTORS {told[name]}",  # its speed proves nothing
        }
        rows.append(row)
    for row in rows:
        kind = next(kind for kind in ("float32", "bfloat16", "int8") if kind in row["variant"])
        for key, other in (("against_stock", BASELINE), ("of_limit", f"limit {kind}")):
            quartiles = ratio(rows, row["variant"], other)
            row[key] = quartiles[1] if quartiles else None
    return rows


def ratio(rows: list[dict[str, Any]], name: str, other: str) -> list[float] | None:
    """Quartiles of the other's time by this one's, round by round; None unless both were measured and are valid."""
    times = {row["variant"]: np.array(row["times"]) for row in rows if row["valid"]}
    if name not in times or other not in times:
        return None
    quartiles: list[float] = np.percentile(times[other] / times[name], [25, 50, 75]).tolist()
    return quartiles


def goals(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: floor beside measured, for each goal of which both sides were measured; `results` by workload."""
    lines = ["| goal | workload | floor | measured | quartiles | |", "| --- | --- | ---: | ---: | --- | --- |"]

    def add(goal: str, workload: str, floor: str, measured: str, met: bool, quartiles: str = "") -> None:
        lines.append(f"| {goal} | {workload} | {floor} | {measured} | {quartiles} | {'met' if met else 'missed'} |")

    for name, other, floors in COMPARISONS:
        for workload, rows in results.items():
            if workload in floors and (found := ratio(rows, name, other)):
                low, middle, high = found
                floor, spread = floors[workload], f"{low:.2f} to {high:.2f}"
                add(f"{name} against {other}", workload, f"{floor:.2f}x", f"{middle:.2f}x", middle >= floor, spread)
    for workload, rows in results.items():
        by_name = {row["variant"]: row for row in rows}
        if found := ratio(rows, "ours compiled float32", "ours compiled float32 causal"):
            spread = max(by_name["ours compiled float32"]["spread"], by_name["ours compiled float32 causal"]["spread"])
            low, middle, high = (1 / share for share in reversed(found))
            goal, quartiles = "bidirectional against causal, time", f"{low:.2f} to {high:.2f}"
            add(goal, workload, f"within the spread, {spread:.0%}", f"{middle:.2f}", middle <= 1 + spread, quartiles)
        for name in ("ours default float32", "ours float32", "ours compiled float32"):
            if {name, BASELINE} <= set(by_name):
                share = by_name[name]["peak_mib"] / by_name[BASELINE]["peak_mib"]
                add(f"{name}, peak memory against stock's", workload, "1.05x", f"{share:.2f}x", share <= 1.05)
    for name in ("ours int8", "ours compiled int8"):
        cosines = [row["cosine"] for rows in results.values() for row in rows if row["variant"] == name]
        if cosines := [cosine for cosine in cosines if cosine is not None]:
            add(f"{name}, smallest cosine", "all", "0.998", f"{min(cosines):.5f}", min(cosines) >= 0.998)
    ours = [name for name in VARIANTS if name.startswith("ours") and "causal" not in name]
    queries = {name: found for name in ours if (found := ratio(results.get("query", []), name, BASELINE))}
    if queries:
        best = max(queries, key=lambda name: queries[name][1])
        low, middle, high = (1 / share for share in reversed(queries[best]))
        goal = f"one query, time of stock float32's ({best})"
        add(goal, "query", "0.40", f"{middle:.2f}", middle <= 0.40, f"{low:.2f} to {high:.2f}")
    return "\n".join(lines)


def comparisons(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: how many times as fast as another, for each workload."""
    lines = [f"| times as fast | {' | '.join(results)} |", f"| --- |{' ---: |' * len(results)}"]
    for name, other, _ in COMPARISONS:
        found = [ratio(rows, name, other) for rows in results.values()]
        if any(found):
            cells = [f"{f[1]:.2f} ({f[0]:.2f} to {f[2]:.2f})" if f else "" for f in found]
            lines.append(f"| {name} against {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cosine(a: Path, b: Path) -> float:
    """The smallest cosine over the texts."""
    x, y = np.load(a).astype(np.float64), np.load(b).astype(np.float64)
    return float(((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).min())


COLUMNS = {
    "variant": "{}",
    "tokens_per_second": "{:,.0f}",
    "spread": "{:.0%}",
    "texts_per_second": "{:,.1f}",
    "p50_ms": "{:.1f}",
    "p95_ms": "{:.1f}",
    "against_stock": "{:.2f}x",
    "of_limit": "{:.0%}",
    "cosine": "{:.5f}",
    "peak_mib": "{:,.0f}",
    "told": "{}",
}
TITLES = [
    "variant",
    "tokens/s",
    "spread",
    "texts/s",
    "p50 ms",
    "p95 ms",
    "x stock f32",
    "of limit",
    "cosine",
    "MiB",
    "",
]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, fastest first; spread is the distance of the quartiles, of the limit is of the same number type."""
    lines = [" | ".join(TITLES), " | ".join(["---", *["---:"] * 9, "---"])]
    for row in sorted(rows, key=lambda row: -row["tokens_per_second"]):
        cells = [pattern.format(row[key]) if row[key] is not None else "" for key, pattern in COLUMNS.items()]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def plot(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print('No plot: pip install "st-llm2vec[bench]" brings matplotlib.')
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 5), squeeze=False)
    for axis, (title, rows) in zip(axes[0], results.items(), strict=True):
        rows = sorted(rows, key=lambda row: row["tokens_per_second"])  # noqa: PLW2901
        colors = [
            "#999999" if "limit" in r["variant"] else "#d62728" if "ours" in r["variant"] else "#1f77b4" for r in rows
        ]
        axis.barh([r["variant"] for r in rows], [r["tokens_per_second"] for r in rows], color=colors)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tokens/s")
    figure.tight_layout()
    figure.savefig(file)
    print(f"Plot: {file}")


def machine() -> str:
    """Cores, instructions and versions, as a line."""
    import torch

    flags = [
        n for n in ("avx512", "avx512_bf16", "vnni", "amx_tile") if getattr(torch.cpu, f"_is_{n}_supported", bool)()
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "sentence-transformers"))
    return f"{len(os.sched_getaffinity(0))} cores with {', '.join(flags) or 'no AVX512'}; {packages}"


def start(folder: Path, args: argparse.Namespace) -> list[Worker]:
    """The variants that were asked for and that start, each in its process."""
    unfit = CUDA_ONLY if args.device == "cpu" else CPU_ONLY
    workers = []
    for name in VARIANTS:
        if name.startswith(tuple(args.variant)) and not any(word in name for word in unfit):
            log = args.out / f"{name}.log"
            try:
                workers.append(Worker(name, folder, args.device, args.environments or args.out, log))
            except (RuntimeError, BrokenPipeError) as error:
                print(f"  {name} is left out: {str(error)[:200]}", flush=True)
    return workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of jsonl files with texts; default: docstrings")
    parser.add_argument("--shape", nargs="+", default=["135m"], choices=SHAPES)
    parser.add_argument("--model", type=Path, help="A folder in place of the shapes")
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--variant", nargs="+", default=[""], help="Only variants whose names begin so")
    parser.add_argument("--tokens", type=int, default=3000, help="Of a workload")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--environments", type=Path, help="Where other packages' environments are; default: in --out")
    parser.add_argument("--quick", action="store_true", help="Short texts and queries, no packages but these; 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.variant, args.workload, args.tokens, args.rounds = ["ours", "stock", "limit"], ["short", "query"], 1500, 3
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    report = [machine()]
    print(report[0], flush=True)
    texts = {w: make_texts(w, 12 * 12 if w == "query" else args.tokens, args.data) for w in args.workload}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for shape in ["model"] if args.model else args.shape:
        folder, weights = (args.model, str(args.model)) if args.model else real_or_random(shape, args.out, args.device)
        if args.model or "real" in weights:
            folder = bidirectional(folder, args.out / "models" / f"{shape}-{folder.name}")
        report.append(f"{shape}: {weights}")
        print(report[-1], flush=True)
        tokens = {workload: count_tokens(those, folder) for workload, those in texts.items()}
        workers = start(folder, args)
        packages = ", ".join(dict.fromkeys(package for worker in workers for package in worker.packages))
        report += [f"Peers: {packages}"] if packages and len(report) == 2 else []
        progress = Progress(tokens, args.rounds)
        results[shape] = {}
        for workload in args.workload:
            title = f"## {shape}, {WORKLOADS[workload]}"
            print(f"\n{title}\n", flush=True)
            rows = measure(workers, workload, texts[workload], args.rounds, args.out, progress)
            results[shape][workload] = rows
            report += [title, table(rows)]
            print("\n" + table(rows), flush=True)
            (args.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        ends = [
            f"## {shape}, against the goals",
            goals(results[shape]),
            f"## {shape}, ratios",
            comparisons(results[shape]),
        ]
        print("\n" + "\n\n".join(ends), flush=True)
        report += ends
        for worker in workers:
            worker.stop()
    (args.out / "table.md").write_text("\n\n".join(report) + "\n", encoding="utf-8")
    titled = {f"{shape}, {WORKLOADS[w]}": rows for shape, those in results.items() for w, rows in those.items()}
    plot(titled, args.out / "plot.png")
    print(f"Tables: {args.out / 'table.md'}")


if __name__ == "__main__":
    main()
