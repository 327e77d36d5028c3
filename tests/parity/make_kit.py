"""Writes a parity kit of its own: other shapes, seeds, texts and settings than the golden one, in the same format.

    python tests/parity/make_kit.py KIT_DIR [SEED]

The expected vectors follow the golden kit's README (section 3) in plain torch and transformers, one text at a time,
without padding and with an explicit mask. Nothing of st_llm2vec is imported here: the two only share the paper.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<|im_start|>", "<|im_end|>"]
CORPUS = [
    "A tide is the rise and fall of the sea that the moon and the sun cause together. Twice a day, more or less!",
    "def tide(moon, sun): return moon + 0.46 * sun  # metres. Why are spring tides higher?",
    "Ebbe und Flut, marée, 潮汐, прилив. Given a question, retrieve sentences that answer it;",
    "user [INST] im_start begin_of_text 0123456789",
]
INPUTS = [
    ("", "Spring tides are higher."),
    ("Retrieve sentences that answer", "why are there two tides a day?"),
    ("  Find the code:  ", "def tide(moon, sun):\n    return moon + 0.46 * sun"),
    ("", "   leading and trailing blanks   "),
    ("Classify:", "\tEbbe und Flut, marée\n"),
    ("", "潮汐 прилив ☾"),
    ("Given a question", " ".join(f"the moon {i} and the sun" for i in range(30))),
    ("", "a"),
    ("One instruction that is longer than its text, by quite a few words and a comma,", "ebb"),
    ("", " ".join(CORPUS * 2)),
    ("Find:", "x" * 150),
]
LLAMA3 = "meta-llama/Meta-Llama-3-8B-Instruct"


class Family(NamedTuple):
    """A decoder: its type, what its tokenizer is like, the name that it goes by, and its sizes."""

    model_type: str
    metaspace: bool
    bos: bool
    original_name: str
    sizes: dict[str, Any]


FAMILIES = {
    "narrow-llama": Family(
        "llama", False, True, LLAMA3, {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
    ),
    "deep-qwen3": Family("qwen3", False, False, "some/other-model", {"num_hidden_layers": 4, "head_dim": 16}),
    "windowed-mistral": Family("mistral", True, True, "mistralai/Mistral-7B-Instruct-v0.2", {"num_hidden_layers": 3}),
}
CHAINS = {
    "base": {"base": "{family}-base", "peft": None},
    "mntp": {"base": "{family}-mntp", "peft": None},
    "second": {"base": "{family}-mntp", "peft": "{family}-second"},
}
# chain, direction, pooling, skip, max_length, doc_max_length, and what else there is
CASES: list[tuple[str, str, str, bool, int, int, dict[str, Any]]] = [
    ("base", "bi", "mean", True, 256, 200, {}),
    ("mntp", "bi", "mean", True, 96, 50, {}),
    ("second", "bi", "weighted_mean", True, 256, 70, {}),
    ("second", "bi", "mean", False, 128, 128, {}),
    ("second", "bi", "eos_token", True, 200, 40, {}),
    ("second", "bi", "last_token", True, 64, 30, {"name_or_path": "nobody/knows-this"}),
    ("mntp", "causal", "mean", True, 256, 200, {}),
    ("mntp", "bi", "mean", True, 256, 200, {"sliding_window": 6, "attn": "eager"}),
    ("mntp", "causal", "mean", True, 256, 200, {"sliding_window": 6, "attn": "eager"}),
    ("second", "bi", "mean", True, 72, 45, {"defaults": True}),
]


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    if family.metaspace:  # SentencePiece-like: a blank before every text
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Replace("▁", " ")
        alphabet = sorted(set("".join(CORPUS) + "▁\n\tx☾'"))
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if family.bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write_models(folder: Path, name: str, family: Family, generator: torch.Generator) -> None:
    sizes = {"hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 5}
    sizes |= {"num_key_value_heads": 5, "vocab_size": 520, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = AutoConfig.for_model(family.model_type, **(sizes | family.sizes))
    torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
    decoder = AutoModelForCausalLM.from_config(config)
    for parameter in decoder.parameters():  # sharper than at initialisation, so that attention matters
        if parameter.dim() > 1:
            parameter.data *= 4
    decoder.save_pretrained(folder / f"{name}-base")
    tokenizer = make_tokenizer(family)
    for stage in ("base", "mntp", "second"):
        target = folder / f"{name}-{stage}"
        target.mkdir(exist_ok=True)
        if stage != "second":
            tokenizer.save_pretrained(target)
            content = json.loads((folder / f"{name}-base" / "config.json").read_text())
            (target / "config.json").write_text(json.dumps(content | {"_name_or_path": family.original_name}))
        if stage != "base":
            write_adapter(target, name, decoder.model, 6 if stage == "mntp" else 3, generator)
    (folder / f"{name}-second" / "llm2vec_config.json").write_text(
        json.dumps({"pooling_mode": "mean", "skip_instruction": True, "max_length": 72, "doc_max_length": 45})
    )


def write_adapter(target: Path, name: str, decoder: Any, rank: int, generator: torch.Generator) -> None:
    tensors = {}
    for path, module in decoder.named_modules():
        if path.endswith("_proj"):
            rows, columns = module.weight.shape
            for letter, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                value = torch.randn(shape, generator=generator) * 0.15
                tensors[f"base_model.model.{path}.lora_{letter}.weight"] = value
    save_file(tensors, target / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 7,
        "bias": "none",
        "base_model_name_or_path": f"{name}-base",
    }
    (target / "adapter_config.json").write_text(json.dumps(config))


def build(models_folder: Path, name: str, chain: str) -> Any:
    """The decoder of a chain, its adapters added by hand (section 3.9)."""
    model = AutoModel.from_pretrained(models_folder / f"{name}-base", attn_implementation="eager").eval()
    for stage in {"base": (), "mntp": ("mntp",), "second": ("mntp", "second")}[chain]:
        folder = models_folder / f"{name}-{stage}"
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in tensors if ".lora_A." in key]:
            weight = model.get_parameter(key.removeprefix("base_model.model.").replace(".lora_A", ""))
            product = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            weight.data += config["lora_alpha"] / config["r"] * product
    return model


def cut(text: str, tokenizer: Any, max_length: int, doc_max_length: int) -> str:
    """Section 3.2."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length).input_ids)

    while (n := count(text)) > doc_max_length:
        words = text.split()
        text = " ".join(words[: int(len(words) * (doc_max_length / n))])
    return text


