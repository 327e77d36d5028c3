"""Step 3 of LLM2Vec with labels: pairs of a question and its answer, all other answers of the batch as negatives."""

from __future__ import annotations

import random
import re

from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from stdlib_docs import passages

from st_llm2vec.training import TrainingSettings, train_stage

MODEL = "llm2vec-tiny"
OUTPUT = "build/supervised"

# 1. Pairs: the words of a name ("shutil copy file") and its docstring; 500 held out to measure with.
pairs = [
    (" ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", passage.name)), passage.text) for passage in passages()
]
random.Random(0).shuffle(pairs)
test, train = pairs[:500], pairs[500:]
evaluator = InformationRetrievalEvaluator(
    {f"q{i}": name for i, (name, _) in enumerate(test)},
    {f"d{i}": text for i, (_, text) in enumerate(test)},
    {f"q{i}": {f"d{i}"} for i in range(len(test))},
    ndcg_at_k=[10],
    write_csv=False,
)

# 2. One stage. More columns would be hard negatives; more data sets are never mixed in a batch.
settings = TrainingSettings(
    "supervised",
    model=MODEL,
    data={"docstrings": [{"name": name, "docstring": text} for name, text in train]},
    output=OUTPUT,
    max_steps=100,
    batch_size=32,
    max_seq_length=48,
    learning_rate=1e-3,
)
result = train_stage(settings, evaluator=evaluator, log=print)

# 3. Measured before the first step and on what was saved.
before, after = (scores["eval_cosine_ndcg@10"] for scores in (result.before, result.after))
print(f"docstring found by its name, nDCG@10: {before:.3f} before, {after:.3f} after {result.steps} steps")
print(f"saved to {OUTPUT}")
