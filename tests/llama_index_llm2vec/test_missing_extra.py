"""Without LlamaIndex, the import says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["llama_index.core", "faiss"])
def test_a_missing_extra_is_met_at_the_door(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import llama_index_llm2vec"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"MissingExtraError: llama_index_llm2vec needs {missing}." in result.stderr
    assert 'Install it with: pip install "st-llm2vec[llama-index]"' in result.stderr
