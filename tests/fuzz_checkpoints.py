"""Puts arbitrary JSON into the files of a checkpoint and opens it: an encoder or one of our errors, in time.

python tests/fuzz_checkpoints.py 2000        prints a tally; test_fuzz.py runs a few cases, always the same ones
"""

from __future__ import annotations

import collections
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import KIT, save_decoder

import st_llm2vec
from st_llm2vec.errors import LLM2VecError

ADAPTER, PLAIN = "llama-mntp", "plain"
FILES = [(PLAIN, "config.json"), (PLAIN, "llm2vec_config.json"), (PLAIN, "tokenizer_config.json")]
FILES += [(PLAIN, "modules.json"), (PLAIN, "model.safetensors.index.json"), (PLAIN, "sentence_bert_config.json")]
FILES += [(PLAIN, "tokenizer.json"), (PLAIN, "generation_config.json"), (PLAIN, "config_sentence_transformers.json")]
FILES += [(ADAPTER, "adapter_config.json"), (ADAPTER, "config.json")]
# Keys that the files do not have, and libraries read.
MORE = [
    "alpha_pattern",
    "rank_pattern",
    "quantization_config",
    "rope_parameters",
    "layer_types",
    "attn_implementation",
    "dtype",
    "template",
    "prompts",
    "max_seq_length",
    "document_max_length",
    "pooling_mode",
    "include_prompt",
    "attention",
    "provenance",
    "weight_map",
    "auto_map",
    "chat_template",
    "added_tokens_decoder",
    "fast_tokenizer_files",
    "init_inputs",
    "sliding_window",
    "tokenizer_class",
    "pad_token",
    "text_config",
    "model_max_length",
    "padding_side",
    "truncation",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "per_layer_config",
]
EDGES = [
    0,
    -1,
    1,
    10**9,
    2**63,
    -(10**18),
    1e308,
    0.5,
    "",
    "../x",
    "a" * 9999,
    "(a+)+$",
    "\u202e",
    "kernels-community/x",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(EDGES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LIMIT = 1.0  # seconds of this process' time: what a run by hand holds each case to
HANGS = 30.0  # ... and the suite, which tells a hang from a busy machine


def prepare(root: Path) -> Path:
    save_decoder(root / PLAIN, num_hidden_layers=1)
    for name in ("llama-base", ADAPTER):
        shutil.copytree(KIT / "models" / name, root / name)
    for name in ("llm2vec_config.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (root / PLAIN / name).write_text("{}")
    st_llm2vec.load(str(root / ADAPTER), device="cpu")  # imports what the first one would pay for
    return root


def outcome(root: Path, where: tuple[str, str], key: Any, value: Any, whole: bool) -> tuple[str, float]:
    """What `load` makes of a checkpoint in one of whose files a value was put; raises what is none of our errors."""
    folder, file = where
    path = root / folder / file
    before = path.read_bytes() if path.is_file() else None
    content = json.loads(before) if before else {}
    keys = sorted(content) + MORE if isinstance(content, dict) else MORE
    if whole or not isinstance(content, dict):
        content = value
    else:
        content[keys[key % len(keys)]] = value
    path.write_text(json.dumps(content))
    started = time.process_time()
    try:
        st_llm2vec.load(str(root / folder), device="cpu")
        found = "opened"
    except LLM2VecError as error:
        found = type(error).__name__
    finally:
        path.unlink() if before is None else path.write_bytes(before)
    return found, time.process_time() - started


def fuzz(root: Path, cases: int, limit: float, derandomize: bool = False) -> collections.Counter[str]:
    """A tally of outcomes; raises at the first raw error or late answer."""
    tally: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(FILES), st.integers(0, 200), VALUES, st.integers(0, 9))
    def case(where: tuple[str, str], key: int, value: Any, whole: int) -> None:
        found, seconds = outcome(root, where, key, value, whole == 0)
        tally[f"{where[1]}: {found}"] += 1
        assert seconds < limit, (where, key, value, seconds)

    case()
    return tally


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(prepare(Path(folder)), int(sys.argv[1]), LIMIT)
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    print(f"{sum(counts.values()):6} cases, none raw, none over {LIMIT} s")
