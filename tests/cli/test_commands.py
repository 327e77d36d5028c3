"""Every command once, its exit codes, and errors as one message."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import pairwise_cos_sim
from tiny_models import tiny_tokenizer
from transformers import BertConfig, BertModel

from st_llm2vec import aliases
from st_llm2vec.atomic import only_writer
from st_llm2vec.cli.models import kept
from st_llm2vec.training import distill_static

from .conftest import SENTENCES, Command, write_jsonl

ROOT = Path(__file__).parent.parent.parent


def test_help_has_examples_and_needs_no_torch() -> None:
    code = (
        "import sys; from st_llm2vec.cli import main; codes = [main([*c.split(), '--help']) for c in "
        "('', 'convert', 'train mntp', 'mine', 'encode', 'index', 'search', 'eval', 'models')]; "
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Examples:") == 9


def test_version(command: Command) -> None:
    assert command("--version").out.startswith("st-llm2vec 0.")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "encode",
        "encode a.txt b.npy --batch-size 0",
        "train warmup a b c",
        "eval m --data nowhere",
        "eval m",
        "eval m --data . --mteb STS12",
        "eval m --data . --instructions",
    ],
)
def test_a_wrong_command_line_is_exit_code_2(command: Command, line: str) -> None:
    assert command(*line.split()).code == 2


def test_an_error_is_one_message_and_debug_shows_the_traceback(command: Command, tmp_path: Path) -> None:
    arguments = ("encode", tmp_path / "nowhere.txt", tmp_path / "vectors.npy")
    done = command(*arguments)
    assert done.code == 1
    assert done.err == f"Error: There is no file {tmp_path / 'nowhere.txt'}.\n"
    for with_debug in (("--debug", *arguments), (*arguments, "--debug")):
        done = command(*with_debug)
        assert done.code == 1
        assert "Traceback" in done.err
        assert "FileNotFoundError" in done.err


def test_unknown_model_is_exit_code_1(command: Command, texts: Path, tmp_path: Path) -> None:
    done = command("encode", texts, tmp_path / "v.npy", "--model", "llm2vec-nonsense")
    assert done.code == 1
    assert "llm2vec-tiny" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "v.npy").exists()


def test_models_lists_what_names_stand_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    done = command("models")
    assert done.code == 0, done.err
    assert "llm2vec-tiny" in done.out
    assert "unsup-simcse" in done.out


def test_a_kept_name_is_sized_converted_and_removed(
    command: Command, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "250")
    aliases.config_file().parent.mkdir()
    aliases.config_file().write_text(json.dumps({"mine": {"model": str(decoder), "prompts": {"query": "find: "}}}))
    assert command("convert", "mine", "-o", tmp_path / "direct").code == 0
    assert kept() == {}  # written out, not kept
    vectors = SentenceTransformer("mine", device="cpu").encode_query(SENTENCES)
    for line in (("models",), ("models", "--sizes")):
        done = command(*line)
        assert done.code == 0, done.err
        assert re.search(r"mine .* [0-9.]+ MB", done.out), done.out
    done = command("convert", "mine", tmp_path / "copied")
    assert done.code == 0, done.err
    assert "stock classes only" in done.err or "import st_llm2vec" in done.err
    for folder in ("direct", "copied"):
        again = SentenceTransformer(str(tmp_path / folder), device="cpu")
        assert np.array_equal(again.encode_query(SENTENCES), vectors)
    assert sorted(f.name for f in (tmp_path / "direct").iterdir()) == sorted(
        f.name for f in (tmp_path / "copied").iterdir()
    )
    assert command("convert", "mine").code == 2
    assert command("models", "remove", "mine").code == 0
    assert kept() == {}
    gone = command("models", "remove", "mine")
    assert gone.code == 1
    assert "Nothing is kept of 'mine'" in gone.err


def test_convert_writes_a_folder_once(command: Command, decoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    with only_writer(folder):
        busy = command("convert", decoder, folder)
    assert busy.code == 1
    assert f"Another run is writing {folder}" in busy.err
    assert not folder.exists()
    done = command("convert", decoder, folder, "--pooling-mode", "last_token", "--device", "cpu")
    assert done.code == 0, done.err
    assert "last_token pooling, 3 layers audited" in done.err
    assert "stock classes only: plain SentenceTransformer" in done.err  # the line that the help promises
    assert SentenceTransformer(str(folder)).encode("a fox").shape == (32,)
    again = command("convert", decoder, folder)
    assert again.code == 1
    assert "was left as it is" in again.err


def test_encode_npy_and_parquet_are_what_the_model_gives(command: Command, encoder: Path, tmp_path: Path) -> None:
    rows = [{"title": str(i), "body": text} for i, text in enumerate(SENTENCES)]
    jsonl = write_jsonl(tmp_path / "rows.jsonl", rows)
    options = ("--model", encoder, "--text-column", "body", "--device", "cpu")
    expected = SentenceTransformer(str(encoder), device="cpu").encode(SENTENCES)

    done = command("encode", jsonl, tmp_path / "v.npy", *options)
    assert done.code == 0, done.err
    assert " texts/s" in done.err  # a progress bar with its rate
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)

    assert command("encode", jsonl, tmp_path / "v.parquet", *options, "--normalize", "--prompt", "a:").code == 0
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["id", "text", "title", "source", "embedding"]
    vectors = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    unprompted = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(vectors - unprompted).max() > 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "v.npy", "v.parquet"]


def test_index_then_search(command: Command, encoder: Path, texts: Path, tmp_path: Path) -> None:
    store, model = tmp_path / "store", ("--model", encoder, "--device", "cpu")
    assert command("index", texts, store, *model).code == 0
    found = command("search", store, SENTENCES[1], SENTENCES[5], "-k", "2", "--json", *model)
    assert found.code == 0, found.err
    first, second = json.loads(found.out)
    assert first["hits"][0]["text"] == SENTENCES[1]
    assert first["hits"][0]["id"] == f"{texts}:2"
    assert second["hits"][0]["text"] == SENTENCES[5]
    assert len(second["hits"]) == 2

    again = command("index", texts, store, *model)
    assert again.code == 0
    assert "0 added, 0 updated, 8 unchanged, 0 deleted; 0 texts encoded" in again.err

    more = write_jsonl(tmp_path / "more.jsonl", [{"key": "new", "text": "a new dog", "year": 2024}])
    done = command("index", more, store, "--id-column", "key", *model)
    assert done.code == 0, done.err
    assert "1 added" in done.err
    assert "9 in all" in done.err
    table = command("search", store, "dog", "--where", '{"year": 2024}', *model)
    assert "a new dog" in table.out
    assert SENTENCES[0] not in table.out

    assert command("search", store, "dog", "--where", "{", *model).code == 2
    assert command("search", tmp_path / "nowhere", "dog", *model).code == 1


def test_sync_brings_a_store_up_to_date(command: Command, encoder: Path, texts: Path, tmp_path: Path) -> None:
    line = ("index", texts, tmp_path / "store", "--sync", "--model", encoder, "--device", "cpu", "--truncate-dim", "8")
    assert command(*line).code == 0
    assert "0 added, 0 updated, 8 unchanged, 0 deleted" in command(*line).err
    texts.write_text("\n".join([*SENTENCES[:5], "changed"]), encoding="utf-8")
    assert "0 added, 1 updated, 5 unchanged, 2 deleted" in command(*line).err


def test_a_failed_index_leaves_nothing(command: Command, encoder: Path, tmp_path: Path) -> None:
    twice = write_jsonl(tmp_path / "twice.jsonl", [{"key": "same", "text": "a"}, {"key": "same", "text": "b"}])
    done = command("index", twice, tmp_path / "store", "--id-column", "key", "--model", encoder, "--device", "cpu")
    assert done.code == 1
    assert "same" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["twice.jsonl"]


def bert(folder: Path) -> Path:
    """An encoder of stock classes, as sentence-transformers saves it."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "raw")
    tokenizer.save_pretrained(folder / "raw")
    transformer = Transformer(str(folder / "raw"))
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save_pretrained(str(folder))
    return folder


