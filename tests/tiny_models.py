"""Tiny decoders and tokenizers, made from configs in memory: no download, no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

KIT = Path(__file__).parent / "parity" / "kit"
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards compress files and search for query answers"


_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LATENT = {  # keys and values from a latent vector, as in deepseek
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_LINEAR = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA = {
    "num_hidden_layers": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
_LFM = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}

# What a tiny model of a type needs besides the sizes that all types know. None leaves a size to the type.
SHAPES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": _EXPERTS | _LATENT,
    "deepseek_v3": _EXPERTS | _LATENT | {"first_k_dense_replace": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "gemma4_text": {
        "num_kv_shared_layers": 0,
        "global_head_dim": 8,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
    }
    | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "glm4_moe": _EXPERTS,
    "gpt_neo": {"num_hidden_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_oss": _EXPERTS,
    "gptj": {"rotary_dim": 4},
    "granitemoe": _EXPERTS,
    "granitemoehybrid": _EXPERTS | _MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "jamba": _EXPERTS | {"num_hidden_layers": 2, "attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 4},
    "kimi_linear": _EXPERTS | _LATENT | _LINEAR | {"q_lora_rank": None, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": _LFM,
    "lfm3": _LFM,
    "llama4_text": _EXPERTS | {"intermediate_size_mlp": 48, "attention_chunk_size": 4, "num_hidden_layers": 4},
    "mamba": {"num_hidden_layers": 2, "state_size": 4},
    "minicpm3": _LATENT,
    "minimax": _EXPERTS | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "mixtral": _EXPERTS,
    "nemotron_h": _EXPERTS
    | {"num_hidden_layers": 2, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16}
    | {"ssm_state_size": 8, "n_groups": 1},
    "olmo_hybrid": _LINEAR,
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phimoe": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_5_text": _LINEAR,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _EXPERTS | _LINEAR,
    "recurrent_gemma": {"num_hidden_layers": 2, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    "xglm": {"ffn_dim": 48},
    "youtu": _LATENT,
    "zaya": _EXPERTS | {"num_hidden_layers": 2, "num_experts_per_tok": 1},
}


def tiny_config(model_type: str, **changes: Any) -> Any:
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    sizes = {name: size for name, size in (sizes | SHAPES.get(model_type, {})).items() if size is not None}
    return AutoConfig.for_model(model_type, **(sizes | changes))


def tiny_decoder(model_type: str, implementation: str | None = "sdpa", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_config(model_type, **changes), attn_implementation=implementation).eval()


def tiny_tokenizer(
    bos: bool = False, eos: bool = False, pad: bool = True, names: tuple[str, str, str] = ("<pad>", "<s>", "</s>")
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(names)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 20, trainer)
    if bos or eos:
        template = [*([names[1]] if bos else []), "$A", *([names[2]] if eos else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(names[1], 1), (names[2], 2)]
        )
    roles = {"bos_token": names[1], "eos_token": names[2]} | ({"pad_token": names[0]} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def save_decoder(folder: Path, model_type: str = "llama", *, tokenizer: Any = None, **changes: Any) -> Path:
    """A decoder's folder as `save_pretrained` of transformers writes it, language-model head included."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_teacher(folder: Path, *, seed: int = 0, **settings: Any) -> str:
    """A stock teacher of 24 dimensions, which reads prompts."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS.split()])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = torch.randn(tokenizer.get_vocab_size(), 24, generator=torch.Generator().manual_seed(seed))
    static = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[static], device="cpu", **settings).save_pretrained(str(folder))
    return str(folder)
