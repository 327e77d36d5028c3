"""LLM2VecEmbedding gives what the encoder gives, and its cache never mixes queries, texts and models."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading

import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index_llm2vec import LLM2VecEmbedding
from st_llm2vec.errors import InvalidInputError

TEXTS = ["first line\nsecond line", "  two  blanks ", "naïve ≤ 编码器"]


def test_vectors_are_those_of_the_encoder_bit_for_bit(encoder):
    embedding = LLM2VecEmbedding(encoder)
    assert embedding.get_text_embedding_batch(TEXTS) == encoder.encode_document(TEXTS).tolist()
    assert embedding.get_text_embedding(TEXTS[0]) == encoder.encode_document(TEXTS[:1])[0].tolist()
    assert embedding.get_query_embedding(TEXTS[0]) == encoder.encode_query(TEXTS[:1])[0].tolist()


async def test_the_async_twins_agree_and_do_not_block_the_loop(encoder):
    embedding = LLM2VecEmbedding(encoder, num_workers=2)
    assert await embedding.aget_text_embedding_batch(TEXTS) == encoder.encode_document(TEXTS).tolist()
    assert await embedding.aget_text_embedding(TEXTS[0]) == encoder.encode_document(TEXTS[:1])[0].tolist()
    expected = encoder.encode_query(["a"])
    started, release = threading.Event(), threading.Event()

    def slow(texts, **options):
        started.set()
        assert release.wait(10)
        return expected

    encoder.encode_query = slow
    task = asyncio.create_task(embedding.aget_query_embedding("a"))
    while not started.is_set():
        await asyncio.sleep(0.001)
    release.set()
    assert await task == expected[0].tolist()


def test_arguments_reach_the_encoder(encoder):
    embedding = LLM2VecEmbedding(encoder, embed_batch_size=2, normalize=False)
    embedding.get_text_embedding_batch(TEXTS)
    embedding.get_query_embedding("a")
    options = {"batch_size": 2, "normalize_embeddings": False, "show_progress_bar": False}
    assert encoder.calls == [("", TEXTS[:2], options), ("", TEXTS[2:], options), ("query: ", ["a"], options)]


def test_instructions_take_the_place_of_the_models_prompts(encoder):
    embedding = LLM2VecEmbedding(encoder, query_instruction="q: ", text_instruction="")
    embedding.get_query_embedding("a")
    embedding.get_text_embedding("a")
    assert [prompt for prompt, _, _ in encoder.calls] == ["q: ", ""]


def test_a_shared_cache_keeps_queries_texts_and_models_apart(make_encoder):
    cache, encoders = SimpleKVStore(), [make_encoder(), make_encoder()]
    encoders[1].fingerprint = "fake-2"
    plain = [
        [encoder.encode_query(["a"])[0].tolist(), encoder.encode_document(["a"])[0].tolist()] for encoder in encoders
    ]
    assert plain[0][0] != plain[0][1]
    embeddings = [LLM2VecEmbedding(encoder, embeddings_cache=cache) for encoder in encoders]
    embeddings.append(LLM2VecEmbedding(encoders[0], embeddings_cache=cache, query_instruction="q: "))
    for _ in range(2):
        for embedding, expected in zip(embeddings[:2], plain, strict=True):
            assert [embedding.get_query_embedding("a"), embedding.get_text_embedding("a")] == expected
            assert embedding.get_text_embedding_batch(["a"]) == [expected[1]]
        assert embeddings[2].get_query_embedding("a") != plain[0][0]
    # Computed once each: a query and a text per model, and the query with another instruction.
    assert [len(encoder.calls) for encoder in encoders] == [2 + 3, 2 + 2]


@pytest.mark.parametrize("setting", [{"normalize": True}, {"text_instruction": "t: "}], ids=str)
def test_a_shared_cache_keeps_settings_apart(encoder, setting):
    cache = SimpleKVStore()
    for options in ({}, setting):
        LLM2VecEmbedding(encoder, embeddings_cache=cache, **{"normalize": False} | options).get_text_embedding("a")
    assert len(encoder.calls) == 2


async def test_the_async_twins_share_the_cache(encoder):
    embedding = LLM2VecEmbedding(encoder, embeddings_cache=SimpleKVStore())
    for _ in range(2):
        query, text = await embedding.aget_query_embedding("a"), await embedding.aget_text_embedding("a")
        assert (query, text) == (embedding.get_query_embedding("a"), embedding.get_text_embedding("a"))
        assert query != text
    assert len(encoder.calls) == 2


class PoolEncoder:
    """Counts the pools that are open."""

    def __init__(self, make_encoder):
        self.inner, self.opened, self.stopped = make_encoder(), [], []

    def start_multi_process_pool(self, target_devices):
        self.opened.append(target_devices)
        return target_devices

    def stop_multi_process_pool(self, pool):
        self.stopped.append(pool)

    def encode_query(self, texts, **options):
        return self.inner.encode_query(texts, **options)

    def encode_document(self, texts, pool, **options):
        return self.inner.encode_document(texts, **options)


def test_one_pool_starts_when_needed_and_is_closed(make_encoder):
    encoder = PoolEncoder(make_encoder)
    embedding = LLM2VecEmbedding(encoder, parallel_process=True, target_devices=["cpu"])
    embedding.get_query_embedding("a")
    assert encoder.opened == []
    for _ in range(2):
        embedding.get_text_embedding_batch(TEXTS)
    assert encoder.opened == [["cpu"]]
    del embedding
    gc.collect()
    assert encoder.stopped == encoder.opened


def test_it_works_in_a_pipeline_and_is_told_apart_there(encoder):
    embedding = LLM2VecEmbedding(encoder)
    (node,) = IngestionPipeline(transformations=[embedding]).run(nodes=[TextNode(text="a")])
    assert node.embedding == encoder.encode_document(["a"])[0].tolist()
    assert embedding.to_payload() == {"class_name": "LLM2VecEmbedding", "model_name": "fake", "embed_batch_size": 32}


def test_a_name_is_loaded_with_the_prompts_of_its_model_kept(decoder, tmp_path):
    import st_llm2vec

    model = st_llm2vec.load(str(decoder), device="cpu")
    model.prompts = {"query": "find: ", "document": ""}
    model.save_pretrained(str(tmp_path / "encoder"))
    embedding = LLM2VecEmbedding(str(tmp_path / "encoder"), device="cpu", max_length=16, normalize=False)
    assert embedding.get_query_embedding("winter") == model.encode_query(["winter"])[0].tolist()
    assert embedding.get_query_embedding("winter") != embedding.get_text_embedding("winter")
    assert embedding.max_length == embedding._encoder.max_seq_length == 16
    again = pickle.loads(pickle.dumps(embedding))
    assert again.get_query_embedding("winter") == embedding.get_query_embedding("winter")
    other = LLM2VecEmbedding(
        str(tmp_path / "encoder"), cache_folder=str(tmp_path), trust_remote_code=True, device="cpu"
    )
    assert other.get_query_embedding("winter") == pytest.approx(
        model.encode_query(["winter"], normalize_embeddings=True)[0].tolist(), abs=1e-6
    )


def test_bad_arguments_say_what_to_give(encoder):
    with pytest.raises(InvalidInputError, match="encode_query and encode_document"):
        LLM2VecEmbedding(3)
    with pytest.raises(InvalidInputError, match="device must be left out with an encoder"):
        LLM2VecEmbedding(encoder, device="cpu")
    with pytest.raises(TypeError, match="BaseKVStore"):
        LLM2VecEmbedding(encoder, embeddings_cache={})
