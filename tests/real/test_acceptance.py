"""Packing, prepacking, compiling are accepted on a pretrained decoder: trained or not, in both directions and dtypes.

`make test-real` prints the table of docs/performance.md: python -m pytest -s tests/real/test_acceptance.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import st_llm2vec
from st_llm2vec.backend.prepacked import lacks
from st_llm2vec_smollm2.decoder import fetched_file

DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(bool(lacks(dtype)), reason=f"this is {lacks(dtype)}"))
    for dtype in ("float32", "bfloat16")
]


@pytest.fixture(scope="module")
def names(smollm2: Path, gguf_file: Path) -> dict[str, str]:
    fetched_file().parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(gguf_file, fetched_file())
    return {"untrained": str(smollm2), "trained": "llm2vec-smollm2"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch itself deprecates
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("which", ["untrained", "trained"])
def test_every_mechanism_is_accepted(names: dict[str, str], which: str, attention: str, dtype: str) -> None:
    model = st_llm2vec.load(names[which], device="cpu", dtype=dtype, attention=attention, compile=True)
    model.encode("a", show_progress_bar=False)
    status = {name: model[0].status[name] for name in ("packed", "prepacked", "compiled")}
    moves = [f"{found.move or found}" for found in status.values()]
    print(f"\n| {which}, {attention}, {dtype} | {status['packed'].noise} | {' | '.join(moves)} |")
    assert all(status.values()), {name: str(found) for name, found in status.items()}
