"""A clean guest of sentence-transformers: whatever reads a stock model reads ours."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, WeightedLayerPooling

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.modules import LLM2VecPooling, LLM2VecTransformer
from st_llm2vec.templates import Template

TEXTS = ["a river", "two cats sit on a mat", "x"]
PROMPT = "find it:"


@pytest.fixture
def tiny() -> Any:
    return SentenceTransformer("llm2vec-tiny", device="cpu")


@pytest.fixture
def stock(tmp_path: Path) -> Any:
    """The same folder in the host's own classes."""
    folder = SentenceTransformer("llm2vec-tiny", device="cpu")[0].model.name_or_path
    st_llm2vec.disable_plugin()
    try:
        return SentenceTransformer(folder, device="cpu")
    finally:
        st_llm2vec.enable_plugin()


# prompt_length


@pytest.mark.parametrize("prompt", ["query:", "query: ", None])
def test_prompt_length_is_the_hosts(tiny: Any, stock: Any, prompt: str | None) -> None:
    ours, theirs = (model.preprocess(TEXTS, prompt=prompt) for model in (tiny, stock))
    assert ours.get("prompt_length") == theirs.get("prompt_length")
    assert (prompt is None) == ("prompt_length" not in ours)


def test_a_stock_pooling_behind_our_transformer_leaves_the_prompt_out(tiny: Any, stock: Any) -> None:
    width = tiny.get_embedding_dimension()
    stock[1].include_prompt = False
    mixed = SentenceTransformer(modules=[tiny[0], Pooling(width, "mean", include_prompt=False)], device="cpu")
    ours = st_llm2vec.LLM2Vec(modules=[tiny[0], Pooling(width, "mean", include_prompt=False)], device="cpu")
    expected = stock.encode(TEXTS, prompt=PROMPT)
    for model in (mixed, ours):  # the host's batches, and ours
        assert np.abs(model.encode(TEXTS, prompt=PROMPT) - expected).max() < 1e-5
    assert np.abs(stock.encode(TEXTS, prompt=PROMPT) - stock.encode(TEXTS)).max() > 1e-3


