"""Hard negatives for pairs, by sentence-transformers' `mine_hard_negatives`: near the anchor, and not too near.

A text nearer to the anchor than its positive is often an answer that nobody marked, and would be pushed away. So a
negative has to stay a margin below its positive (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from ..errors import InvalidInputError
from ..readers import TEXT_COLUMN
from ..recipes import DataSet
from ..settings import as_count, as_share, as_texts, one_of
from .data import Source, read_source, texts

SAMPLING = ("top", "random")


@dataclass(frozen=True)
class Mining:
    """How hard negatives are chosen.

    Args:
        negatives: Of each pair; pairs for which fewer are found are left out.
        margin: A negative's similarity to the anchor is at least this share of the positive's below it, in [0, 1).
        max_score: No negative is more similar than this.
        min_score: None is less.
        skip: Of the nearest texts, leave out this many.
        depth: Look at this many of the nearest texts; default: chosen by the host.
        sampling: "top" takes the nearest that are left, "random" any of them.
        seed: Of the sampling.

    Raises:
        InvalidInputError: A value of the wrong type or size.
    """

    negatives: int = 7
    margin: float = 0.05
    max_score: float | None = None
    min_score: float | None = None
    skip: int = 0
    depth: int | None = None
    sampling: str = "top"
    seed: int = 42

    def __post_init__(self) -> None:
        as_count("negatives", self.negatives)
        as_share("margin", self.margin)
        as_count("skip", self.skip, 0)
        as_count("seed", self.seed, 0)
        one_of("sampling", self.sampling, SAMPLING)
        if self.depth is not None and as_count("depth", self.depth) < self.skip + self.negatives:
            raise InvalidInputError(
                f"depth must be at least skip + negatives = {self.skip + self.negatives}, got {self.depth}."
            )


def read_pairs(data: DataSet) -> Source:
    """Read pairs to mine for.

    Raises:
        InvalidInputError: Not two columns of texts.
    """
    source = read_source("pairs", data, pairs=True, seed=0)
    if len(source.columns) != 2:
        raise InvalidInputError(
            f"columns of {source.rows.path} must be an anchor and a positive, got {', '.join(source.columns)}. Choose "
            "two: --columns question,answer."
        )
    return source


def read_corpus(data: DataSet) -> list[str]:
    """Read the texts that negatives are taken from; without a column, that of the texts."""
    return texts(
        read_source("corpus", data if data.columns else DataSet(data.file, (TEXT_COLUMN,)), pairs=False, seed=0)
    )


def mine(
    pairs: Source | Sequence[Mapping[str, Any]],
    model: SentenceTransformer,
    how: Mining | None = None,
    *,
    corpus: Sequence[str] | None = None,
    cross_encoder: CrossEncoder | None = None,
    batch_size: int = 32,
) -> Dataset:
    """Mine hard negatives for pairs, with the prompts that the model has for queries and documents.

    Args:
        pairs: An anchor and a positive in each row.
        model: Finds the candidates; any sentence-transformers model.
        how: Which candidates are negatives.
        corpus: Texts to take negatives from, besides all positives.
        cross_encoder: Scores the candidates in place of the model.
        batch_size: Texts at once.

    Returns:
        The pairs with columns `negative_1`, ..., for `train supervised`.

    Raises:
        InvalidInputError: No pair has enough negatives, or there are fewer texts than negatives asked for.
    """
    how = how or Mining()
    source = pairs if isinstance(pairs, Source) else read_pairs(DataSet(pairs))
    anchor, positive = source.columns
    candidates = sorted({*source.columns[positive], *as_texts("corpus", corpus or [])})
    depth = min(how.depth or len(candidates), len(candidates))
    if depth <= how.skip + how.negatives:
        raise InvalidInputError(
            f"negatives={how.negatives} after skip={how.skip} need more than {len(candidates)} different texts to take "
            "them from. Ask for fewer, or give a corpus."
        )
    random.seed(how.seed)
    found = mine_hard_negatives(
        Dataset.from_dict(source.columns),
        model,
        anchor_column_name=anchor,
        positive_column_name=positive,
        corpus=candidates,
        cross_encoder=cross_encoder,
        range_min=how.skip,
        range_max=None if how.depth is None else depth,
        max_score=how.max_score,
        min_score=how.min_score,
        relative_margin=how.margin,
        num_negatives=how.negatives,
        sampling_strategy=how.sampling,  # type: ignore[arg-type]  # one of them, as Mining has checked
        output_format="n-tuple",
        batch_size=batch_size,
        verbose=False,
    )
    if len(found) == 0:
        raise InvalidInputError(
            f"No pair has {how.negatives} negatives. Ask for fewer, for a smaller margin, or give a larger corpus."
        )
    return found
