"""SmolLM2-135M-Instruct from its Q4_1 GGUF file: read exactly, bidirectional, saved, reopened and trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import st_llm2vec
from st_llm2vec.training import MNTPDataCollator, MNTPLoss, add_lora, chunk_texts, merge_lora, simcse_pairs

# Twenty pairs of a statement and what says nearly the same.
PAIRS = """
A man is playing a guitar. | Someone plays the guitar.
The cat sleeps on the sofa. | A cat is asleep on the couch.
Stock prices fell sharply on Monday. | Shares dropped a lot at the start of the week.
Water boils at one hundred degrees Celsius. | The boiling point of water is 100 °C.
She bought a new car last week. | Last week she purchased a new automobile.
The chef is cooking pasta in the kitchen. | A cook prepares noodles in a kitchen.
Two children are swimming in the lake. | A pair of kids swim in a lake.
The train to Paris leaves at noon. | At twelve o'clock the train departs for Paris.
He forgot his umbrella and got wet in the rain. | Without an umbrella, he was soaked by the rain.
The museum is closed on Tuesdays. | On Tuesdays you cannot visit the museum.
Plants turn sunlight into energy. | Photosynthesis lets plants make energy from light.
The lawyer signed the contract yesterday. | Yesterday the contract was signed by the attorney.
A dog is chasing a ball in the park. | In the park, a dog runs after a ball.
The function returns the sum of two numbers. | This function adds two numbers and gives back the result.
Doctors recommend drinking more water. | Physicians advise people to drink more water.
The old bridge was destroyed by the flood. | Flooding wrecked the ancient bridge.
Our team won the final match. | The last game was won by our team.
The library opens at nine in the morning. | At 9 a.m. the library opens its doors.
He is reading a book about the Roman Empire. | The book he reads is on ancient Rome.
The phone's battery lasts two days. | You can use the phone for two days on one charge.
"""
LEFT, RIGHT = zip(*(line.split(" | ") for line in PAIRS.strip().splitlines()), strict=True)
TEXTS = [*LEFT[:4], "a", "Steps:\n\n1. Mix  12 eggs", "naïve café 编码器", "x = [3.14159, 1e-05]"]


@pytest.fixture(scope="module")
def model(gguf_file: Path) -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load(str(gguf_file), device="cpu")


def test_it_is_bidirectional_in_every_layer_and_says_where_it_comes_from(model: st_llm2vec.LLM2Vec) -> None:
    assert model[0].audit
    assert len({row.layer for row in model[0].audit.rows}) == 30
    told = model.provenance["gguf"]
    assert told["dequantized_from"] == {"Q4_1": 210, "Q8_0": 1}
    assert (told["dtype"], model.provenance["license"]) == ("float32", "apache-2.0")


def test_the_tokenizer_is_smollm2s(model: st_llm2vec.LLM2Vec) -> None:
    """Known facts of its tokenizer.json: no BOS, atomic special tokens, each digit alone, before blanks are cut."""
    tokenizer = model.tokenizer
    assert tokenizer.tokenize("Steps:\n\n1. Mix  12") == ["Steps", ":", "ĊĊ", "1", ".", "ĠMix", "ĠĠ", "1", "2"]
    for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]):
        assert tokenizer(token)["input_ids"] == [i]
        assert i in tokenizer.all_special_ids or token in tokenizer.get_added_vocab()
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|im_end|>", 49152)
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    assert "<|im_start|>user\nhi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )


def test_saved_and_reopened_without_us(model: st_llm2vec.LLM2Vec, gguf_file: Path, tmp_path: Path) -> None:
    """One of the texts, with its massive activations, is off by 1e-5 to 6e-5 as the CPU and the threads have it."""
    folder, out = tmp_path / "encoder", tmp_path / "plain.npy"
    model.save_pretrained(str(folder))
    script = (
        "import sys, numpy as np\nfrom sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(folder)!r}, device='cpu')\n"
        "assert 'st_llm2vec' not in sys.modules\n"
        f"np.save({str(out)!r}, model.encode({TEXTS!r}, normalize_embeddings=True))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ), timeout=170)
    exact = st_llm2vec.load(str(gguf_file), device="cpu", dtype="float64", packing=False)
    wanted = exact.encode(TEXTS, normalize_embeddings=True)
    for vectors in (np.load(out), model.encode(TEXTS, normalize_embeddings=True)):
        off = np.abs(vectors - wanted).max(1)
        assert np.median(off) <= 1e-5
        assert off.max() <= 3e-4
    decoder = sum(p.numel() * p.element_size() for p in model[0].model.parameters())
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(decoder, rel=0.01)


def _found(folder: Path, **settings: Any) -> int:
    """How many of the twenty statements are nearest to what says nearly the same."""
    model = st_llm2vec.load(str(folder), device="cpu", **settings)
    left, right = (model.encode(list(texts)) for texts in (LEFT, RIGHT))
    left, right = left - left.mean(0), right - right.mean(0)  # an untrained decoder's vectors share a direction
    scores = (left / np.linalg.norm(left, axis=1)[:, None]) @ (right / np.linalg.norm(right, axis=1)[:, None]).T
    return int((scores.argmax(1) == np.arange(len(LEFT))).sum())


def test_attention_in_both_directions_costs_an_untrained_decoder_its_vectors(smollm2: Path) -> None:
    """What MNTP is for (LLM2Vec, figure 3): the same weights and pooling, and the mask alone is another."""
    causal, bidirectional = (_found(smollm2, attention=direction) for direction in ("causal", "bidirectional"))
    assert causal > bidirectional


def test_the_chat_template_and_its_last_token_find_most_pairs(smollm2: Path) -> None:
    assert _found(smollm2, attention="causal", pooling_mode="last_token", template="chat") > len(LEFT) / 2


def _step(model: st_llm2vec.LLM2Vec, loss: Any, rows: Any, folder: Path, **options: Any) -> list[float]:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss, **options)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_two_steps_of_each_stage_one_after_the_other(gguf_file: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(gguf_file), device="cpu", max_seq_length=32)
    before = model.encode(TEXTS)
    texts = [*LEFT, *RIGHT]
    triplets = Dataset.from_dict(
        {"anchor": list(LEFT), "positive": list(RIGHT), "negative": [*LEFT[1:], LEFT[0]]},
    )
    stages: dict[str, Any] = {
        "mntp": lambda: (MNTPLoss(model), chunk_texts(texts, model.tokenizer, length=32)),
        "simcse": lambda: (MultipleNegativesRankingLoss(model), simcse_pairs(texts)),
        "supervised": lambda: (MultipleNegativesRankingLoss(model), triplets),
    }
    for stage, build in stages.items():
        add_lora(model, stage)
        loss, rows = build()
        collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer)
        options = {"data_collator": collator} if stage == "mntp" else {}
        losses = _step(model, loss, rows, tmp_path / stage, **options)
        assert len(losses) == 2
        assert np.isfinite(losses).all(), stage
        merge_lora(model)
        after = model.eval().encode(TEXTS)
        assert np.isfinite(after).all()
        assert np.abs(after - before).max() > 1e-4, stage
        before = after
    assert next(model.parameters()).dtype == torch.float32
