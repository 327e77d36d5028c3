"""False negatives left out by a guide (GISTEmbed, arXiv 2402.16829): the host's losses, with cosines in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss, GISTEmbedLoss
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .. import aliases
from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..recipes import TrainingSettings
from .data import Source
from .similarity import cosine
from .teacher import fingerprint_of, open_encoder


class _Guided(nn.Module):
    guide: Any

    def sim_matrix(self, embed1: Tensor, embed2: Tensor) -> Tensor:
        return cosine(embed1, embed2)

    def train(self, mode: bool = True) -> _Guided:
        super().train(mode)
        self.guide.eval()  # without dropout, whatever the student does
        return self


class GuidedLoss(_Guided, GISTEmbedLoss):
    """For batches that are in memory at once: anchor, positive and at most one hard negative."""


class CachedGuidedLoss(_Guided, CachedGISTEmbedLoss):
    """With GradCache: any number of hard negatives."""


def require_fitting(sources: Mapping[str, Source], settings: TrainingSettings) -> None:
    """Raise where a guide cannot help.

    Raises:
        InvalidInputError: More than one hard negative without mini batches.
        ModelNotFoundError: The guide has a name of our kind that is not known.
    """
    if settings["guide"] is None:
        return
    aliases.find(settings["guide"])
    if grad_cached(settings):
        return
    for name, source in sources.items():
        if len(source.columns) > 3:
            raise InvalidInputError(
                f"guide takes one hard negative, and {name!r} has {len(source.columns) - 2}. Give a mini_batch_size "
                f"below batch_size={settings['batch_size']}, with which it takes any number, or name three columns."
            )


def guided(model: LLM2Vec, settings: TrainingSettings) -> nn.Module:
    """Return contrast without the negatives that the guide takes for nearer to the anchor than its positive."""
    guide = open_encoder("guide", settings["guide"], cpu=bool(settings["cpu"])).requires_grad_(False)
    if not isinstance(getattr(guide, "tokenizer", None), PreTrainedTokenizerBase):  # which the host's losses need
        raise InvalidInputError(
            f"guide must have a tokenizer of transformers, got {settings['guide']!r}, which has its own (a static "
            "embedding?). Give an encoder with layers, such as guide='llm2vec-tiny'."
        )
    shared: dict[str, Any] = {
        "temperature": 1 / settings["scale"],
        "margin": settings["guide_margin"] or 0.0,
        "contrast_anchors": False,
        "contrast_positives": False,
        "gather_across_devices": PartialState().num_processes > 1,
    }
    if grad_cached(settings):
        return CachedGuidedLoss(model, guide, mini_batch_size=settings["mini_batch_size"], **shared)
    return GuidedLoss(model, guide, **shared)


def guide_fingerprint(loss: nn.Module) -> str | None:
    """Identify the guide of a loss; None where it has none."""
    return next((fingerprint_of(each.guide) for each in loss.modules() if isinstance(each, _Guided)), None)


def grad_cached(settings: TrainingSettings) -> bool:
    """Whether a batch is computed in mini batches (GradCache)."""
    size = settings["mini_batch_size"]
    return size is not None and size < settings["batch_size"]
