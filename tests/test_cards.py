"""The card of a saved folder: how to open it, what it is made of, its tag and citation; once, however often saved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

import st_llm2vec
from st_llm2vec.cards import CITATION, how_to_open, names_our_classes


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_a_folder_of_stock_classes_says_so(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), prompts={"query": "find:"})
    model.provenance |= {"base_model": "org/decoder", "license": "mit", "stages": ["mntp"]}
    model.save_pretrained(str(tmp_path / "out"))
    card = card_of(tmp_path / "out")
    assert "llm2vec" in card.data.tags
    assert (card.data.base_model, card.data.license) == ("org/decoder", "mit")
    assert "stock classes only" in how_to_open(tmp_path / "out")
    assert how_to_open(tmp_path / "out") in card.text
    assert "import st_llm2vec" not in re.sub("`[^`]*`", "", card.text)
    for part in (
        "**Base model:** org/decoder",
        "**Stages:** mntp",
        "Prompt `query`: `find:`",
        "prompt left out",
        CITATION,
    ):
        assert part in card.text
    assert "3 layers" in card.text
    assert card.text.index("How to open it") < card.text.index("## Model Details")


def test_a_folder_of_our_classes_says_what_to_import(bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder))
    model.save_pretrained(str(tmp_path / "out"))
    assert names_our_classes(tmp_path / "out")
    text = card_of(tmp_path / "out").text
    assert "open it after `import st_llm2vec`" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    assert all(block.startswith("import st_llm2vec\nfrom sentence_transformers import") for block in blocks)
    assert str(tmp_path) not in text
    assert str(bos_decoder) not in text


def test_a_folder_that_is_saved_again_has_one_card(bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder))
    model.save_pretrained(str(tmp_path / "one"))
    again = SentenceTransformer(str(tmp_path / "one"))  # which keeps the card that it finds
    again.provenance["lora"] = [{"stage": "mntp", "r": 4, "alpha": 8, "targets": ["q_proj"]}]
    again.save_pretrained(str(tmp_path / "two"))
    SentenceTransformer(str(tmp_path / "two")).save_pretrained(str(tmp_path / "three"))
    for folder in ("two", "three"):
        card = card_of(tmp_path / folder)
        for once in ("## How to open it", "## LoRA", CITATION, "| mntp | 4 | 8 | q_proj |"):
            assert card.text.count(once) == 1
        assert card.data.tags.count("llm2vec") == 1
        assert card.text.count("import st_llm2vec\n") == 2


def test_the_stages_and_their_scores_are_on_the_card(bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder))
    told = {
        "settings": {"objective": "simcse", "seed": 7},
        "data": {"texts": {"sha256": "0" * 64, "rows": 1234}},
        "steps": 1000,
        "before": {"eval_x": 0.25},
        "after": {"eval_x": 0.5},
    }
    model.provenance["training"] = [told]
    model.save_pretrained(str(tmp_path / "out"))
    text = card_of(tmp_path / "out").text
    assert "| simcse | 1,000 | texts (1,234 rows) | 7 | eval_x | 0.2500 | 0.5000 |" in text
    assert "0" * 64 in text


@pytest.mark.parametrize("text", ["", "My own card.\n", "---\nlicense: mit\n---\nMy own card.\n"])
def test_a_card_of_somebody_else_is_added_to(text: str, bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder))
    model._model_card_text = text
    model.save_pretrained(str(tmp_path / "out"))
    card = card_of(tmp_path / "out")
    assert "## How to open it" in card.text
    assert text.rpartition("---\n")[2].strip() in card.text
