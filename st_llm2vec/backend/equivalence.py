"""One rule for whatever makes an encoder faster: it moves vectors no further than the plain path does by itself.

A pretrained decoder is no exact function: the same text alone and in a padded batch gives vectors that differ by
rounding, and massive activations make that much larger than in a random model (SmolLM2-135M in bfloat16: 2e-2 of a
vector's length; float32: 1e-6). So packing, prepacking, compiling and quantizing are all measured on natural probe
texts, against what the plain path makes of the same texts in another batch and rounded otherwise: another batch alone
is often computed by the same sums in the same order, and shows little of what a decoder makes of rounding.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..auditing import attn_implementation_of, text_config

# From one word to a page, prose, code, figures, other scripts.
PROBES = [
    "a",
    "How long does it take to boil an egg?",
    "The quick brown fox jumps over the lazy dog.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2  # m²",
    "naïve café, 编码器, Übergrößenträger, 12.5 % of 1,024",
    "In 1869 Mendeleev left gaps in his table for elements that nobody had seen. " * 3,
    "Whales sleep with one half of their brain at a time, so that the other half can remember to breathe. " * 9,
]
# A short text is the worst conditioned (SmolLM2, int8 without smoothing: smallest cosine
# 0.985 on the texts above, 0.796 on captions).
SHORT_PROBES = [
    "A man is playing a guitar.",
    "A woman is slicing an onion.",
    "Two dogs run along the beach.",
    "The cat sat on the mat.",
    "Stocks fell for a third day.",
    "best pizza near me",
    "A plane is taking off.",
    "Who wrote this song?",
]
SLACK = 3.0  # two maxima of the same rounding, over a handful of texts, are this far apart (SmolLM2: up to 2.6)


class Bound(NamedTuple):
    """What a move may be: below `floor` always, above `ceiling` never, in between as far as the plain path moves."""

    floor: float
    ceiling: float

    def allows(self, noise: float) -> float:
        """The largest move that is accepted."""
        return min(max(self.floor, SLACK * noise), self.ceiling)


class Limit(NamedTuple):
    """Bounds of the relative distance between the vectors of a text, and between those of one of its tokens."""

    text: Bound
    token: Bound


# A distance of 0.1 is a cosine of 0.995, one of 1e-3 a cosine of 1 - 5e-7.
LIMITS = {
    "float64": Limit(Bound(1e-5, 1e-3), Bound(1e-5, 1e-2)),
    # A trained SmolLM2, causal, moves a token by 1.4e-5 when prepacked; the mildest fault moves one by 8e-2.
    "float32": Limit(Bound(1e-5, 1e-3), Bound(5e-5, 1e-2)),
    "float16": Limit(Bound(2e-3, 2e-2), Bound(5e-3, 0.1)),
    "bfloat16": Limit(Bound(2e-2, 0.1), Bound(6e-2, 0.3)),
    "int8": Limit(Bound(3e-2, 0.1), Bound(0.1, 0.3)),  # what enters a product may round to the next of 255 values
    # Not the same weights: what is asked for is a loss, and the floor is how much of it.
    "quantizing": Limit(Bound(0.1, 0.1), Bound(torch.inf, torch.inf)),
}


@dataclass(frozen=True)
class Move:
    """The largest distance between two vectors of one text, and of one token, in units of the first one's length."""

    text: float
    token: float

    @classmethod
    def between(cls, before: Sequence[Tensor] | Tensor, after: Sequence[Tensor] | Tensor) -> Move:
        """Of the token vectors of n texts, (tokens, hidden) each; a text's vector is their mean."""
        pairs = [(a.double(), b.double()) for a, b in zip(before, after, strict=True)]
        text = torch.stack([_distance(a.mean(0), b.mean(0)) for a, b in pairs]).max()
        return cls(float(text), float(torch.cat([_distance(a, b) for a, b in pairs]).max()))

    def __str__(self) -> str:
        return f"{self.text:.1e} (a token's by {self.token:.1e})"


def _distance(a: Tensor, b: Tensor) -> Tensor:
    found: Tensor = (a - b).norm(dim=-1) / a.norm(dim=-1).clamp_min(1e-30)
    return found


@dataclass(frozen=True)
class Status:
    """Whether a mechanism is on: yes, no for a reason, or not probed yet (`on` is None). True only where it is on."""

    on: bool | None = None
    reason: str = ""
    move: Move | None = None
    """How far it moves the vectors of the probe texts."""
    noise: Move | None = None
    """How far the plain path moves them by itself."""

    def __bool__(self) -> bool:
        return self.on is True

    def __str__(self) -> str:
        if self.on is None:
            return f"not yet: {self.reason}" if self.reason else "not probed"
        return ("yes" if self.on else "no") + f": {self.reason}" * bool(self.reason)


def off(reason: str) -> Status:
    """A mechanism that is not on, and why."""
    return Status(False, reason)


def precision(model: PreTrainedModel) -> str:
    """The entry of `LIMITS` that a model is held to."""
    return "int8" if getattr(model, "is_quantized", False) else str(model.dtype).removeprefix("torch.")


