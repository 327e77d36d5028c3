"""Encoders made of encoders: static token vectors, and means of weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import save_decoder
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

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


@pytest.fixture(scope="module")
def small(decoder: Path) -> st_llm2vec.LLM2Vec:
    """An encoder of 300 tokens."""
    return st_llm2vec.load(str(decoder), device="cpu")


MANY = [f"{a} {b} {c}" for a in ("a dog", "the fox", "seven") for b in ("jumps", "search", "files") for c in "dzeti"]
LEARN: dict = {"dimensions": 12, "texts": MANY, "epochs": 60}
NEAR: dict = {"rtol": 0, "atol": 1e-3}  # of vectors that are 50 long: products differ in the last digit


def table(static: SentenceTransformer) -> torch.Tensor:
    return static[0].embedding.weight.detach()


def agreement(static: SentenceTransformer, encoder: SentenceTransformer) -> float:
    """How similarities of texts correlate with those of the encoder's centred vectors."""
    pairs = np.triu_indices(len(MANY), 1)
    vectors = encoder.encode(MANY, normalize_embeddings=True)
    wanted = np.corrcoef(vectors - vectors.mean(0))[pairs]
    found = static.similarity(static.encode(MANY), static.encode(MANY)).numpy()[pairs]
    return float(np.corrcoef(found, wanted)[0, 1])


