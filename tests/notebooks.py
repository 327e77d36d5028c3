"""Runs the notebooks, and writes what their cells print into them: python tests/notebooks.py [NAME...]"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict[str, Any]) -> str:
    """What the file says that a cell prints."""
    return "".join(line for output in cell["outputs"] for line in output["text"])


def printed(notebook: dict[str, Any], name: str = "notebook") -> list[str]:
    """Run the code cells in order, in one namespace; what each prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
        found.append(out.getvalue())
    return found


def main(wanted: list[str]) -> None:
    for path in NOTEBOOKS:
        if not wanted or path.stem in wanted:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            texts = printed(notebook, path.stem)
            for number, (cell, text) in enumerate(zip(code_cells(notebook), texts, strict=True), 1):
                output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
                cell |= {"execution_count": number, "outputs": [output] if text else []}
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
