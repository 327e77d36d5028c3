"""Makes the notebooks pages of the documentation; mkdocs.yml names this file as a hook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add `notebooks/NAME.md` for each notebook beside this file."""
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=markdown(path)))
    return files


def markdown(path: Path) -> str:
    """Return a notebook's texts, code and outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [f"```text\n{''.join(output['text']).rstrip()}\n```" for output in cell.get("outputs", [])]
    return "\n\n".join([*parts, f"*The notebook: `examples/notebooks/{path.name}`.*\n"])
