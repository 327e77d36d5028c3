"""LLM2VecEmbeddings gives what the encoder gives, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import threading

import numpy as np
import pytest

from langchain_llm2vec import LLM2VecEmbeddings
from st_llm2vec.errors import InvalidInputError

TEXTS = ["first line\nsecond line", "  two  blanks ", "naïve ≤ 编码器", ""]


def test_vectors_are_those_of_the_encoder_bit_for_bit(encoder):
    embeddings = LLM2VecEmbeddings(encoder)
    assert embeddings.embed_documents(TEXTS) == encoder.encode_document(TEXTS).tolist()
    assert embeddings.embed_query(TEXTS[0]) == encoder.encode_query([TEXTS[0]])[0].tolist()


def test_each_kind_goes_its_way_with_its_text_untouched(encoder):
    embeddings = LLM2VecEmbeddings(model=encoder, encode_kwargs={"batch_size": 7}, show_progress=True)
    embeddings.embed_documents(TEXTS)
    embeddings.embed_query(TEXTS[0])
    options = {"batch_size": 7, "show_progress_bar": True}
    assert encoder.calls == [("", TEXTS, options), ("query: ", TEXTS[:1], options)]


def test_query_encode_kwargs_take_the_place_of_encode_kwargs(encoder):
    embeddings = LLM2VecEmbeddings(
        model_name=encoder, encode_kwargs={"prompt": "d: "}, query_encode_kwargs={"prompt": "q: "}
    )
    embeddings.embed_documents(["a"])
    embeddings.embed_query("a")
    assert [prompt for prompt, _, _ in encoder.calls] == ["d: ", "q: "]


def test_no_texts(encoder):
    encoder.encode_document = lambda texts, **options: np.empty((0, 16), "f4")
    assert LLM2VecEmbeddings(encoder).embed_documents([]) == []


async def test_the_event_loop_goes_on_while_texts_are_encoded(encoder):
    started, release = threading.Event(), threading.Event()
    encode = encoder.encode_document

    def slow(texts, **options):
        started.set()
        assert release.wait(10)
        return encode(texts, **options)

    encoder.encode_document = slow
    task = asyncio.create_task(LLM2VecEmbeddings(encoder).aembed_documents(["a"]))
    while not started.is_set():
        await asyncio.sleep(0.001)
    release.set()  # reached only if the loop was not blocked
    assert await task == encode(["a"]).tolist()
    assert await LLM2VecEmbeddings(encoder).aembed_query("a") == encoder.encode_query(["a"])[0].tolist()


class PoolEncoder:
    """Counts the pools that are open."""

    def __init__(self, make_encoder):
        self.inner, self.opened, self.stopped, self.fail = make_encoder(), [], [], False

    def start_multi_process_pool(self, target_devices):
        self.opened.append(object())
        return self.opened[-1]

    def stop_multi_process_pool(self, pool):
        self.stopped.append(pool)

    def encode_query(self, texts, **options):
        return self.inner.encode_query(texts, **options)

    def encode_document(self, texts, pool, **options):
        assert pool is self.opened[-1]
        if self.fail:
            raise RuntimeError("a worker died")
        return self.inner.encode_document(texts, **options)


def test_one_pool_starts_when_needed_and_is_closed(make_encoder):
    encoder = PoolEncoder(make_encoder)
    embeddings = LLM2VecEmbeddings(encoder, multi_process=True, encode_kwargs={"batch_size": 7})
    embeddings.embed_query("a")
    assert encoder.opened == []
    embeddings.embed_documents(["a"])
    assert embeddings.embed_documents(["b"]) == encoder.inner.encode_document(["b"]).tolist()
    assert len(encoder.opened) == 1
    assert encoder.inner.calls[-2][2]["batch_size"] == 7
    embeddings.close()
    embeddings.close()
    assert encoder.stopped == encoder.opened
    embeddings.embed_documents(["a"])  # a new one
    del embeddings
    gc.collect()
    assert encoder.stopped == encoder.opened
    assert len(encoder.opened) == 2


def test_a_pool_that_failed_is_not_used_again(make_encoder):
    encoder = PoolEncoder(make_encoder)
    embeddings = LLM2VecEmbeddings(encoder, multi_process=True)
    encoder.fail = True
    with pytest.raises(RuntimeError, match="a worker died"):
        embeddings.embed_documents(["a"])
    encoder.fail = False
    embeddings.embed_documents(["a"])
    assert len(encoder.opened) == 2
    embeddings.close()


def test_a_name_is_loaded_with_the_prompts_of_its_model_kept(decoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    import st_llm2vec

    model = st_llm2vec.load(str(decoder), device="cpu")
    model.prompts = {"query": "find: ", "document": ""}
    model.save_pretrained(str(tmp_path / "encoder"))
    embeddings = LLM2VecEmbeddings(str(tmp_path / "encoder"), model_kwargs={"device": "cpu"})
    assert embeddings.embed_query("winter") == model.encode_query(["winter"])[0].tolist()
    assert embeddings.embed_query("winter") != embeddings.embed_documents(["winter"])[0]
    assert embeddings.fingerprint == model.fingerprint
    # A cache folder, or an argument that `load` does not have, is for SentenceTransformer.
    other = LLM2VecEmbeddings(
        model=str(tmp_path / "encoder"), cache_folder=str(tmp_path), model_kwargs={"backend": "torch"}
    )
    assert isinstance(other._encoder, SentenceTransformer)
    assert other.embed_query("winter") == pytest.approx(embeddings.embed_query("winter"), abs=1e-6)


def test_bad_arguments_say_what_to_give(encoder):
    with pytest.raises(InvalidInputError, match="encode_query and encode_document"):
        LLM2VecEmbeddings(3)
    with pytest.raises(InvalidInputError, match="go with a name"):
        LLM2VecEmbeddings(encoder, model_kwargs={"device": "cpu"})
    with pytest.raises(ValueError, match="batch_size"):
        LLM2VecEmbeddings(encoder, batch_size=3)
