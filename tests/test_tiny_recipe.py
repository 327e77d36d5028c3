"""The recipe of llm2vec-tiny, small: the decoder starts as the mean of token vectors that a teacher taught."""

from __future__ import annotations

import importlib.util
import json
import lzma
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS, save_teacher

import st_llm2vec
from st_llm2vec.recipe_files import read_recipe
from st_llm2vec.training import train_all
from st_llm2vec.training.teacher import Teacher

RECIPE = Path(__file__).parent.parent / "recipes" / "tiny"
TEXTS = [f"{a} {b} {c}" for a in WORDS.split()[:5] for b in WORDS.split()[5:9] for c in WORDS.split()[9:13]]
SMALL = {"vocab_size": 314, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """recipes/tiny/start.py, of a small shape."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # which it adds to
    spec = importlib.util.spec_from_file_location("tiny_start", RECIPE / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MODEL", {**module.MODEL, **SMALL})
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The public data that the tokenizer is trained on."""
    for name in ("wiki_text", "wiki_sentences"):
        (tmp_path / "data" / name).mkdir(parents=True)
        with lzma.open(tmp_path / "data" / name / "train.jsonl.xz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    return tmp_path / "data"


def test_the_decoder_starts_as_the_mean_of_its_token_vectors(start: ModuleType, data: Path, tmp_path: Path) -> None:
    tokenizer = start.train_tokenizer(data)
    chooser = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(tokenizer), 63, generator=chooser) * torch.rand(len(tokenizer), 1, generator=chooser)
    vectors[tokenizer.all_special_ids] = 0  # as those of `distill_static`
    decoder = start.decoder_of(vectors, tokenizer, seed=1)
    decoder.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    model = st_llm2vec.load(str(tmp_path / "start"), device="cpu")
    found = model.encode(TEXTS)
    assert not found[:, -1].any()  # what makes all token vectors equally long
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    wanted = np.stack([vectors[each].mean(0).numpy() for each in ids])
    cosines = (found[:, :-1] * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() > 0.99
    lengths = model[0].model.get_input_embeddings().weight.norm(dim=1)
    torch.testing.assert_close(lengths, lengths.mean().expand_as(lengths))


def test_the_recipe_from_its_start_to_its_stage(
    start: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "recipe.toml").write_text(
        f"""
        model = "{(tmp_path / "start").as_posix()}"
        output = "{(tmp_path / "out").as_posix()}"
        seed = 1
        [distill]
        teacher = "{Path(save_teacher(tmp_path / "teacher")).as_posix()}"
        teacher_pca = 24
        full = true
        cpu = true
        max_steps = 2
        batch_size = 8
        data.texts = "texts.txt"
        """
    )
    monkeypatch.setitem(start.MODEL, "hidden_size", 24)
    config = str(tmp_path / "recipe.toml")
    monkeypatch.setattr(sys, "argv", ["start.py", "--data", str(data), "--config", config])
    start.main()
    before = st_llm2vec.load(str(tmp_path / "start"), device="cpu").encode(TEXTS)
    taught = SentenceTransformer(str(tmp_path / "teacher"), device="cpu").encode(TEXTS)
    pairs = np.triu_indices(len(TEXTS), 1)
    alike = [np.corrcoef(vectors - vectors.mean(0))[pairs] for vectors in (before, taught)]
    assert np.corrcoef(*alike)[0, 1] > 0.9  # though the texts span 11 of 23 dimensions
    monkeypatch.setattr(Teacher, "_encode", None)  # the stage finds what the start asked for
    assert train_all(read_recipe([config]), resume=True)["distill"].steps == 2
