"""Step 3 of LLM2Vec without labels, SimCSE: each text is its own positive, seen twice through different dropout."""

from __future__ import annotations

import random

import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from stdlib_docs import passages

import st_llm2vec
from st_llm2vec.training import add_lora, attention_dropout, merge_lora, simcse, simcse_pairs

MODEL = "llm2vec-tiny"
OUTPUT = "build/simcse"
STEPS, BATCH, LENGTH = 60, 32, 48
LEARNING_RATE = 1e-4

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

# 2. The encoder, cut short while it trains.
model = st_llm2vec.load(MODEL)
whole = model.max_seq_length
before = evaluator(model)["cosine_ndcg@10"]

# 3. sentence-transformers' own trainer and loss; ours is the dropout that makes the two passes differ.
add_lora(model, "simcse")
model.max_seq_length = LENGTH
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=f"{OUTPUT}/checkpoints",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        logging_steps=20,
        save_steps=STEPS,
        save_total_limit=1,
        use_cpu=not torch.accelerator.is_available(),
        report_to=[],
    ),
    train_dataset=simcse_pairs(texts[500:]),
    loss=MultipleNegativesRankingLoss(model, scale=simcse.SCALE),
)
with attention_dropout(model):
    trainer.train()

# 4. Merge, measure again, save.
merge_lora(model)
model.max_seq_length = whole
after = evaluator(model)["cosine_ndcg@10"]
print(f"second half found by the first, nDCG@10: {before:.3f} before, {after:.3f} after {STEPS} steps")
model.save_pretrained(OUTPUT)
print(f"saved to {OUTPUT}")