def test_token_vectors_learned_from_texts_come_near_the_encoder(
    small: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First by least squares, turned into the space of the texts' vectors, then step by step."""
    learned = distill_static(small, **LEARN)
    with monkeypatch.context() as patched:
        patched.setattr("st_llm2vec.training.static.LEARNING_RATE", 0.0)
        turned = distill_static(small, **LEARN)
    counted, start, end = (
        agreement(each, small) for each in (distill_static(small, **{**LEARN, "epochs": 0}), turned, learned)
    )
    assert start > counted + 0.02
    assert 1 - end < 0.6 * (1 - start)


def test_vectors_of_texts_that_are_known_are_taken(small: st_llm2vec.LLM2Vec) -> None:
    learned = distill_static(small, **LEARN)
    same = distill_static(small, **LEARN, text_vectors=7.0 * small.encode(MANY))  # their length does not count
    np.testing.assert_allclose(same.encode(MANY), learned.encode(MANY), atol=1e-3)
    other = distill_static(small, **LEARN, text_vectors=np.random.default_rng(0).permutation(small.encode(MANY)))
    assert agreement(other, small) < agreement(learned, small) - 0.2


def test_texts_may_come_one_by_one_and_without_tokens(small: st_llm2vec.LLM2Vec) -> None:
    learned = distill_static(small, **LEARN)
    again = distill_static(small, **{**LEARN, "texts": (text for text in MANY)})
    torch.testing.assert_close(table(again), table(learned), **NEAR)
    vectors = np.insert(small.encode(MANY), 0, 1.0, axis=0)
    skipped = distill_static(small, **{**LEARN, "epochs": 1, "texts": ["", *MANY]}, text_vectors=vectors)
    assert table(skipped).isfinite().all()


def test_the_order_of_texts_is_the_seeds(small: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_llm2vec.training.static.LEARNING_BATCH", 8)
    first = table(distill_static(small, **LEARN, seed=1))
    torch.manual_seed(5)  # which does not count
    torch.testing.assert_close(table(distill_static(small, **LEARN, seed=1)), first, **NEAR)
    assert (table(distill_static(small, **LEARN, seed=2)) - first).abs().max() > 10 * NEAR["atol"]


def test_padding_and_truncation_of_the_tokenizer_do_not_count(small: st_llm2vec.LLM2Vec) -> None:
    """A text would be padded to the longest one, and learned as the mean of mostly padding."""
    plain = copy.deepcopy(small.tokenizer.backend_tokenizer)
    plain.no_padding()
    plain.no_truncation()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(plain))
    wrapped.backend_tokenizer.enable_padding(pad_id=3, length=64)
    wrapped.backend_tokenizer.enable_truncation(2)
    found, wanted = (table(distill_static(small, **LEARN, tokenizer=each)) for each in (wrapped, plain))
    torch.testing.assert_close(found, wanted, **NEAR)
    assert wrapped.backend_tokenizer.padding  # the caller's own stays as it is


def test_ids_of_a_vocabulary_may_have_gaps(small: st_llm2vec.LLM2Vec) -> None:
    told = json.loads(small.tokenizer.backend_tokenizer.to_str())
    last = max(told["model"]["vocab"], key=told["model"]["vocab"].__getitem__)
    told["model"]["vocab"][last] += 100
    static = distill_static(small, **LEARN, tokenizer=Tokenizer.from_str(json.dumps(told)))
    assert table(static).shape == (400, 12)
    assert table(static)[399].any()
    assert not table(static)[350].any()


def test_static_vectors_of_another_vocabulary(model: st_llm2vec.LLM2Vec, small: st_llm2vec.LLM2Vec) -> None:
    static = distill_static(model, dimensions=8, tokenizer=small.tokenizer, texts=MANY, epochs=2)
    assert table(static).shape == (len(small.tokenizer), 8)
    assert (
        static.tokenizer.encode("lazy dog", add_special_tokens=False).ids
        == small.tokenizer("lazy dog", add_special_tokens=False)["input_ids"]
    )


VECTORS = np.ones((len(MANY), 32), np.float32)
REFUSED = {
    "no dimensions": ({"dimensions": 0}, "dimensions must be an integer of at least 1, got 0"),
    "dimensions": ({"dimensions": 33}, "dimensions must be at most 32, the encoder's, got 33"),
    "smoothing": ({"smoothing": 0}, "smoothing must be a number greater than 0, got 0"),
    "no number": ({"smoothing": float("nan")}, "smoothing must be a number greater than 0, got nan"),
    "epochs": ({"epochs": -1}, "epochs must be an integer of at least 0, got -1"),
    "seed": ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    "batch": ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    "one text": ({"texts": MANY[0]}, "texts must be texts"),
    "no text": ({"texts": [*MANY, 3]}, r"texts must be texts, got 3 \(int\) as number 45"),
    "no texts": ({"texts": []}, "texts must have one with tokens, got 0 without"),
    "blank texts": ({"texts": ["", ""], "epochs": 0}, "texts must have one with tokens, got 2 without"),
    "few texts": ({"texts": MANY[:12] * 9}, "more different ones than the 12 dimensions to learn, got 12"),
    "width": ({"text_vectors": VECTORS[:, 1:], "texts": MANY}, r"the shape \(45, 32\) of texts, got \(45, 31\)"),
    "rows": ({"text_vectors": VECTORS[1:], "texts": MANY}, r"the shape \(45, 32\) of texts, got \(44, 32\)"),
    "not finite": (
        {"text_vectors": VECTORS * np.inf, "texts": MANY},
        "text_vectors must be finite, and number 0 is not",
    ),
    "texts as vectors": ({"text_vectors": [["a"] * 32] * 45, "texts": MANY}, "text_vectors must be numbers"),
    "vectors alone": ({"text_vectors": VECTORS}, "give texts and epochs of at least 1 with them"),
    "vectors unread": ({"text_vectors": VECTORS, "texts": MANY, "epochs": 0}, "give texts and epochs of at least 1"),
    "slow tokenizer": ({"tokenizer": "a"}, "tokenizer must be a fast one, which static vectors need, got str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_static_vectors_that_would_be_none_are_refused_before_encoding(
    name: str, small: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, said = REFUSED[name]
    monkeypatch.setattr(type(small), "encode", None)
    with pytest.raises(InvalidInputError, match=said):
        distill_static(small, **{"dimensions": 12, **wrong})


def test_an_encoder_of_vectors_that_are_not_finite_is_refused(small: st_llm2vec.LLM2Vec) -> None:
    broken = copy.deepcopy(small)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(InvalidInputError, match="vectors of tokens must be finite"):
        distill_static(broken, **LEARN)


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
