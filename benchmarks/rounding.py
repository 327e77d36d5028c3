"""What bfloat16 and int8 move of an encoder's vectors, and of its score on STS-B's dev split.

    python benchmarks/rounding.py --sts build/data/sts_dev.jsonl --texts build/data/wiki_sentences.jsonl
    python benchmarks/rounding.py --model llm2vec-smollm2-unsup FOLDER --sts ... --texts ...

Cosines to the vectors of float32, over 100 captions of the first file and 100 texts of the second; `recipes/prepare.py`
writes both. One thread or many: the figures are no times.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import st_llm2vec

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, compiled": {"dtype": "bfloat16", "compile": True},
    "int8, compiled": {"quantize": "int8", "compile": True},
}
SHARES = (0, 0.01, 0.05, 0.5)  # of the texts, from the smallest cosine on


def rows(file: Path, count: int | None = None) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["llm2vec-smollm2"], help="Names or folders")
    parser.add_argument("--sts", type=Path, required=True, help="jsonl: sentence1, sentence2, score")
    parser.add_argument("--texts", type=Path, required=True, help="jsonl: text")
    parser.add_argument("--pairs", type=int, help="Of --sts, for a quick look; default: all")
    args = parser.parse_args()
    pairs = rows(args.sts, args.pairs)
    left, right = ([row[name] for row in pairs] for name in ("sentence1", "sentence2"))
    probes = left[:100] + [row["text"] for row in rows(args.texts, 100)]
    print("| | | smallest | 1 % | 5 % | half | STS-B dev |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in args.model:
        exact: Any = None
        for variant, options in VARIANTS.items():
            model = st_llm2vec.load(name, device="cpu", **options)
            vectors, a, b = (model.encode(texts, normalize_embeddings=True) for texts in (probes, left, right))
            exact = vectors if exact is None else exact
            cosines = " | ".join(f"{share:.5f}" for share in np.quantile((vectors * exact).sum(1), SHARES))
            score = spearmanr((a * b).sum(1), [row["score"] for row in pairs]).statistic
            print(f"| {name} | {variant} | {cosines} | {score:.4f} |", flush=True)