def affixes(original: str, model_type: str, pooling: str) -> tuple[str, str, bool]:
    """What stands before and after the string, and whether the string is stripped (section 3.4)."""
    if original == LLAMA3:
        return "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", True
    before, after = ("[INST] ", " [/INST]") if original.startswith("mistralai/") else ("", "")
    if pooling == "eos_token":  # other types than the original's four: the tokenizer's own EOS, by our choice
        after += " </s>" if model_type in ("llama", "mistral") else "</s>"
    return before, after, bool(before or after)


def expected_row(model: Any, tokenizer: Any, family: Family, pair: tuple[str, str], case: dict[str, Any]) -> Any:
    """The vector of one input; None where the original's is a defect (text lost or cut, section 4)."""
    instruction, text = pair
    text = cut(text, tokenizer, case["max_length"], case["doc_max_length"])
    original = case.get("name_or_path", family.original_name)
    before, after, strip = affixes(original, family.model_type, case["pooling_mode"])
    text = text.rstrip() if strip else text
    joined = instruction.strip() + " " + text if instruction else text
    ids = tokenizer(before + (joined.lstrip() if strip and instruction else joined) + after).input_ids
    n_pooled = len(tokenizer(text + after, add_special_tokens=False).input_ids)
    if not text.strip() or len(ids) > case["max_length"]:
        return None
    n = len(ids)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    window = case.get("sliding_window") or n
    seen = (j <= i) & (i - j < window) if case["direction"] == "causal" else torch.ones(n, n, dtype=torch.bool)
    mask = torch.zeros(n, n).masked_fill(~seen, -math.inf)[None, None]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    span = hidden[-n_pooled:] if case["skip_instruction"] else hidden
    if case["pooling_mode"] in ("eos_token", "last_token"):
        return hidden[-1].numpy()
    weights = torch.arange(1.0, len(span) + 1) if case["pooling_mode"] == "weighted_mean" else torch.ones(len(span))
    return ((weights / weights.sum()) @ span).numpy()


def cases(family: Family) -> Iterator[tuple[str, dict[str, Any]]]:
    for chain, direction, pooling, skip, max_length, doc_max_length, extra in CASES:
        if "sliding_window" in extra and family.model_type != "mistral":
            continue
        lengths = "defaults-from-llm2vec_config" if "defaults" in extra else f"{max_length}-{doc_max_length}"
        attn = extra.get("attn", "sdpa")
        key = "__".join(
            [chain, direction, pooling, f"skip{int(skip)}", lengths, attn, *sorted(extra.keys() - {"attn"})]
        )
        case = {"chain": chain, "direction": direction, "pooling_mode": pooling, "skip_instruction": skip, "attn": attn}
        case |= {"max_length": max_length, "doc_max_length": doc_max_length}
        yield key, case | {k: v for k, v in extra.items() if k in ("name_or_path", "sliding_window")}


def main(kit: Path, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    (kit / "embeddings").mkdir(parents=True)
    manifest: dict[str, Any] = {"chains": CHAINS, "cases": {}}
    for name, family in FAMILIES.items():
        write_models(kit / "models", name, family, generator)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(kit / "models" / f"{name}-base")
        built = {chain: build(kit / "models", name, chain) for chain in CHAINS}
        arrays, manifest["cases"][name] = {}, {}
        for key, case in cases(family):
            rows = [expected_row(built[case["chain"]], tokenizer, family, pair, case) for pair in INPUTS]
            width = built["base"].config.hidden_size
            arrays[key] = np.stack([np.zeros(width, np.float32) if row is None else row for row in rows])
            parity = [i for i, row in enumerate(rows) if row is not None]
            manifest["cases"][name][key] = case | {"rows": {"parity": parity}}
        np.savez(kit / "embeddings" / f"{name}.npz", **arrays)
    inputs = [{"id": str(i), "instruction": a, "text": b} for i, (a, b) in enumerate(INPUTS)]
    (kit / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    (kit / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
