"""Late chunking: the pooled spans of one forward pass, whichever chunks are asked for; windows where it is too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_encoder import FakeEncoder
from test_corpus import files, table, write
from tokenizers.normalizers import Replace

import st_llm2vec
from faiss_llm2vec import FaissStore
from st_llm2vec import encode_corpus
from st_llm2vec.chunking import Chunker, room
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.late_chunking import Chunk, encode_chunks
from st_llm2vec.templates import Template

SENTENCES = [
    "The library opens at nine.",
    "Bears hibernate in winter, and wake when the snow melts!",
    "naïve café, 编码器: größer.",
    "It is quiet then.",
    "Rates rose again on Tuesday; the market fell.",
]
DOCUMENT = "\n\n".join(f"{i}. {SENTENCES[i % len(SENTENCES)]}" for i in range(12))
SHORT = "The quick brown fox: 12 dogs!\n\nSeven wizards, naïve café, 编码器.\n\nFiles over a lazy dog."


def spelled(count: int) -> str:
    return " ".join(f"{i} {SENTENCES[i % len(SENTENCES)]}" for i in range(count))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return st_llm2vec.load("llm2vec-tiny", device="cpu")


def chunks_of(document: str, encoder: Any, size: int, overlap: int = 0) -> list[Chunk]:
    pieces = Chunker(encoder, size, overlap, late=True).split(document, document=True)
    return [Chunk(document, start, start + len(text)) for start, text in pieces]


def pooled(model: Any, document: str, chunks: list[Chunk], prompt: str, weights: str) -> Any:
    """Each chunk's tokens, found by their characters in a pass over the whole document by the stock classes alone."""
    template = model[0].text_template
    whole = template.prefix + prompt + document + template.suffix
    encoded = model.tokenizer(whole, return_offsets_mapping=True, return_tensors="pt")
    with torch.no_grad():
        states = model[0].model(input_ids=encoded["input_ids"]).last_hidden_state[0].float()
    found, before = [], len(template.prefix + prompt)
    for _, start, stop in chunks:
        inside = [
            i
            for i, (a, b) in enumerate(encoded["offset_mapping"][0].tolist())
            if any(before + start <= place < before + stop for place in range(a, b))
        ]
        weight = torch.arange(1, len(inside) + 1).float() if weights == "weighted_mean" else torch.ones(len(inside))
        found.append((states[inside] * weight[:, None]).sum(0) / weight.sum())
    return torch.stack(found).numpy()


@pytest.mark.parametrize("mode", ["mean", "weighted_mean"])
@pytest.mark.parametrize(
    ("template", "prompt"), [(None, ""), (None, "Read this: "), (Template("before ", " after"), "Read this: ")]
)
def test_chunks_are_the_pooled_spans_of_one_forward_pass(
    bos_decoder: Path, mode: str, template: Template | None, prompt: str
) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu", template=template, pooling_mode=mode)
    chunks = chunks_of(SHORT, model, 20, 5)
    assert len(chunks) > 3
    found = encode_chunks(model, chunks, size=20, prompt=prompt)
    wanted = pooled(model, SHORT, chunks, prompt, mode)
    assert np.abs(found - wanted).max() <= 1e-6
    alone = model.encode([SHORT[c.start : c.stop] for c in chunks], prompt=prompt)
    assert np.abs(found - alone).max() > 1e-3  # what is around a chunk counts


def test_llm2vec_tiny_gives_the_pooled_spans_normalized_and_cut(tiny: Any) -> None:
    chunks = chunks_of(DOCUMENT, tiny, 32)
    wanted = pooled(tiny, DOCUMENT, chunks, "", "mean")
    assert np.abs(encode_chunks(tiny, chunks, size=32) - wanted).max() <= 1e-6
    other = Chunk(SENTENCES[1], 0, len(SENTENCES[1]))
    mixed = encode_chunks(tiny, [chunks[3], other, chunks[0]], size=32)  # in the order of the chunks
    assert np.abs(mixed[[0, 2]] - wanted[[3, 0]]).max() <= 1e-6
    assert np.abs(mixed[1] - pooled(tiny, SENTENCES[1], [other], "", "mean")[0]).max() <= 1e-6
    short = wanted[:, :64] / np.linalg.norm(wanted[:, :64], axis=1, keepdims=True)
    tiny.truncate_dim = 64
    try:
        assert np.abs(encode_chunks(tiny, chunks, size=32, normalize=True) - short).max() <= 1e-6
    finally:
        tiny.truncate_dim = None


