"""Step 2 of LLM2Vec, masked next-token prediction: adapt an encoder to the language of a new domain, without labels."""

from __future__ import annotations

import random
from pathlib import Path

from stdlib_docs import passages

from st_llm2vec.training import TrainingSettings, train_stage

MODEL = "llm2vec-tiny"
OUTPUT = "build/mntp"
HELD_OUT = Path("build/held-out.txt")

# 1. Plain text: docstrings of the standard library, one in ten held out.
texts = [passage.text for passage in passages()]
random.Random(0).shuffle(texts)
n = len(texts) // 10
HELD_OUT.parent.mkdir(exist_ok=True)
HELD_OUT.write_text("\n".join(texts[:n]), encoding="utf-8")

# 2. One stage, from rows to a saved encoder: chunks of equal length, masks, LoRA, the host's trainer, merging.
settings = TrainingSettings(
    "mntp",
    model=MODEL,
    data={"docstrings": texts[n:]},
    output=OUTPUT,
    eval_file=str(HELD_OUT),
    max_steps=150,
    batch_size=16,
    max_seq_length=64,
    learning_rate=1e-3,
)
result = train_stage(settings, log=print)

# 3. The loss on the held-out text, the same masks both times; the curve lies in OUTPUT/training.
before, after = result.before["eval_loss"], result.after["eval_loss"]
print(f"held-out MNTP loss: {before:.3f} before, {after:.3f} after {result.steps} steps")
print(f"saved to {OUTPUT}; next: train_simcse.py or train_supervised.py with MODEL = {OUTPUT!r}")