def test_prompt_length_counts_the_template(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu", template=Template("before ", " after"))
    features = model.preprocess(["text"], prompt="find it: ")
    known = features["attention_mask"].sum(1) - features["pooling_mask"].sum(1)
    assert abs(int(known) - features["prompt_length"]) <= 1  # a blank that the text's first token takes
    assert features["prompt_length"] > model.preprocess(["text"], prompt="find it: ")["prompt_length"] - 1 > 0


# features that were made elsewhere


def test_tokens_of_the_bare_tokenizer_are_pooled_without_bos(bos_decoder: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu").eval()
    features = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = model(dict(features))["sentence_embedding"].numpy()
    assert np.abs(vectors - model.encode(TEXTS)).max() < 1e-5


def test_tokens_without_the_template_are_refused(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu", template=Template("before ", " after"))
    with pytest.raises(InvalidInputError, match=r"model\.preprocess"):
        model(dict(model.tokenizer(TEXTS, padding=True, return_tensors="pt")))


def test_gist_takes_our_model_as_the_guide(tiny: Any, stock: Any) -> None:
    columns = lambda model: [model.preprocess(TEXTS, prompt=PROMPT), model.preprocess(TEXTS[::-1], prompt=PROMPT)]  # noqa: E731
    stock.set_pooling_include_prompt(False)
    with torch.no_grad():
        features = tiny.eval()(columns(stock)[0])  # our guide reads the columns of a stock student
        assert np.abs(features["sentence_embedding"].numpy() - tiny.encode(TEXTS, prompt=PROMPT)).max() < 1e-5
        values = [
            losses.GISTEmbedLoss(student.eval(), guide.eval())(columns(student), None).item()
            for student in (tiny, stock)
            for guide in (tiny, stock)
        ]
    assert np.ptp(values) < 1e-4


# every layer, in the padded layout


def test_all_layers_come_back_padded(tiny: Any, stock: Any) -> None:
    found = []
    for model in (tiny, stock):
        model.transformers_model.config.output_hidden_states = True
        with torch.no_grad():
            found.append(model.eval()(model.preprocess(TEXTS)))
    assert tiny[0].status["packed"]
    mask = found[1]["attention_mask"].bool()
    assert len(found[0]["all_layer_embeddings"]) == len(found[1]["all_layer_embeddings"]) > 2
    for ours, theirs in zip(found[0]["all_layer_embeddings"], found[1]["all_layer_embeddings"], strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs)[mask].abs().max() < 1e-4


def test_attentions_are_those_of_a_padded_batch() -> None:
    model = st_llm2vec.load("llm2vec-tiny", device="cpu", model_kwargs={"attn_implementation": "eager"})
    before = model.encode(TEXTS)
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = model.transformers_model(**tokens, output_attentions=True)
    assert found.attentions[0].shape[0] == len(TEXTS)
    assert np.abs(model.encode(TEXTS) - before).max() == 0


@pytest.mark.parametrize("packing", [True, False])
def test_losses_over_layers_train(tiny: Any, packing: bool) -> None:
    tiny[0].packing = packing
    tiny.train()
    loss = losses.MultipleNegativesRankingLoss(tiny)
    loss = losses.Matryoshka2dLoss(tiny, loss, [32, 16], n_layers_per_step=-1)
    value = loss([tiny.preprocess(TEXTS), tiny.preprocess(TEXTS[::-1])], None)
    value.backward()
    assert torch.isfinite(value)
    first = next(tiny.transformers_model.layers[0].parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_weighted_layer_pooling_reads_all_layers(tiny: Any, stock: Any) -> None:
    layers = tiny.transformers_model.config.num_hidden_layers
    vectors = []
    for model, kind in ((tiny, LLM2VecPooling), (stock, Pooling)):
        width = model.get_embedding_dimension()
        model.transformers_model.config.output_hidden_states = True
        modules = [model[0], WeightedLayerPooling(width, layers, layer_start=1), kind(width, "mean")]
        vectors.append(type(model)(modules=modules, device="cpu").encode(TEXTS))
        if kind is LLM2VecPooling:
            other = st_llm2vec.LLM2Vec(modules=[*modules, Normalize()], device="cpu")
            assert other.fingerprint != st_llm2vec.LLM2Vec(modules=modules, device="cpu").fingerprint
            assert other.settings()["pooling_mode"] == "mean"
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5


# options of the host's preprocess


def test_options_that_only_the_host_knows_reach_it(tiny: Any, stock: Any) -> None:
    options = {"text": {"padding": "max_length", "max_length": 12}}
    ours, theirs = (model.preprocess(TEXTS, processing_kwargs=options) for model in (tiny, stock))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    tiny[0].processing_kwargs = {"text": {"max_length": 2}}
    assert tiny.preprocess(TEXTS)["input_ids"].shape[1] == 2
    assert np.abs(tiny.encode(TEXTS) - tiny.encode(TEXTS, processing_kwargs=options)).max() > 1e-3


def test_options_that_the_template_cannot_follow_are_refused(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu", template=Template("before ", " after"))
    with pytest.raises(InvalidInputError, match="processing_kwargs"):
        model.encode(TEXTS, processing_kwargs={"text": {"padding": "max_length"}})


# saving, cards and the hub


def test_none_is_no_path(tiny: Any) -> None:
    assert tiny.save_pretrained(None) is None
    assert tiny.save(None) is None


def test_a_module_saved_alone_opens_in_the_stock_class(tiny: Any, tmp_path: Path) -> None:
    tiny[0].save(str(tmp_path))
    assert "attention" not in json.loads((tmp_path / "sentence_bert_config.json").read_text())
    features = Transformer.load(str(tmp_path)).preprocess(TEXTS)
    assert torch.equal(features["input_ids"], tiny[0].preprocess(TEXTS)["input_ids"])
    assert LLM2VecTransformer.load(str(tmp_path)).attention == "bidirectional"


def test_a_card_names_the_hosts_class_and_the_repository(tiny: Any, tmp_path: Path) -> None:
    tiny._model_card_text = ""
    tiny.model_card_data.generate_widget_examples = False
    tiny.save_pretrained(str(tmp_path / "a"), model_name="me/encoder")
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert 'SentenceTransformer("me/encoder")' in card
    assert "LLM2Vec(" not in card


def test_a_push_says_the_hosts_class(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, **kwargs: Any) -> Any:
            said.update(kwargs, files={file.name for file in Path(kwargs["folder_path"]).iterdir()})
            return type("Commit", (), {"commit_url": "url", "pr_url": "url"})

    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Api)
    monkeypatch.setattr("sentence_transformers.base.model_card.get_model_info", lambda name: None)
    assert tiny.push_to_hub("me/encoder", create_pr=True, replace_model_card=True) == "url"
    assert said["commit_message"] == "Add new SentenceTransformer model"
    assert "LLM2Vec model" not in said["commit_description"]
    assert {"modules.json", "llm2vec_config.json", "model.safetensors"} <= said["files"]


# the name of the type


def test_libraries_recognise_the_type(tiny: Any) -> None:
    assert "sentence_transformers" in str(type(tiny))  # KeyBERT, BERTopic
    assert type(tiny).__name__ == tiny.__class__.__name__ == type(tiny).__qualname__ == "SentenceTransformer"
    assert isinstance(tiny, SentenceTransformer)
    assert isinstance(tiny, st_llm2vec.LLM2Vec)
    assert type(tiny) is not SentenceTransformer


def test_the_type_is_found_by_its_name_and_old_pickles_open(tiny: Any) -> None:
    again = pickle.loads(pickle.dumps(tiny))
    assert type(again) is type(tiny) is st_llm2vec.LLM2Vec
    assert np.array_equal(again.encode(TEXTS), tiny.encode(TEXTS))
    assert pickle.loads(b"cst_llm2vec.model\nLLM2Vec\n.") is st_llm2vec.LLM2Vec  # as it was pickled before
    assert np.array_equal(copy.deepcopy(tiny).encode(TEXTS), tiny.encode(TEXTS))


# the host's other families


@pytest.mark.parametrize("family", [SparseEncoder, CrossEncoder, MultiVectorEncoder])
def test_every_family_opens_an_alias(family: Any) -> None:
    model = family("llm2vec-tiny", device="cpu")
    assert model.transformers_model.config.is_causal is False
    if family is CrossEncoder:
        assert np.isfinite(model.predict([("a", "b")])).all()


def late(source: Any) -> Any:
    torch.manual_seed(0)
    return MultiVectorEncoder(source, device="cpu")


@pytest.mark.parametrize("bos", [False, True])
def test_late_interaction_keeps_span_and_prompts_and_reopens(
    bos: bool, decoder: Path, bos_decoder: Path, tmp_path: Path
) -> None:
    encoder = st_llm2vec.load(str(bos_decoder if bos else decoder), device="cpu")
    encoder.prompts = {"query": "Find it: ", "document": ""}
    encoder.save_pretrained(str(tmp_path / "encoder"))
    model = late(str(tmp_path / "encoder"))
    assert isinstance(model[0], LLM2VecTransformer)
    assert model.prompts["query"] == "Find it: "
    spans = encoder.preprocess(TEXTS, prompt="Find it: ")["pooling_mask"].sum(1).tolist()
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    assert [len(vectors) for vectors in queries] == spans  # neither BOS nor prompt is scored
    assert [len(vectors) for vectors in documents] == spans
    model.save_pretrained(str(tmp_path / "late"))
    again = MultiVectorEncoder(str(tmp_path / "late"), device="cpu")
    for a, b in zip((*queries, *documents), (*again.encode_query(TEXTS), *again.encode_document(TEXTS)), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-6


def test_late_interaction_trains_a_step(decoder: Path) -> None:
    encoder = st_llm2vec.load(str(decoder), device="cpu")
    width = encoder.get_embedding_dimension()
    head = Dense(width, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    model = MultiVectorEncoder(
        modules=[encoder[0], head, MultiVectorMask(), Normalize(module_input_name="token_embeddings")], device="cpu"
    ).train()
    loss = MultiVectorMultipleNegativesRankingLoss(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [vectors.copy() for vectors in map(np.asarray, model.encode_document(TEXTS))]
    model.train()
    columns = [model.preprocess(TEXTS, task="query"), model.preprocess(TEXTS[::-1], task="document")]
    loss(columns, None).backward()
    optimizer.step()
    after = model.encode_document(TEXTS)
    assert max(np.abs(a - np.asarray(b)).max() for a, b in zip(before, after, strict=True)) > 1e-6


def test_a_module_shared_with_late_interaction_still_pools_the_prompt(decoder: Path) -> None:
    encoder = st_llm2vec.load(str(decoder), device="cpu", include_prompt=True)
    before = encoder.encode(TEXTS, prompt=PROMPT)
    MultiVectorEncoder(modules=[encoder[0], MultiVectorMask()], device="cpu")
    assert np.array_equal(encoder.encode(TEXTS, prompt=PROMPT), before)


# what else is asked of a stock model


@pytest.mark.parametrize(
    "options",
    [
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"precision": "int8"},
        {"precision": "binary"},
        {"truncate_dim": 8},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"normalize_embeddings": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_encode_returns_what_the_stock_class_returns(tiny: Any, stock: Any, options: dict[str, Any]) -> None:
    for inputs in (TEXTS,) if "int8" in options.values() else (TEXTS, TEXTS[1]):  # one has no range
        ours, theirs = (model.encode(inputs, **options) for model in (tiny, stock))
        assert type(ours) is type(theirs)
        if options == {"output_value": None}:
            pairs = zip(*((x if isinstance(x, list) else [x]) for x in (ours, theirs)), strict=True)
            assert all(a.keys() >= b.keys() for a, b in pairs)
            continue
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            difference = np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)
            assert np.abs(difference).max() <= (1 if options.get("precision") == "int8" else 1e-4)
