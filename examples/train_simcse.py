"""Step 3 of LLM2Vec without labels, SimCSE: each text is its own positive, seen twice through different dropout."""

from __future__ import annotations

import random

from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from stdlib_docs import passages

from st_llm2vec.training import TrainingSettings, train_stage

MODEL = "llm2vec-tiny"
OUTPUT = "build/simcse"

# 1. Texts to train on: docstrings. To measure with: does the first half of a docstring find its second half, among
#    500 that are held out?
texts = sorted({passage.text for passage in passages() if len(passage.text) > 120})
random.Random(0).shuffle(texts)
queries, corpus = {}, {}
for i, text in enumerate(texts[:500]):
    words = text.split()
    queries[f"q{i}"], corpus[f"d{i}"] = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
evaluator = InformationRetrievalEvaluator(
    queries, corpus, {f"q{i}": {f"d{i}"} for i in range(len(queries))}, ndcg_at_k=[10], write_csv=False
)

# 2. One stage; what makes the two passes differ is dropout on the attention, which decoders switch off.
settings = TrainingSettings(
    "simcse",
    model=MODEL,
    data={"docstrings": texts[500:]},
    output=OUTPUT,
    max_steps=60,
    batch_size=32,
    max_seq_length=48,
    learning_rate=1e-4,
)
result = train_stage(settings, evaluator=evaluator, log=print)

# 3. Measured before the first step and on what was saved.
before, after = (scores["eval_cosine_ndcg@10"] for scores in (result.before, result.after))
print(f"second half found by the first, nDCG@10: {before:.3f} before, {after:.3f} after {result.steps} steps")
print(f"saved to {OUTPUT}")
