"""Measures this project, its peers and the machine's limit, taking turns in one run: `make bench`.

    python benchmarks/run.py --data DIR                         # 135M shape, all workloads, all variants (an hour)
    python benchmarks/run.py --quick                            # a first impression, under five minutes
    python benchmarks/run.py --shape 0.6b --variant ours stock limit --workload short
    python benchmarks/run.py --device cuda --shape 7b --variant ours stock limit

Each variant runs in a process of its own (worker.py), all are warm, and one at a time works: round by round, in another
order each time. Figures are medians over the rounds; a ratio is the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from workloads import ROOT, SHAPES, WORKLOADS, make_model, make_texts

HERE = Path(__file__).resolve().parent
WORKER = HERE / "worker.py"
BASELINE = "stock float32"

# Variant -> the environment that it runs in; None is this one.
VARIANTS: dict[str, str | None] = {
    "ours float32": None,
    "ours float32 causal": None,
    "ours bfloat16": None,
    "ours int8": None,
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
# Environment -> what is installed, command by command; torch first and pinned (see the Makefile).
ENVIRONMENTS = {
    # Without its training dependencies; it asks for transformers <= 4.44.2.
    "original": [["torch=={torch}"], ["transformers==4.44.2", "peft==0.13.2"], ["--no-deps", "llm2vec"]],
    "peers": [
        ["torch=={torch}"],
        ["transformers=={transformers}", "onnx", "onnxruntime", "openvino", "nncf", "gguf"],
        ["llama-cpp-python"],
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
                    print(f"  {', '.join(wanted)} did not install: {folder / name}.log")
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
        self._reply()

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({key: str(value) for key, value in command.items()}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout
        if not (line := self.process.stdout.readline()):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else "the process ended")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(workers: list[Worker], workload: str, texts: list[str], rounds: int, out: Path) -> Iterator[dict[str, Any]]:
    """A row of figures for each worker that lasts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "st_llm2vec" / "tiny")
    tokens = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    file = out / f"{workload}.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    how = "each" if workload == "query" else "all"
    alive, told, seconds, peaks = [], {}, {}, {}
    for worker in workers:
        try:
            told[worker.name] = worker.ask(do="warm" if how == "each" else "tune", texts=file)["told"]
            worker.ask(do=how, texts=file, vectors=out / f"{worker.name}.npy")
            alive.append(worker)
        except (RuntimeError, BrokenPipeError) as error:  # noqa: PERF203
            print(f"  {worker.name} is left out: {str(error)[:200]}")
    for turn in range(rounds):
        for worker in random.Random(turn).sample(alive, len(alive)):
            reply = worker.ask(do=how, texts=file)
            seconds.setdefault(worker.name, []).append(reply["seconds"])
            peaks[worker.name] = reply["peak_mib"]
    whole = {name: np.array([sum(times) for times in turns]) for name, turns in seconds.items()}
    reference = out / f"{BASELINE}.npy"
    for worker in alive:
        name, times = worker.name, whole[worker.name]
        each = np.concatenate(seconds[name]) * 1000
        kind = name.split()[-1] if name.split()[-1] != "causal" else "float32"
        quartiles = np.percentile(times, [25, 75])
        row = {
            "variant": name,
            "tokens_per_second": tokens / np.median(times),
            "spread": float((quartiles[1] - quartiles[0]) / np.median(times)),
            "texts_per_second": len(texts) / np.median(times),
            "p50_ms": float(np.percentile(each, 50)) if how == "each" else None,
            "p95_ms": float(np.percentile(each, 95)) if how == "each" else None,
            "peak_mib": peaks[name],
            "times": times.tolist(),
            "told": told[name],
        }
        for key, other in (("against_stock", BASELINE), ("of_limit", f"limit {kind}")):
            row[key] = float(np.median(whole[other] / times)) if other in whole else None
        is_model = not name.startswith("limit") and "causal" not in name
        row["cosine"] = _cosine(out / f"{name}.npy", reference) if is_model and BASELINE in whole else None
        if row["cosine"] is not None and row["cosine"] < 0.99:
            row["told"] = f"WRONG VECTORS {row['told']}"  # a fault of the export: its speed proves nothing
        yield row
    pairs = [
        ("ours float32 causal", "ours float32"),
        ("ours bfloat16", "stock bfloat16"),
        ("ours int8", "ours float32"),
    ]
    pairs += [("ours bfloat16", n) for n in whole if n.startswith(("original", "openvino b", "llama"))]
    pairs += [("ours int8", n) for n in whole if n.startswith(("onnx", "openvino i"))]
    for a, b in pairs:
        if a in whole and b in whole:
            ratios = whole[b] / whole[a]
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            print(f"  {a} against {b}: {middle:.2f}x (quartiles {low:.2f} to {high:.2f})")


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
        axis.set(title=title, xlabel="tokens/s")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of jsonl files with texts; default: docstrings")
    parser.add_argument("--shape", nargs="+", default=["135m"], choices=SHAPES)
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--variant", nargs="+", default=[""], help="Only variants whose names begin so")
    parser.add_argument("--tokens", type=int, default=4000, help="Of a workload")
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
    unfit = CUDA_ONLY if args.device == "cpu" else CPU_ONLY
    names = [n for n in VARIANTS if n.startswith(tuple(args.variant)) and not any(word in n for word in unfit)]
    print(machine())
    results: dict[str, list[dict[str, Any]]] = {}
    for shape in args.shape:
        folder = make_model(args.out / "models" / shape, shape)
        workers = []
        for name in names:
            try:
                workers.append(
                    Worker(name, folder, args.device, args.environments or args.out, args.out / f"{name}.log")
                )
            except (RuntimeError, BrokenPipeError) as error:  # noqa: PERF203
                print(f"  {name} is left out: {str(error)[:200]}", flush=True)
        for workload in args.workload:
            tokens = 12 * 12 if workload == "query" else args.tokens
            title = f"{shape}, {WORKLOADS[workload]}"
            print(f"\n## {title}\n", flush=True)
            rows = list(measure(workers, workload, make_texts(workload, tokens, args.data), args.rounds, args.out))
            results[title] = rows
            print("\n" + table(rows), flush=True)
        for worker in workers:
            worker.stop()
    text = "\n\n".join([f"{machine()}", *(f"## {title}\n\n{table(rows)}" for title, rows in results.items())])
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    (args.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    plot(results, args.out / "plot.png")
    print(f"Tables: {args.out / 'table.md'}")


if __name__ == "__main__":
    main()
