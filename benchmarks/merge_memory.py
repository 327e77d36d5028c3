"""Peak memory of merging two adapters into a decoder of 2.2 GB in bfloat16, file by file.

    python benchmarks/merge_memory.py            # needs 7 GB of free disk, all of it temporary

Each way runs in a process of its own. "anonymous" is memory that the process needs; "resident" also counts pages of
files that the kernel maps, which it drops when memory is short.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32_000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARD = 500e6
RANK = 16


def write_checkpoint(folder: Path) -> None:
    """A decoder of random numbers in shards, and two adapters for it; nothing of it is ever in memory as a whole."""
    config = AutoConfig.for_model("llama", **SIZES, dtype="bfloat16", tie_word_embeddings=False)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModel.from_config(config).named_parameters()}
    base = folder / "base"
    base.mkdir()
    config.save_pretrained(base)
    shard: dict[str, torch.Tensor] = {}
    weight_map, files = {}, 0
    for name, shape in (shapes | {"lm_head": shapes["embed_tokens.weight"]}).items():
        stored = "lm_head.weight" if name == "lm_head" else f"model.{name}"
        shard[stored] = torch.full(shape, 1.0, dtype=torch.bfloat16) if "norm" in name else random(shape, 0.02)
        weight_map[stored] = f"model-{files}.safetensors"
        if sum(t.numel() * 2 for t in shard.values()) > SHARD or name == "lm_head":
            save_file(shard, base / f"model-{files}.safetensors", metadata={"format": "pt"})
            shard, files = {}, files + 1
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_tokenizer(base)
    for stage, scale in (("first", 0.02), ("second", 0.01)):
        (folder / stage).mkdir()
        tensors = {}
        for name, (rows, columns) in ((n, s) for n, s in shapes.items() if n.endswith("_proj.weight")):
            path = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{path}.lora_A.weight": random((RANK, columns), scale)}
            tensors |= {f"{path}.lora_B.weight": random((rows, RANK), scale)}
        save_file(tensors, folder / stage / "adapter_model.safetensors")
        adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "base_model_name_or_path": "base"}
        (folder / stage / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "first" / "config.json").write_bytes((base / "config.json").read_bytes())


BLOCK = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16()


def random(shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Numbers of one block again and again: what is measured does not depend on them."""
    count = shape[0] * shape[1]
    return (BLOCK * scale).repeat(-(-count // len(BLOCK)))[:count].view(shape).clone()


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(["<s>", "</s>", *letters])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


class Peak(threading.Thread):
    """The largest RssAnon of this process while the thread runs, in GB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0.0
        self.running = True

    def run(self) -> None:
        while self.running:
            status = Path("/proc/self/status").read_text()
            self.anonymous = max(self.anonymous, int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e9)
            time.sleep(0.005)


def measure(way: str, folder: Path) -> None:
    """Runs one way in this process and prints its peaks and seconds."""
    from st_llm2vec.checkpoints import resolve
    from st_llm2vec.loading import convert
    from st_llm2vec.merging import merge_to_folder

    stack = {"name": str(folder / "first"), "adapter": str(folder / "second")}
    peak = Peak()
    peak.start()
    start = time.perf_counter()
    if way == "merge_to_folder":
        (folder / "merged").mkdir()
        merge_to_folder(resolve(**stack), folder / "merged")
    elif way == "convert":
        convert(folder=folder / "converted", **stack)
    seconds = time.perf_counter() - start
    peak.running = False
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{way:<16}{peak.anonymous:>10.2f} GB{resident:>10.2f} GB{seconds:>9.1f} s", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder)
        size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB in {len(list((folder / 'base').glob('*.safetensors')))} files, bfloat16")
        print(f"{'':<16}{'anonymous':>13}{'resident':>13}{'':>11}", flush=True)
        for way in ("imports only", "merge_to_folder", "convert"):
            subprocess.run([sys.executable, __file__, way, scratch], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
