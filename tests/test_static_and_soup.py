"""Encoders made of encoders: static token vectors, and means of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import save_decoder

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.training import distill_static, soup

TEXTS = ["the dog sleeps", "a lazy dog", "find the quick brown fox"]


@pytest.fixture(scope="module")
def model() -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load("llm2vec-tiny", device="cpu")


@pytest.fixture(scope="module")
def static(model: st_llm2vec.LLM2Vec) -> SentenceTransformer:
    return distill_static(model, dimensions=256, texts=TEXTS, epochs=0, smoothing=1e-4)


def test_static_vectors_are_the_tokens_own_turned_and_weighted(
    model: st_llm2vec.LLM2Vec, static: SentenceTransformer
) -> None:
    """All principal components keep every distance; a token's weight follows from how often it stands in the texts."""
    tokenizer = model.tokenizer
    ids = [[each] for each in (2000, 3000, *tokenizer("dog", add_special_tokens=False)["input_ids"][:1])]
    words = [tokenizer.decode(each) for each in ids]
    counted = [each for text in TEXTS for each in tokenizer(text, add_special_tokens=False)["input_ids"]]
    total = len(counted) + len(tokenizer)
    weights = [1e-4 / (1e-4 + (counted.count(each[0]) + 1) / total) for each in ids]
    rows = static[0].embedding.weight.detach().numpy()[[each[0] for each in ids]] / np.array(weights)[:, None]
    encoded = model.encode(words)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(rows[i] - rows[j]) == pytest.approx(np.linalg.norm(encoded[i] - encoded[j]), rel=1e-3)


def test_special_tokens_and_parts_of_characters_have_no_vector(
    model: st_llm2vec.LLM2Vec, static: SentenceTransformer
) -> None:
    table = static[0].embedding.weight
    assert not table[model.tokenizer.all_special_ids].any()
    part = next(i for i in range(len(model.tokenizer)) if "\ufffd" in model.tokenizer.decode([i]))
    assert not table[part].any()


def test_static_vectors_are_saved_in_stock_classes(static: SentenceTransformer, tmp_path: Path) -> None:
    static.save_pretrained(str(tmp_path / "static"))
    again = SentenceTransformer(str(tmp_path / "static"), device="cpu")
    assert type(again) is SentenceTransformer
    np.testing.assert_array_equal(again.encode(TEXTS), static.encode(TEXTS))


def test_static_vectors_know_what_is_near(static: SentenceTransformer) -> None:
    near, far = static.similarity(static.encode(["a dog"]), static.encode(["the puppy", "stock markets"]))[0]
    assert near > far


def test_token_vectors_learned_from_texts_come_near_the_encoder(model: st_llm2vec.LLM2Vec) -> None:
    """The similarities of texts, not only their words; one by one and with vectors that are known already."""
    texts = [
        f"{a} {b} {c}" for a in ("a dog", "the market", "my sister") for b in ["eats", "sells", "sees"] for c in "dzeti"
    ]
    vectors = model.encode(texts)
    centred = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = centred - centred.mean(0)
    wanted = np.corrcoef(centred)[np.triu_indices(len(texts), 1)]

    def agreement(static: SentenceTransformer) -> float:
        found = static.similarity(static.encode(texts), static.encode(texts)).numpy()[np.triu_indices(len(texts), 1)]
        return float(np.corrcoef(found, wanted)[0, 1])

    told: dict = {"dimensions": 32, "texts": texts}
    learned = distill_static(model, **told, epochs=60)
    assert agreement(learned) > agreement(distill_static(model, **told, epochs=0)) + 0.02
    again = distill_static(model, **told, epochs=60, text_vectors=vectors)
    np.testing.assert_allclose(again.encode(texts), learned.encode(texts), atol=1e-4)


def test_static_vectors_of_another_vocabulary(model: st_llm2vec.LLM2Vec, decoder: Path) -> None:
    other = st_llm2vec.load(str(decoder), device="cpu")
    static = distill_static(model, dimensions=8, tokenizer=other.tokenizer, texts=TEXTS, epochs=2)
    assert static[0].embedding.weight.shape == (len(other.tokenizer), 8)
    assert (
        static.tokenizer.encode("lazy dog", add_special_tokens=False).ids
        == other.tokenizer("lazy dog", add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimensions": 0},
        {"dimensions": 257},
        {"smoothing": 0},
        {"smoothing": float("nan")},
        {"epochs": -1},
        {"text_vectors": np.zeros((3, 255)), "texts": TEXTS},
        {"text_vectors": np.zeros((3, 256))},
    ],
)
def test_settings_of_static_vectors_that_make_none_are_refused(model: st_llm2vec.LLM2Vec, wrong: dict) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        distill_static(model, **wrong)


@pytest.fixture
def pair(decoder: Path, tmp_path: Path) -> list[str]:
    """Two encoders of one decoder."""
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        made = st_llm2vec.load(str(decoder), device="cpu")
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        made.save_pretrained(str(tmp_path / name))
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_soup_is_the_weighted_mean_of_all_weights(pair: list[str], tmp_path: Path) -> None:
    soup(pair, [0.25, 0.75]).save_pretrained(str(tmp_path / "soup"))
    first, second, made = (load_file(Path(folder) / "model.safetensors") for folder in (*pair, tmp_path / "soup"))
    for name, weight in made.items():
        torch.testing.assert_close(weight, 0.25 * first[name] + 0.75 * second[name], rtol=1e-6, atol=1e-7)
    again = st_llm2vec.load(str(tmp_path / "soup"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), soup(pair, [0.25, 0.75]).encode(TEXTS), atol=1e-6)
    assert again.provenance["soup"] == [{"model": "a", "weight": 0.25}, {"model": "b", "weight": 0.75}]
    assert len({st_llm2vec.load(name, device="cpu").fingerprint for name in (*pair, str(tmp_path / "soup"))}) == 3


def test_a_soup_is_rounded_once(pair: list[str]) -> None:
    made = soup(pair, dtype="bfloat16")
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in pair)
    weights = dict(made[0].model.named_parameters())
    assert weights.keys() == first.keys()
    for name, weight in weights.items():
        halves = [each[name].bfloat16().float() for each in (first, second)]
        assert torch.equal(weight, (sum(halves) / 2).bfloat16())


def test_what_cannot_be_averaged_is_refused(pair: list[str], decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least two"):
        soup(pair[:1])
    for weights in ([0.5, 0.4], [1.0], [0.3, 0.3, 0.4]):
        with pytest.raises(InvalidInputError, match="2 numbers of sum 1"):
            soup(pair, weights)
    st_llm2vec.load(pair[0], device="cpu", pooling_mode="last_token").save_pretrained(str(tmp_path / "last"))
    with pytest.raises(InvalidInputError, match="pooling_mode='last_token', the first 'mean'"):
        soup([pair[0], str(tmp_path / "last")])
    other = save_decoder(tmp_path / "other", hidden_size=96)
    with pytest.raises(InvalidInputError, match="one decoder"):
        soup([pair[0], str(other)])