def test_a_long_document_is_read_in_windows_that_do_not_depend_on_what_is_asked_for(tiny: Any) -> None:
    document = spelled(300)
    chunks = chunks_of(document, tiny, 40)
    before = tiny[0].tokens_encoded
    found = encode_chunks(tiny, chunks, size=40)
    tokens = len(tiny.tokenizer(document)["input_ids"])
    assert tokens > 4 * 512
    assert tiny[0].tokens_encoded - before < 1.6 * tokens  # windows overlap by a quarter
    few = [chunks[i] for i in range(3, len(chunks), 7)]
    assert np.abs(encode_chunks(tiny, few, size=40) - found[3::7]).max() <= 1e-6

    encoded = tiny.tokenizer(document, return_offsets_mapping=True)
    *ids, end = encoded["input_ids"]
    reach, offsets = room(tiny), encoded["offset_mapping"][:-1]
    overlap = max(42, reach // 4)
    starts = [*range(0, len(ids) - reach, reach - overlap), len(ids) - reach]
    states = {}
    for start in starts:
        with torch.no_grad():
            window = torch.tensor([[*ids[start : start + reach], end]])
            states[start] = tiny[0].model(input_ids=window).last_hidden_state[0]
    for chunk, vector in zip(chunks, found, strict=True):
        inside = [i for i, (a, b) in enumerate(offsets) if a < chunk.stop and b > chunk.start]
        a, b = inside[0], inside[-1] + 1
        farthest = max(
            (s for s in starts if s <= a and b <= s + reach),
            key=lambda s: min(a - s if s else 9e9, s + reach - b if s + reach < len(ids) else 9e9),
        )
        assert np.abs(states[farthest][a - farthest : b - farthest].mean(0).numpy() - vector).max() <= 1e-6


def test_one_pass_reads_a_third_of_what_overlapping_windows_read(tiny: Any, tmp_path: Path) -> None:
    text = spelled(32)
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    counts, tokens = [], []
    for late in (False, True):
        before = tiny[0].tokens_encoded
        how = {"chunk_size": 64, "chunk_overlap": 48, "late_chunking": late}
        counts.append(encode_corpus(tiny, tmp_path / "a.md", tmp_path / str(late), **how).texts)
        tokens.append(tiny[0].tokens_encoded - before)
    assert counts[0] == counts[1] > 10
    print(f"{counts[0]} chunks: {tokens[0]} tokens in overlapping windows, {tokens[1]} in late chunking")
    assert tokens[0] >= 3 * tokens[1]


def test_a_corpus_is_encoded_once_and_a_document_that_changes_as_a_whole(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    write(folder / "rows.jsonl", [{"text": DOCUMENT}, {"text": SENTENCES[0]}])
    (folder / "a.md").write_text("# One\n" + DOCUMENT, encoding="utf-8")
    how: dict[str, Any] = {"late_chunking": True, "chunk_size": 32, "shard_size": 4}
    done = encode_corpus(tiny, folder, tmp_path / "out", **how)
    assert done.encoded == done.texts > 12
    rows = table(tmp_path / "out").to_pylist()
    assert [row["id"] for row in rows if row["text"] == SENTENCES[0]] == [f"{folder}/rows.jsonl:2"]
    of_row = [row for row in rows if row["id"].startswith(f"{folder}/rows.jsonl:1#")]
    pieces = chunks_of(DOCUMENT, tiny, 32)
    assert [row["text"] for row in of_row] == [DOCUMENT[c.start : c.stop] for c in pieces]
    wanted = pooled(tiny, DOCUMENT, pieces, "", "mean")
    assert np.abs(np.array([row["embedding"] for row in of_row]) - wanted).max() <= 1e-6

    assert encode_corpus(tiny, folder, tmp_path / "out", **how).encoded == 0
    before = files(tmp_path / "out")
    first = min((tmp_path / "out").glob("*.parquet"))
    first.unlink()
    assert encode_corpus(tiny, folder, tmp_path / "out", **how).encoded == 4
    assert files(tmp_path / "out") == before
    (folder / "a.md").write_text("# One\n" + DOCUMENT + " Changed.", encoding="utf-8")
    again = encode_corpus(tiny, folder, tmp_path / "out", **how)
    assert again.encoded == sum(row["id"].startswith(f"{folder}/a.md") for row in table(tmp_path / "out").to_pylist())
    with pytest.raises(InvalidInputError, match="holds vectors made with late_chunking=True, not late_chunking=None"):
        encode_corpus(tiny, folder, tmp_path / "out", chunk_size=32, shard_size=4)


def test_pages_are_read_as_one_document(tiny: Any, tmp_path: Path) -> None:
    from test_ingestion import pdf

    pdf(tmp_path / "a.pdf", "Bears hibernate in winter.", "They wake when the snow melts.")
    encode_corpus(tiny, tmp_path / "a.pdf", tmp_path / "out", late_chunking=True)
    (one, two) = table(tmp_path / "out").to_pylist()
    whole = f"{one['text']}\n\n{two['text']}"
    chunks = [Chunk(whole, 0, len(one["text"])), Chunk(whole, len(whole) - len(two["text"]), len(whole))]
    wanted = pooled(tiny, whole, chunks, "", "mean")
    assert np.abs(np.array([one["embedding"], two["embedding"]]) - wanted).max() <= 1e-6


@pytest.mark.parametrize(
    ("document", "start", "stop", "message"),
    [
        ("hello world", 5, 6, r"chunks\[1\] is ' ', characters 5 to 6 of 'hello world', with no token"),
        ("hello world", 7, 7, r"chunks\[1\] is '', characters 7 to 7 of .* no token, and so no vector. Leave it out"),
        ("hello \n\t world", 6, 8, r"chunks\[1\] is '\\n\\t'"),
        ("hello\u200bworld", 5, 6, r"chunks\[1\] is '\\u200b'"),
        ("hello", -3, 4, r"chunks\[1\] must be within the 5 characters of its document, got -3 to 4"),
        ("hello", 3, 100, "got 3 to 100"),
        ("hello", 4, 3, "got 4 to 3"),
    ],
)
def test_a_chunk_without_a_token_gets_no_vector_of_its_neighbours(
    tiny: Any, document: str, start: int, stop: int, message: str
) -> None:
    normalizer, tokenizer = tiny.tokenizer.backend_tokenizer.normalizer, tiny.tokenizer.backend_tokenizer
    tokenizer.normalizer = Replace("\u200b", "")  # as many tokenizers do
    try:
        with pytest.raises(InvalidInputError, match=message):
            encode_chunks(tiny, [Chunk("hello", 0, 5), Chunk(document, start, stop)])
    finally:
        tokenizer.normalizer = normalizer


def test_what_late_chunking_cannot_follow_is_refused(tiny: Any, bos_decoder: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": SENTENCES[0], "late_chunk": "x"}])
    last = st_llm2vec.load(str(bos_decoder), device="cpu", pooling_mode="last_token")
    for model, options, message in [
        (FakeEncoder(), {}, "late_chunking reads the token states of an encoder of st_llm2vec.load, got a FakeEncoder"),
        (last, {}, "pooling_mode must be one of mean, weighted_mean, got 'last_token'"),
        (tiny, {"chunk_size": 300}, "chunk_size must be from 1 to 253, half of what this encoder reads, .*, got 300"),
        (tiny, {}, "a.jsonl, line 1: a column is called 'late_chunk'"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            encode_corpus(model, tmp_path / "a.jsonl", tmp_path / "out", late_chunking=True, **options)
    assert not (tmp_path / "out").exists()


def test_a_store_follows_a_document_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from st_llm2vec.cli import main

    monkeypatch.chdir(tmp_path)
    line = ["--quiet", "index", "a.md", "store", "--late-chunking", "--chunk-size", "32"]
    Path("a.md").write_text(DOCUMENT, encoding="utf-8")
    assert main(line) == 0
    with FaissStore.open("store") as store:
        before = {record.id: record for record in store.get(where={}, with_vectors=True)}
    Path("a.md").write_text(DOCUMENT + "\n\nThe end is new.", encoding="utf-8")
    assert main(line) == 1  # the first chunk has the same text, and another vector
    assert main([*line, "--upsert"]) == 0
    with FaissStore.open("store") as store:
        first = store.get(["a.md#1"], with_vectors=True)[0]
    assert first.text == before["a.md#1"].text
    assert np.abs(first.vector - before["a.md#1"].vector).max() > 1e-5
    assert main([*line[:4], "--chunk-size", "32"]) == 1  # each chunk by itself is another vector, too
    assert first.metadata["late_chunk"].endswith(":0")
