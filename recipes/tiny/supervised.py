"""Stage 4: contrastive training on redistributable pairs and triplets, all weights.

python recipes/tiny/supervised.py --data DIR --out build/tiny
"""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from settings import SEED, rows
from stage import cosine, options, start, train

# Of what this stage learned. The rest stays as the stage before left it, for texts unlike the training pairs (WiSE-FT,
# Wortsman et al. 2022, arXiv 2109.01903): STS-B dev 0.768 with 1.0, 0.778 with 0.7, 0.771 with 0.5.
SHARE = 0.7
SENTENCE_END = re.compile(r"(?<=[a-z0-9)][.!?]) (?=[A-Z])")


def snli(data: Path) -> Dataset:
    """Premise, entailed and contradicted hypothesis (CC BY-SA 4.0); the other sources of nli_triplets are left out."""
    found = [row for row in rows(data, "nli_triplets", "train") if row["source"].startswith("snli")]
    return Dataset.from_list([{k: row[k] for k in ("anchor", "positive", "negative")} for row in found])


def neutral(data: Path) -> Dataset:
    """Premise and a hypothesis about the same scene that may or may not hold (SNLI): nearer than any other text."""
    found = [r for r in rows(data, "nli", "train") if r["source"].startswith("snli") and r["label"] == "neutral"]
    return Dataset.from_list([{"anchor": row["premise"], "positive": row["hypothesis"]} for row in found])


def wiki_passages(data: Path, limit: int) -> Dataset:
    """One sentence of a paragraph against the rest of it (wiki_text, CC BY-SA): an unlabelled kind of retrieval."""
    chooser = random.Random(SEED)
    pairs = []
    for row in rows(data, "wiki_text", "train"):
        for paragraph in row["text"].split("\n"):
            sentences = SENTENCE_END.split(paragraph)
            if paragraph.startswith("==") or len(sentences) < 3:
                continue
            query = chooser.choice([s for s in sentences if 30 < len(s) < 300] or [sentences[0][:300]])
            rest = " ".join(s for s in sentences if s != query)
            pairs.append({"anchor": query, "positive": f"{row['title']}. {rest[:700]}"})
    chooser.shuffle(pairs)
    return Dataset.from_list(pairs[:limit])


def neighbours(data: Path, limit: int) -> Dataset:
    """Sentences that follow one another in an article (wiki_text, CC BY-SA)."""
    chooser = random.Random(SEED)
    pairs = []
    for row in rows(data, "wiki_text", "train"):
        sentences = [s for s in SENTENCE_END.split(row["text"].replace("\n", " ")) if 30 < len(s) < 250]
        pairs += [{"anchor": a, "positive": b} for a, b in list(pairwise(sentences))[::6]]
    chooser.shuffle(pairs)
    return Dataset.from_list(pairs[:limit])


def questions(data: Path, limit: int) -> Dataset:
    """Questions and the passage that answers: SQuAD by way of QNLI (CC BY-SA), MedQuAD (CC BY), PubMedQA (MIT)."""
    pairs = [
        {"anchor": row["question"], "positive": row["sentence"]}
        for row in rows(data, "qnli", "train")
        if row["label"] == "entailment"
    ]
    first = {row["question"]: row["answer"][:700] for row in reversed(list(rows(data, "medquad", "train")))}
    medical = [{"anchor": question, "positive": answer} for question, answer in first.items()]
    random.Random(SEED).shuffle(medical)
    pairs += medical[:limit]
    pairs += [{"anchor": row["question"], "positive": row["context"][:900]} for row in rows(data, "pubmedqa", "train")]
    return Dataset.from_list(pairs)


def splits(data: Path) -> Dataset:
    """A sentence and the same in two (WikiSplit, CC BY-SA 4.0)."""
    found = [row for split in ("train", "dev", "test") for row in rows(data, "wiki_split", split)]
    return Dataset.from_list([{"anchor": row["sentence1"], "positive": row["sentence2"]} for row in found])


if __name__ == "__main__":
    args = options(__doc__)
    model = start(args.out, "3-simcse", max_seq_length=64)
    pairs = snli(args.data)
    datasets = DatasetDict(
        snli=Dataset.from_list(list(pairs) * 3),
        neutral=neutral(args.data),
        passages=wiki_passages(args.data, 12_000),
        neighbours=neighbours(args.data, 20_000),
        questions=questions(args.data, 6_000),
        splits=splits(args.data),
    )
    print({name: len(dataset) for name, dataset in datasets.items()})
    train(
        model,
        MultipleNegativesRankingLoss(
            model, scale=20.0, similarity_fct=cosine, directions=("query_to_doc", "doc_to_query")
        ),
        datasets,
        args.out / "4-supervised",
        args.data,
        num_train_epochs=1,
        per_device_train_batch_size=128,
        learning_rate=1e-3,
        warmup_steps=50,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
    )
    before = start(args.out, "3-simcse")[0].model.state_dict()
    with torch.no_grad():
        for name, weight in model[0].model.state_dict().items():
            weight.copy_(torch.lerp(before[name], weight.cpu(), SHARE))
    model.save_pretrained(str(args.out / "4-supervised"))
