"""The shape of the code: public names, imports that point down, short files and functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import st_llm2vec
import st_llm2vec.training

ROOT = Path(__file__).parent.parent
# Each may import those to its left, and itself.
ORDER = [
    "types",
    "errors",
    "atomic",
    "notebooks",
    "vetting",
    "templates",
    "settings",
    "presets",
    "recipes",
    "recipe_files",
    "readers",
    "runtime",
    "hosts",
    "aliases",
    "architectures",
    "auditing",
    "bidirectional",
    "backend",
    "tokenization",
    "prompts",
    "pooling",
    "modules",
    "hub",
    "checkpoints",
    "host_folders",
    "gguf_tokenizers",
    "gguf_configs",
    "gguf_files",
    "planning",
    "merging",
    "cards",
    "publishing",
    "saving",
    "encoding",
    "model",
    "as_sentence_transformers",
    "loading",
    "encoders",
    "words",
    "plugin",
    "chunking",
    "late_chunking",
    "ingestion",
    "workers",
    "embedding",
    "shard_files",
    "shards",
    "stored_vectors",
    "corpus",
    "training",
    "evaluation",
    "experiments",
    "serving",
    "cli",
    "__main__",
]
CORE = sorted((ROOT / "st_llm2vec").rglob("*.py"))
INTEGRATIONS = sorted((ROOT / "integrations").rglob("*.py"))
AROUND = sorted(file for folder in ("models", "recipes") for file in (ROOT / folder).rglob("*.py"))
LINES_OF_A_FILE = 350
LINES_OF_A_FUNCTION = 60  # besides its docstring, which may have many arguments to explain


def imported(file: Path) -> set[str]:
    """Modules of st_llm2vec that a file imports, as written: 'errors', 'model', ..."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            path = (*base, *(node.module or "").split(".")) if node.module else base
            for name in [path] if len(path) > 1 else [(*path, alias.name) for alias in node.names]:
                if name[0] == "st_llm2vec":
                    found.add(name[1])
    return found


@pytest.mark.parametrize("file", CORE, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    part = file.relative_to(ROOT / "st_llm2vec").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    allowed = set(ORDER[: ORDER.index(part) + 1]) | {"__version__"}
    if part == "model":
        allowed.add("loading")  # where names that lived here are
    if part == "plugin":
        allowed |= {"model", "loading", "hub"}
    if part in ("backend", "cards", "saving", "encoding", "gguf_files"):
        allowed |= {"model", "modules"}  # as types only
    if part == "cli":
        allowed |= set(st_llm2vec.__all__)
    if part == "evaluation":
        allowed.discard("training")
    assert imported(file) <= allowed


@pytest.mark.parametrize("file", INTEGRATIONS, ids=lambda f: str(f.relative_to(ROOT)))
def test_integrations_use_the_public_encoder_only(file: Path) -> None:
    assert imported(file) <= {"types", "errors", "atomic", "encoders", "load", "__version__"}


def test_no_file_is_long() -> None:
    long = {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8").count("\n") for file in (*CORE, *INTEGRATIONS)
    }
    assert not {name: lines for name, lines in long.items() if lines > LINES_OF_A_FILE}


def test_no_function_is_long() -> None:
    lines = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": _code_lines(node)
        for file in (*CORE, *INTEGRATIONS, *AROUND)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lines) > 1000, "the functions were not found"
    assert not {name: count for name, count in lines.items() if count > LINES_OF_A_FUNCTION}


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    said = function.body[0] if ast.get_docstring(function) is not None else None
    return _span(function) - (0 if said is None else _span(said))


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_public_names_are_sorted_and_there() -> None:
    for module in (st_llm2vec, st_llm2vec.training):
        assert sorted(module.__all__) == module.__all__
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert len(st_llm2vec.__all__) <= 15


def test_the_old_spelling_of_the_base_error_still_catches() -> None:
    with pytest.warns(DeprecationWarning, match="LLM2VecError"):
        old = st_llm2vec.Llm2VecError
    assert old is st_llm2vec.LLM2VecError


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_the_command_line_says_what_it_needs(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['st-llm2vec', 'models']; import runpy; "
    code += "runpy.run_module('st_llm2vec', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'Error: the command line needs {missing}. Type: pip install "st-llm2vec[cli]"\n'


def test_a_library_needs_no_terminal_kit() -> None:
    heavy = "st_llm2vec.loading", "st_llm2vec.training.run", "st_llm2vec.evaluation", "st_llm2vec.serving.batcher"
    code = "import sys; sys.modules['typer'] = sys.modules['click'] = None\n" + "\n".join(f"import {m}" for m in heavy)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_takes_the_name_of_a_library() -> None:
    names = {path.stem for path in [*CORE, *INTEGRATIONS, *(ROOT / "integrations").iterdir()]}
    assert not names & {"faiss", "langchain", "llama_index", "utils"}


@pytest.mark.parametrize("name", ["readers", "corpus"])
def test_a_library_module_needs_no_terminal_kit(name: str) -> None:
    code = f"import sys, st_llm2vec.{name}; sys.exit(sorted({{'typer', 'rich', 'torch'}} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PRIVATE_WORDS = re.compile(
    r"attention kernel|\bopen(s|ed)? the (causal )?mask|opened attention|laid out|static floor|packed row|\w_because\b"
)


def test_the_words_are_the_fields() -> None:
    """CONTRIBUTING.md has them; "kernel" and "row" alone also have meanings that stay."""
    places = [path for folder in ("st_llm2vec", "integrations", "docs", "tests", "benchmarks", "recipes", "examples")
              for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".md", ".ipynb")]  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}: {word.group()}"
        for path in [*places, ROOT / "README.md", ROOT / "CHANGELOG.md"]
        if path != Path(__file__)
        for word in PRIVATE_WORDS.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_errors_are_short() -> None:
    """At most sixty words, without what is filled in."""
    for path in [*CORE, *INTEGRATIONS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                said = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
                assert len(" ".join(map(str, said)).split()) <= 60, f"{path}:{node.lineno}"
