"""Real text that every machine has: the docstrings of the installed Python standard library.

The files are parsed, not imported. The other examples take their passages, sentences and pairs from here.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "turtledemo"}
SHORTEST, LONGEST = 30, 600  # characters


class Passage(NamedTuple):
    """A docstring: whose it is ("shutil.copyfile"), its module, and its first characters on one line."""

    name: str
    module: str
    text: str


def passages() -> list[Passage]:
    """One passage per public module, class, function and method that is documented."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Passage] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.isdisjoint(parts) and not any(part[0] == "_" and part != "__init__" for part in parts):
            module = ".".join(parts).removesuffix(".__init__")
            for name, docstring in _documented(path, module):
                if len(text := " ".join(docstring.split())) >= SHORTEST:
                    found.setdefault(name, Passage(name, module, text[:LONGEST]))
    return list(found.values())


def _documented(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in the strings of old modules
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    waiting: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        if docstring := ast.get_docstring(node):
            yield name, docstring
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [
                (f"{name}.{child.name}", child)
                for child in node.body
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and not child.name.startswith("_")
            ]
