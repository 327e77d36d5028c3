"""Step 2 of LLM2Vec: masked next-token prediction (paper section 2.2; tests/parity/kit/README.md, 3.11).

The token at position i is predicted from the hidden state at i - 1, not at i: a decoder's head was trained to read the
*next* token off each position, and keeping that alignment is what makes the short adaptation work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..presets import trainer_arguments
from ..settings import as_count, as_flag, as_share
from ..templates import special_counts
from .head import LanguageModelHead
from .lora import require_trainable
from .processes import mean_of_all

IGNORED = -100

# The paper's settings (train_configs/mntp of the original package), for SentenceTransformerTrainingArguments.
PRESET = trainer_arguments("mntp")


def mask_token_id(tokenizer: PreTrainedTokenizerBase, mask_token: str | None = None) -> int:
    """The id that stands for a masked token: the one asked for, else the tokenizer's own, else the blank `_`.

    The original package makes `_` a special token and saves it so (defect Q12); the tokenizer stays as it is here.
    """
    token = (tokenizer.mask_token or "_") if mask_token is None else mask_token
    token_id = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None
    if token_id is None or (token_id == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise InvalidInputError(
            f"mask_token={token!r} is not in the tokenizer's vocabulary. Give one that is, for example "
            f"mask_token={tokenizer.eos_token!r}."
        )
    return int(token_id)


@dataclass
class MNTPDataCollator(BaseDataCollator):
    """Mask tokens for `MNTPLoss`.

    Args:
        preprocess_fn: `model.preprocess`.
        tokenizer: `model.tokenizer`.
        mlm_probability: Share of the candidates (all tokens but those the tokenizer added) that are predicted.
        all_mask: Replace all of them by the mask token; otherwise 80 % mask, 10 % any token, 10 % unchanged.
        mask_token: Default: the tokenizer's own, else `_`.
        seed: What is masked follows from this and the batch alone: a resumed run, another number of workers and every
            evaluation draw the same; a shuffled epoch has other batches, and masks them in another way.

    Inputs: rows with a text column, or the columns of `chunk_texts`.
    Returns: `text_input_ids`, `text_attention_mask` and `label`, int64 (n, length); label is -100 where nothing is
        predicted.

    Example:
        >>> collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer)
        >>> sorted(collator([{"text": "Bears sleep through the winter."}]))
        ['label', 'text_attention_mask', 'text_input_ids']
    """

    tokenizer: PreTrainedTokenizerBase = None
    mlm_probability: float = 0.2
    all_mask: bool = False
    mask_token: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise InvalidInputError("MNTPDataCollator needs tokenizer=model.tokenizer.")
        self.mlm_probability = as_share("mlm_probability", self.mlm_probability, "(0, 1]")
        self.all_mask, self.seed = as_flag("all_mask", self.all_mask), as_count("seed", self.seed, 0)
        self.n_tokens = getattr(self.tokenizer, "embedded", len(self.tokenizer))
        self.mask_token_id = mask_token_id(self.tokenizer, self.mask_token)
        if self.mask_token_id >= self.n_tokens:
            raise InvalidInputError(
                f"mask_token must be one of the {self.n_tokens} tokens that the decoder has embeddings for, got number "
                f"{self.mask_token_id}. Give another, for example mask_token={self.tokenizer.eos_token!r}."
            )

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if "input_ids" in features[0]:
            if any(len(row.get("special_tokens_mask", ())) != len(row["input_ids"]) for row in features):
                raise InvalidInputError(
                    "Rows of token ids must be those of chunk_texts: input_ids and special_tokens_mask, of one length."
                )
            ids = _padded([row["input_ids"] for row in features])  # (n, length)
            attention = _padded([[1] * len(row["input_ids"]) for row in features])
            special = _padded([row["special_tokens_mask"] for row in features]).bool()
        else:
            columns = [name for name in features[0] if name != "dataset_name"]
            if len(columns) != 1:
                raise InvalidInputError(
                    f"MNTP reads one column of texts, got {columns}. Choose it: dataset.select_columns({columns[0]!r})."
                )
            if self.prompts:
                raise InvalidInputError("MNTP reads texts without prompts. Leave prompts out of the arguments.")
            (column,) = columns
            batch = self.preprocess_fn([row[column] for row in features])
            ids, attention = batch["input_ids"], batch["attention_mask"]
            before, after = special_counts(self.tokenizer)
            position, lengths = torch.arange(ids.shape[1]), attention.sum(1, keepdim=True)
            special = (position < before) | (position >= lengths - after)
        ids, labels = self.mask(ids, special | (attention == 0))
        return {"text_input_ids": ids, "text_attention_mask": attention, "label": labels}

    def mask(self, ids: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """(masked ids, labels), both (n, length), for token ids and a mask of the positions never to be predicted."""
        key = hashlib.blake2b(ids.numpy().tobytes() + str(self.seed).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))
        chance = torch.full(ids.shape, self.mlm_probability).masked_fill(excluded, 0.0)
        selected = torch.bernoulli(chance, generator=generator).bool()
        labels = ids.masked_fill(~selected, IGNORED)
        masked, ids = selected, ids.clone()
        if not self.all_mask:
            kind = torch.rand(ids.shape, generator=generator)
            masked = selected & (kind < 0.8)
            random = selected & (kind >= 0.8) & (kind < 0.9)
            ids[random] = torch.randint(self.n_tokens, ids.shape, generator=generator)[random]
        ids[masked] = self.mask_token_id
        return ids, labels


def _padded(rows: list[list[int]]) -> Tensor:
    """One matrix of rows, those that are shorter than the longest with 0 at their ends."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


