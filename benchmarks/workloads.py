"""What the benchmarks run on: real texts by length in tokens; a real decoder, and random weights of other shapes."""

from __future__ import annotations

import ast
import json
import lzma
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "st_llm2vec" / "tiny"

REAL = "smollm2"  # the 135M shape with its real weights
SHAPES: dict[str, dict[str, Any]] = {
    REAL: {},
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


def make_model(folder: Path, shape: str) -> Path:
    """A decoder of this shape with random weights and llm2vec-tiny's tokenizer, or the real one; its mask is off."""
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return folder
    if shape == REAL:
        return _real_model(folder)
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    settings = {"max_position_embeddings": 4096, "is_causal": False, "tie_word_embeddings": True, **SHAPES[shape]}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _real_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct of `make model`, without the chat template that stock classes put around each text."""
    sys.path.insert(0, str(ROOT / "tests" / "real"))
    import real_model

    left_out = shutil.ignore_patterns("*.gguf", "chat_template.jinja")
    shutil.copytree(real_model.make(), folder, ignore=left_out, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}), encoding="utf-8")
    return folder


def make_texts(
    workload: str, tokens: int, data: Path | None, seed: int = 0, *, tokenizer_folder: Path = TOKENIZER
) -> list[str]:
    """Texts of a workload with about `tokens` tokens in all, in random order; the same for the same seed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_max_length=10**6)
    shuffle = random.Random(seed).shuffle
    if workload == "mixed":
        kinds = ("short", "passages")
        texts = [t for w in kinds for t in make_texts(w, tokens // 2, data, seed, tokenizer_folder=tokenizer_folder)]
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


def count_tokens(texts: list[str], tokenizer_folder: Path = TOKENIZER) -> int:
    """As an encoder sees them: with the special token that closes each text, where the tokenizer has one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_max_length=10**6)
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
