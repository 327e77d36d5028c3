"""Where the time of an encoding goes: matrix products, attention, the rest of the decoder, and everything around it.

python benchmarks/breakdown.py --shape 135m --workload short --variant "stock float32" "ours compiled bfloat16"
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from run import machine
from torch.profiler import ProfilerActivity, profile
from worker import VARIANTS
from workloads import ROOT, SHAPES, WORKLOADS, make_model, make_texts

PARTS = {
    "matrix products": ("_linear_pointwise", "qlinear", "addmm", "::mm", "bmm", "mkldnn_linear", "::linear"),
    "attention": ("scaled_dot_product", "flash_attention", "::attend"),
    "compiled loops": ("CompiledFxGraph",),
    "copies and casts": ("copy_", "::to", "clone", "contiguous", "::cat", "index"),
}
DEFAULT = [name for name in VARIANTS if name.startswith(("stock float32", "ours")) and "causal" not in name]


def shares(variant: str, folder: Path, texts: list[str], device: str) -> dict[str, float]:
    """Each part's share of the wall time of one warm encoding, on one thread so that times add up."""
    runner = VARIANTS[variant](folder, device)
    runner.tune(texts)
    runner.encode(texts)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        runner.encode(texts)
        wall = time.perf_counter() - start
    found = dict.fromkeys([*PARTS, "other operators"], 0.0)
    for event in recorded.key_averages():
        part = next((p for p, names in PARTS.items() if any(n in event.key for n in names)), "other operators")
        found[part] += event.self_cpu_time_total / 1e6 / wall
    return {**found, "Python and what it waits for": max(0.0, 1 - sum(found.values())), "seconds": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--workload", default="short", choices=WORKLOADS)
    parser.add_argument("--variant", nargs="+", default=DEFAULT)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = make_model(ROOT / "build" / "bench" / "models" / args.shape, args.shape)
    texts = make_texts(args.workload, args.tokens, args.data)
    rows = {variant: shares(variant, folder, texts, args.device) for variant in args.variant}
    print(machine() + ", one thread")
    titles = list(next(iter(rows.values())))
    print(f"| variant | {' | '.join(titles)} |\n| --- |{' ---: |' * len(titles)}")
    for variant, row in rows.items():
        cells = [f"{value:.2f}" if title == "seconds" else f"{value:.0%}" for title, value in row.items()]
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
