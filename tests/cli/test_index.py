"""`index` and `search`: a store follows its input, and says why something was not found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder, vectors

from faiss_llm2vec import FaissStore
from st_llm2vec.cli import index as index_command
from st_llm2vec.cli import search as search_command

from .conftest import Command, Done, write_jsonl


class Killed(BaseException):
    """As a kill: nothing may be tidied up on its account."""


class Run:
    """Runs commands in `folder` with encoders that remember what they encoded."""

    def __init__(self, command: Command, folder: Path) -> None:
        self._command, self.folder = command, folder
        self.encoder = FakeEncoder()

    def __call__(self, *line: str | Path) -> Done:
        self.encoder = FakeEncoder()
        return self._command(*line)

    def texts(self, *line: str | Path) -> list[str]:
        """What a command encoded; it must come to its end."""
        done = self(*line)
        assert done.code == 0, done.err
        return self.encoder.texts

    def rows(self, texts: dict[str, str], **fields: Any) -> Path:
        return write_jsonl(self.folder / "a.jsonl", [{"key": id, "text": t, **fields} for id, t in texts.items()])

    def held(self) -> dict[str, str]:
        """The documents of the store, which must be sound and have their texts' vectors."""
        with FaissStore.open(self.folder / "store") as store:
            assert store.verify() == []
            records = store.get(where={}, with_vectors=True)
        for record in records:
            assert record.vector is not None
            assert abs(record.vector - vectors([record.text])[0]).max() < 1e-6
        return {record.id: record.text for record in records}


