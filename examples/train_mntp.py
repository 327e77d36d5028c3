"""Step 2 of LLM2Vec, masked next-token prediction: adapt an encoder to the language of a new domain, without labels."""

from __future__ import annotations

import random

import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from stdlib_docs import passages

import st_llm2vec
from st_llm2vec.training import MNTPDataCollator, MNTPLoss, add_lora, chunk_texts, merge_lora

MODEL = "llm2vec-tiny"
OUTPUT = "build/mntp"
STEPS, BATCH, LENGTH = 150, 16, 64
LEARNING_RATE = 1e-3

# 1. Plain text: docstrings of the standard library, one in ten held out.
texts = [passage.text for passage in passages()]
random.Random(0).shuffle(texts)
held_out = len(texts) // 10

# 2. The encoder, and its text in chunks of equal length.
model = st_llm2vec.load(MODEL)
train = chunk_texts(texts[held_out:], model.tokenizer, LENGTH)
test = chunk_texts(texts[:held_out], model.tokenizer, LENGTH)

# 3. sentence-transformers' own trainer; ours are the loss and the collator that masks.
add_lora(model, "mntp")
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=f"{OUTPUT}/checkpoints",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        logging_steps=50,
        save_steps=STEPS,
        save_total_limit=1,
        use_cpu=not torch.accelerator.is_available(),
        report_to=[],
    ),
    train_dataset=train,
    eval_dataset=test,
    loss=MNTPLoss(model),
    data_collator=MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer),
)

# 4. Loss on the held-out text, the same masks both times: before, and after.
torch.manual_seed(0)
before = trainer.evaluate()["eval_loss"]
trainer.train()
torch.manual_seed(0)
after = trainer.evaluate()["eval_loss"]
print(f"held-out MNTP loss: {before:.3f} before, {after:.3f} after {STEPS} steps")

# 5. Merge the adapter and save a folder that sentence-transformers opens.
merge_lora(model)
model.save_pretrained(OUTPUT)
print(f"saved to {OUTPUT}; next: train_simcse.py or train_supervised.py with MODEL = {OUTPUT!r}")
