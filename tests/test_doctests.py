"""Every public name has an example in its docstring, and it runs as it stands."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from llama_index.core import Document
from sentence_transformers import SentenceTransformer

import faiss_llm2vec
import langchain_llm2vec
import llama_index_llm2vec
import st_llm2vec
import st_llm2vec.evaluation
import st_llm2vec.training

PACKAGES = [st_llm2vec, st_llm2vec.training, faiss_llm2vec, langchain_llm2vec, llama_index_llm2vec]
MADE_BY_OTHERS = {"Hit", "Record", "Recipe", "Result", "SearchOptions"}  # whose examples show them
NAMES = {
    f"{package.__name__}.{name}": (package, getattr(package, name))
    for package in PACKAGES
    for name in package.__all__
    if not isinstance(getattr(package, name), ModuleType | str) and name not in MADE_BY_OTHERS
} | {
    f"st_llm2vec.evaluation.{name}": (st_llm2vec.evaluation, getattr(st_llm2vec.evaluation, name))
    for name in ("TaskEvaluator", "evaluate", "static_model")
}
RECIPE = """
model = "llm2vec-tiny"
output = "out"
[simcse]
max_steps = 1
data.mine = "texts.txt"
"""
PAIRS = """sentence1,sentence2,score
A woman plays the violin.,Someone makes music.,4
A woman plays the violin.,Rates rose again.,0
Bears sleep in winter.,Bears hibernate.,5
The bank raised its rates.,Bread rises.,1
"""


@pytest.fixture(scope="module")
def tiny() -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load("llm2vec-tiny", device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example_that_runs(
    name: str, tiny: st_llm2vec.LLM2Vec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("Bears sleep through the winter.\nThe bank raised its rates.\n")
    Path("recipe.toml").write_text(RECIPE)
    for file in (Path("pairs.csv"), Path("data/stsb/test.csv"), Path("data/stsb/dev.csv")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PAIRS)

    package, described = NAMES[name]
    here: dict[str, Any] = {each: getattr(package, each) for each in package.__all__}
    here |= {"st_llm2vec": st_llm2vec, "SentenceTransformer": SentenceTransformer, "Document": Document}
    here["model"] = copy.deepcopy(tiny)
    example = doctest.DocTestParser().get_doctest(described.__doc__ or "", here, name, None, None)
    assert example.examples, f"{name} has no example"
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert not told, "".join(told)