@pytest.fixture
def run(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    made = Run(command, tmp_path)
    for module in (index_command, search_command):
        monkeypatch.setattr(module, "open_model", lambda name, **options: made.encoder)
    return made


INDEX = ("index", "a.jsonl", "store", "--id-column", "key")


def test_a_second_run_encodes_nothing_and_others_what_they_are_told(run: Run) -> None:
    run.rows({"1": "one", "2": "two", "3": "three"}, year=1)
    assert run.texts(*INDEX) == ["one", "two", "three"]
    again = run(*INDEX)
    assert run.encoder.texts == []
    assert "0 added, 0 updated, 3 unchanged, 0 deleted; 0 texts encoded" in again.err

    run.rows({"1": "one", "2": "TWO", "4": "four"}, year=1)
    refused = run(*INDEX)
    assert refused.code == 1
    assert (
        "Error: Give --upsert to replace documents, or --sync to also delete what the input lacks: 2 changed"
        in refused.err
    )
    assert run.encoder.texts == []
    assert run.held() == {"1": "one", "2": "two", "3": "three"}

    assert run.texts(*INDEX, "--upsert") == ["TWO", "four"]
    assert run.held() == {"1": "one", "2": "TWO", "3": "three", "4": "four"}
    done = run(*INDEX, "--sync")
    assert "0 added, 0 updated, 3 unchanged, 1 deleted" in done.err
    assert run.held() == {"1": "one", "2": "TWO", "4": "four"}


def test_metadata_alone_is_replaced_without_encoding(run: Run) -> None:
    run.rows({"1": "one", "2": "two"}, year=1)
    run.texts(*INDEX)
    run.rows({"1": "one", "2": "two"}, year=2)
    assert run(*INDEX).code == 1
    assert run.texts(*INDEX, "--upsert") == []
    with FaissStore.open("store") as store:
        assert store.count({"year": 2}) == 2
    run.held()


@pytest.mark.parametrize("batch", ["2", "100"])
def test_texts_that_move_keep_their_vectors(run: Run, batch: str) -> None:
    lines = [f"line {i}" for i in range(20)]
    Path("a.txt").write_text("\n".join(lines))
    line = ("index", "a.txt", "store", "--commit-every", batch, "--sync")
    assert len(run.texts(*line)) == 20
    Path("a.txt").write_text("\n".join(["new", *lines[:10], *lines[11:]]))
    assert run.texts(*line) == ["new"]
    assert run.held() == {f"a.txt:{i}": t for i, t in enumerate(["new", *lines[:10], *lines[11:]], 1)}
    Path("a.txt").rename("b.txt")
    assert run.texts("index", "b.txt", "store", "--sync") == []
    assert set(run.held()) == {f"b.txt:{i}" for i in range(1, 21)}


def test_ids_with_a_nul_are_neither_deleted_nor_taken_for_others(run: Run) -> None:
    sync = (*INDEX, "--sync")
    run.rows({"a": "one", "a\0b": "two", "a\0c": "three"})
    run.texts(*sync)
    assert run.texts(*sync) == []
    assert run.held() == {"a": "one", "a\0b": "two", "a\0c": "three"}
    run.rows({"a": "two", "a\0b": "one"})
    assert run.texts(*sync) == []  # they moved
    assert run.held() == {"a": "two", "a\0b": "one"}


def test_chunks_of_a_document_that_became_shorter_go(run: Run) -> None:
    words = [f"w{i}" for i in range(50)]
    line = ("index", "a.md", "b.jsonl", "store", "--chunk-size", "10", "--id-column", "key")
    Path("a.md").write_text(" ".join(words))
    write_jsonl(Path("b.jsonl"), [{"key": "k", "text": " ".join(words[:30])}, {"key": "k2#1", "text": "x"}])
    run.texts(*line)
    assert {"a.md#5", "k#3", "k2#1"} <= set(run.held())
    Path("a.md").write_text(" ".join(words[:10]))
    write_jsonl(
        Path("b.jsonl"), [{"key": "k", "text": "short"}, {"key": "k2", "text": "y"}, {"key": "k2#1", "text": "x"}]
    )
    assert run(*line).code == 1
    assert run.texts(*line, "--upsert") == ["short", "y"]
    assert set(run.held()) == {"a.md#1", "k", "k2", "k2#1"}
    write_jsonl(Path("b.jsonl"), [{"key": "k", "text": " ".join(words[:30])}])
    run.texts(*line, "--upsert")
    assert set(run.held()) == {"a.md#1", "k#1", "k#2", "k#3", "k2", "k2#1"}


@pytest.mark.parametrize("mode", [(), ("--sync",)])
@pytest.mark.parametrize("step", range(1, 7))
def test_a_killed_run_is_gone_on_with(
    run: Run, monkeypatch: pytest.MonkeyPatch, step: int, mode: tuple[str, ...]
) -> None:
    texts = {str(i): f"text {i // 2}" for i in range(10)}  # every text twice
    run.rows(texts)
    line = (*INDEX, "--commit-every", "4", *mode)
    calls = 0

    def before(made: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                raise Killed
            return made(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(FaissStore, "upsert", before(FaissStore.upsert))
        patch.setattr(FakeEncoder, "encode_document", before(FakeEncoder.encode_document))
        with pytest.raises(Killed):
            index_command_raising(line)
    done = len(run.held()) if Path("store").exists() else 0
    assert done == 4 * ((step - 1) // 2)
    assert run.texts(*line) == list(texts.values())[done:]
    assert run.held() == texts


def index_command_raising(line: tuple[str, ...]) -> None:
    from st_llm2vec.cli import app

    app(list(line), standalone_mode=False)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--kind", "sq8"), 1, "--kind must be 'flat', which store has, got 'sq8'"),
        (("--metric", "dot"), 1, "--metric must be 'cosine', which store has, got 'dot'"),
        (("--truncate-dim", "4"), 1, "--truncate-dim must be None, which store has, got 4"),
        (("--upsert", "--sync"), 2, "--sync replaces as --upsert does"),
        (("--delete", "1"), 2, "it goes with a STORE only"),
        (("--chunk-size", "30"), 1, "--chunk-size must be from 1 to 19"),
        (("--chunk-size", "5", "--chunk-overlap", "5"), 1, "--chunk-overlap must be at least 0 and below the 5"),
        (("--metadata", "yeer"), 1, "no row has a column 'yeer'"),
        (("--text-column", "body"), 1, "Name the column of the text with --text-column."),
        (("--input-format", "docx"), 2, "must be one of txt, "),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_encoded(
    run: Run, options: tuple[str, ...], code: int, message: str
) -> None:
    run.rows({"1": "one"})
    run.texts(*INDEX)
    run.rows({"1": "one", "2": "two"})
    done = run(*INDEX, *options)
    assert done.code == code, done.err
    assert message in " ".join(done.err.replace("│", " ").split()), done.err
    assert run.encoder.texts == []
    assert run.held() == {"1": "one"}


@pytest.mark.parametrize("options", ["--kind nonsense", "--metric cos", "--kind binary --metric l2"])
def test_a_kind_that_is_none_is_refused_before_the_model_is_opened(
    run: Run, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.rows({"1": "one"})
    monkeypatch.setattr(index_command, "open_model", lambda *_, **__: pytest.fail("the model was opened"))
    done = run(*INDEX, *options.split())
    assert done.code == 1
    assert " must be " in done.err
    assert not (run.folder / "store").exists()


def test_what_is_skipped_is_told_and_nothing_is_deleted_on_its_account(run: Run) -> None:
    run.rows({"1": "one", "2": "two"})
    run.texts(*INDEX)
    with (run.folder / "a.jsonl").open("a") as file:
        file.write("{\n")
    stopped = run(*INDEX, "--sync")
    assert stopped.code == 1
    assert "a.jsonl, line 3: not valid JSON" in stopped.err
    run.rows({"1": "one"})
    with (run.folder / "a.jsonl").open("a") as file:
        file.write('{"key": "2"\n')
    done = run(*INDEX, "--sync", "--on-error", "skip")
    assert done.code == 0
    assert "1 rows or files could not be read and were skipped." in done.err
    assert "Nothing is deleted" in done.err
    assert set(run.held()) == {"1", "2"}


def test_what_is_said_has_lines_and_words_of_its_own(run: Run) -> None:
    run.rows({"1": "one"})
    Path("b.csv").write_text("body\nx\n")
    line = ("index", "a.jsonl", "b.csv", "store", "--on-error", "skip")
    said = run(*line).err.splitlines()  # also at the returns of a bar that is drawn again
    assert any(each.startswith("store: 1 added") for each in said)
    assert any(each.endswith("Name the column of the text with --text-column.") for each in said)
    said = run("encode", *line[1:3], "vectors", *line[4:]).err.splitlines()
    assert any(each.endswith("Name the column of the text with --text-column.") for each in said)
    said = run("index", "--from-vectors", "vectors", "other").err.splitlines()
    assert any(each.startswith("other: 1 added") for each in said)


def test_delete_takes_ids_and_files(run: Run) -> None:
    Path("n.md").write_text(" ".join(f"w{i}" for i in range(30)))
    run.rows({"1": "one", "2": "two"})
    run.texts("index", "a.jsonl", "n.md", "store", "--id-column", "key", "--chunk-size", "10")
    refused = run("index", "store", "--delete", "1", "--delete", "nothing")
    assert refused.code == 1
    assert "no document has the id or the source 'nothing'. Nothing was deleted." in refused.err
    done = run("index", "store", "--delete", "1", "--delete", "n.md")
    assert (done.code, done.err) == (0, "store: 4 deleted, 1 left.\n")
    assert run.held() == {"2": "two"}


def test_another_folder_or_store_is_left_as_it_is(run: Run) -> None:
    run.rows({"1": "one"})
    Path("notes").mkdir()
    Path("notes/a.md").write_text("mine")
    done = run("index", "a.jsonl", "notes")
    assert done.code == 1
    assert "notes is no store, and was left as it is." in done.err
    run.texts(*INDEX)
    run.encoder = FakeEncoder("two")
    done = run._command(*INDEX)
    assert done.code == 1
    assert "fingerprint 'one'" in done.err
    assert run.encoder.texts == []


def test_search_shows_metadata_and_says_why_nothing_was_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rows = [{"text": f"text {i}", "year": 2000 + i, "topic": "animals"} for i in range(3)]
    write_jsonl(Path("a.jsonl"), rows)
    run.texts("index", "a.jsonl", "store")
    search = ("search", "store", "text 1", "-m", "any")
    done = run(*search, "-k", "1")
    assert done.out.split("\n")[2].split() == ["#", "score", "text", "year", "topic", "id"]
    assert done.out.split("\n")[4].split() == ["1", "1.000", "text", "1", "2001", "animals", "a.jsonl:2"]
    shown = run(*search, "--show", "year")
    assert "animals" not in shown.out
    wrong = run(*search, "--where", '{"$or": [{"yeer": 2000}, {"topic": "x"}]}')
    assert wrong.code == 0
    assert "no document has a field 'yeer'; fields: source, topic, year. Did you mean 'year'?\n" in wrong.err
    assert "store: no document matches the filter.\n" in wrong.err
    found = json.loads(run(*search, "--json", "--where", '{"year": {"$gte": 2001}}').out)
    assert found[0]["hits"][0]["metadata"] == {"year": 2001, "topic": "animals", "source": "a.jsonl"}


def test_workers_without_work_are_told(run: Run) -> None:
    run.rows({str(i): f"text {i}" for i in range(4)})
    assert "--commit-every" in run(*INDEX, "--workers", "2").err
    run.rows({str(i): f"other {i}" for i in range(4)})
    assert "--commit-every" not in run(*INDEX, "--sync", "--workers", "2", "--commit-every", "2").err


def test_quiet_says_errors_only(run: Run) -> None:
    run.rows({"1": "one"})
    for line in (("--quiet", *INDEX), (*INDEX, "--quiet")):
        done = run(*line)
        assert (done.code, done.out, done.err) == (0, "", "")
    assert "no file nowhere.txt" in run("index", "nowhere.txt", "store", "--quiet").err
    assert run(*INDEX).err
