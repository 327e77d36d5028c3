"""A store knows its model by name, opens it when it needs it, and downloads nothing for a stranger's manifest."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from fuzz import edit_manifest

import st_llm2vec
from faiss_llm2vec import FaissStore
from faiss_llm2vec.models import name_of
from st_llm2vec.encoders import lasting_name, open_unasked
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError, StoreError, StoreMismatchError

TINY = Path(st_llm2vec.__file__).parent / "tiny"
TEXTS = ["Bears hibernate in winter.", "Rates rose again."]


@pytest.fixture(scope="module")
def tiny():
    return st_llm2vec.load("llm2vec-tiny")


@pytest.fixture
def path(tmp_path, tiny):
    """A closed store of the model in the wheel."""
    with FaissStore.create(tmp_path / "store", tiny) as store:
        store.add(TEXTS)
    return tmp_path / "store"


def test_a_store_opens_its_model_when_a_text_needs_it(path):
    with FaissStore.open(path) as store:
        assert store.model is None
        assert store.search(np.ones(store.stats()["dimension"]))
        assert store.model is None  # a vector needs none
        assert store.search("What do bears do?", k=1)[0].text == TEXTS[0]
        opened = store.model
        store.add(["Snow fell."])
        assert store.search_batch(["winter", "money"], k=3)
        assert store.model is opened is store.encoder()
        assert store.stats()["model"] == "llm2vec-tiny"


def test_an_old_store_opens_and_learns_the_name_at_the_next_change(path, tiny):
    def older(manifest):
        del manifest["model"], manifest["revision"]
        manifest["format"] = 1

    edit_manifest(path, older)
    with FaissStore.open(path) as store:
        assert store.stats()["model"] is None
        with pytest.raises(InvalidInputError, match=r"does not know its name: FaissStore\.open\("):
            store.search("bears")
    with FaissStore.open(path, tiny) as store:
        assert store.search("bears", k=1)[0].text == TEXTS[0]
        store.add(["more"])
    with FaissStore.open(path) as store:
        assert store.search("bears", k=1)[0].text == TEXTS[0]
        assert store.stats()["model"] == "llm2vec-tiny"


def test_what_has_the_name_by_now_must_be_the_same_model(path, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    edit_manifest(path, lambda manifest: manifest.update(model=str(other), fingerprint="another"))
    with FaissStore.open(path) as store, pytest.raises(StoreMismatchError, match=r"/other', of fingerprint 'another'"):
        store.search("bears")
    with FaissStore.open(path) as store:
        assert store.model is None


def test_a_mismatch_names_both_models(path, make_encoder):
    encoder = make_encoder()
    encoder.name_or_path = "owner/other"
    with pytest.raises(StoreMismatchError, match=r"the model 'llm2vec-tiny', of fingerprint .* 'owner/other', has"):
        FaissStore.open(path, encoder)


STRANGE = ["owner/never-seen", "../tiny", "tiny", "/nowhere/at/all", "//host/share", "\\\\host\\share",
           "llm2vec-mistral", "https://example.org/model", "-rf"]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_from_a_manifest_fetches_nothing_and_says_what_to_type(path, tmp_path, monkeypatch, name):
    def connect(*args):
        raise AssertionError("asked the network")

    (tmp_path / "work").mkdir()
    shutil.copytree(TINY, tmp_path / "work" / "tiny")  # a relative name means nothing
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home"))
    edit_manifest(path, lambda manifest: manifest.update(model=name))
    with FaissStore.open(path) as store, pytest.raises(ModelNotFoundError) as raised:
        store.search("bears")
    assert f"FaissStore.open({str(path)!r}, {name!r})" in str(raised.value)
    assert f"-m {name}" in str(raised.value)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\nb", "\x1b[2J", 7, ["llm2vec-tiny"]])
def test_a_name_that_no_store_writes_is_refused(path, name):
    edit_manifest(path, lambda manifest: manifest.update(model=name))
    with pytest.raises(StoreError, match="model must be"):
        FaissStore.open(path)


def test_without_a_fingerprint_a_name_is_not_believed(path):
    edit_manifest(path, lambda manifest: manifest.update(fingerprint=None))
    with FaissStore.open(path) as store, pytest.raises(InvalidInputError, match="needs its model"):
        store.search("bears")


def test_names_last(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    commit = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123abc"
    commit.mkdir(parents=True)
    for given, expected in {
        "llm2vec-tiny": ("llm2vec-tiny", None),
        str(TINY): ("llm2vec-tiny", None),
        "mine": (str(tmp_path / "mine"), None),
        "owner/name": ("owner/name", None),
        str(commit): ("owner/name", "0123abc"),
        "a\0b": ("a\0b", None),
        "x" * 5000: ("x" * 5000, None),
    }.items():
        assert lasting_name(given) == expected
    assert lasting_name("owner/name", "main") == ("owner/name", "main")
    assert lasting_name(name_of(tiny)) == ("llm2vec-tiny", None)


def test_a_relative_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with FaissStore.create("store", "mine") as store:
        store.add(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with FaissStore.open(tmp_path / "store") as store:
        assert store.search("bears", k=1)[0].text == TEXTS[0]
        assert store.stats()["model"] == str(tmp_path / "mine")


def test_wrappers_have_the_name_of_the_model_inside(tiny):
    class Wrapper:
        def __init__(self, inner):
            self.inner = inner

        def embed_documents(self, texts):
            return self.inner.encode_document(texts)

    assert name_of(Wrapper(tiny)) == name_of(tiny) == str(TINY)
    one, other = Wrapper(None), Wrapper(None)
    one.inner, other.inner = other, one
    assert name_of(one) is None is name_of(None)


def test_a_name_that_a_manifest_cannot_hold_is_not_recorded(tmp_path, make_encoder):
    encoder = make_encoder()
    encoder.name_or_path = "a\nb"
    FaissStore.create(tmp_path / "s", encoder).close()
    with FaissStore.open(tmp_path / "s") as store:
        assert store.stats()["model"] is None


def test_a_model_that_is_given_by_name_is_loaded_after_the_store_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(st_llm2vec, "load", None)
    with pytest.raises(StoreError, match="is no store"):
        FaissStore.open(tmp_path / "none", "llm2vec-tiny")


# -- open_or_create, search and search_batch ---------------------------------------------------------------------------


def test_open_or_create_makes_one_and_opens_it_again(tmp_path, encoder, make_encoder):
    with FaissStore.open_or_create(tmp_path / "s", encoder, kind="sq8", metric="l2") as store:
        store.add(["a"], ids=["a"])
    for given in ({}, {"kind": "sq8"}, {"metric": "l2", "mmap": True}):
        with FaissStore.open_or_create(tmp_path / "s", encoder, **given) as store:
            assert store.stats()["kind"] == "sq8"
            assert [record.id for record in store.get(where={})] == ["a"]
    for name, value in (("kind", "flat"), ("metric", "cosine"), ("truncate_dim", 8)):
        with pytest.raises(StoreMismatchError, match=rf"{name} must be .*, got {value!r}. Leave it out"):
            FaissStore.open_or_create(tmp_path / "s", encoder, **{name: value})
    with pytest.raises(StoreMismatchError, match="fake-2"):
        FaissStore.open_or_create(tmp_path / "s", make_encoder(fingerprint="fake-2"))
    with FaissStore.open_or_create(tmp_path / "s", encoder) as store:  # all of them gave the lock back
        store.add(["b"])


def test_open_or_create_when_another_process_makes_it_first(tmp_path, encoder, monkeypatch):
    create = FaissStore.create

    def late(path, model, **options):
        create(path, model).close()
        return create(path, model, **options)

    monkeypatch.setattr(FaissStore, "create", late)
    with FaissStore.open_or_create(tmp_path / "s", encoder) as store:
        store.add(["a"])


def test_search_of_a_batch_says_what_to_type(store):
    store.add(["a", "b"], ids=["a", "b"])
    for batch in (["a", "b"], store.vectors(["a", "b"])):
        with pytest.warns(DeprecationWarning, match=r"store\.search_batch\(queries, k\)"):
            assert [hits[0].id for hits in store.search(batch, k=1)] == ["a", "b"]
    for single in ("a", np.ones(16)):
        with pytest.raises(InvalidInputError, match=r"store\.search\(query, k\)"):
            store.search_batch(single)


def test_the_database_of_a_store_says_the_name_once(path):
    with sqlite3.connect(path / "store.db") as sql:
        ((text,),) = sql.execute("SELECT json FROM manifest").fetchall()
    sql.close()
    assert json.loads(text)["model"] == "llm2vec-tiny"
    assert json.loads(text)["format"] == 2


def test_open_unasked_opens_what_is_here():
    assert open_unasked("llm2vec-tiny", device="cpu").fingerprint == open_unasked(str(TINY)).fingerprint