def test_eval(command: Command, encoder: Path, tmp_path: Path) -> None:
    rows = [
        {"sentence1": a, "sentence2": b, "score": i}
        for i, (a, b) in enumerate(zip(SENTENCES, reversed(SENTENCES), strict=True))
    ]
    write_jsonl(tmp_path / "stsb" / "test.jsonl", rows)
    options = ("--tasks", "stsb", "--data", tmp_path, "--device", "cpu")
    done = command("eval", encoder, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [score["model"] for score in found["scores"]] == ["static-embedding baseline", str(encoder)]
    assert {score["n"] for score in found["scores"]} == {len(rows)}
    assert [each["against"] for each in found["differences"]] == ["static-embedding baseline"]
    assert "Spearman" in command("eval", encoder, *options, "--no-baselines").out
    own = tmp_path / "own.csv"
    own.write_text("question,answer\n" + "".join(f"{text},{text}\n" for text in SENTENCES))
    columns = ("--column", "query=question", "--column", "document=answer")
    done = command("eval", encoder, "--data", own, *columns, "--prompt-eol", encoder, "--markdown", "--device", "cpu")
    assert done.code == 0, done.err
    assert [line.split(" | ")[1] for line in done.out.splitlines()[2:]] == [
        "BM25",
        f"static-embedding baseline of {encoder}",
        str(encoder),
        f"PromptEOL, {encoder} untrained",
    ]
    peers = [str(bert(tmp_path / "bert")), str(tmp_path / "static")]
    distill_static(SentenceTransformer(str(encoder)), dimensions=8).save_pretrained(peers[1])
    done = command("eval", encoder, *peers, *options, "--no-baselines", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [score["model"] for score in found["scores"]] == [str(encoder), *peers]
    for score in found["scores"][1:]:
        ours = SentenceTransformer(score["model"], device="cpu")
        pair = [ours.encode([row[side] for row in rows]) for side in ("sentence1", "sentence2")]
        value = spearmanr(pairwise_cos_sim(*pair), [row["score"] for row in rows]).statistic
        assert score["value"] == pytest.approx(value, abs=1e-6)
    wrong = command("eval", "no-such-model", "--data", own, "--column", "query=", "--device", "cpu")
    assert wrong.code == 2
    assert "sentence1=question" in wrong.err
    assert "of no known kind" in command("eval", "no-such-model", "--data", own).err  # before any model is opened
    unknown = command("eval", encoder, "--tasks", "nonsense", "--data", tmp_path, "--device", "cpu")
    assert unknown.code == 1
    assert "nonsense" in unknown.err


def test_a_folder_of_mixed_files_answers_questions(command: Command, tmp_path: Path) -> None:
    notes, store = ROOT / "examples" / "notes", tmp_path / "store"
    done = command("index", notes, store, "--device", "cpu")
    assert done.code == 0, done.err
    questions = [
        "when does the library open?",
        "which animals sleep in winter?",
        "how long does a loaf bake?",
        "rings of ice",
    ]
    found = command("search", store, *questions, "-k", "3", "--json", "--device", "cpu")
    assert found.code == 0, found.err
    expected = ["library.md#1", "animals.pdf#1", "bread.html#1", "planets.csv:4"]
    for answer, name in zip(json.loads(found.out), expected, strict=True):
        assert f"{notes / name}" in [hit["id"] for hit in answer["hits"]]


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder"])
def test_other_kinds_of_the_host_are_not_taken_for_encoders(kind: str, command: Command, tmp_path: Path) -> None:
    folder, told = bert(tmp_path / "other"), "config_sentence_transformers.json"
    config = json.loads((folder / told).read_text())
    (folder / told).write_text(json.dumps({**config, "model_type": kind}))
    rows = write_jsonl(tmp_path / "pairs.jsonl", [{"sentence1": a, "sentence2": a, "score": 1} for a in SENTENCES])
    done = command("eval", folder, "--data", rows, "--device", "cpu")
    assert done.code == 1
    assert f"must be a SentenceTransformer, got '{folder}', which is a {kind}." in " ".join(done.err.split())


def test_words_of_a_stock_encoder_are_refused(command: Command, tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "fox"], "tags": ["D", "N"]}] * 9
    for split in ("train", "test"):
        write_jsonl(tmp_path / "words" / f"{split}.jsonl", rows)
    done = command("eval", bert(tmp_path / "other"), "--data", tmp_path / "words", "--device", "cpu")
    assert done.code == 1
    assert "must be an encoder of st-llm2vec, got a SentenceTransformer with Transformer" in " ".join(done.err.split())


def test_a_damaged_encoder_of_ours_is_not_opened_as_another(command: Command, encoder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(encoder, tmp_path / "damaged")
    (damaged / "model.safetensors").unlink()
    rows = write_jsonl(tmp_path / "pairs.jsonl", [{"sentence1": a, "sentence2": a, "score": 1} for a in SENTENCES])
    done = command("eval", damaged, "--data", rows, "--device", "cpu")
    assert done.code == 1
    assert "are missing" in done.err
    assert "model_kwargs" not in done.err
