"""llm2vec-smollm2: what its names stand for, read by `st_llm2vec.aliases` through entry points.

The decoder is SmolLM2-135M-Instruct; the LoRA adapters in this package are merged into it at the first use of a name.
"""

from __future__ import annotations

from pathlib import Path

from st_llm2vec.aliases import Alias

from .decoder import decoder

_STAGES = Path(__file__).parent


def mntp() -> Alias:
    """The decoder after masked next-token prediction: for word-level tasks, or to train further."""
    return Alias(str(_STAGES / "mntp"), base=decoder())


def unsup() -> Alias:
    """Contrastive training without labels (SimCSE) of the causal decoder, which is asked for each text in one word."""
    return Alias(str(_STAGES / "unsup"), base=decoder())


def supervised() -> Alias:
    """MNTP, then contrastive training on pairs."""
    return Alias(str(_STAGES / "mntp"), adapter=str(_STAGES / "supervised"), base=decoder())