class MNTPLoss(nn.Module):
    """Cross entropy of the masked tokens, each predicted from the position to its left.

    Only the masked positions go through the head, so its cost falls with `mlm_probability`.

    Args:
        model: The encoder; an untied head is read from the folder that its decoder was loaded from.
        head: Output embeddings (vocabulary, hidden); default: the decoder's own.
        train_head: Let the head learn, too. The original does so by accident and throws it away (defect Q19): it is in
            no checkpoint, so a resumed run starts from the decoder's own again.

    Inputs: one text column masked by `MNTPDataCollator`; labels of the same shape.

    Example:
        >>> tokens = model.preprocess(["Bears sleep through the winter."])
        >>> loss = MNTPLoss(model)(iter([tokens]), tokens["input_ids"])
        >>> loss.requires_grad
        True
    """

    def __init__(self, model: LLM2Vec, head: Tensor | None = None, train_head: bool = False) -> None:
        super().__init__()
        require_trainable(model[0].model)
        if head is not None and not isinstance(head, Tensor):
            raise InvalidInputError(f"head must be a matrix (vocabulary, hidden), got a {type(head).__name__}.")
        train_head = as_flag("train_head", train_head)
        self.model = model
        self.head = LanguageModelHead(model, head, trainable=train_head)
        self.counts = torch.zeros(2)  # masked tokens predicted right, and all of them, in evaluation

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (features,) = sentence_features
        features = {"pooling_mask": features["attention_mask"], **features}  # nothing is pooled, templates or not
        hidden = self.model(features)["token_embeddings"][:, :-1]  # (n, length - 1, hidden)
        targets = labels[:, 1:]
        selected = targets != IGNORED
        logits = self.logits(hidden[selected])  # (masked tokens, vocabulary)
        if not torch.is_grad_enabled():
            right = (logits.argmax(-1) == targets[selected]).sum()
            self.counts += mean_of_all(torch.stack([right, selected.sum()]).float()).cpu()
        total = functional.cross_entropy(logits.float(), targets[selected], reduction="sum")
        # Over the mean count of all processes, so that the mean of their losses is that of one with all batches.
        return total / mean_of_all(selected.sum()).clamp_min(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, the causal LM's own: (positions, hidden) -> (positions, vocabulary)."""
        logits: Tensor = self.head(hidden)
        return logits

    def get_config_dict(self) -> dict[str, Any]:
        return {"train_head": self.head.trainable}

    @property
    def citation(self) -> str:
        return (
            "@inproceedings{behnamghader2024llm2vec, title={LLM2Vec: Large Language Models Are Secretly Powerful Text "
            "Encoders}, author={BehnamGhader, Parishad and others}, booktitle={COLM}, year={2024}}"
        )


class MaskedAccuracy(SentenceEvaluator):
    """The share of masked tokens that were predicted right in the evaluation that has just run, of all processes."""

    def __init__(self, loss: MNTPLoss) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.loss = loss

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        right, masked = self.loss.counts.tolist()
        self.loss.counts.zero_()
        return {"masked_accuracy": right / masked} if masked else {}
