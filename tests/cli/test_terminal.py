"""What files say reaches the terminal as text only."""

from __future__ import annotations

import json
import logging
import unicodedata
import warnings
from pathlib import Path

import pytest

from faiss_llm2vec import FaissStore
from st_llm2vec.cli import main
from st_llm2vec.cli.explore import page_data
from st_llm2vec.cli.terminal import _escaped_usage, escaped, escaped_notes, message

from .conftest import Command, write_jsonl

ATTACKS = {
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "title": "\x1b]0;owned\x07",
    "cursor": "a\x1b[2K\x1b[1Ab",
    "8 bit": "\x9b31mred",
    "return": "safe\rfake",
    "override": "abc\u202eexe.txt\u202c",
    "isolate": "\u2066x\u2069",
    "separator": "a\u2028$ rm -rf ~",
    "backspace": "a\b\b\bb",
    "delete": "a\x7f",
    "surrogate": "\udc80",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=list(ATTACKS))
def test_control_characters_are_shown_as_escapes(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable()
    assert all(f"\\u{ord(char):04x}" in shown for char in text if not char.isprintable())


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "编码器", "\u0645\u06cc\u200c\u062e\u0648", "👩\u200d🔬", "a\xa0b"]
)
def test_letters_of_all_languages_stay(text: str) -> None:
    assert escaped(text) == text


def test_no_line_of_a_message_looks_like_the_shells() -> None:
    assert message("Error: x\n$ rm -rf ~") == "Error: x\n  $ rm -rf ~"


def test_answers_errors_and_pages_show_escapes(tmp_path: Path, command: Command, encoder: Path) -> None:
    rows = [{"text": f"the fox {text}", "id": f"{name}{text}"} for name, text in ATTACKS.items() if name != "surrogate"]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    store = tmp_path / "store"
    assert command("index", source, store, "--id-column", "id", "--model", encoder).code == 0
    for options in ([], ["--json"]):
        done = command("search", store, "the fox\x1b]0;x\x07", "-k", 20, "--model", encoder, *options)
        assert done.code == 0
        assert "u001b]52" in done.out.replace("\n", "")
        assert all(char.isprintable() or char == "\n" for char in done.out)
    with FaissStore.open(store) as opened:
        data = page_data(opened, None, None, "pca", 3, 100)
    assert all(text.isprintable() for text in [*data["texts"], *data["ids"]])

    for name in ("\x1b]0;x\x07\n$ ls.jsonl", "a\u202eb.txt"):
        done = command("encode", tmp_path / name, tmp_path / "x.npy")
        assert done.code == 1
        assert all(char.isprintable() or char == "\n" for char in done.err)
        assert "\n$ ls" not in done.err


def test_logs_of_libraries_are_escaped(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with escaped_notes():
        logging.getLogger("library").warning("found %s", ATTACKS["title"])
    assert caplog.messages == ["found \\u001b]0;owned\\u0007"]
    logging.getLogger("library").warning("found %s", "\x07")
    assert caplog.messages[1] == "found \x07"


@pytest.mark.parametrize("content", ["[" * 10**5, '{"text": "\\ud800"}', '{"text": 1}', "[]", '{"text": NaN}'])
def test_no_content_of_a_file_shows_a_traceback(tmp_path: Path, command: Command, encoder: Path, content: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    done = command("encode", tmp_path / "rows.jsonl", tmp_path / "x.npy", "--model", encoder)
    assert done.code == 1
    assert done.err.startswith(("Error: ", "Loading"))
    assert "Traceback" not in done.err


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), AssertionError(), ImportError("no y")])
def test_an_error_of_a_library_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("st_llm2vec.cli.doctor.open_model", fail)
    assert main(["doctor", "x"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"Error: {type(error).__name__}")
    assert "--debug" in shown
    assert "Traceback" not in shown


def test_a_manifest_of_another_kind_is_no_traceback(tmp_path: Path, command: Command, encoder: Path) -> None:
    (tmp_path / "a.txt").write_text("the fox\n")
    (tmp_path / "out").mkdir()
    for manifest in ("[]", "3", "[" * 10**5, json.dumps({"shards": [1]}), json.dumps({"shards": [{"file": 1}]})):
        (tmp_path / "out" / "manifest.json").write_text(manifest)
        done = command("encode", tmp_path / "a.txt", tmp_path / "out", "--model", encoder)
        assert done.code == 1
        assert "manifest.json is damaged" in done.err


@pytest.mark.parametrize("text", ["\U000e0001tag\U000e007f", "\x7f\u202e", "\ue0001"], ids=ascii)
def test_what_is_escaped_in_json_is_what_it_was(text: str) -> None:
    shown = escaped(json.dumps([text], ensure_ascii=False))
    assert json.loads(shown) == [text]
    assert all(unicodedata.category(char) not in ("Cc", "Cf") for char in shown)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "a.txt", "b.npy", ATTACKS["title"]],
        [ATTACKS["title"]],
        ["encode", f"--{ATTACKS['cursor']}"],
        ["index", "a.txt", "b", "--batch-size", ATTACKS["override"]],
        ["search", "s", "q", "--where", ATTACKS["clipboard"]],
        ["explore", "s", "-o", "x.html", "--method", ATTACKS["8 bit"]],
        ["eval", "m", "--data", f"/{ATTACKS['title']}"],
    ],
    ids=lambda arguments: arguments[0][:7],
)
def test_a_wrong_command_line_is_shown_escaped(command: Command, arguments: list[str]) -> None:
    """Names of files come from a pattern such as *.txt, and from whoever made the files."""
    done = command(*arguments)
    assert done.code in (1, 2)
    assert not {char for char in done.err if unicodedata.category(char) in ("Cc", "Cf") and char != "\n"}


def test_a_usage_error_of_any_version_of_click_is_escaped() -> None:
    """The newest escapes what was typed by itself; those before show it as it is."""

    class NoSuchOptionError(Exception):
        exit_code, message = 2, f"No such option: --{ATTACKS['title']}\n$ ls"

    with pytest.raises(NoSuchOptionError) as raised, _escaped_usage():
        raise NoSuchOptionError
    assert raised.value.message == "No such option: --\\u001b]0;owned\\u0007\n  $ ls"


def test_warnings_and_tracebacks_in_logs_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []

    def show(said: Warning | str, *_: object) -> None:
        warned.append(str(said))

    monkeypatch.setattr(warnings, "showwarning", show)
    log, handler = logging.getLogger("library"), logging.StreamHandler()
    log.addHandler(handler)
    with escaped_notes():
        warnings.showwarning(UserWarning(ATTACKS["title"]), UserWarning, "x.py", 1)
        try:
            raise ValueError(ATTACKS["clipboard"] + "\n$ rm -rf ~")
        except ValueError:
            log.exception("found")
    log.removeHandler(handler)
    shown = capsys.readouterr().err
    assert "\\u001b]52" in shown
    assert "\x1b" not in shown
    assert "\n$ rm" not in shown
    assert warned == ["\\u001b]0;owned\\u0007"]
    assert warnings.showwarning is show
