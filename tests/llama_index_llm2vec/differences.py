"""Writes into docs/frameworks.md what LlamaIndex's own stores and ours pass of the conformance suite.

pip install llama-index-vector-stores-faiss
python tests/llama_index_llm2vec/differences.py            # --check: fail if the table there is another
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest import ABILITIES, OPENERS, SIMPLE_LACKS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "frameworks.md"
BEGIN, END = "<!-- differences: begin -->", "<!-- differences: end -->"
HEADINGS = {
    "ours": "`llama_index_llm2vec`",
    "simple": "`SimpleVectorStore`",
    "faiss": "their `FaissVectorStore`",
    "faiss-map": "their `FaissMapVectorStore`",
}


class Tally:
    """Counts what each store passed of each ability."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, str]] = Counter()
        self.run: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        report = yield
        mark = item.get_closest_marker("needs")
        if mark is not None and report.when == "call":
            cell = (mark.args[0], item.callspec.params["opener"])
            self.run[cell] += 1
            self.passed[cell] += report.passed
        return report

    def table(self) -> str:
        lines = ["| what a store should do | " + " | ".join(HEADINGS[name] for name in OPENERS) + " |"]
        lines.append("|---" * (len(OPENERS) + 1) + "|")
        for ability, words in ABILITIES.items():
            cells = [self._cell(ability, name) for name in OPENERS]
            lines.append(f"| {words} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _cell(self, ability: str, name: str) -> str:
        passed, run = self.passed[ability, name], self.run[ability, name]
        if passed in (0, run):
            return "yes" if passed else "**no**"
        return f"{passed} of {run}"


def main() -> int:
    tally = Tally()
    here = Path(__file__).parent
    arguments = [here / "test_conformance.py", "--stores", ",".join(OPENERS), "--confcutdir", here]
    arguments += ["--tb=no", "-qq", "--no-summary", "--override-ini", "filterwarnings=default"]
    pytest.main([str(argument) for argument in arguments], plugins=[tally])
    lacks = {ability for ability in ABILITIES if tally.passed[ability, "simple"] < tally.run[ability, "simple"]}
    short = [ability for ability in ABILITIES if tally.passed[ability, "ours"] < (tally.run[ability, "ours"] or 1)]
    if short or lacks != SIMPLE_LACKS:
        print(f"ours falls short of {short or 'nothing'}; SimpleVectorStore lacks {sorted(lacks)}: see conftest.py")
        return 1
    table = tally.table()
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    new = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if "--check" in sys.argv:
        if new != page:
            print(f"{PAGE} has another table: run this without --check")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
