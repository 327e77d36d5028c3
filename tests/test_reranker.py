"""Rerankers by name: a real cross-encoder, opened from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from faiss_llm2vec import FaissStore
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError

TEXTS = ["the quick brown fox", "seven wizards compress files", "answers for the brown dog"]


def cross_encoder(folder: Path, labels: int = 1, *, safe: bool = True) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=labels, pad_token_id=tokenizer.pad_token_id, **sizes)
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not safe:
        import torch

        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return str(folder)


def test_a_cross_encoder_by_name_gives_its_scores(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    name = cross_encoder(tmp_path / "reranker")
    expected = CrossEncoder(name).predict([("brown dog", text) for text in TEXTS])
    with FaissStore.create(tmp_path / "store", "llm2vec-tiny") as store:
        store.add(TEXTS, ids=TEXTS)
        for mode in ("dense", "hybrid"):
            hits = store.search("brown dog", k=3, mode=mode, rerank=name)
            assert {hit.id: hit.score for hit in hits} == pytest.approx(
                dict(zip(TEXTS, expected, strict=True)), abs=1e-5
            )
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        with pytest.raises(InvalidInputError, match=r"one finite number per pair.*shape \(3, 2\)"):
            store.search("brown dog", rerank=cross_encoder(tmp_path / "two", labels=2))
        for wrong in (str(tmp_path / "none"), cross_encoder(tmp_path / "pickled", safe=False)):
            with pytest.raises(ModelNotFoundError, match="weights as safetensors"):
                store.search("brown dog", rerank=wrong)
