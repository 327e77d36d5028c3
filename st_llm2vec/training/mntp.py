"""Step 2 of LLM2Vec: masked next-token prediction (paper section 2.2; tests/parity/kit/README.md, 3.11).

The token at position i is predicted from the hidden state at i - 1, not at i: a decoder's head was trained to read the
*next* token off each position, and keeping that alignment is what makes the short adaptation work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.data_collator import BaseDataCollator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..presets import trainer_arguments
from ..settings import as_count, as_flag, as_share, as_texts
from ..templates import special_counts
from .head import LanguageModelHead

IGNORED = -100

# The paper's settings (train_configs/mntp of the original package), for SentenceTransformerTrainingArguments.
PRESET = trainer_arguments("mntp")


def chunk_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int = 512) -> Dataset:
    """Joins tokenized documents, each with its own special tokens, and cuts them to equal chunks without padding.

    Returns:
        Columns `input_ids` and `special_tokens_mask`, lists of `length` integers; the remainder is dropped.

    Raises:
        InvalidInputError: No texts, fewer tokens than one chunk, or a length below 1.
    """
    length = as_count("length", length)
    ids: list[int] = []
    special: list[int] = []
    texts = as_texts("texts", texts)
    for start in range(0, len(texts), 1000):
        documents = tokenizer(texts[start : start + 1000], return_special_tokens_mask=True, verbose=False)
        ids += chain.from_iterable(documents["input_ids"])
        special += chain.from_iterable(documents["special_tokens_mask"])
    n = len(ids) // length
    if n == 0:
        raise InvalidInputError(f"All texts together have {len(ids)} tokens, fewer than one chunk of length={length}.")
    return Dataset.from_dict(
        {
            "input_ids": [ids[i * length : (i + 1) * length] for i in range(n)],
            "special_tokens_mask": [special[i * length : (i + 1) * length] for i in range(n)],
        }
    )


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
    """Masks tokens for `MNTPLoss`.

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
            if len({len(row.get(name, ())) for row in features for name in ("input_ids", "special_tokens_mask")}) != 1:
                raise InvalidInputError(
                    "Rows of token ids must be those of chunk_texts: input_ids and special_tokens_mask, of one length."
                )
            ids = torch.tensor([row["input_ids"] for row in features])  # (n, length)
            attention = torch.ones_like(ids)
            special = torch.tensor([row["special_tokens_mask"] for row in features]).bool()
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


def _share_of_all(count: Tensor) -> Tensor:
    """A count's mean over all processes: what each divides by, so that their mean is that of one with all batches."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class MNTPLoss(nn.Module):
    """Cross entropy of the masked tokens, each predicted from the position to its left.

    Only the masked positions go through the head, so its cost falls with `mlm_probability`.

    Args:
        model: The encoder; an untied head is read from the folder that its decoder was loaded from.
        head: Output embeddings (vocabulary, hidden); default: the decoder's own.
        train_head: Let the head learn, too. The original does so by accident and throws it away (defect Q19): it is in
            no checkpoint, so a resumed run starts from the decoder's own again.

    Inputs: one text column masked by `MNTPDataCollator`; labels of the same shape.
    """

    def __init__(self, model: LLM2Vec, head: Tensor | None = None, train_head: bool = False) -> None:
        super().__init__()
        if getattr(model[0].model, "is_quantized", False):
            raise InvalidInputError("A quantized model cannot be trained. Load it without quantize.")
        if head is not None and not isinstance(head, Tensor):
            raise InvalidInputError(f"head must be a matrix (vocabulary, hidden), got a {type(head).__name__}.")
        train_head = as_flag("train_head", train_head)
        self.model = model
        self.head = LanguageModelHead(model, head, trainable=train_head)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (features,) = sentence_features
        features = {"pooling_mask": features["attention_mask"], **features}  # nothing is pooled, templates or not
        hidden = self.model(features)["token_embeddings"][:, :-1]  # (n, length - 1, hidden)
        targets = labels[:, 1:]
        selected = targets != IGNORED
        logits = self.logits(hidden[selected])  # (masked tokens, vocabulary)
        total = functional.cross_entropy(logits.float(), targets[selected], reduction="sum")
        return total / _share_of_all(selected.sum()).clamp_min(1)

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
