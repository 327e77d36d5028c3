"""The names: what `import st_llm2vec` changes in sentence-transformers, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import st_llm2vec
from st_llm2vec.errors import ModelNotFoundError


def run(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    ).stdout


def test_import_brings_no_torch() -> None:
    heavy = "('torch', 'transformers', 'sentence_transformers', 'faiss', 'peft')"
    assert run(f"import st_llm2vec, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_plugin_is_on_whichever_is_imported_first() -> None:
    for imports in ("import st_llm2vec, sentence_transformers", "import sentence_transformers, st_llm2vec"):
        model = "sentence_transformers.SentenceTransformer('llm2vec-tiny', device='cpu')"
        assert run(f"{imports}\nprint(isinstance({model}, st_llm2vec.LLM2Vec))").strip().endswith("True")


def test_unknown_names_raise_at_once_with_the_known_ones() -> None:
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=r"llm2vec-unknown.*Known: .*llm2vec-tiny"):
        SentenceTransformer("llm2vec-unknown")
    assert time.monotonic() - start < 10  # the host would retry for minutes; this is no speed test


def test_a_folder_of_an_alias_name_wins(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    st_llm2vec.load(str(decoder), device="cpu").save_pretrained(str(tmp_path / "llm2vec-tiny"))
    monkeypatch.chdir(tmp_path)
    assert SentenceTransformer("llm2vec-tiny", device="cpu").get_embedding_dimension() == 32


def test_other_models_and_subclasses_are_untouched(decoder: Path) -> None:
    assert type(SentenceTransformer(str(decoder), device="cpu")) is SentenceTransformer

    class Mine(SentenceTransformer):
        pass

    assert type(Mine(str(decoder), device="cpu")) is Mine
    assert (
        type(SentenceTransformer(modules=list(SentenceTransformer(str(decoder), device="cpu")))) is SentenceTransformer
    )


def test_disable_gives_the_class_back_exactly() -> None:
    script = """
import sentence_transformers as s
def attributes():  # of the class and of those above it, in their order, as they are stored
    return [(c, name, id(value)) for c in s.SentenceTransformer.__mro__ for name, value in vars(c).items()]
before = attributes()
import st_llm2vec
assert attributes() != before
st_llm2vec.enable_plugin()  # twice is once
st_llm2vec.disable_plugin()
assert attributes() == before
st_llm2vec.enable_plugin()
print(isinstance(s.SentenceTransformer('llm2vec-tiny', device='cpu'), st_llm2vec.LLM2Vec))
"""
    assert run(script).strip().endswith("True")


def test_load_and_the_name_are_the_same_model() -> None:
    a = SentenceTransformer("llm2vec-tiny", device="cpu").encode(["how do I compress a file"])
    b = st_llm2vec.load("llm2vec-tiny", device="cpu").encode(["how do I compress a file"])
    assert np.abs(a - b).max() <= 1e-5  # load lays its weights out for the processor
