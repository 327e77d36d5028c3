"""Real weights: run by `make test-real`, which makes them first; a missing model is an error, not a skip."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["ST_LLM2VEC_HOME"] = tempfile.mkdtemp()
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import real_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The decoder's folder of safetensors, with the GGUF file beside them."""
    if not real_model.gguf_file().is_file():
        pytest.fail("There is no real model yet. Run: make model")
    return real_model.folder()


@pytest.fixture(scope="session")
def gguf_file(smollm2: Path) -> Path:
    return smollm2 / real_model.FILE
