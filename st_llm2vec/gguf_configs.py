"""The config of a GGUF file: every value of it from the file's keys, or the file is refused.

transformers takes from the defaults of an architecture, in silence, what a file does not say and what it does not look
for itself: other digits, no BOS, no rotary scaling. A new architecture is a row of `_ARCHITECTURES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .errors import UnsupportedArchitectureError
from .gguf_tokenizers import special_id, unsupported, value_of
from .vetting import require_config

if TYPE_CHECKING:
    from gguf import GGUFReader

# Keys of a file, without the architecture before them, and what they are called in a decoder's config.
_KEYS: dict[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Read by `_rotary`, or without effect on the vectors.
_OTHER_KEYS = {"rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned"}
_MUST_BE: dict[str, Any] = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}


class _Architecture(NamedTuple):
    """model_type in transformers, keys of `_KEYS` that the type has, and what else its config needs."""

    model_type: str
    optional: tuple[str, ...] = ()
    config: dict[str, Any] = {}  # noqa: RUF012 - never changed


_HEADS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_ARCHITECTURES: dict[str, _Architecture] = {
    "llama": _Architecture("llama", (*_HEADS, "vocab_size")),
    "qwen2": _Architecture("qwen2", ("vocab_size",)),
    "qwen3": _Architecture("qwen3", (*_HEADS, "vocab_size")),
    "gemma2": _Architecture(
        "gemma2",
        (*_HEADS, "vocab_size", "attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    ),
}
_ALWAYS = frozenset(_KEYS) - set(_HEADS) - {key for row in _ARCHITECTURES.values() for key in row.optional}
_FRACTIONS = {"attention.layer_norm_rms_epsilon", "attn_logit_softcapping", "final_logit_softcapping"}
ROTARY = "rope_freqs.weight"


def config_of(reader: GGUFReader, path: Path) -> Any:
    """The decoder's config, each value of it from the file."""
    from transformers import AutoConfig

    architecture = value_of(reader, "general.architecture")
    row = _ARCHITECTURES.get(str(architecture))
    if row is None:
        raise UnsupportedArchitectureError(
            f"{path} is of the architecture {architecture!r}; those that can be read are {', '.join(_ARCHITECTURES)}. "
            "Load the safetensors that it was made from instead."
        )
    prefix = f"{architecture}."
    stated = {key.removeprefix(prefix): value_of(reader, key) for key in reader.fields if key.startswith(prefix)}
    known = _ALWAYS | set(row.optional)
    odd = {
        key: value
        for key, value in stated.items()
        if key not in known | _OTHER_KEYS and (key not in _MUST_BE or value != _MUST_BE[key])
    }
    if odd:
        raise unsupported(path, ", ".join(f"{key}={value!r}" for key, value in sorted(odd.items())) + " is not known")
    if missing := sorted(_ALWAYS - stated.keys() - {"attention.head_count_kv"}):
        raise unsupported(path, f"it does not say {prefix}{missing[0]}")
    for key in _KEYS.keys() & stated.keys():
        kinds = (int, float) if key in _FRACTIONS else (int,)
        if type(stated[key]) not in kinds or not 0 < stated[key] < float("inf"):
            what = "number" if key in _FRACTIONS else "whole number"
            raise unsupported(path, f"{prefix}{key} must be a {what} above 0, got {stated[key]!r:.80}")
    if stated["block_count"] > len(reader.tensors):
        raise unsupported(path, f"it has {stated['block_count']:,} layers by {prefix}block_count, and not the tensors")
    names = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in names:
        raise unsupported(path, "it has no tensor named token_embd.weight")
    config: dict[str, Any] = {"vocab_size": int(names["token_embd.weight"].shape[-1])}
    stated.setdefault("attention.head_count_kv", stated["attention.head_count"])
    for key, value in stated.items():
        if (name := _KEYS.get(key)) and config.setdefault(name, value) != value:
            raise unsupported(path, f"{prefix}{key} is {value!r}, and {name} is {config[name]!r} by another key")
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if row.model_type == "gemma2":  # in no file; by llama.cpp's rule, the 27B (46 layers) divides by another width
        heads, depth = config["num_attention_heads"], config["num_hidden_layers"]
        config["query_pre_attn_scalar"] = config["hidden_size"] // heads if depth == 46 else config["head_dim"]
    config |= row.config | _rotary(reader, path, stated, config)
    config |= {
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        **{
            f"{token}_token_id": special_id(reader, key, value_of(reader, "tokenizer.ggml.model"))
            for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        },
    }
    require_config(path, config)
    return AutoConfig.for_model(row.model_type, **config)


def _rotary(reader: GGUFReader, path: Path, stated: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary embeddings."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stated.get("rope.freq_base", 10000.0)}
    scaling = stated.get("rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": stated.get("rope.scaling.factor", 1.0)}
    elif scaling != "none":
        raise unsupported(path, f"rotary scaling {scaling!r} is not known; 'linear' is")
    factors = next((torch.tensor(tensor.data) for tensor in reader.tensors if tensor.name == ROTARY), None)
    if factors is not None:  # Llama 3.1 and later: written out, frequency by frequency; the settings are all the same
        rope |= {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 8192
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        found, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(rope_parameters=rope, **config), torch.device("cpu"))
        exponents = torch.arange(0, config["head_dim"], 2, dtype=torch.float32) / config["head_dim"]
        expected = 1.0 / rope["rope_theta"] ** exponents / factors
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=0):
            raise unsupported(path, f"{ROTARY} is not that of a Llama 3")
    return {"rope_parameters": rope}
