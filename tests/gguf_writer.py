"""Writes GGUF files from decoders' folders as llama.cpp's converter does, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

SCALES = {"attention.layer_norm_rms_epsilon", "rope.freq_base", "attn_logit_softcapping", "final_logit_softcapping"}
ADD = {
    bool: gguf.GGUFWriter.add_bool,
    str: gguf.GGUFWriter.add_string,
    float: gguf.GGUFWriter.add_float32,
    int: gguf.GGUFWriter.add_uint32,
}


def write_gguf(
    decoder: Path,
    path: Path,
    *,
    pre: str | None = None,
    quantization: str = "F32",
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """The GGUF file of a decoder's folder.

    Args:
        pre: tokenizer.ggml.pre; None for a SentencePiece vocabulary.
        quantization: Of the matrices, where their width allows it.
        keys: Besides those that the converter writes, or in their place; None leaves one out.
        tensors: Besides the decoder's.
    """
    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    values = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if arch != "qwen2":
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        values |= {"attention.key_length": head, "attention.value_length": head}
    if arch == "gemma2":
        values |= {
            "attention.sliding_window": config.sliding_window,
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }
    general = {"general.license": "apache-2.0"}
    for key, value in ({f"{arch}.{key}": value for key, value in values.items()} | general | (keys or {})).items():
        number = float(value) if key.removeprefix(f"{arch}.") in SCALES else value
        if value is not None:
            ADD[type(number)](writer, key, number)
    _add_tokenizer(writer, decoder, pre)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    kind = getattr(gguf.GGMLQuantizationType, quantization)
    written = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):  # rotary pairs side by side
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if arch == "gemma2" and name.endswith("norm.weight"):
            array = array + 1
        written[names.get_name(name, try_suffixes=(".weight", ".bias"))] = array
    for name, array in (written | (tensors or {})).items():
        if array.ndim > 1 and array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, decoder: Path, pre: str | None) -> None:
    read = json.loads((decoder / "tokenizer.json").read_text(encoding="utf-8"))
    names = json.loads((decoder / "tokenizer_config.json").read_text(encoding="utf-8"))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in read["model"]["merges"]]
    ranks = {merge.replace(" ", ""): i for i, merge in reversed(list(enumerate(merges)))}
    vocabulary = dict(read["model"]["vocab"])
    special = {token["content"]: token["id"] for token in read["added_tokens"]}
    tokens = sorted(vocabulary | special, key=(vocabulary | special).get)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 6 if token.startswith("<0x") else 1 for token in tokens])
    if pre:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores([-float(ranks.get(token, 10**6)) for token in tokens])
    for name in ("bos", "eos", "unk", "pad"):
        token = names.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token in special:
            getattr(writer, f"add_{name}_token_id")(special[token])
