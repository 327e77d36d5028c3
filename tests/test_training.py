"""MNTP against the golden losses and gradients; SimCSE and LoRA inside sentence-transformers' own trainer."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_models import KIT, WORDS, save_decoder

import st_llm2vec
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.training import (
    MNTPDataCollator,
    MNTPLoss,
    add_lora,
    attention_dropout,
    chunk_texts,
    language_model_head,
    merge_lora,
    mntp,
    simcse_pairs,
)

FAMILIES = ["llama", "mistral", "qwen2", "gemma"]
GOLDEN = json.loads((KIT / "training" / "mntp.json").read_text())
TEXTS = [f"{a} {b} compress {c}" for a in ("the", "a", "seven") for b in WORDS.split() for c in ("files", "dog")]


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(KIT / "training" / "mntp.npz") as stored:
        return {name: torch.tensor(stored[name]) for name in stored}


def relative(got: torch.Tensor, norm: float) -> float:
    return abs(got.double().norm().item() / norm - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_mntp_loss_and_gradients_are_the_originals(family: str, arrays: dict[str, torch.Tensor]) -> None:
    model = st_llm2vec.load(str(KIT / "models" / f"{family}-base"), device="cpu")
    loss_of, want = MNTPLoss(model, train_head=True), GOLDEN[family]["base_sdpa"]
    ids, labels = arrays[f"{family}__input_ids"], arrays[f"{family}__labels"]

    def loss(attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss_of([{"input_ids": ids, "attention_mask": attention_mask}], labels)

    value = loss(torch.ones_like(ids), labels)
    assert value.item() == pytest.approx(want["loss"], rel=1e-5)
    assert value.item() != pytest.approx(want["loss_if_labels_were_not_shifted"], rel=1e-3)
    padded = loss(arrays[f"{family}__attention_mask_padded"], arrays[f"{family}__labels_padded"])
    assert padded.item() == pytest.approx(want["loss_left_padded"], rel=1e-5)
    value.backward()
    gradients = {f"model.{name}": p.grad for name, p in model[0].model.named_parameters()}
    gradients["lm_head.weight"] = loss_of.head.weight.grad if loss_of.head.weight is not None else None
    compared = 0
    for name, expected in want["grads"].items():
        if gradients.get(name) is not None:
            # The kit's norms of large tensors are sums in float32: good to 1e-5 and a little.
            assert relative(gradients[name], expected["norm"]) < 2e-5, name
            compared += 1
    assert compared >= 5
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        expected = arrays[f"{family}__base__grad__{name}"]
        assert (gradients[name] - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_base_stay_frozen_unless_asked(family: str, arrays: dict[str, torch.Tensor]) -> None:
    model = st_llm2vec.load(str(KIT / "models" / f"{family}-base"), device="cpu")
    add_lora(model, "mntp")
    loss = MNTPLoss(model)
    assert all("lora_" in name for name, p in loss.named_parameters() if p.requires_grad)
    ids = arrays[f"{family}__input_ids"]
    loss([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], arrays[f"{family}__labels"]).backward()
    moved = {name for name, p in loss.named_parameters() if p.grad is not None}
    assert moved
    assert all("lora_" in name for name in moved), moved


def test_a_tied_head_teaches_the_input_embeddings_nothing_unless_asked(tmp_path: Path) -> None:
    model = st_llm2vec.load(str(save_decoder(tmp_path / "tied", tie_word_embeddings=True)), device="cpu")
    ids = torch.randint(3, 300, (2, 8))
    moved = []
    for train_head in (False, True):
        model.zero_grad()
        MNTPLoss(model, train_head=train_head)(
            [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], ids
        ).backward()
        gradient = model[0].model.get_input_embeddings().weight.grad
        moved.append(set(gradient.abs().sum(1).nonzero().flatten().tolist()))
    assert moved[0] <= set(ids.flatten().tolist())
    assert len(moved[1]) == len(gradient)


def test_only_masked_positions_count(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    loss = MNTPLoss(model)
    ids = torch.randint(3, 300, (2, 8))
    labels = torch.full_like(ids, -100)
    assert loss([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], labels).item() == 0
    labels[:, 0] = 5  # a masked first token has no position to its left
    assert loss([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], labels).item() == 0


def collator(model: Any, **options: Any) -> MNTPDataCollator:
    return MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_masking_spares_bos_and_padding_as_the_original_does(family: str) -> None:
    golden = json.loads((KIT / "training" / "collator.json").read_text())[family]
    example = golden["all_mask_p1.0_padded_example"]
    model = st_llm2vec.load(str(KIT / "models" / f"{family}-base"), device="cpu")
    mask = collator(model, mlm_probability=1.0, all_mask=True, mask_token=golden["mask_token"])
    assert mask.mask_token_id == golden["mask_token_id"]
    labels = torch.tensor(example["labels"])
    excluded = labels == -100
    restored = torch.where(excluded, torch.tensor(example["input_ids"]), labels)
    ids, got = mask.mask(restored, excluded)
    assert ids.tolist() == example["input_ids"]
    assert got.tolist() == example["labels"]


def test_masking_rates(bos_decoder: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    torch.manual_seed(0)
    batch = collator(model, mlm_probability=0.2)([{"text": WORDS * 3}] * 400)
    ids, labels = batch["text_input_ids"], batch["label"]
    chosen = labels != -100
    assert not chosen[:, 0].any()  # BOS
    assert chosen[:, 1:].float().mean().item() == pytest.approx(0.2, abs=0.01)
    masked = (ids == mntp.mask_token_id(model.tokenizer)) & chosen
    assert (masked.sum() / chosen.sum()).item() == pytest.approx(0.8, abs=0.02)
    assert ((ids == labels) & chosen).sum() / chosen.sum() == pytest.approx(0.1, abs=0.02)


def test_chunks_are_full_and_remember_added_tokens(bos_decoder: Path) -> None:
    tokenizer = st_llm2vec.load(str(bos_decoder), device="cpu").tokenizer
    chunks = chunk_texts(TEXTS, tokenizer, length=32)
    ids, special = (torch.tensor(chunks[name][:]) for name in ("input_ids", "special_tokens_mask"))
    assert ids.shape[1] == 32
    assert torch.equal(ids == tokenizer.bos_token_id, special.bool())
    whole = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert ids.numel() == whole // 32 * 32
    with pytest.raises(InvalidInputError, match="length=512"):
        chunk_texts(["short"], tokenizer)


def train(model: Any, loss: Any, dataset: Dataset, out: Path, resume: bool = False, **settings: Any) -> list[float]:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=8,
        logging_steps=1,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        **{k: v for k, v in settings.items() if k not in ("collator", "eval_dataset")},
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=settings.get("eval_dataset"),
        loss=loss,
        data_collator=settings.get("collator"),
    )
    trainer.train(resume_from_checkpoint=resume)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.filterwarnings("ignore:Could not find a config file in mntp-merged")  # peft looks for the base's config
def test_mntp_with_lora_trains_in_the_hosts_trainer(bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    add_lora(model, "mntp", r=4)
    chunks = chunk_texts(TEXTS * 4, model.tokenizer, length=32)
    evaluation = {"eval_dataset": chunks.select(range(8)), "eval_strategy": "steps", "eval_steps": 4}
    losses = train(
        model, MNTPLoss(model), chunks, tmp_path / "out", max_steps=12, collator=collator(model), **evaluation
    )
    assert np.mean(losses[-3:]) < np.mean(losses[:3])

    before = model.encode(TEXTS[:8])
    model.save_pretrained(str(tmp_path / "encoder"))
    assert np.array_equal(model.encode(TEXTS[:8]), before)  # saving does not change the model
    assert "lora" in str(type(model[0].model.layers[0].self_attn.q_proj)).lower()
    reopened = st_llm2vec.load(str(tmp_path / "encoder"), device="cpu")
    assert np.abs(reopened.encode(TEXTS[:8]) - before).max() <= 1e-5
    with pytest.raises(InvalidInputError, match=r"'mntp'.*merge_lora"):
        add_lora(model, "simcse")
    merge_lora(model)
    assert np.abs(model.encode(TEXTS[:8]) - before).max() <= 1e-5
    add_lora(model, "simcse")
    assert model.provenance["stages"] == ["mntp", "simcse"]
    # A checkpoint of this stage must not name the raw decoder as its base: resuming would lose the merged one.
    train(
        model,
        MNTPLoss(model, head=torch.zeros(300, 32)),
        chunks,
        tmp_path / "next",
        max_steps=4,
        collator=collator(model),
    )
    config = json.loads((tmp_path / "next" / "checkpoint-4" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mntp-merged-but-not-saved"


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_run_that_was_interrupted_ends_where_a_straight_one_does(
    bos_decoder: Path, tmp_path: Path, lora: bool
) -> None:
    triplets = Dataset.from_dict({"anchor": TEXTS[:48], "positive": TEXTS[48:96], "negative": TEXTS[16:64]})

    def run(out: Path, steps: int, resume: bool = False) -> Any:
        torch.manual_seed(1)
        model = st_llm2vec.load(str(bos_decoder), device="cpu")
        if lora:
            add_lora(model, "supervised", r=4, dropout=0.0)
        train(model, MultipleNegativesRankingLoss(model), triplets, out, resume, max_steps=steps)
        return model

    straight = run(tmp_path / "straight", 6)
    run(tmp_path / "interrupted", 4)
    checkpoint = tmp_path / "interrupted" / "checkpoint-4"
    assert (checkpoint / "optimizer.pt").is_file()
    assert (checkpoint / "adapter_model.safetensors").is_file() is lora
    assert (checkpoint / "model.safetensors").exists() is not lora
    resumed = run(tmp_path / "interrupted", 6, resume=True)
    assert np.abs(resumed.encode(TEXTS[:8]) - straight.encode(TEXTS[:8])).max() <= 1e-5


def test_all_weights_train_without_lora(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(
        model, MNTPLoss(model), chunk_texts(TEXTS, model.tokenizer, 32), tmp_path, max_steps=3, collator=collator(model)
    )
    unchanged = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not unchanged


def test_simcse_needs_its_dropout(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    features = model.preprocess(TEXTS[:4])
    model.train()

    def two_passes() -> float:
        a, b = (model(dict(features))["sentence_embedding"].detach() for _ in range(2))
        return float((a - b).abs().max())

    assert two_passes() == 0
    with attention_dropout(model, 0.3):
        assert two_passes() > 1e-4
    assert two_passes() == 0
    assert model[0].config.attention_dropout == 0  # nothing of it is saved
    with pytest.raises(InvalidInputError, match=r"1\.5"), attention_dropout(model, 1.5):
        pass


def test_simcse_and_supervised_train(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    with attention_dropout(model, 0.1):
        losses = train(
            model,
            MultipleNegativesRankingLoss(model, scale=2),
            simcse_pairs([*TEXTS, "", " "]),
            tmp_path / "1",
            max_steps=16,
        )
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    triplets = Dataset.from_dict({"anchor": TEXTS[:16], "positive": TEXTS[:16], "negative": TEXTS[16:32]})
    losses = train(
        model,
        MultipleNegativesRankingLoss(model, scale=50),
        triplets,
        tmp_path / "2",
        max_steps=8,
        prompts={"anchor": "Find: "},
    )
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("scale", [20, 50])
@pytest.mark.parametrize("negatives", ["no_neg", "neg"])
def test_the_hosts_contrastive_loss_is_the_originals(scale: int, negatives: str) -> None:
    """`HardNegativeNLLLoss` needs no copy here: `MultipleNegativesRankingLoss` gives its values and gradients."""
    golden = json.loads((KIT / "training" / "hard_negative_nll.json").read_text())[f"scale{scale}__{negatives}"]
    with np.load(KIT / "training" / "hard_negative_nll.npz") as stored:
        names = ["q", "pos", *(["neg"] if negatives == "neg" else [])]
        vectors = [torch.tensor(stored[name], requires_grad=True) for name in names]
        gradients = [torch.tensor(stored[f"scale{scale}__{negatives}__grad_{name}"]) for name in names]
    loss = MultipleNegativesRankingLoss(model=None, scale=scale)
    value = loss.compute_loss_from_embeddings(vectors, None)
    assert value.item() == pytest.approx(golden["loss"], rel=1e-5)
    value.backward()
    for vector, expected in zip(vectors, gradients, strict=True):
        assert (vector.grad - expected).abs().max() < 1e-5


def test_untied_head_is_read_or_its_absence_is_an_error(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    assert language_model_head(model).shape == (300, 32)
    model.save_pretrained(str(tmp_path / "encoder"))
    with pytest.raises(InvalidCheckpointError, match=r"no lm_head.weight"):
        MNTPLoss(st_llm2vec.load(str(tmp_path / "encoder"), device="cpu"))
    tied = save_decoder(tmp_path / "tied", tie_word_embeddings=True)
    assert language_model_head(st_llm2vec.load(str(tied), device="cpu")) is None


def test_a_mask_token_outside_the_vocabulary_is_refused(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    with pytest.raises(InvalidInputError, match="mask_token='<nope>'"):
        collator(model, mask_token="<nope>")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has settings of its own")
def test_a_training_step_finds_the_memory_of_the_one_before() -> None:
    """Pages of 200 MiB in blocks of a layer's size: fetched once, and most not again; in a process of its own."""
    code = """
import resource, sys, torch
from st_llm2vec.backend.memory import keep_freed_memory
keep_freed_memory()
faults = []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(8 * 2**18) for _ in range(25)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del blocks
assert faults[0] > 40_000 and faults[1] < faults[0] / 2, faults
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_mode_keeps_memory_and_encoding_does_not(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    with mock.patch("st_llm2vec.modules.keep_freed_memory") as kept:
        model.eval()
        assert not kept.called
        model.train()
    assert kept.called
