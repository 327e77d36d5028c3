"""No option is accepted and ignored: each is read, and those of the commands on files are seen to change something."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from fake_encoder import FakeEncoder

from faiss_llm2vec import FaissStore
from st_llm2vec import cli
from st_llm2vec.atomic import only_writer
from st_llm2vec.cli import encode, index, search
from st_llm2vec.cli.inputs import Files, reading_of
from st_llm2vec.cli.wording import options_of, reworded
from st_llm2vec.recipes import FIELDS
from st_llm2vec.settings import EncoderSettings

from .conftest import Command, write_jsonl

APP = typer.main.get_command(cli.app)
ANYWHERE = {"--help", "--debug", "--quiet", "--version"}  # of the command line as a whole; tested where they are made


def commands(command: Any = APP, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its words."""
    below = getattr(command, "commands", {})
    for word, each in below.items():
        yield from commands(each, f"{name} {word}".strip())
    if command.callback is not None and name:
        yield name, command


def options(command: Any) -> list[str]:
    """What each option of a command is called at full length."""
    found = [max(each.opts, key=len) for each in command.params if each.param_type_name == "option"]
    return [name for name in found if name not in ANYWHERE]


@pytest.mark.parametrize(("name", "command"), [pytest.param(*each, id=each[0]) for each in commands()])
def test_every_parameter_is_read(name: str, command: Any) -> None:
    function = inspect.unwrap(command.callback)
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    function = next((each for each in closure if inspect.isfunction(each)), function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = tree.body[0]
    assert isinstance(body, ast.FunctionDef)
    read = {node.id for line in body.body for node in ast.walk(line) if isinstance(node, ast.Name)}
    own = {argument.arg for argument in (*body.args.args, *body.args.kwonlyargs)}
    assert own <= read, f"{name}: {own - read} is accepted and not read"
    assert {each.name for each in command.params} <= own | {"help"} | _tables(), name


def _tables() -> set[str]:
    """Options that come from tables, whose rows have tests of their own."""
    return {field.name for table in (EncoderSettings, Files) for field in fields(table)} | set(FIELDS)


@pytest.mark.parametrize("command", [encode, index], ids=["encode", "index"])
def test_every_option_about_files_is_read(command: ModuleType) -> None:
    sources = inspect.getsource(command), inspect.getsource(reading_of)
    nodes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "files"}
    assert read == {field.name for field in fields(Files)}


