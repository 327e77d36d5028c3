"""Loading a decoder of 135 million parameters: st_llm2vec.load, audit included, against stock SentenceTransformer.

    python benchmarks/load_time.py [ROUNDS]

Both load the same folder in one process, in turn; medians and their ratio are printed, and every forward pass of the
decoder that happens while loading.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from merge_memory import write_tokenizer
from sentence_transformers import SentenceTransformer
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

import st_llm2vec

SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49_152,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
passes: list[tuple[int, ...]] = []


def note_pass(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
    if type(module).__name__ == "LlamaModel":
        passes.append(())


def timed(load: Callable[[], Any]) -> tuple[float, int, Any]:
    passes.clear()
    start = time.perf_counter()
    model = load()
    return time.perf_counter() - start, len(passes), model


def main(rounds: int = 9) -> None:
    logging.disable_progress_bar()
    register_module_forward_pre_hook(note_pass)
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).save_pretrained(scratch)
        write_tokenizer(Path(scratch))
        ways = {
            "SentenceTransformer": lambda: SentenceTransformer(scratch, device="cpu"),
            "st_llm2vec.load": lambda: st_llm2vec.load(scratch, device="cpu"),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        count = {}
        for _ in range(rounds + 1):
            for way, load in ways.items():
                taken, count[way], model = timed(load)
                seconds[way].append(taken)
        medians = {way: statistics.median(taken[1:]) for way, taken in seconds.items()}  # the first round warms up
        pass_of_eight = statistics.median(
            timed(lambda: model[0].model(torch.arange(8)[None], use_cache=False))[0] for _ in range(20)
        )
        first, extra, _ = timed(lambda: model.encode("a"))
        second = timed(lambda: model.encode("a"))[0]
    for way, median in medians.items():
        print(f"{way:<20} {median:.3f} s (median of {rounds}), {count[way]} forward passes")
    stock, ours = medians.values()
    print(
        f"ratio {ours / stock:.2f}; {ours - stock:+.3f} s, {(ours - stock) / pass_of_eight:.1f} passes of eight tokens"
    )
    print(f"first encode: {first:.3f} s with {extra} passes (packing is proven then), a second one {second:.3f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
