"""Vectors of words: the original's numbers, and alignment whatever the tokenizer and the padding side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import KIT, save_decoder, tiny_tokenizer

import st_llm2vec
from st_llm2vec import encode_words
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.evaluation.files import Source
from st_llm2vec.evaluation.words import accuracy, probe, probe_loss, read, span_f1, spans

TAGGED = json.loads((KIT / "training" / "word_level.json").read_text(encoding="utf-8"))
SENTENCES = ["the quick brown fox", "a", "  seven wizards\n compress files  ", "naïve café 编码器 👨‍👩‍👧"]


@pytest.fixture(scope="module")
def model(bos_decoder: Path) -> SentenceTransformer:
    return st_llm2vec.load(str(bos_decoder), device="cpu")


def hidden(model: SentenceTransformer, text: str) -> np.ndarray:
    """Last hidden states of a text as the tokenizer gives it, without our modules."""
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model[0].model(input_ids=ids).last_hidden_state[0].float().numpy()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma"])
@pytest.mark.parametrize("reading", ["same_token", "next_token"])
def test_words_give_the_originals_logits(family: str, reading: str) -> None:
    """Section 3.13: a fixed classifier on merged sub-tokens, chain `mntp`."""
    model = st_llm2vec.load(str(KIT / "models" / f"{family}-mntp"), device="cpu")
    words = [item["tokens"] for item in TAGGED["items"]]
    if family == "qwen2" and reading == "next_token":  # no BOS: the original loses the first word (defect Q26)
        with pytest.raises(InvalidInputError, match="nothing stands before the first word of sentence 0"):
            encode_words(model, words, reading=reading)
        return
    vectors = encode_words(model, words, reading=reading)
    with np.load(KIT / "training" / "word_level.npz") as golden:
        weight, bias = golden[f"{family}__classifier_weight"], golden[f"{family}__classifier_bias"]
        logits = golden[f"{family}__{reading}__merge1__logits"]
        ids = golden[f"{family}__{reading}__token_type_ids"]
    for sentence, found, wanted, word_ids in zip(words, vectors, logits, ids, strict=True):
        assert found.shape == (len(sentence), 64)
        assert found.dtype == np.float32
        for i, vector in enumerate(found):
            position = word_ids.tolist().index(i)
            assert np.abs(vector @ weight.T + bias - wanted[position]).max() <= 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
@pytest.mark.parametrize("reading", ["same_token", "next_token"])
def test_a_probe_has_the_originals_loss(family: str, reading: str) -> None:
    """The same classifier with the tags of the sentences: labels are aligned as the original aligns them."""
    model = st_llm2vec.load(str(KIT / "models" / f"{family}-mntp"), device="cpu")
    vectors = np.concatenate(encode_words(model, [item["tokens"] for item in TAGGED["items"]], reading=reading))
    with np.load(KIT / "training" / "word_level.npz") as golden:
        weight, bias = golden[f"{family}__classifier_weight"], golden[f"{family}__classifier_bias"]
    tags = torch.tensor([tag for item in TAGGED["items"] for tag in item["tags"]])
    loss = probe_loss(torch.from_numpy(vectors @ weight.T + bias), tags)
    assert float(loss) == pytest.approx(TAGGED[family][f"{reading}_merge1_loss"], abs=1e-4)


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """Short words are names, alone or in a row."""
    random = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 30)):
        rows = []
        for _ in range(n):
            choice = ["fox", "dog", "compress", "wizards", "lazy", "search"]
            words = random.choice(choice, random.integers(1, 7)).tolist()
            names = [len(word) == 3 for word in words]
            inside = [name and i > 0 and names[i - 1] for i, name in enumerate(names)]
            tags = [("O", "B-animal", "I-animal")[name + i] for name, i in zip(names, inside, strict=True)]
            rows.append({"tokens": words, "tags": tags})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_probes_learn_what_the_vectors_know(bos_decoder: Path, tagged: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    examples = read(Source(tagged))
    items = probe(model, examples, reading="same_token", steps=300)
    assert items.shape == (30, 5)
    assert items[:, 1].tolist() == [len(words) for words in examples.test]
    assert items[:, 4].sum() == sum(tag == "B-animal" for tags in examples.test_tags for tag in tags)
    assert accuracy(items) > 0.85
    assert 0.5 < span_f1(items) <= accuracy(items)
    assert np.array_equal(items, probe(model, examples, reading="same_token", steps=300))
    with torch.no_grad():  # other weights, other vectors: what is kept of the last task is not taken for these
        for parameter in model[0].model.parameters():
            parameter.mul_(0)
    assert accuracy(probe(model, examples, reading="same_token", steps=300)) < 0.8


def test_a_word_that_nothing_stands_before_is_left_out(tagged: Path, decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")  # no BOS
    examples = read(Source(tagged))
    items = probe(model, examples, reading="next_token", steps=5)
    assert items[:, 1].tolist() == [len(words) - 1 for words in examples.test]
    assert np.isfinite(items).all()
    with pytest.raises(InvalidInputError, match="lost must be"):
        encode_words(model, ["a fox"], lost="drop")
    first, second = encode_words(model, "a fox", reading="next_token", lost="nan")
    assert np.isnan(first).all()
    assert np.isfinite(second).all()


def test_probes_name_what_is_wrong(tagged: Path) -> None:
    with pytest.raises(InvalidInputError, match="give a folder with train"):
        read(Source(tagged / "test.jsonl"))
    (tagged / "dev.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O"]}\n')
    with pytest.raises(InvalidInputError, match="2 tokens and 1 tags"):
        read(Source(tagged, "dev"))
    (tagged / "dev.jsonl").write_text('{"tokens": "a b", "tags": ["O"]}\n')
    with pytest.raises(InvalidInputError, match="'tokens' must be a list of texts"):
        read(Source(tagged, "dev"))


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("B-X I-X O B-Y", {("X", 0, 2), ("Y", 3, 4)}),
        ("B-X B-X", {("X", 0, 1), ("X", 1, 2)}),
        ("I-X I-X O", {("X", 0, 2)}),  # a stray I- begins a span
        ("B-X I-Y I-Y", {("X", 0, 1), ("Y", 1, 3)}),
        ("O O", set()),
    ],
)
def test_spans_are_conllevals(tags: str, wanted: set[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == wanted


def test_words_between_blanks_are_the_means_of_their_tokens(model: SentenceTransformer) -> None:
    text = SENTENCES[2]
    states = hidden(model, text)
    offsets = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    vectors = encode_words(model, text)
    assert len(vectors) == 4
    start = 0
    for word, vector in zip(text.split(), vectors, strict=True):
        start = text.index(word, start)
        inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(word) and b > start]
        assert np.abs(states[inside].mean(0) - vector).max() <= 1e-5
        start += len(word)
    shifted = encode_words(model, text, reading="next_token")
    first = [i - 1 for i, (a, b) in enumerate(offsets) if a < 7 and b > 2]  # "seven"; the BOS token is before it
    assert np.abs(states[first].mean(0) - shifted[0]).max() <= 1e-5


def test_batches_prompts_and_padding_sides(model: SentenceTransformer) -> None:
    alone = [encode_words(model, text) for text in SENTENCES]
    assert [len(vectors) for vectors in alone] == [4, 1, 4, 4]
    prompted = encode_words(model, SENTENCES, prompt="Find the names: ")
    assert [len(vectors) for vectors in prompted] == [4, 1, 4, 4]
    read = "Find the names: " + SENTENCES[1]  # the prompt is read, and has no vectors
    assert np.abs(prompted[1][0] - hidden(model, read)[-1]).max() <= 1e-5
    assert np.abs(prompted[1] - alone[1]).max() > 1e-3
    lists = encode_words(model, [text.split() for text in SENTENCES], prompt="Find the names: ")
    assert [len(vectors) for vectors in lists] == [4, 1, 4, 4]
    try:
        for side in ("left", "right"):
            model.tokenizer.padding_side = side
            for size in (1, 3, 32):
                together = encode_words(model, SENTENCES, batch_size=size)
                assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 1e-5
    finally:
        model.tokenizer.padding_side = "right"


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_token_embeddings_are_right_under_both_padding_sides(
    model: SentenceTransformer, side: str, packing: bool
) -> None:
    try:
        model.tokenizer.padding_side, model[0].packing = side, packing
        found = model.encode(SENTENCES, output_value="token_embeddings")
        for text, states in zip(SENTENCES, found, strict=True):
            assert np.abs(states.cpu().numpy() - hidden(model, text)).max() <= 1e-5
    finally:
        model.tokenizer.padding_side, model[0].packing = "right", True


def test_nothing_is_cut_or_left_out_silently(model: SentenceTransformer, tmp_path: Path) -> None:
    assert encode_words(model, []) == []
    assert [vectors.shape for vectors in encode_words(model, ["", "  ", "a"])] == [(0, 32), (0, 32), (1, 32)]
    assert encode_words(model, [[]])[0].shape == (0, 32)
    long = "word " * 300
    with pytest.raises(InvalidInputError, match=r"sentences\[1\] must have at most 256 tokens, got \d+;"):
        encode_words(model, ["a", long])
    with pytest.raises(InvalidInputError, match="prompt included"):
        encode_words(model, [long.split()], prompt="Find: ")
    with pytest.raises(InvalidInputError, match="Word '' of sentence 0 has no token"):
        encode_words(model, [["a", "", "b"]])
    with pytest.raises(InvalidInputError, match="sentences must be texts or lists of words, got a dict"):
        encode_words(model, {"text": ["a"]})
    with pytest.raises(InvalidInputError, match=r"sentences\[1\] must be a text or a list of words, got 3"):
        encode_words(model, ["a", 3])
    with pytest.raises(InvalidInputError, match=r"reading must be .*got 'before'"):
        encode_words(model, ["a"], reading="before")
    stock = SentenceTransformer(str(model[0].model.name_or_path), device="cpu")
    with pytest.raises(InvalidInputError, match=r"a SentenceTransformer with Transformer.*st_llm2vec\.load"):
        encode_words(stock, ["a"])
    no_bos = st_llm2vec.load(str(save_decoder(tmp_path / "no-bos", tokenizer=tiny_tokenizer())), device="cpu")
    with pytest.raises(InvalidInputError, match="Give a prompt"):
        encode_words(no_bos, ["a fox"], reading="next_token")
    assert encode_words(no_bos, ["a fox"], reading="next_token", prompt="Find: ")[0].shape == (2, 32)


def test_training_mode_is_left_as_it_was(model: SentenceTransformer) -> None:
    model.train()
    encode_words(model, "a fox")
    assert model.training
    model.eval()