class World:
    """A folder of inputs, and all that a command can be seen to do there."""

    def __init__(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        self._command, self.opened, self.encoder = command, [], FakeEncoder()
        write_jsonl(
            Path("in/a.jsonl"), [{"text": f"t{i}", "body": f"b{i}", "key": f"k{i}", "year": i} for i in range(3)]
        )
        Path("in/t.txt").write_text("first line\nsecond line\n")
        Path("in/c.md").write_text(" ".join(f"w{i}" for i in range(30)))
        for module in (encode, index, search):
            monkeypatch.setattr(module, "open_model", self._open)

    def _open(self, name: str, **given: Any) -> FakeEncoder:
        self.opened.append((name, given))
        return self.encoder

    def run(self, line: list[str]) -> dict[str, Any]:
        self.opened, self.encoder = [], FakeEncoder()
        done = self._command(*line)
        seen = {"code": done.code, "out": done.out, "opened": self.opened, "options": self.encoder.options}
        seen["texts"] = self.encoder.texts
        if Path("out").is_dir():
            seen["files"] = {path.name: path.stat().st_size for path in Path("out").iterdir()}
        if Path("store").is_dir():
            with FaissStore.open("store") as store:
                stats = store.stats()
                seen["store"] = (
                    store.get(where={}),
                    stats["kind"],
                    stats["metric"],
                    stats["dimension"],
                    stats["segments"],
                )
        return seen


def _bad_line() -> None:
    with Path("in/a.jsonl").open("a") as file:
        file.write("{\n")


def _edited() -> None:
    write_jsonl(Path("in/a.jsonl"), [{"text": "edited", "body": "b", "key": "k0", "year": 1}])


READING: dict[str, Any] = {
    "--text-column": ["body,text"],
    "--metadata": ["year"],
    "--txt": ["document"],
    "--input-format": ["txt"],
    "--chunk-size": ["7"],
    "--chunk-overlap": ["4"],
    "--late-chunking": [],
    "--workers": ["2"],
    "--engine": ["ray"],
    "--on-error": (_bad_line, ["skip"]),
    "--id-column": (lambda: [Path("in/t.txt").unlink()], ["key"]),
}
# By command: an option, and what is given to it; with a preparation of the folder where it needs one.
EFFECTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "encode in out": (
        [],
        {
            **READING,
            "--model": ["other"],
            "--as": (lambda: None, ["query"]),
            "--prompt": ["find: "],
            "--to": ["npy"],
            "--shard-size": ["2"],
            "--normalize": [],
            "--batch-size": ["3"],
            "--max-seq-length": ["12"],
            "--dtype": ["bfloat16"],
            "--quantize": ["int8"],
            "--compile": [],
            "--device": ["cpu"],
        },
    ),
    "index in store": (
        [],
        {
            **READING,
            "--model": ["other"],
            "--upsert": (_edited, []),
            "--sync": (_edited, []),
            "--delete": ["x"],
            "--from-vectors": ["vectors"],
            "--kind": ["sq8"],
            "--metric": ["dot"],
            "--truncate-dim": ["4"],
            "--commit-every": ["2"],
            "--batch-size": ["3"],
            "--max-seq-length": ["12"],
            "--dtype": ["bfloat16"],
            "--quantize": ["int8"],
            "--compile": [],
            "--device": ["cpu"],
        },
    ),
    "search store t1 -m x": (
        [],
        {
            "--model": ["other"],
            "--k": ["1"],
            "--where": ['{"year": 1}'],
            "--show": ["year"],
            "--hybrid": [],
            "--rerank": ["nowhere/nothing"],
            "--json": [],
            "--max-seq-length": ["12"],
            "--dtype": ["bfloat16"],
            "--quantize": ["int8"],
            "--device": ["cpu"],
        },
    ),
}
CASES = [(line, option) for line, (_, rows) in EFFECTS.items() for option in rows]


@pytest.mark.parametrize(("line", "option"), CASES, ids=[f"{line.split()[0]}{option}" for line, option in CASES])
def test_every_option_changes_something(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, option: str
) -> None:
    row = EFFECTS[line][1][option]
    prepare, values = row if isinstance(row, tuple) else (lambda: None, row)
    seen = []
    for extra in ([], [option, *values]):
        folder = tmp_path / ("with" if extra else "without")
        folder.mkdir()
        monkeypatch.chdir(folder)
        world = World(command, monkeypatch)
        if line.startswith("search") or option in ("--upsert", "--sync"):
            assert world.run(["index", "in", "store"])["code"] == 0
        prepare()
        seen.append(world.run([*line.split(), *extra]))
    if option == "--as":  # the encoder is the same for both, and the output says which it was
        assert seen[0]["files"] != seen[1]["files"]
    assert seen[0] != seen[1], f"{option} changes nothing"


def test_no_option_of_these_commands_is_left_out() -> None:
    named = dict(commands())
    for line, (_, rows) in EFFECTS.items():
        assert set(options(named[line.split()[0]])) == set(rows), line


@pytest.mark.parametrize("line", ["-h", "index -h", "models -h", "models remove -h"])
def test_short_help(command: Command, line: str) -> None:
    done = command(*line.split())
    assert done.code == 0
    assert "Usage:" in done.out


def test_the_package_runs_as_a_module() -> None:
    code = [sys.executable, "-m", "st_llm2vec", "--version"]
    assert subprocess.run(code, capture_output=True, text=True, check=True).stdout.startswith("st-llm2vec 0.")


def test_a_name_that_is_nearly_one_is_guessed(command: Command, texts: Path, tmp_path: Path) -> None:
    done = command("encode", texts, tmp_path / "v.npy", "--model", "llm2vec-mistrall")
    assert done.code == 1
    assert "Error: Did you mean 'llm2vec-mistral'? " in done.err


