"""Stage 3: scores the start and the encoder on the test splits and writes the folder that the wheel ships.

python recipes/tiny/release.py --data DIR --out build/tiny          # writes st_llm2vec/tiny
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import st_llm2vec
from st_llm2vec.evaluation import Score, evaluate

TASKS = ("stsb", "scifact")
TARGET = Path(__file__).parents[2] / "st_llm2vec" / "tiny"

# What the table calls it and the stage's folder.
STAGES = [("start: the mean of the learned token vectors", "start"), ("+ distillation", "distill")]

CARD = """---
license: cc-by-sa-4.0
language: en
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, llm2vec, feature-extraction]
---
# llm2vec-tiny

A text encoder of {parameters:,} parameters that ships inside `st-llm2vec`: a Llama-shaped decoder with attention in
both directions that learned the vectors of `llm2vec-smollm2`, an encoder 18 times its size, made by LLM2Vec. It is
small enough to test and teach with, and to search a few thousand short texts; for quality, use a larger one.

```python
from sentence_transformers import SentenceTransformer
import st_llm2vec

model = SentenceTransformer("llm2vec-tiny")  # 256 dimensions, at most 512 tokens, lower-cased English
```

Its folder names stock classes only: plain `SentenceTransformer(folder)` gives the same vectors.

## Scores

95 % intervals by bootstrap in brackets; each test split was scored once.

{table}

The static-embedding baseline is the mean of the model's own input embeddings, untouched by any layer. The start is a
stronger one: token vectors that were learned for their mean to be the teacher's vector. The teacher itself has 0.765
and 0.563, all-MiniLM-L6-v2 0.820 and 0.645, and BM25 0.687 on SciFact (`docs/which-model.md`, with more sets).
`st-llm2vec eval llm2vec-tiny --tasks stsb,scifact --data DIR` prints the last row, `recipes/tiny/release.py` all; `DIR`
holds the sets as `<name>/<split>.jsonl.xz`.

## How it was made

`recipes/tiny` in the repository, fixed seeds, two CPU cores, one run: {steps} steps of {batch} rows. Settings were
chosen on STS-B's dev split and SciFact's train queries. The teacher's vectors were computed in int8 and bfloat16, of
at most 256 tokens (`recipes/tiny/README.md`).

| data | licence |
| --- | --- |
| SNLI, WikiSplit, SQuAD by way of QNLI | CC BY-SA 4.0 |
| sentences and passages of English Wikipedia | CC BY-SA 3.0 |
| MedQuAD | CC BY 4.0 |
| PubMedQA | MIT |

The tokenizer was trained on English Wikipedia. No split of STS-B and no row of MRPC was trained on; sentences of
STS-B's dev and test splits had been taken out of the SNLI rows. The weights are under CC BY-SA 4.0.

## Limits

English only, lower-cased. Knows little of the world; long passages are read through a vector of 256 numbers.
"""


def row(label: str, scores: dict[str, Score]) -> str:
    """A line of the card's table."""
    cells = [f"{scores[t].value:.3f} [{scores[t].low:.3f}, {scores[t].high:.3f}]" for t in TASKS]
    return f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets, <name>/<split>.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages, for example build/tiny")
    args = parser.parse_args()
    lines = ["| | STS-B test, Spearman | SciFact test, nDCG@10 |", "| --- | --- | --- |"]
    for label, folder in STAGES:
        model = st_llm2vec.load(str(args.out / folder), max_seq_length=512)
        found = evaluate(model, list(TASKS), args.data, baselines=folder == STAGES[-1][1])
        by_model: dict[str, dict[str, Score]] = {}
        for score in found:
            by_model.setdefault(score.model, {})[score.task] = score
        for name, scores in by_model.items():
            if len(scores) == len(TASKS):  # BM25 has one
                lines.append(
                    row("static-embedding baseline of the encoder" if name.startswith("static") else label, scores)
                )
                print(lines[-1], flush=True)

    shutil.rmtree(TARGET, ignore_errors=True)
    model.provenance = {"base_model": "recipes/tiny", "license": "cc-by-sa-4.0", "checkpoints": []}
    model.save_pretrained(str(TARGET))
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(TARGET / "model.safetensors").items()}
    save_file(weights, TARGET / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "llm2vec_config.json"):
        content = json.loads((TARGET / name).read_text(encoding="utf-8"))
        (TARGET / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    config = json.loads((TARGET / "config.json").read_text())
    assert config["dtype"] == "float32"  # opens in float32, although it is stored in half of that
    record = json.loads((args.out / STAGES[-1][1] / "training" / "settings.json").read_text())["settings"]
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        table="\n".join(lines),
        steps=f"{record['max_steps']:,}",
        batch=record["batch_size"],
    )
    (TARGET / "README.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    print(f"{TARGET}: {size / 1e6:.1f} MB")
