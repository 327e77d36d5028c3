"""Masked-token accuracy: how many masked tokens a decoder's own head predicts right from the position before each.

What masked next-token prediction trains, measured: an ordinary decoder knows what stands before a masked token, one
whose causal mask was only removed is lost, one that was trained uses both sides.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device

from ..evaluation.files import Source, text
from ..evaluation.kind import Kind
from ..training import MNTPDataCollator, MNTPLoss, chunk_texts
from ..training.mntp import IGNORED

LENGTH, BATCH_SIZE = 128, 8


def read(source: Source) -> list[str]:
    """Column text: documents."""
    return [text(row, "text") for row in source.rows("text")]


@torch.no_grad()
def predict(model: Any, texts: list[str], *, head: Any = None) -> Any:
    """Columns: of each chunk of 128 tokens, how many masked tokens are predicted right, and how many there are.

    What is masked, 20 % of the tokens, follows from the text alone and is the same for every model of one tokenizer.
    """
    chunks = chunk_texts(texts, model.tokenizer, LENGTH)
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, all_mask=True)
    loss = MNTPLoss(model, head=head)
    items = []
    for start in range(0, len(chunks), BATCH_SIZE):
        batch = collator([chunks[i] for i in range(start, min(start + BATCH_SIZE, len(chunks)))])
        mask = batch["text_attention_mask"]
        features = {"input_ids": batch["text_input_ids"], "attention_mask": mask, "pooling_mask": mask}
        hidden = model(batch_to_device(features, model.device))["token_embeddings"][:, :-1]
        targets = batch["label"][:, 1:].to(hidden.device)
        selected = targets != IGNORED
        right = torch.zeros_like(selected)
        right[selected] = loss.logits(hidden[selected]).argmax(-1) == targets[selected]
        items.append(torch.stack([right.sum(1), selected.sum(1)], 1).cpu().numpy())
    return np.concatenate(items).astype(np.float64)


def accuracy(items: Any) -> float:
    """Right ones of all; nan where nothing was masked."""
    right, masked = items.sum(0)
    return float(right / masked) if masked else float("nan")


def kind(head: Any = None) -> Kind:
    """The kind of task.

    Args:
        head: Output embeddings, where they are not tied to the input embeddings: encoders are saved without them.
    """
    return Kind(
        name="masked_tokens",
        metric="masked-token accuracy",
        columns=("text",),
        layout="text",
        read=read,
        measure=partial(predict, head=head),
        statistic=accuracy,
        static=False,
    )
