"""A guide leaves false negatives out, and nothing else; by the formula, at once and with GradCache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from tiny_models import save_teacher

import st_llm2vec
from st_llm2vec.errors import InvalidInputError, ModelNotFoundError
from st_llm2vec.training import TrainingSettings, add_lora, train_stage
from st_llm2vec.training.objectives import OBJECTIVES

ROWS = [
    ("where do bears sleep", "bears sleep in a den all winter", "a bank raised its rates"),
    ("in which place do bears sleep", "a den is where bears spend the winter", "bears eat fish"),
    ("who raised rates", "the central bank raised its rates", "bread rises in the oven"),
    ("how does bread rise", "yeast makes bread rise", "bread is sold by the loaf"),
    ("what is a loaf", "bread that is baked in one piece", "yeast makes bread rise"),
    ("when is winter", "winter is from december to march", "summer is from june on"),
]
COLUMNS = ("anchor", "positive", "negative")
PAIRS = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]


def settings(**said: Any) -> TrainingSettings:
    return TrainingSettings(
        "supervised", **{"guide": "llm2vec-tiny", "scale": 5.0, "batch_size": 6, "cpu": True, **said}
    )


@pytest.fixture(scope="module")
def masks() -> Any:
    """Which columns are left out of each row, for a margin."""
    guide = SentenceTransformer("llm2vec-tiny", device="cpu")
    anchor, positive, negative = (guide.encode([row[i] for row in ROWS]) for i in range(3))
    similar = cos_sim(anchor, torch.cat([torch.tensor(positive), torch.tensor(negative)]))
    own = torch.eye(6, 12).bool()

    def of(margin: float) -> torch.Tensor:
        return (similar > similar.diagonal()[:, None] - margin) & ~own

    return of


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("dims", [None, (8,)])
def test_false_negatives_are_left_out(
    margin: float, size: int | None, dims: Any, bos_decoder: Path, masks: Any
) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    model.train()
    add_lora(model, "supervised", dropout=0.0)
    told = settings(guide_margin=margin, mini_batch_size=size, matryoshka_dims=dims)
    loss = OBJECTIVES["supervised"].loss(model, told, None)  # type: ignore[arg-type]
    loss.train()
    found = loss([model.preprocess([row[i] for row in ROWS]) for i in range(3)], None)
    found.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    vectors = [model(model.preprocess([row[i] for row in ROWS]))["sentence_embedding"] for i in range(3)]
    mask = masks(margin)
    assert 2 <= mask.sum() <= 40
    expected = torch.zeros(())
    for width in (*(dims or ()), vectors[0].shape[1]):
        anchor, positive, negative = (each[:, :width] for each in vectors)
        scores = 5.0 * cos_sim(anchor, torch.cat([positive, negative]))
        expected = expected + torch.nn.functional.cross_entropy(scores.masked_fill(mask, -torch.inf), torch.arange(6))
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    assert max(grad.abs().max().item() for grad in gradients.values()) > 1e-3
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def test_a_guide_has_no_dropout_and_does_not_learn(bos_decoder: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu")
    loss = OBJECTIVES["supervised"].loss(model, settings(), None)  # type: ignore[arg-type]
    loss.train()
    assert model.training
    half = torch.randn(2, 8, dtype=torch.bfloat16)
    assert loss.sim_matrix(half, half).dtype == torch.float32  # bfloat16 would round to 1/256, which is then scaled
    assert not any(module.training for module in loss.guide.modules())
    assert not any(parameter.requires_grad for parameter in loss.guide.parameters())


def test_a_stage_is_trained_with_a_guide(bos_decoder: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"max_steps": 2, "max_seq_length": 16, "lora_r": 4}
    files = {"model": str(bos_decoder), "data": {"mine": PAIRS}}
    train_stage(settings(output=str(tmp_path / "out"), **files, **own))
    assert '"guide": "llm2vec-tiny"' in (tmp_path / "out" / "README.md").read_text()
    wide = [{**row, "negative_2": "summer is warm"} for row in PAIRS]
    for change, error, message in (
        ({"data": {"mine": wide}}, InvalidInputError, "guide takes one hard negative, and 'mine' has 2"),
        ({"guide": "llm2vec-tinny"}, ModelNotFoundError, "llm2vec-tiny"),
        ({"guide": str(tmp_path / "nothing")}, ModelNotFoundError, "guide must be a model of sentence-transformers"),
        ({"guide": save_teacher(tmp_path / "static")}, InvalidInputError, "guide must have a tokenizer of"),
    ):
        with pytest.raises(error, match=message):
            train_stage(settings(output=str(tmp_path / "no"), **{**files, **own, **change}))
    train_stage(settings(output=str(tmp_path / "many"), **{**files, **own, "data": {"mine": wide}}, mini_batch_size=2))


def test_another_guide_by_the_same_name_is_refused(bos_decoder: Path, tmp_path: Path) -> None:
    """The rest of the run would leave other negatives out."""
    told: dict[str, Any] = {"max_seq_length": 16, "lora_r": 4, "guide": str(tmp_path / "guide")}
    told |= {"model": str(bos_decoder), "data": {"mine": PAIRS}, "output": str(tmp_path / "out")}
    first, other = (st_llm2vec.load(str(bos_decoder), pooling_mode=mode) for mode in ("mean", "weighted_mean"))
    first.save_pretrained(told["guide"])
    train_stage(settings(max_steps=1, **told))
    other.save_pretrained(told["guide"])
    with pytest.raises(InvalidInputError, match=r"The guide '\S+' has changed since the run in"):
        train_stage(settings(max_steps=2, **told), resume=True)
    first.save_pretrained(told["guide"])
    assert train_stage(settings(max_steps=2, **told), resume=True).steps == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"symmetric": True}, "symmetric is without a guide"),
        ({"guide": None, "guide_margin": 0.1}, "guide_margin=0.1 is of a guide"),
    ],
)
def test_settings_that_do_not_go_with_a_guide(said: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        settings(**said)
