"""int8 on SmolLM2-135M: its first layers stay in float32, and its vectors close to those of float32."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_gguf import LEFT, RIGHT
from torch.nn.functional import cosine_similarity

import st_llm2vec
from st_llm2vec.backend.prepacked import lacks


@pytest.mark.skipif(bool(lacks("int8")), reason=f"this is {lacks('int8')}")
def test_int8_is_accepted_and_closer_than_bfloat16(smollm2: Path) -> None:
    """Untrained, and with attention in both directions, it is as ill-conditioned as a decoder gets."""
    texts = [*LEFT, *RIGHT]

    def smallest(model: st_llm2vec.LLM2Vec) -> float:
        found = model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float()
        return float(cosine_similarity(found, expected).min())

    plain = st_llm2vec.load(str(smollm2), device="cpu")
    expected = plain.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    del plain
    rounded = st_llm2vec.load(str(smollm2), quantize="int8")
    said = re.fullmatch(r"yes: the first (\d+) of 30 layers stay in float32", str(rounded[0].status["quantized"]))
    assert said
    assert 6 <= int(said[1]) <= 15  # the attention sink emerges in layer 11
    assert rounded[0].status["prepacked"]
    in_int8 = smallest(rounded)
    del rounded
    assert in_int8 > smallest(st_llm2vec.load(str(smollm2), device="cpu", dtype="bfloat16"))
    assert in_int8 > 0.97
