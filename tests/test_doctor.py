"""The doctor passes the healthy, fails the broken, and names the layer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_decoder, tiny_tokenizer

import st_llm2vec
from st_llm2vec import bidirectional
from st_llm2vec.auditing import PADDINGS, Audit, LayerAudit
from st_llm2vec.cli import main
from st_llm2vec.evaluation.diagnosis import Report, Row, _with_remedy, doctor
from st_llm2vec.templates import Template

CHECKS = {
    "attention, sdpa",
    "attention, eager",
    "same in any batch",
    "same in any order",
    "same with padding",
    "same when reopened",
    "pooled span",
}


def failed(report: Report) -> set[str]:
    return {row.name for row in report.rows if row.ok is False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("tiny") / "qwen3", "qwen3")


def test_a_healthy_model_passes_every_check(folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu")
    state = model.fingerprint
    report = doctor(model)
    assert report.ok, str(report)
    assert sorted(row.name for row in report.rows if row.ok) == sorted(CHECKS)
    assert sorted(row.name for row in doctor(model).rows if row.ok) == sorted(CHECKS)  # packed by now
    assert "without st_llm2vec" in str(report)
    measured = {row.name: row.value for row in report.rows if isinstance(row.value, float) and row.ok is None}
    assert set(measured) == {"anisotropy", "attention sink", "future sensitivity"}
    assert measured["future sensitivity"] > 1e-3
    assert 0 < measured["attention sink"] < 1
    assert model.fingerprint == state


@pytest.mark.parametrize(
    "setting",
    [{"pooling_mode": "weighted_mean"}, {"template": Template("<s>user\n", "</s>")}, {"include_prompt": True}],
)
def test_every_setting_passes(setting: dict[str, Any], tmp_path: Path) -> None:
    source = save_decoder(tmp_path / "llama", tokenizer=tiny_tokenizer(bos=True))
    report = doctor(st_llm2vec.load(str(source), device="cpu", **setting))
    assert report.ok, str(report)
    assert ("it names LLM2VecTransformer, LLM2VecPooling" in str(report)) is ("include_prompt" not in setting)


@pytest.mark.parametrize(
    ("model_type", "said"), [("qwen3", "yes"), ("falcon", "no: its code takes no packed sequences")]
)
def test_it_says_how_batches_run(tmp_path: Path, model_type: str, said: str) -> None:
    model = st_llm2vec.load(str(save_decoder(tmp_path / model_type, model_type)), device="cpu")
    (row,) = [row for row in doctor(model).rows if row.name == "packed"]
    assert str(row.value).startswith(said)
    model[0].packing = False
    assert "no: packing=False" in str(doctor(model))


def test_a_causal_layer_is_named(folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu")
    attention = model[0].model.layers[1].self_attn
    original = attention.forward

    def causal(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        length = hidden_states.shape[1]
        mask = torch.ones(length, length).tril().log()[None, None]
        return original(hidden_states, **{**kwargs, "attention_mask": mask})

    attention.forward = causal
    report = doctor(model)
    assert not report.ok
    assert {"attention, sdpa", "attention, eager", "same when reopened"} <= failed(report)
    assert "layers [1] of 3 cannot see later tokens" in str(report)
    assert "FAILED" in str(report)
    assert all(bool(row.remedy) is (row.ok is False) for row in report.rows)
    assert "To mend it: Convert the decoder again: st-llm2vec convert" in str(report)


@pytest.mark.parametrize("name", [*sorted(CHECKS), "attention, flash_attention_2"])
def test_whatever_can_fail_has_a_remedy(name: str) -> None:
    assert _with_remedy(Row(name, "x", False)).remedy
    assert not _with_remedy(Row(name, "x", True)).remedy


def test_it_names_what_it_was_given(folder: Path, tmp_path: Path) -> None:
    assert doctor(st_llm2vec.load(str(folder), device="cpu")).model == str(folder)
    assert doctor(st_llm2vec.load("llm2vec-tiny", device="cpu")).model == "llm2vec-tiny"


def test_a_notebook_shows_an_audit_in_a_line_for_each_setting() -> None:
    seen = [LayerAudit(i, "sdpa", padding, i != 1 or padding != "left") for padding in PADDINGS for i in range(3)]
    shown = Audit("<i>", tuple(seen))._repr_html_()
    assert "<caption>&lt;i&gt;: NOT bidirectional</caption>" in shown
    assert [re.sub("<.*?>", " ", row).split() for row in shown.split("</tr>")[1:4]] == [
        ["sdpa", "none", "3", "none"],
        ["sdpa", "left", "3", "1"],
        ["sdpa", "right", "3", "none"],
    ]


def test_a_notebook_shows_texts_as_texts() -> None:
    row = Row("pooled span", "'<script>x</script>'", False, "a & b", "<b>mend</b>")
    shown = Report("<img src=x>", (row,), ())._repr_html_()
    assert "<caption>&lt;img src=x&gt;: 1 of 1 checks FAILED</caption>" in shown
    assert "&#x27;&lt;script&gt;x&lt;/script&gt;&#x27;" in shown
    assert "a &amp; b &lt;b&gt;mend&lt;/b&gt;" in shown
    assert not {"<script", "<img", "<b>"} & set(re.findall(r"<\w+>?", shown))


def test_stablelm_without_the_module_flags_fails(tmp_path: Path) -> None:
    model = st_llm2vec.load(str(save_decoder(tmp_path / "stablelm", "stablelm")), device="cpu")
    bidirectional._set_module_flags(model[0].model, is_causal=True)
    report = doctor(model)
    assert "attention, sdpa" in failed(report)
    assert "layers [0, 1, 2] of 3" in str(report)


def test_a_causal_model_is_no_encoder(folder: Path) -> None:
    report = doctor(st_llm2vec.load(str(folder), attention="causal", device="cpu"))
    assert failed(report) == {"attention, sdpa", "attention, eager"}
    assert {row.value for row in report.rows if row.name == "future sensitivity"} == {0.0}


def test_a_model_that_reads_the_instruction_fails(folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu")
    original = model[0].preprocess

    def everything(*args: Any, **kwargs: Any) -> Any:
        features = original(*args, **kwargs)
        return features | {"pooling_mask": features["attention_mask"]}

    model[0].preprocess = everything
    report = doctor(model)
    assert "pooled span" in failed(report)
    assert "'Find the text that answers: Paris" in str(report)


def test_half_precision_has_its_own_tolerance(folder: Path) -> None:
    report = doctor(st_llm2vec.load(str(folder), device="cpu", dtype=torch.bfloat16))
    assert report.ok, str(report)


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", str(folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: healthy\n")
    assert main(["doctor", str(folder), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert {row["implementation"] for row in found["layers"]} == {"sdpa", "eager"}
    assert len(found["layers"]) == 3 * 3 * 2

    monkeypatch.setattr("st_llm2vec.evaluation.diagnosis.TOLERANCES", {torch.float32: 0.0})
    assert main(["doctor", str(folder), "--device", "cpu"]) == 1
    assert "FAIL" in capsys.readouterr().out