PYTHON = re.compile(r"\w+\.\w+\(|\b(?:None|True|False)\b|\b[a-z]+_[a-z_]+\b|\b\w+=['\"\d]|FaissStore|InvalidInputError")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Replace documents with store.upsert(...).", "Replace them with --upsert."),
        ("truncate_dim=9 is more than the model's 8.", "--truncate-dim 9 is more than the model's 8."),
        ("kind must be one of flat, sq8, got 'x'.", "--kind must be one of flat, sq8, got 'x'."),
        ("teacher is missing: Any model.", "--teacher is missing: Any model."),
        ("line 3: the teacher is missing", "line 3: the teacher is missing"),
        ("the id 'kind=flat' is there", "the id 'kind=flat' is there"),
        (
            "notes is no store. Make one with FaissStore.create('notes').",
            "notes is no store. Make one with st-llm2vec index.",
        ),
    ],
)
def test_messages_have_the_words_of_the_command_line(message: str, shown: str) -> None:
    assert reworded(message, options_of(APP)) == shown


@pytest.mark.parametrize(
    "line",
    [
        "search in x",
        "search nowhere x",
        "search store x --where [1]",
        'search store x --where {"year":{"$near":1}}',
        "index in store --kind nonsense",
        "index in store --metric nonsense",
        "index in store --truncate-dim 99",
        "index in store --text-column nowhere",
        "index in store --chunk-size 999",
        "index in store --late-chunking",
        "index in store --engine ray",
        "index --from-vectors nowhere store",
        "encode in out --chunk-overlap 999",
        "encode in/a.jsonl in",
        "encode nowhere out",
        "explore nowhere -o page.html",
        "explore store -o page.html --color-by nothing",
        "explore store -o page.html --where [1]",
        "convert in out",
        "convert nowhere/x in",
        "convert nowhere/x out --document-max-length 0",
        "doctor in",
        "doctor nowhere/x --dtype float17",
        "serve in --port 0",
        "serve in --port 0 --quantize int4",
        "serve in --host nowhere.invalid",
        "serve in --port 0 --store nowhere",
        "push nowhere me/x",
        "push in me/x",
        "push in x",
        "models remove nothing",
        "train mntp in nowhere.txt out",
        "train mntp in in/t.txt out --max-steps 0",
        "train supervised in in/a.jsonl out --columns nothing,body",
        "eval in --data in",
    ],
)
def test_errors_have_no_words_of_python(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    world: World = World(command, monkeypatch)
    if " store " in line and "index" not in line:
        world.run(["index", "in", "store"])
    done = command(*line.split())
    assert done.code in (1, 2)
    assert not (found := PYTHON.search(done.err)), (found, done.err)


def test_what_needs_no_model_is_said_before_one_is_loaded(command: Command, tmp_path: Path) -> None:
    """There is no such model, which is said where nothing else is wrong."""
    absent = "nowhere/no-model"
    files = {
        "good.jsonl": '{"text": "bears"}\n',
        "bad.jsonl": '{"text": "bears"}\n{"text": 5}\n',
        "twice.csv": "text,key\nbears,1\nbanks,1\n",
        "own.csv": "text,embedding\nbears,1\n",
        "pairs.csv": "sentence1,sentence2,score\nbears,banks,1\nbears,banks,much\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for name, options, said in (
        ("bad.jsonl", (), "bad.jsonl, line 2: 'text' is 5"),
        ("twice.csv", ("--id-column", "key"), "line 3: the id '1' is given already"),
        ("twice.csv", ("--metadata", "yeer"), "no row has a column 'yeer'"),
        ("good.jsonl", (), absent),
    ):
        for line in ("encode", "index"):
            done = command(line, tmp_path / name, tmp_path / "out", "-m", absent, *options)
            assert done.code == 1
            assert said in done.err, done.err
            assert (absent in done.err) == (said == absent)
    assert "a column 'embedding'" in command("encode", tmp_path / "own.csv", tmp_path / "out", "-m", absent).err
    assert "line 3" in command("eval", absent, "--data", tmp_path / "pairs.csv").err
    assert "knows" in command("encode", tmp_path / "bad.jsonl", tmp_path / "out", "-m", "llm2vec-nothing").err
    with only_writer(tmp_path / "out"):
        assert "Another run" in command("encode", tmp_path / "bad.jsonl", tmp_path / "out", "-m", absent).err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
