"""Hours, machines and bytes of encoding and indexing 10^6 to 10^10 passages: the tables of docs/cost.md.

    python benchmarks/cost.py

Arithmetic on the rates below, each with its source; nothing is measured here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

TOKENS = 200  # of a passage
PASSAGES = (10**6, 10**8, 10**10)
COLUMNS = [f"{passages:,}" for passages in PASSAGES]
DAY = 24  # hours


class Encoder(NamedTuple):
    """A decoder's shape: numbers of a vector, and parameters outside the embeddings in billions."""

    dimension: int
    parameters: float


ENCODERS = {"135M": Encoder(576, 0.106), "0.6B": Encoder(1024, 0.44), "7B": Encoder(4096, 6.98)}


def by_size(rate: float) -> dict[str, float]:
    """Tokens a second of each encoder at the same operations a second as the 135M shape at this rate."""
    return {name: rate * ENCODERS["135M"].parameters / each.parameters for name, each in ENCODERS.items()}


# Two Zen 5 cores: docs/performance.md, compiled, passages, 135M shape; the others by size.
# H100: of 989 TFLOPS, 40 % with 0.6B and 60 % with 7B, two operations a parameter and token. Not measured.
MACHINES = {
    "2 cores, bfloat16": by_size(3163),
    "2 cores, int8": by_size(4336),
    "H100, bfloat16": {"0.6B": 397_000, "7B": 41_700},
}
# Memory of a vector, as docs/stores.md has it; of the first 256 numbers: with --truncate-dim 256.
KINDS = {
    "hnsw": lambda d: d + 272,
    "rabitq": lambda d: d // 8 + 16,
    "rabitq, 256 numbers": lambda d: 256 // 8 + 16,
}


def number(value: float) -> str:
    """Two digits are all that such figures are worth."""
    if value >= 100 or value == int(value):
        digits = max(0, len(str(int(value))) - 2)
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.2g}"


def size(value: float) -> str:
    """Bytes, as people read them."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if value >= 10**power:
            return f"{number(value / 10**power)} {unit}"
    return f"{number(value)} B"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def hours() -> str:
    """Hours of one machine, and in brackets the machines that do it within a day."""
    rows = []
    for machine, rates in MACHINES.items():
        for name, rate in rates.items():
            row = [f"{name}, {machine}", number(rate)]
            for passages in PASSAGES:
                needed = passages * TOKENS / rate / 3600
                row.append(f"{number(needed)} h ({number(math.ceil(needed / DAY))})")
            rows.append(row)
    return table(["encoder, machine", "tokens/s", *COLUMNS], rows)


def memory() -> str:
    """Bytes of the vectors on the disk, and of each kind of index in memory."""
    rows = []
    for name, encoder in ENCODERS.items():
        for kind, bytes_of in {"vectors on the disk": lambda d: 4 * d, **KINDS}.items():
            each = bytes_of(encoder.dimension)
            rows.append([f"{name}, {kind}", f"{each:,}", *(size(passages * each) for passages in PASSAGES)])
    return table(["encoder, index", "bytes a vector", *COLUMNS], rows)


if __name__ == "__main__":
    print(f"{hours()}\n\n{memory()}")
