"""What training asks of a decoder, over the whole architecture table: its causal LM's logits, and LoRA on all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_decoder
from transformers import AutoModelForCausalLM

import st_llm2vec
from st_llm2vec.architectures import ARCHITECTURES
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.training import MNTPLoss, add_lora, merge_lora
from st_llm2vec.training.lora import lora_targets

TEXTS = ["the quick brown fox", "seven wizards compress files and search"]
IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(3))


def decoder_with_biases(folder: Path, model_type: str) -> Path:
    """A decoder's folder in which nothing has its first value: biases of zero and scales of one hide what is left out."""
    model = AutoModelForCausalLM.from_pretrained(save_decoder(folder, model_type))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_mntp_predicts_with_the_causal_lms_own_logits(model_type: str, tmp_path: Path) -> None:
    folder = decoder_with_biases(tmp_path, model_type)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    options = {"attention": "causal", "packing": False, "model_kwargs": {"attn_implementation": "eager"}}
    model = st_llm2vec.load(str(folder), device="cpu", **options).eval()
    loss = MNTPLoss(model)
    with torch.no_grad():
        want = causal_lm(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
        hidden = model({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})["token_embeddings"]
        got = loss.logits(hidden.flatten(0, 1)).view_as(want)
    assert want.std() > 1e-3
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    trainable = {id(p) for p in model.parameters()}
    assert not any(p.requires_grad for p in loss.parameters() if id(p) not in trainable)


def trained(model: st_llm2vec.LLM2Vec) -> None:
    """Adapters as after training: without a step, B is zero and adds nothing."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_lora_adapts_the_whole_decoder_and_merges_into_it(model_type: str, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(save_decoder(tmp_path / "decoder", model_type)), device="cpu", attention="causal")
    decoder = model[0].model
    matrices = {name for name, p in decoder.named_parameters() if p.ndim > 1}
    add_lora(model, "mntp", r=4)
    trained(model)
    left = {name for name, p in decoder.named_parameters() if p.ndim > 1 and "lora_" not in name}
    adapted = {name.replace(".base_layer", "") for name in left if ".base_layer" in name}
    # Not adapted: embeddings, routers, and where all seven projections are there, what else a layer may have.
    rest = {name.removesuffix(".weight").rpartition(".")[2] for name in matrices - adapted}
    embeddings = set("embed_tokens embed_positions embed_in embed_tokens_per_layer tok_embeddings w wte wpe".split())
    other = set("word_embeddings gate router shared_expert_gate gate_up_proj_bias down_proj_bias".split())
    assert rest <= embeddings | other | {name for name in rest if model_type == "gemma4_text" and "per_layer" in name}

    before, trained_weights = model.encode(TEXTS), model.state_dict()
    model.save_pretrained(str(tmp_path / "checkpoint-1"))  # as the trainer does, adapter and decoder apart
    reopened = st_llm2vec.LLM2Vec(str(tmp_path / "checkpoint-1"), device="cpu").state_dict()
    assert reopened.keys() == trained_weights.keys()
    assert all(torch.equal(reopened[name], trained_weights[name]) for name in reopened)
    merge_lora(model)
    assert not any("lora_" in name or "base_layer" in name for name, _ in model.named_parameters())
    assert np.abs(model.encode(TEXTS) - before).max() <= 1e-5 * np.abs(before).max()