def judge(before: Sequence[Tensor] | Tensor, after: Sequence[Tensor] | Tensor, noise: Move, kind: str) -> Status:
    """Decide whether a mechanism gives the same vectors.

    Args:
        before: Token vectors of each probe text on the plain path, (tokens, hidden).
        after: The same by the mechanism.
        noise: `own_noise` of the plain path.
        kind: The entry of `LIMITS`: `precision` of the model, or "quantizing" where its weights are being rounded.
    """
    move, limit = Move.between(before, after), LIMITS.get(kind, LIMITS["float32"])
    for name, moved, own, bound in (
        ("", move.text, noise.text, limit.text),
        ("single tokens of ", move.token, noise.token, limit.token),
    ):
        if not moved <= bound.allows(own):  # NaN is refused
            reason = (
                f"it moves the vectors of {name}probe texts by {moved:.1e} of their length; allowed are "
                f"{bound.allows(own):.1e}, as the plain path moves them by {own:.1e} itself"
            )
            return Status(False, reason, move, noise)
    return Status(True, "", move, noise)


def probe_ids(model: PreTrainedModel, tokenizer: Any = None) -> list[list[int]]:
    """Token ids of the probe texts, one of them longer than every window of the model.

    A bare decoder without a tokenizer gets ids from all over its vocabulary, which nobody would call texts: enough for
    a mechanism's faults, and not for a pretrained decoder's noise.
    """
    config = text_config(model)
    longest = getattr(config, "max_position_embeddings", None) or 2**30
    windows = {getattr(config, "sliding_window", None) or 0}
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        windows.add(getattr(config, "attention_chunk_size", None) or 0)
    # a window has to be seen at work; one that spans every text (`enable_bidirectional_attention`) never is
    window = max((size for size in windows if size < longest), default=0)
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        sizes = [1, 5, 5, 8, 24]
        texts = [torch.randint(3, config.vocab_size, (n,), generator=generator).tolist() for n in sizes]
    else:
        texts = [tokenizer(text, verbose=False)["input_ids"] for text in PROBES[:5] + SHORT_PROBES]
        texts = [ids for ids in texts if ids] or [[0]]
    page = sorted(texts, key=len)[-1] if tokenizer is None else tokenizer(PROBES[-1], verbose=False)["input_ids"]
    if page and window and window + 3 > max(map(len, texts)):
        texts.append((page * (window // len(page) + 2))[: window + 3])
    return [ids[:longest] for ids in texts]


@torch.no_grad()
def alone(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Token vectors of each text by itself, on the plain path: float32 (tokens, hidden)."""
    ids = (torch.tensor([text], device=model.device) for text in texts)
    return [model(input_ids=text, use_cache=False)[0][0].float() for text in ids]


@torch.no_grad()
def _padded(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same in one batch, last text first, the longest with a pad, too (unless it fills the model)."""
    longest = max(map(len, texts))
    width = min(longest + 1, getattr(text_config(model), "max_position_embeddings", None) or longest + 1)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, text in enumerate(texts[::-1]):
        ids[i, : len(text)], mask[i, : len(text)] = torch.tensor(text), 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    hidden = model(input_ids=ids, attention_mask=mask, use_cache=False)[0].float()
    return [states[: len(text)] for states, text in zip(hidden.flip(0), texts, strict=True)]


@contextmanager
def _rounded_otherwise(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs, what enters this thread's products is off by as much as their sums of roundings may be.

    A sum of n products, in whatever order, is what exact sums make of inputs that are off by about sqrt(n) roundings
    (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019).
    """
    generator = torch.Generator(model.device).manual_seed(0)
    thread = threading.get_ident()

    def off(layer: nn.Linear, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != thread or not inputs or inputs[0].dtype not in (torch.float32, torch.float64):
            return None  # half precision is summed in float32, and what that moves is below its last bit
        x = inputs[0]
        by = torch.finfo(x.dtype).eps / 2 * layer.in_features**0.5
        up = torch.randint(0, 2, x.shape, generator=generator, device=x.device, dtype=torch.bool)
        return (torch.where(up, x * (1 + by), x * (1 - by)), *inputs[1:])

    hooks = [m.register_forward_pre_hook(off) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


_known: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Any, Move]] = weakref.WeakKeyDictionary()


def own_noise(model: PreTrainedModel, texts: Sequence[Sequence[int]], before: Sequence[Tensor] | None = None) -> Move:
    """How far the plain path moves the vectors of texts by itself: alone, and padded in another order and rounding.

    Measured once for a model, a dtype and a direction of attention.
    """
    key = (precision(model), attn_implementation_of(model), getattr(text_config(model), "is_causal", True))
    known = _known.get(model)
    if known and known[0] == key:
        return known[1]
    before = alone(model, texts) if before is None else before
    # a text as long as a window is padded by itself: a batch of that width would cost more than all else
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    after: list[Tensor] = [before[0]] * len(texts)
    with _rounded_otherwise(model):
        for group in (order[:-1], order[-1:]):
            for i, vectors in zip(group, _padded(model, [texts[i] for i in group]) if group else (), strict=True):
                after[i] = vectors
    noise = Move.between(before, after)
    _known[model] = (key, noise)
    return noise
