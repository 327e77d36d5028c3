"""LLM2Vec's training steps as losses, collators and settings for `SentenceTransformerTrainer`.

mntp.py         step 2: masked next-token prediction
simcse.py       step 3, without labels: the same text twice under dropout
supervised.py   step 3, with pairs or triplets: in-batch and hard negatives
head.py         the causal LM's head, which MNTP predicts with
lora_linear.py  a LoRA layer that trains fast
lora.py         which weights train: LoRA, stage by stage; or all of them
run.py          one stage from rows to a saved encoder; all stages of a recipe
processes.py    what several processes agree on
objectives.py   the objectives as rows of a table
data.py         rows from files, checked and hashed
streams.py      data sets that are read while training
chunks.py       texts as chunks of token ids, for MNTP
arguments.py    a stage's settings as the host's arguments
scoring.py      scores before, while and after it trains
mining.py       hard negatives for pairs
soup.py         the mean of several encoders' weights
distill.py      a teacher's vectors
static.py       an encoder as a table of token vectors
guided.py       false negatives that a guide leaves out
principal.py    principal components, of a teacher's vectors and of tokens
records.py      what a run leaves: settings, hashes, curve, scores, adapter
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MissingExtraError

if find_spec("datasets") is None or find_spec("accelerate") is None:
    raise MissingExtraError(
        'st_llm2vec.training needs datasets and accelerate. Install them with: pip install "st-llm2vec[train]"'
    )

from ..recipe_files import Recipe, read_recipe
from ..recipes import DataSet, TrainingSettings
from . import mntp, simcse, supervised
from .chunks import chunk_texts
from .head import language_model_head
from .lora import add_lora, merge_lora
from .mining import Mining, mine
from .mntp import MNTPDataCollator, MNTPLoss
from .records import Result
from .run import train_all, train_stage
from .simcse import attention_dropout, simcse_pairs
from .soup import soup
from .static import distill_static

__all__ = [
    "DataSet",
    "MNTPDataCollator",
    "MNTPLoss",
    "Mining",
    "Recipe",
    "Result",
    "TrainingSettings",
    "add_lora",
    "attention_dropout",
    "chunk_texts",
    "distill_static",
    "language_model_head",
    "merge_lora",
    "mine",
    "mntp",
    "read_recipe",
    "simcse",
    "simcse_pairs",
    "soup",
    "supervised",
    "train_all",
    "train_stage",
]
