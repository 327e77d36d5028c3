"""Step 3 of LLM2Vec with labels (paper section 3; tests/parity/kit/README.md, 3.12).

The original's `HardNegativeNLLLoss` is sentence-transformers' `MultipleNegativesRankingLoss(model, scale=50)`: columns
anchor, positive and, if there are any, hard negatives; `CachedMultipleNegativesRankingLoss` for batches larger than
the memory. Instructions go into the trainer's arguments: `prompts={"anchor": "Given a question, ..."}`.
"""

from __future__ import annotations

from ..presets import DEFAULTS, trainer_arguments

SCALE: float = DEFAULTS["supervised"]["scale"]

# The paper's settings (train_configs/supervised of the original package; 8 processes of 64 make its batch of 512).
PRESET = trainer_arguments("supervised")
