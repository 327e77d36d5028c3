"""What a store remembers of its model: the fingerprint of wrapped models, and one that the caller states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from faiss_llm2vec import FaissStore
from faiss_llm2vec.models import fingerprint_of
from st_llm2vec.errors import InvalidInputError, StoreMismatchError


class Embeds:
    """Embeds as LangChain does."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def embed_documents(self, texts):
        return self.inner.embed_documents(texts)


class Cache(Embeds):
    pass


class Prefixed(Embeds):
    pass


A, B = Embeds(fingerprint="a"), Embeds(fingerprint="b")
NAMED = Embeds(model="org/small")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, None),
        (A, "a"),
        (SimpleNamespace(fingerprint=lambda: "called"), "called"),
        (NAMED, "Embeds small"),
        (Embeds(), "Embeds"),
        # What hands the vectors of another model on is that model ...
        (Cache(underlying_embeddings=A, namespace="x"), "a"),
        (Cache(underlying_embeddings=NAMED, model_name="cached"), "Embeds small"),
        (Cache(underlying_embeddings=Cache(underlying_embeddings=B)), "b"),
        (Cache(_langchain_embedding=Cache(underlying_embeddings=A), model_name="x"), "a"),
        # ... and what may change them is another one, and not the same around another.
        (Prefixed(inner=A), "Prefixed(a)"),
        (Prefixed(inner=B), "Prefixed(b)"),
        (Prefixed(inner=B, model_name="called so"), "Prefixed(b)"),
        (Prefixed(inner=NAMED), "Prefixed(Embeds small)"),
        (Prefixed(inner=NAMED, model_name="small"), "Prefixed small"),
        (Prefixed(inner=NAMED, model_name="other"), "Prefixed(Embeds small)"),
        (Prefixed(inner=Embeds(), model_name="named"), "Prefixed named"),
        (Prefixed(first=A, second=B), "Prefixed(a, b)"),
        (Prefixed(__pydantic_private__={"_client": A}), "Prefixed(a)"),
        # A prompt before each document changes the vectors as well.
        (Prefixed(fingerprint="a", encode_kwargs={"prompt": "doc: ", "batch_size": 8}), "a prompt='doc: '"),
        (Prefixed(fingerprint="a", encode_kwargs={"batch_size": 8}), "a"),
        (Cache(underlying_embeddings=Prefixed(fingerprint="a", text_instruction="d: ")), "a text_instruction='d: '"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # the same in every process
)
def test_the_fingerprint_is_that_of_the_vectors(model, expected):
    assert fingerprint_of(model) == expected
    assert fingerprint_of(model, "stated") == "stated"


def test_a_model_that_holds_itself_has_a_fingerprint():
    model, other = Prefixed(), Prefixed()
    model.inner, other.inner = other, model
    assert fingerprint_of(model) == "Prefixed(Prefixed)"


def test_a_stated_fingerprint_counts_when_opening_and_when_writing(tmp_path, make_encoder):
    path, other = tmp_path / "s", make_encoder(fingerprint="fake-2")
    FaissStore.create(path, make_encoder(), fingerprint="mine").close()
    with pytest.raises(StoreMismatchError, match=r"fingerprint 'mine'.*'fake-1'.*say so: fingerprint='mine'"):
        FaissStore.open(path, make_encoder())
    with pytest.raises(StoreMismatchError, match=r"'mine'.*'theirs'"):
        FaissStore.open(path, fingerprint="theirs")
    with FaissStore.open(path, other, fingerprint="mine") as store:
        store.add(["a"])
    FaissStore.open(path).close()
    for wrong in ("", 7):
        with pytest.raises(InvalidInputError, match="fingerprint must be a text"):
            FaissStore.create(tmp_path / "t", None, fingerprint=wrong)
    assert not (tmp_path / "t").exists()
