"""Stage 1: a byte-level BPE tokenizer and a causal language model, from scratch, on wiki_text (CC BY-SA).

python recipes/tiny/pretrain.py --data DIR --out build/tiny     # resumes where it was stopped
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from settings import MODEL, SEED, SPECIAL_TOKENS, adamw
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from words import token_vectors

sys.path.append(str(Path(__file__).parents[1]))
from prepare import rows

LENGTH, BATCH = 256, 16
EMBEDDING_SCALE, NORM_SCALE = 0.5, 0.125  # the residual stream starts as the token vectors; logits start near 1


def train_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Lower-cased byte-level BPE without BOS; the leading blank makes a word the same at the start and inside.

    Blanks around a text are dropped, so a prompt may end in one, and every text is closed by the end token, so even
    the empty one has a vector: with both, stock `Transformer` + `Pooling` read exactly LLM2Vec's span.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    texts = (row["text"] for name in ("wiki_text", "wiki_sentences") for row in rows(data, name, "train"))
    tokenizer.train_from_iterator(texts, trainer)
    pad, end, mask = SPECIAL_TOKENS
    end_id = tokenizer.token_to_id(end)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, end_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, mask_token=mask, model_max_length=512
    )


class Chunks(torch.utils.data.Dataset):
    """Documents, each closed by the end token, joined and cut to `length` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> None:
        ids: list[int] = []
        for start in range(0, len(texts), 500):
            for document in tokenizer(texts[start : start + 500], add_special_tokens=False, verbose=False)["input_ids"]:
                ids += [*document, tokenizer.eos_token_id]
        self.ids = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def start_from_counts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    """Puts token vectors of words.py into the tied embeddings."""
    texts = [row["text"] for name in ("wiki_text", "wiki_sentences") for row in rows(data, name, "train")]
    documents = (
        document
        for start in range(0, len(texts), 500)
        for document in tokenizer(texts[start : start + 500], add_special_tokens=False, verbose=False)["input_ids"]
    )
    vectors = token_vectors(documents, MODEL["vocab_size"], MODEL["hidden_size"])
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight.copy_(torch.where(vectors.any(1, keepdim=True), vectors * EMBEDDING_SCALE, weight))
        model.model.norm.weight.fill_(NORM_SCALE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1_000)
    args = parser.parse_args()
    out = args.out / "1-causal-lm"

    set_seed(SEED)
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(args.data)
        tokenizer.save_pretrained(out)
    train, dev = (
        Chunks(tokenizer, [row["text"] for row in rows(args.data, "wiki_text", s)], LENGTH) for s in ("train", "dev")
    )
    print(f"{len(train):,} training chunks of {LENGTH} tokens, {train.ids.numel():,} tokens")

    config = LlamaConfig(
        **MODEL, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters")
    checkpoint = get_last_checkpoint(out / "checkpoints") if (out / "checkpoints").exists() else None
    if checkpoint is None:
        start_from_counts(model, tokenizer, args.data)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out / "checkpoints"),
            max_steps=args.steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            bf16=True,
            torch_compile=True,  # twice as fast on two CPU cores
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="steps",
            eval_steps=500,
            save_steps=250,
            save_total_limit=1,
            logging_steps=50,
            report_to=[],
            seed=SEED,
        ),
        train_dataset=train,
        eval_dataset=dev,
        data_collator=default_data_collator,
        optimizers=(adamw(model, 2e-3, weight_decay=0.1, betas=(0.9, 0.98)), None),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    print(trainer.evaluate())
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
