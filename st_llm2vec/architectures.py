"""The table of decoders: which become bidirectional, through which attention implementations, and which cannot.

Audited in the tests, every row. Other decoders are audited when they are loaded, and accepted if they pass.
"""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """What is known of a `model_type`: the attention implementations that its audit runs through in the tests."""

    implementations: tuple[str, ...]


# The architectures that become bidirectional with each set of implementations.
_BIDIRECTIONAL_WITH: dict[tuple[str, ...], str] = {
    ("sdpa", "eager", "flex_attention"): """
        apertus arcee biogpt bitnet cohere cohere2 ctrl cwm deepseek_v2 deepseek_v3 diffllama ernie4_5 exaone4 gemma
        gemma3_text gemma4_text glm glm4 glm4_moe gpt_neox granite granitemoe helium hunyuan_v1_dense internlm3 jais2
        llama llama4_text minicpm3 ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3 opt phi phi3
        phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2 youtu
    """,
    ("sdpa", "eager"): "falcon gpt2 gpt_bigcode olmoe persimmon stablelm",
    ("sdpa", "flex_attention"): "modernbert-decoder",
    ("eager", "flex_attention"): "gemma2 vaultgemma",  # soft-capped scores: no sdpa implementation
    ("eager",): "bloom codegen gpt_neox_japanese gpt_oss gptj xglm",
}

# Audited in the tests, every row. Other decoders are audited when they are loaded, and accepted if they pass.
ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(implementations)
    for name, implementations in sorted(
        (name, found) for found, names in _BIDIRECTIONAL_WITH.items() for name in names.split()
    )
}
_STAYS_CAUSAL = {
    "a recurrence over the tokens before": "bamba granitemoehybrid jamba mamba nemotron_h recurrent_gemma rwkv xlstm",
    "linear attention, a recurrence over the tokens before": "kimi_linear minimax olmo_hybrid qwen3_5_text qwen3_next",
    "short convolutions over the tokens before": "lfm2 lfm3",
    "a causal mask inside the attention module, which config.json does not remove": "gpt_neo openai-gpt",
    "a causal mask made by the model itself, around prompt tokens of its own": "cpmant",
    "a recurrence (mamba) stands beside the attention of every layer": "falcon_h1",
    "a convolution and a delayed value stand inside the attention of every layer": "zaya",
}

# Refused by the audit, every row; here is only why.
REFUSED: dict[str, str] = dict(sorted((name, why) for why, names in _STAYS_CAUSAL.items() for name in names.split()))
