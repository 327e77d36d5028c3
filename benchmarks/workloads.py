"""What the benchmarks run on: real texts by length in tokens, and decoders of real shapes.

python benchmarks/workloads.py 0.6b 7b --device cuda --out build/gpu     make those decoders, with random weights
"""

from __future__ import annotations

import argparse
import ast
import json
import lzma
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "st_llm2vec" / "tiny"

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 768,
        "vocab_size": 16384,
    },
    "135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
    "0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
    },
    "7b": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "sliding_window": None,
    },
}

# Lengths are those of the text: the tokenizer closes each with one special token more.
WORKLOADS = {
    "short": "texts of 5 to 40 tokens",
    "passages": "texts of 30 to 400 tokens",
    "mixed": "half short texts, half passages",
    "documents": "documents of 2,000 tokens",
    "query": "one query of 12 tokens at a time",
}
LENGTHS = {"short": (5, 40), "passages": (30, 400), "query": (12, 12), "documents": (2000, 2000)}


def shape_of(config: Any) -> list[tuple[int, int]]:
    """(rows, width) of the matrix products of one layer: queries+keys+values, output, gate+up, down."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    return [((heads + 2 * groups) * head, width), (width, heads * head), (2 * inner, width), (width, inner)]


def make_model(folder: Path, shape: str, device: str = "cpu") -> Path:
    """A decoder of this shape with random weights, drawn on the device, and llm2vec-tiny's tokenizer."""
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return folder
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    settings = {"max_position_embeddings": 4096, "is_causal": False, "tie_word_embeddings": True, **SHAPES[shape]}
    torch.manual_seed(0)
    dtype = torch.bfloat16 if shape == "7b" else torch.float32  # as they come
    with torch.device(device):
        model = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def real_or_random(shape: str, out: Path, device: str = "cpu") -> tuple[Path, str]:
    """A decoder's folder: real weights for the 135M shape where `make model` has made them, else random ones."""
    sys.path.append(str(ROOT / "tests" / "real"))
    import real_model

    if shape == "135m" and (real_model.folder() / "model.safetensors").is_file():
        return real_model.folder(), "real weights (SmolLM2-135M-Instruct)"
    return make_model(out / "models" / shape, shape, device), "random weights"


def bidirectional(folder: Path, target: Path) -> Path:
    """The decoder or encoder of a folder as the benchmarks' own look: its config says that it is not causal."""
    if not (target / "model.safetensors").is_file():
        import torch
        from transformers import AutoModel, AutoTokenizer

        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        model.config.is_causal = False
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = None  # which stock classes would put around each text
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
    return target


def make_texts(workload: str, tokens: int, data: Path | None, seed: int = 0) -> list[str]:
    """Texts of a workload with about `tokens` tokens in all, in random order; the same for the same seed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=10**6)
    shuffle = random.Random(seed).shuffle
    if workload == "mixed":
        texts = [t for kind in ("short", "passages") for t in make_texts(kind, tokens // 2, data, seed)]
        shuffle(texts)
        return texts
    fewest, most = LENGTHS[workload]
    pool = list(dict.fromkeys(stored_texts(data) if data else docstrings()))
    shuffle(pool)
    chosen, total, pending = [], 0, []
    for text in pool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if workload in ("query", "documents"):  # of one exact length: cut, or joined and cut
            pending = ids if workload == "query" else pending + ids
            if len(pending) < most:
                continue
            text, ids, pending = tokenizer.decode(pending[:most]), pending[:most], []  # noqa: PLW2901
        if fewest <= len(ids) <= most:
            chosen.append(text)
            total += len(ids)
            if total >= tokens:
                return chosen
    raise SystemExit(f"There are not enough texts for {workload!r}: {total} of {tokens} tokens. Give --data.")


def count_tokens(texts: list[str], folder: Path = TOKENIZER) -> int:
    """As the encoder in a folder sees them: with the special tokens around each text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=10**6)
    return sum(map(len, tokenizer(texts)["input_ids"]))


def stored_texts(folder: Path) -> Iterator[str]:
    """Every text in the `*.jsonl.xz` and `*.jsonl` files below a folder, at most 4,000 of a file."""
    for file in sorted([*folder.rglob("*.jsonl.xz"), *folder.rglob("*.jsonl")]):
        with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf-8") as lines:
            for line, _ in zip(lines, range(4000), strict=False):
                yield from (v for v in json.loads(line).values() if isinstance(v, str) and " " in v)


def docstrings() -> Iterator[str]:
    """Paragraphs and whole docstrings of the standard library."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in file.parts or "test" in file.parts:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text
                yield from (" ".join(part.split()) for part in text.split("\n\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="+", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    for shape in args.shape:
        print(make_model(args.out / "models" / shape, shape, args.device))


if __name__ == "__main__":
    main()
