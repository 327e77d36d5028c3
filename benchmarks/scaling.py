"""Shows that the cost of encoding grows with the tokens, from 10^3 to 10^6, and memory with the vectors only.

    python benchmarks/scaling.py --data DIR        # llm2vec-tiny, five minutes on two cores

Each size is encoded by a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from run import machine
from worker import _forget_peak, _peak_mib
from workloads import ROOT, make_texts

SIZES = [10**3, 10**4, 10**5, 10**6]
ROUNDS = 3


def encode(file: Path, tokens: int) -> None:
    """Prints seconds per round and the peak memory of encoding about so many tokens."""
    import st_llm2vec

    base = json.loads(file.read_text(encoding="utf-8"))
    texts, counted = [], 0
    while counted < tokens:  # a text of the pool again is as much work as the first time
        text, count = base[len(texts) % len(base)]
        texts.append(text)
        counted += count
    model = st_llm2vec.load("llm2vec-tiny", device="cpu")
    model.encode(texts[:32], show_progress_bar=False)
    _forget_peak()
    before = _peak_mib("cpu")
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model.encode(texts, show_progress_bar=False)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens": counted, "texts": len(texts), "seconds": seconds, "mib": _peak_mib("cpu") - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--encode", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.encode:
        encode(Path(args.encode[0]), int(args.encode[1]))
        return
    from transformers import AutoTokenizer

    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "st_llm2vec" / "tiny")
    texts = make_texts("mixed", 60_000, args.data)
    counts = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    file = args.out / "scaling-texts.json"
    file.write_text(json.dumps(list(zip(texts, counts, strict=True))), encoding="utf-8")
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--encode", str(file), str(size)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    lines = ["| tokens | texts | seconds | us/token | MiB above the model |", "| ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        middle = float(np.median(row["seconds"]))
        cells = [f"{row['tokens']:,}", f"{row['texts']:,}", f"{middle:.2f}", f"{1e6 * middle / row['tokens']:.1f}"]
        lines.append(f"| {' | '.join([*cells, format(row['mib'], '.0f')])} |")
    text = "\n".join([machine(), "", *lines])
    print(text)
    (args.out / "scaling.md").write_text(text + "\n", encoding="utf-8")
    try:
        import matplotlib
    except ImportError:
        print('No plot: pip install "st-llm2vec[bench]" brings matplotlib.')
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 4))
    tokens = np.array([row["tokens"] for row in rows])
    middle = np.array([np.median(row["seconds"]) for row in rows])
    axis.loglog(tokens, middle, "o-", label="llm2vec-tiny")
    axis.loglog(tokens, tokens * middle[-1] / tokens[-1], "--", color="grey", label="linear")
    axis.set(xlabel="tokens", ylabel="seconds")
    axis.legend()
    figure.tight_layout()
    figure.savefig(args.out / "scaling.png")


if __name__ == "__main__":
    main()
