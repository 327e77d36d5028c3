"""`train_stage`: data sets, the adapter of the stage, its record, the best checkpoint; all on a tiny decoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from tiny_models import WORDS

import st_llm2vec
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.training import (
    DataSet,
    MNTPDataCollator,
    MNTPLoss,
    TrainingSettings,
    add_lora,
    chunk_texts,
    mntp,
    progress,
    simcse,
    supervised,
    train_all,
    train_stage,
)
from st_llm2vec.training.data import read_source, tuples
from st_llm2vec.training.objectives import OBJECTIVES
from st_llm2vec.training.records import Run
from st_llm2vec.training.similarity import cosine

TEXTS = [f"{a} {b} compress {c}" for a in ("the", "seven") for b in WORDS.split()[:6] for c in ("files", "dog")]
PAIRS = [{"anchor": text, "positive": text[4:], "negative": TEXTS[-i]} for i, text in enumerate(TEXTS)]
SHORT: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 4,
    "max_seq_length": 16,
    "cpu": True,
    "lora_r": 4,
    "learning_rate": 1e-2,
}


@pytest.fixture
def scored(tmp_path: Path) -> str:
    rows = [{"sentence1": text, "sentence2": TEXTS[0], "score": i} for i, text in enumerate(TEXTS)]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "dev.jsonl")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[SentenceTransformerTrainer]:
    """Every trainer that is made."""
    made: list[SentenceTransformerTrainer] = []
    init = SentenceTransformerTrainer.__init__

    def remember(self: SentenceTransformerTrainer, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(SentenceTransformerTrainer, "__init__", remember)
    return made


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_the_adapter_of_a_stage_on_its_base_is_the_encoder(
    dtype: str, adapter_dtype: str, bos_decoder: Path, tmp_path: Path, scored: str
) -> None:
    st_llm2vec.load(str(bos_decoder)).save_pretrained(str(tmp_path / "base"), dtype=dtype)
    told = TrainingSettings(
        "supervised",
        str(tmp_path / "base"),
        {"pairs": PAIRS},
        str(tmp_path / "out"),
        dtype=dtype,
        adapter_dtype=adapter_dtype,
        query_prompt="search for",
        pooling_mode="weighted_mean",
        **SHORT,
    )
    train_stage(told)
    whole = st_llm2vec.load(str(tmp_path / "out"), dtype=dtype)
    parts = st_llm2vec.load(str(tmp_path / "base"), adapter=str(tmp_path / "out" / "adapter"), dtype=dtype)
    assert parts.settings() == whole.settings()
    weights = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors").values()
    assert {str(tensor.dtype) for tensor in weights} == {f"torch.{adapter_dtype}"}
    a, b = (model.encode_query(TEXTS, convert_to_numpy=True) for model in (whole, parts))
    assert np.abs(a - b).max() <= (1e-5 if adapter_dtype == "float32" else 2e-3)
    untrained = st_llm2vec.load(str(tmp_path / "base"), dtype=dtype, pooling_mode="weighted_mean")
    assert np.abs(a - untrained.encode(TEXTS, prompt="search for")).max() > 3e-2
    adapter = (tmp_path / "out" / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in adapter
    assert json.loads(adapter)["base_model_name_or_path"] == "base"


def test_a_run_leaves_its_settings_hashes_curve_and_scores(bos_decoder: Path, tmp_path: Path, scored: str) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    lines: list[str] = []
    told = TrainingSettings(
        "mntp", str(bos_decoder), {"texts": file}, str(tmp_path / "out"), eval_file=scored, eval_steps=2, **SHORT
    )
    result = train_stage(told, log=lines.append)
    assert result.steps == 3
    assert result.rows == len(TEXTS)
    name = "eval_sts_spearman_cosine"
    record = json.loads((tmp_path / "out" / "training" / "settings.json").read_text())
    assert record["data"]["texts"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["settings"]["seed"] == 42
    assert record["settings"]["model"] == bos_decoder.name  # no path of this machine
    assert (record["before"], record["after"]) == (result.before, result.after)
    assert result.before[name] != result.after[name]
    curve = [json.loads(line) for line in (tmp_path / "out" / "training" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve if "loss" in row] == [1, 2, 3]
    assert [row["step"] for row in curve if name in row] == [0, 2, 3]
    assert curve[-2 if "loss" not in curve[-1] else -1]["step"] == 3
    assert any(line.startswith("step 2 of 3: loss") and line.endswith("left") for line in lines)
    assert any(line.startswith("step 3 of 3: loss") and not line.endswith("left") for line in lines)

    saved = st_llm2vec.load(str(tmp_path / "out"))
    assert saved.provenance["training"] == [
        {key: record[key] for key in ("settings", "data", "evaluation", "steps", "before", "after")}
    ]
    model = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True)
    pairs = [json.loads(line) for line in Path(scored).read_text().splitlines()]
    ends = [model.encode([row[side] for row in pairs]) for side in ("sentence1", "sentence2")]
    similar = torch.nn.functional.cosine_similarity(*map(torch.from_numpy, ends)).argsort().argsort().float()
    golden = torch.tensor([float(row["score"]) for row in pairs])
    assert torch.corrcoef(torch.stack([similar, golden]))[0, 1] == pytest.approx(result.after[name], abs=0.02)


def test_several_data_sets_never_share_a_batch(bos_decoder: Path, tmp_path: Path, seen: list[Any]) -> None:
    told = TrainingSettings(
        "supervised",
        str(bos_decoder),
        {
            "one": DataSet(PAIRS, ("anchor", "positive"), limit=8, query_prompt="find"),
            "two": DataSet(Dataset.from_list(PAIRS), weight=0.5, document_prompt=""),
        },
        str(tmp_path / "out"),
        query_prompt="query",
        document_prompt="passage",
        matryoshka_dims=(8, 16),
        mini_batch_size=2,
        symmetric=True,
        **SHORT,
    )
    assert train_stage(told).rows == 8 + 12
    (trainer,) = seen
    one = {"one: anchor": "find", "one: positive": "passage"}
    assert trainer.args.prompts == one | {"two: anchor": "query", "two: positive": "", "two: negative": ""}
    batches = [{key.partition(":")[0] for key in batch if ":" in key} for batch in trainer.get_train_dataloader()]
    assert sorted(map(list, batches)) == [["one"]] * 2 + [["two"]] * 3
    assert isinstance(trainer.loss, MatryoshkaLoss)
    assert trainer.loss.matryoshka_dims == (32, 16, 8)
    cached = trainer.loss.loss
    assert isinstance(cached, CachedMultipleNegativesRankingLoss)
    assert (cached.mini_batch_size, cached.scale, cached.similarity_fct) == (2, 50.0, cosine)
    assert cached.directions == ("query_to_doc", "doc_to_query")


def test_the_best_checkpoint_is_the_encoder(bos_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Falling(SentenceEvaluator):  # type: ignore[misc]
        """Best at the first score while it trains."""

        def __init__(self) -> None:
            super().__init__()
            self.primary_metric, self.calls = "score", 0

        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            self.calls += 1
            return {"score": -abs(self.calls - 2.0)}

    out = tmp_path / "out"
    told = TrainingSettings(
        "simcse", str(bos_decoder), {"texts": TEXTS}, str(out), eval_steps=1, keep_best=True, **SHORT
    )
    train_stage(told, evaluator=Falling())
    record = json.loads((out / "training" / "settings.json").read_text())
    assert record["best_step"] == 1
    first = load_file(out / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors")
    kept = load_file(out / "adapter" / "adapter_model.safetensors")
    last = load_file(out / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    assert all(torch.equal(first[name], kept[name]) for name in kept)
    assert not all(torch.equal(last[name], kept[name]) for name in kept)


def test_a_run_that_ends_before_its_first_checkpoint_keeps_the_last(
    bos_decoder: Path, tmp_path: Path, scored: str
) -> None:
    own: dict[str, Any] = {"eval_file": scored, "keep_best": True, "eval_steps": 20, "save_steps": 20}
    out = tmp_path / "out"
    assert (
        train_stage(TrainingSettings("simcse", str(bos_decoder), {"texts": TEXTS}, str(out), **own, **SHORT)).steps == 3
    )
    assert json.loads((out / "training" / "settings.json").read_text())["best_step"] == 3


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    bos_decoder: Path, tmp_path: Path, scored: str
) -> None:
    def refused(match: str, objective: str = "supervised", data: Any = PAIRS, **given: Any) -> None:
        told = TrainingSettings(objective, str(tmp_path / "nothing"), {"rows": data}, str(tmp_path / "out"), **given)
        with pytest.raises((InvalidInputError, FileNotFoundError), match=match):
            train_stage(told)
        assert not (tmp_path / "out").exists()

    refused("one column 'text'", data=TEXTS)
    refused("no column 'a'", data=DataSet(PAIRS, ("a", "b")))
    refused("one column, got a, b", "mntp", DataSet(PAIRS, ("a", "b")))
    refused("is 3 .int.", "simcse", [{"text": 3}])
    refused("nothing to train on", data=[])
    refused("must be a file or rows", data=3)
    refused("leaves none", data=DataSet(PAIRS[:1], weight=0.2))
    refused("There is no file", data=str(tmp_path / "none.jsonl"))
    refused("There is no file", eval_file=str(tmp_path / "none.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": "high"}\n')
    refused("keep_best needs", keep_best=True)
    refused("no number", eval_file=str(tmp_path / "bad.jsonl"))
    refused("save_steps=2 must be eval_steps=4", keep_best=True, eval_file=scored, save_steps=2, eval_steps=4)
    with pytest.raises(InvalidInputError, match="data is missing"):
        train_stage(TrainingSettings("mntp", str(bos_decoder), output=str(tmp_path / "out")))
    told = TrainingSettings(
        "supervised", str(bos_decoder), {"a": PAIRS}, str(tmp_path / "out"), matryoshka_dims=(64,), **SHORT
    )
    with pytest.raises(InvalidInputError, match="at most the encoder's 32"):
        train_stage(told)
    assert not (tmp_path / "out").exists()


def test_a_run_is_resumed_as_it_began_with_the_data_that_it_began_with(
    bos_decoder: Path, tmp_path: Path, scored: str
) -> None:
    def told(texts: list[str] = TEXTS, **given: Any) -> TrainingSettings:
        settings = {**SHORT, "save_steps": 2, "eval_file": scored, **given}
        return TrainingSettings("simcse", str(bos_decoder), {"texts": texts}, str(tmp_path / "out"), **settings)

    train_stage(told())
    before = load_file(tmp_path / "out" / "model.safetensors")
    lines: list[str] = []
    assert train_stage(told(), resume=True, log=lines.append).steps == 3
    assert "is finished" in lines[0]
    other = tmp_path / "other.jsonl"
    other.write_text(Path(scored).read_text() + Path(scored).read_text())
    for wrong, said in (
        (told(scale=9.0), "scale=20.0, not 9.0"),
        (told(TEXTS[1:]), "'texts' has changed"),
        (told(eval_file=str(other)), "'eval_file' has changed"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            train_stage(wrong, resume=True)
    with pytest.raises(FileExistsError, match="resume"):
        train_stage(told())
    assert train_stage(told(max_steps=5), resume=True, log=lines.append).steps == 5
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_longer_run_may_have_the_longer_warm_up_that_follows(tmp_path: Path) -> None:
    def told(**given: Any) -> TrainingSettings:
        return TrainingSettings("supervised", "m", {"pairs": PAIRS}, str(tmp_path), **given)

    Run(tmp_path, told(max_steps=10), resume=False).begin({}, ("loss", False), write=True)
    Run(tmp_path, told(max_steps=400), resume=True)
    Run(tmp_path, told(max_steps=400, warmup_steps=3), resume=True)
    with pytest.raises(InvalidInputError, match="warmup_steps=3, not 5"):
        Run(tmp_path, told(max_steps=400, warmup_steps=5), resume=True)


def test_mntp_does_not_follow_a_contrastive_stage(bos_decoder: Path, tmp_path: Path) -> None:
    first = TrainingSettings("simcse", str(bos_decoder), {"texts": TEXTS}, str(tmp_path / "one"), **SHORT)
    train_stage(first)
    second = TrainingSettings("mntp", str(tmp_path / "one"), {"texts": TEXTS}, str(tmp_path / "two"), **SHORT)
    with pytest.raises(InvalidInputError, match="has been through simcse"):
        train_stage(second)
    assert not (tmp_path / "two").exists()


def test_layers_are_computed_again_where_that_is_asked(bos_decoder: Path, tmp_path: Path, seen: list[Any]) -> None:
    losses = []
    for again in (False, True):
        out = tmp_path / str(again)
        own = {"gradient_checkpointing": again, "lora_dropout": 0.0}
        train_stage(TrainingSettings("supervised", str(bos_decoder), {"pairs": PAIRS}, str(out), **SHORT, **own))
        losses.append([row["loss"] for row in seen[-1].state.log_history if "loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # Adam turns rounding into steps
    ended = load_file(tmp_path / "True" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in ended.values())
    layers = [trainer.model[0].model.layers[0] for trainer in seen]
    assert [layer.gradient_checkpointing for layer in layers] == [False, True]


def test_mini_batches_have_the_gradients_of_the_whole_batch(bos_decoder: Path) -> None:
    found = []
    for size in (None, 3):
        model = st_llm2vec.load(str(bos_decoder), device="cpu")
        model.train()
        add_lora(model, "supervised", dropout=0.0)
        told = TrainingSettings("supervised", scale=1.0, batch_size=8, mini_batch_size=size, matryoshka_dims=(16,))
        loss = OBJECTIVES["supervised"].loss(model, told, None)  # type: ignore[arg-type]
        columns = ([row[name] for row in PAIRS[:8]] for name in ("anchor", "positive", "negative"))
        loss([model.preprocess(texts) for texts in columns], None).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert max(grad.abs().max().item() for grad in found[0].values()) > 1e-2
    assert max((grad - found[1][name]).abs().max().item() for name, grad in found[0].items()) <= 1e-6


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_share_of_what_was_learned_is_kept(full: bool, bos_decoder: Path, tmp_path: Path) -> None:
    first = load_file(bos_decoder / "model.safetensors")
    own: dict[str, Any] = {"full": True, "lora_r": None} if full else {"lora_dropout": 0.0}
    found = []
    for share in (1.0, 0.25):
        out = tmp_path / str(share)
        given = {**SHORT, **own, "share": share}
        train_stage(TrainingSettings("supervised", str(bos_decoder), {"pairs": PAIRS}, str(out), **given))
        found.append(load_file(out / "model.safetensors"))
    moved = 0.0
    for name, whole in found[0].items():
        step = whole - first[f"model.{name}"]
        moved = max(moved, float(step.abs().max()))
        assert torch.allclose(found[1][name], first[f"model.{name}"] + 0.25 * step, atol=1e-6)
    assert moved > 1e-3


def test_token_embeddings_have_a_learning_rate_of_their_own(bos_decoder: Path, tmp_path: Path) -> None:
    first = load_file(bos_decoder / "model.safetensors")
    given = {**SHORT, "lora_r": None, "full": True, "max_steps": 1, "embedding_learning_rate": 1e-5}
    train_stage(TrainingSettings("supervised", str(bos_decoder), {"pairs": PAIRS}, str(tmp_path / "out"), **given))
    after = load_file(tmp_path / "out" / "model.safetensors")
    steps = {name: (tensor - first[f"model.{name}"]).abs().max().item() for name, tensor in after.items()}
    assert steps["embed_tokens.weight"] == pytest.approx(1e-5, rel=0.1)  # Adam's first step is the learning rate
    assert steps["layers.0.mlp.up_proj.weight"] == pytest.approx(1e-2, rel=0.1)


def test_mntp_tells_the_loss_and_the_masked_accuracy(bos_decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    own = {**SHORT, "eval_file": str(tmp_path / "dev.txt"), "max_steps": 20, "eval_steps": 10}
    own |= {"mask_probability": 1.0, "all_mask": True}  # the same ones in any batch
    result = train_stage(TrainingSettings("mntp", str(bos_decoder), {"mine": TEXTS}, str(tmp_path / "out"), **own))
    assert result.before.keys() == result.after.keys() == {"eval_loss", "eval_masked_accuracy"}
    model = st_llm2vec.load(str(tmp_path / "out"), device="cpu")
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mlm_probability=1.0, all_mask=True)
    loss = MNTPLoss(model, head=load_file(bos_decoder / "model.safetensors")["lm_head.weight"])
    chunks = chunk_texts(TEXTS, model.tokenizer, 16)
    right = masked = 0
    for start in range(0, len(chunks), 4):
        batch = collator([chunks[i] for i in range(start, min(start + 4, len(chunks)))])
        tokens = {"input_ids": batch["text_input_ids"], "attention_mask": batch["text_attention_mask"]}
        with torch.no_grad():
            logits = loss.logits(model(tokens)["token_embeddings"][:, :-1])
        targets = batch["label"][:, 1:]
        right += int(((logits.argmax(-1) == targets) & (targets != -100)).sum())
        masked += int((targets != -100).sum())
    assert right > 0
    assert result.after["eval_masked_accuracy"] == pytest.approx(right / masked)
    curve = (tmp_path / "out" / "training" / "curve.jsonl").read_text().splitlines()
    assert sum("eval_masked_accuracy" in json.loads(line) for line in curve) == 4  # before, at 10, at 20, after


def test_columns_of_lists_stand_for_several() -> None:
    rows = [{"q": "a", "pos": "b", "neg": ["c", "d", "e"]}, {"q": "f", "pos": "g", "neg": ["h", "i"]}]
    source = read_source("e5", DataSet(rows), pairs=True, seed=1)
    assert tuples(source).column_names == ["q", "pos", "neg_1", "neg_2"]
    assert tuples(source)[0] == {"q": "a", "pos": "b", "neg_1": "c", "neg_2": "d"}
    for wrong in ([*rows, {"q": "a", "pos": "b", "neg": "c"}], [*rows, {"q": "a", "pos": "b", "neg": []}]):
        with pytest.raises(InvalidInputError, match="line 3: 'neg' must be a list"):
            read_source("e5", DataSet(wrong), pairs=True, seed=1)


def test_limits_and_weights_draw_the_same_rows_every_time() -> None:
    def rows(**given: Any) -> list[str]:
        return read_source("a", DataSet(TEXTS, **given), pairs=False, seed=3).rows.texts("text")

    assert rows(limit=5) == rows(limit=5)
    assert len(set(rows(limit=5))) == 5
    assert rows(weight=2.0) == TEXTS * 2
    assert len(rows(weight=1.5)) == 36
    assert set(rows(limit=4, weight=2.0)) == set(rows(limit=4))


def test_cosine_is_taken_in_float32_under_autocast() -> None:
    a = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosine(a, a)
    assert found.dtype == torch.float32
    assert (found.diagonal() - 1).abs().max() < 1e-6


def test_no_stage_of_a_recipe_begins_before_all_files_are_read(bos_decoder: Path, tmp_path: Path) -> None:
    from st_llm2vec.training import Recipe

    one = TrainingSettings("mntp", str(bos_decoder), {"a": TEXTS}, str(tmp_path / "one"), **SHORT)
    two = TrainingSettings("simcse", str(tmp_path / "one"), {"a": str(tmp_path / "none.txt")}, str(tmp_path / "two"))
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        train_all(Recipe({"one": one, "two": two}, {"one": None, "two": "one"}))
    assert not (tmp_path / "one").exists()


def test_the_presets_of_the_modules_are_arguments_of_the_hosts_trainer(tmp_path: Path) -> None:
    for module, batch, rate in ((mntp, 32, 5e-5), (simcse, 128, 3e-5), (supervised, 64, 2e-4)):
        told = SentenceTransformerTrainingArguments(str(tmp_path), use_cpu=True, **module.PRESET)
        assert (told.per_device_train_batch_size, told.learning_rate, told.max_steps) == (batch, rate, 1000)
        assert (told.lr_scheduler_type, told.seed) == ("linear", 42)
    assert (simcse.SCALE, simcse.DROPOUT, supervised.SCALE, told.warmup_steps) == (20.0, 0.3, 50.0, 300)


def test_one_run_at_a_time_trains_into_an_output(bos_decoder: Path, tmp_path: Path) -> None:
    told = TrainingSettings("simcse", str(bos_decoder), {"texts": TEXTS}, str(tmp_path / "out"), **SHORT)
    tried = []

    def again(line: str) -> None:
        for resume in (False, True) if line.startswith("step 1 ") else ():
            with pytest.raises(InvalidInputError, match=r"Another run is writing .*out"):
                train_stage(told, resume=resume)
            tried.append(resume)

    assert train_stage(told, log=again).steps == 3
    assert tried == [False, True]
    assert train_stage(told, resume=True).steps == 3


def test_rows_of_the_evaluation_have_the_prompts_of_the_first_data_set(bos_decoder: Path, tmp_path: Path) -> None:
    """Whatever their columns are called, and however many data sets there are."""
    asked = [{"question": row["anchor"], "answer": row["positive"]} for row in PAIRS]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))

    def before(number: int, **prompts: str) -> float:
        data = {f"set{i}": DataSet(PAIRS[: 20 - i], **(prompts if i == 0 else {})) for i in range(number)}
        out = tmp_path / f"out-{number}-{len(prompts)}"
        told = TrainingSettings(
            "supervised", str(bos_decoder), data, str(out), eval_file=str(tmp_path / "dev.jsonl"), **SHORT
        )
        result = train_stage(told)
        return result.before["eval_loss"]

    for number in (1, 2):
        assert before(number) != before(number, query_prompt="seven wizards: ", document_prompt="files: ")


def test_a_run_by_epochs_is_logged(bos_decoder: Path, tmp_path: Path) -> None:
    """However few its steps are, of which the settings know nothing."""
    for every, wanted in ((None, [1, 2, 3]), (2, [2])):
        out = tmp_path / f"every-{every}"
        lines: list[str] = []
        short = {**SHORT, "max_steps": None, "epochs": 1.5, "batch_size": 4, "logging_steps": every}
        train_stage(
            TrainingSettings("simcse", str(bos_decoder), {"texts": TEXTS[:8]}, str(out), **short), log=lines.append
        )
        curve = [json.loads(line) for line in (out / "training" / "curve.jsonl").read_text().splitlines()]
        assert [row["step"] for row in curve if "loss" in row] == wanted
        assert any(line.startswith("step 2 of 3: loss") and line.endswith("left") for line in lines)


def test_the_time_that_is_left_goes_by_the_steps_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run first passes over what was read before, and reads no step then."""
    now = [0.0]
    lines: list[str] = []
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    told, state = progress.ToldSteps(lines.append), SimpleNamespace(global_step=0, max_steps=0)
    told.on_log(None, state, None, {"eval_loss": 2.0, "epoch": 0})
    state.global_step, state.max_steps = 60, 80
    told.on_train_begin(None, state, None)
    for seconds, step in ((100.0, 60), (101.0, 61)):
        now[0], state.global_step = seconds, step
        told.on_step_begin(None, state, None)
    now[0], state.global_step = 105.0, 65
    told.on_log(None, state, None, {"loss": 0.5})
    state.global_step = 80
    told.on_log(None, state, None, {"loss": 0.25})
    assert lines == [
        "before the first step: eval_loss 2",
        "step 65 of 80: loss 0.5, 0:00:15 left",
        "step 80 of 80: loss 0.25",
    ]
