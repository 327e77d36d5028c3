"""Stage 2: bidirectional attention and masked next-token prediction on wiki_text, all weights.

python recipes/tiny/mntp.py --data DIR --out build/tiny
"""

from __future__ import annotations

from settings import rows
from stage import options, start, train

from st_llm2vec.training import MNTPDataCollator, MNTPLoss, chunk_texts

if __name__ == "__main__":
    args = options(__doc__)
    model = start(args.out, "1-causal-lm")
    chunks = {
        split: chunk_texts((row["text"] for row in rows(args.data, "wiki_text", split)), model.tokenizer, length=256)
        for split in ("train", "dev")
    }
    train(
        model,
        MNTPLoss(model, train_head=True),  # tied to the input embeddings, so it has to follow them
        chunks["train"],
        args.out / "2-mntp",
        args.data,
        eval_dataset=chunks["dev"].select(range(200)),
        collator=MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mlm_probability=0.3),
        max_steps=200,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=30,
        weight_decay=0.01,
    )
