"""int8 on SmolLM2-135M: the layers up to the attention sink stay in float32, and vectors close to those of float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_gguf import LEFT, RIGHT
from torch.nn.functional import cosine_similarity

import st_llm2vec
from st_llm2vec.backend.prepacked import lacks
from st_llm2vec_smollm2.decoder import fetched_file

pytestmark = pytest.mark.skipif(bool(lacks("int8")), reason=f"this is {lacks('int8')}")


@pytest.mark.parametrize(("which", "least"), [("untrained", 0.995), ("trained", 0.998)])
def test_int8_is_close_to_float32(smollm2: Path, gguf_file: Path, which: str, least: float) -> None:
    """Untrained, and with attention in both directions, it is as ill-conditioned as a decoder gets."""
    fetched_file().parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(gguf_file, fetched_file())
    name = {"untrained": str(smollm2), "trained": "llm2vec-smollm2"}[which]
    texts = [*LEFT, *RIGHT]
    options = {"convert_to_tensor": True, "show_progress_bar": False}
    expected = st_llm2vec.load(name, device="cpu").encode(texts, **options)
    model = st_llm2vec.load(name, quantize="int8")
    # massive activations emerge in layer 11, of both
    assert str(model[0].status["quantized"]) == "yes: the first 12 of 30 layers stay in float32"
    assert model[0].status["prepacked"]
    assert float(cosine_similarity(model.encode(texts, **options).float(), expected).min()) > least
