"""Step 3 of LLM2Vec with labels: pairs of a question and its answer, all other answers of the batch as negatives."""

from __future__ import annotations

import random
import re

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from stdlib_docs import passages

import st_llm2vec
from st_llm2vec.training import add_lora, merge_lora, supervised

MODEL = "llm2vec-tiny"
OUTPUT = "build/supervised"
STEPS, BATCH, LENGTH = 100, 32, 48
LEARNING_RATE = 1e-3

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

# 2. The encoder, cut short while it trains.
model = st_llm2vec.load(MODEL)
whole = model.max_seq_length
before = evaluator(model)["cosine_ndcg@10"]

# 3. sentence-transformers' own trainer and loss. More columns would be hard negatives.
add_lora(model, "supervised")
model.max_seq_length = LENGTH
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=f"{OUTPUT}/checkpoints",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a duplicate would be its own negative
        logging_steps=20,
        save_steps=STEPS,
        save_total_limit=1,
        use_cpu=not torch.accelerator.is_available(),
        report_to=[],
    ),
    train_dataset=Dataset.from_dict({"anchor": [name for name, _ in train], "positive": [text for _, text in train]}),
    loss=MultipleNegativesRankingLoss(model, scale=supervised.SCALE),
)
trainer.train()

# 4. Merge, measure again, save.
merge_lora(model)
model.max_seq_length = whole
after = evaluator(model)["cosine_ndcg@10"]
print(f"docstring found by its name, nDCG@10: {before:.3f} before, {after:.3f} after {STEPS} steps")
model.save_pretrained(OUTPUT)
print(f"saved to {OUTPUT}")
