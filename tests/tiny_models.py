"""Tiny decoders and tokenizers, made from configs in memory: no download, no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

KIT = Path(__file__).parent / "parity" / "kit"
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards compress files and search for query answers"


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
    return AutoConfig.for_model(model_type, **(sizes | changes))


def tiny_decoder(model_type: str, kernel: str = "sdpa", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_config(model_type, **changes), attn_implementation=kernel).eval()


def tiny_tokenizer(bos: bool = False, eos: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 20, trainer)
    if bos or eos:
        template = [*(["<s>"] if bos else []), "$A", *(["</s>"] if eos else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_decoder(folder: Path, model_type: str = "llama", *, tokenizer: Any = None, **changes: Any) -> Path:
    """A decoder's folder as `save_pretrained` of transformers writes it, language-model head included."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder
