"""Examines an encoder: what must hold is checked, what is worth knowing is measured; both are said in plain words."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim

from ..backend.residual import keep_residual_in_float32, keeps_residual_in_float32
from ..bidirectional import ARCHITECTURES, Audit, attn_implementation_of, audit, twin

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
TEXTS = [
    "Paris is the capital of France.",
    "To bake bread, mix flour, water, salt and yeast, and let the dough rest overnight in a cool place.",
    "def add(a, b): return a + b",
    "The court dismissed the appeal because it was filed two days late.",
    "Whales sleep with one half of their brain at a time, so that the other half can remember to breathe.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
]
PROMPT = "Find the text that answers: "


@dataclass(frozen=True)
class Row:
    """One line of the report; `ok` is None for what is measured or merely told."""

    name: str
    value: str | float
    ok: bool | None = None
    meaning: str = ""

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "-"}[self.ok]
        value = self.value if isinstance(self.value, str) else f"{self.value:.3g}"
        return f"{mark:>4}  {self.name:<26}  {value}{'  ' * bool(self.meaning)}{self.meaning}"


@dataclass(frozen=True)
class Report:
    """What `doctor` found."""

    model: str
    rows: tuple[Row, ...]
    audits: tuple[Audit, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.ok is not False for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it, with the audit of every layer."""
        layers = [asdict(layer) for result in self.audits for layer in result.rows]
        return {"model": self.model, "ok": self.ok, "rows": [asdict(row) for row in self.rows], "layers": layers}

    def __str__(self) -> str:
        failed = sum(row.ok is False for row in self.rows)
        verdict = f"{failed} of {sum(row.ok is not None for row in self.rows)} checks FAILED" if failed else "healthy"
        return "\n".join([f"{self.model}: {verdict}", *map(str, self.rows)])


def doctor(model: SentenceTransformer) -> Report:
    """Checks that an encoder is bidirectional, gives one text one vector, and reopens with the same vectors.

    The model is not changed. A copy is saved to a temporary folder and removed again.

    Args:
        model: An encoder of `st_llm2vec.load`, or any SentenceTransformer around a decoder.

    Example:
        report = st_llm2vec.doctor(st_llm2vec.load("llm2vec-tiny"))
        print(report)
        assert report.ok
    """
    audits = tuple(_audits(_decoder(model)))
    was_training = model.training
    model.eval()
    try:
        checks = [*map(_attention, audits), *_invariance(model), *_reload(model), _span(model)]
        rows = (*checks, *_settings(model), *_speed(model), *_diagnostics(model))
    finally:
        model.train(was_training)
    name = (getattr(model, "provenance", None) or {}).get("base_model") or _decoder(model).config.model_type
    return Report(name, rows, audits)


def _decoder(model: SentenceTransformer) -> Any:
    return model[0].model


def _audits(decoder: Any) -> Iterator[Audit]:
    current = attn_implementation_of(decoder)
    row = ARCHITECTURES.get(decoder.config.model_type)
    # flex is compiled for minutes on a CPU, so it is examined where it is in use.
    others = [name for name in (row.implementations if row else ()) if name != "flex_attention"]
    for implementation in dict.fromkeys([current, *others]):
        examined = decoder
        if implementation != current:
            examined = twin(decoder)
            examined.set_attn_implementation(implementation)
        yield audit(examined)


def _attention(result: Audit) -> Row:
    depth, causal = len({row.layer for row in result.rows}), result.causal_layers
    found = f"layers {causal} of {depth} cannot see later tokens" if causal else f"all {depth} layers see later tokens"
    implementation = result.rows[0].implementation
    return Row(f"attention, {implementation}", found, bool(result), "without padding, and padded left or right")


def _encode(model: SentenceTransformer, texts: list[str], batch_size: int = 32) -> Any:
    return model.encode(texts, batch_size=batch_size, prompt="", show_progress_bar=False).astype(np.float64)


def _same(name: str, model: SentenceTransformer, a: Any, b: Any, meaning: str) -> Row:
    limit = TOLERANCES.get(_decoder(model).dtype, 1e-5)
    difference = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))
    return Row(name, difference, difference <= limit, f"of the vectors' scale, at most {limit:g}: {meaning}")


def _invariance(model: SentenceTransformer) -> Iterator[Row]:
    alone = _encode(model, TEXTS, batch_size=1)
    yield _same("same in any batch", model, alone, _encode(model, TEXTS), "texts alone, and in one batch")
    pairs = _encode(model, TEXTS[::-1], batch_size=2)[::-1]
    yield _same("same in any order", model, alone, pairs, "texts in reverse, two by two")
    padded = np.stack([_encode(model, [text, " ".join(TEXTS)])[0] for text in TEXTS])
    yield _same("same with padding", model, alone, padded, "beside all of these texts in one")


def _reload(model: SentenceTransformer) -> Iterator[Row]:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if (free := shutil.disk_usage(tempfile.gettempdir()).free) < 2 * size:
        told = f"not checked: needs {2 * size / 2**30:.0f} GiB in the temporary folder, {free / 2**30:.0f} are free"
        yield Row("same when reopened", told)
        return
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):  # what saving says about our classes is said below
            model.save_pretrained(folder)
        modules = json.loads((Path(folder) / "modules.json").read_text(encoding="utf-8"))
        ours = [m["type"].rpartition(".")[2] for m in modules if not m["type"].startswith("sentence_transformers.")]
        opener = type(model) if ours else type("Plain", (SentenceTransformer,), {})  # no subclass is the plugin's
        reopened = opener(folder, device=str(model.device), model_kwargs={"dtype": _decoder(model).dtype})
        by = f"by st_llm2vec; it names {', '.join(ours)}" if ours else "by sentence-transformers without st_llm2vec"
        vectors = _encode(model, TEXTS, 1)
        if keeps_residual_in_float32(_decoder(model)):  # the file is judged, and not what its reader rounds
            rounded = float(np.abs(vectors - _encode(reopened, TEXTS, 1)).max() / max(np.abs(vectors).max(), 1e-12))
            told = "of the vectors' scale: what sentence-transformers rounds between products, and st_llm2vec does not"
            yield Row("rounding when reopened", rounded, meaning=told)
            keep_residual_in_float32(_decoder(reopened))
            by += ", the residual stream in float32"
        yield _same("same when reopened", model, vectors, _encode(reopened, TEXTS, 1), by)


def _pooled(model: SentenceTransformer, text: str, prompt: str) -> Any:
    features = model.preprocess([text], prompt=prompt)
    if "pooling_mask" in features:
        return features["input_ids"][features["pooling_mask"].bool()]
    start = int(features.get("prompt_length") or 0)  # as the stock modules tell it
    return features["input_ids"][0, start:][features["attention_mask"][0, start:].bool()]


def _span(model: SentenceTransformer) -> Row:
    if getattr(model[1], "include_prompt", True):
        return Row("pooled span", "all tokens, instruction included (include_prompt=True)")
    tokenizer, suffix = model.tokenizer, getattr(getattr(model[0], "text_template", None), "suffix", "")
    for prompt in dict.fromkeys(["", PROMPT, *filter(None, model.prompts.values())]):
        for text in TEXTS:
            expected = tokenizer(text + suffix, add_special_tokens=False)["input_ids"]
            wanted = tokenizer.decode(expected, skip_special_tokens=True).strip()
            read = tokenizer.decode(_pooled(model, text, prompt), skip_special_tokens=True).strip()
            if read != wanted:
                return Row("pooled span", f"{read!r} instead of {wanted!r} after the instruction {prompt!r}", False)
    return Row("pooled span", "the text, and nothing of the instruction", True)


def _settings(model: SentenceTransformer) -> Iterator[Row]:
    decoder, template = _decoder(model), getattr(model[0], "text_template", None)
    size = f"{decoder.num_parameters() / 1e6:.1f} M parameters"
    yield Row("decoder", f"{decoder.config.model_type}, {size}, {decoder.dtype}, {decoder.device}")
    yield Row("pooling", str(getattr(model[1], "pooling_mode", type(model[1]).__name__)))
    yield Row("template", f"{template.prefix!r} text {template.suffix!r}" if template else "none")
    yield Row("prompts", ", ".join(f"{k}: {v!r}" for k, v in model.prompts.items() if v) or "none")


def _speed(model: SentenceTransformer) -> Iterator[Row]:
    status = getattr(model[0], "status", None)  # known since texts were encoded above
    if status is None:
        yield Row("packed", "no: the stock module pads")
        return
    for name, found in status.items():
        moved = f"moves vectors by {found.move}; they move by {found.noise} themselves" if found.noise else ""
        yield Row(name, str(found), meaning=moved)


@torch.no_grad()
def _diagnostics(model: SentenceTransformer) -> Iterator[Row]:
    cosines = cos_sim(vectors := _encode(model, TEXTS), vectors)
    anisotropy = float(cosines[~torch.eye(len(TEXTS), dtype=torch.bool)].mean())
    yield Row("anisotropy", anisotropy, meaning="mean cosine of unrelated texts; 0 is ideal, 1 a collapse")

    ids = [model.preprocess([text])["input_ids"] for text in TEXTS]
    norms = [_hidden(model, row).norm(dim=-1) for row in ids]
    share = float(np.mean([float(n[0] / n.sum()) for n in norms]))
    even = float(np.mean([1 / len(n) for n in norms]))
    yield Row("attention sink", share, meaning=f"share of the norm on the first token; {even:.3g} if all were alike")

    moved = []
    for text, other in zip(ids, ids[1:] + ids[:1], strict=True):
        half = max(1, min(text.shape[1], other.shape[1]) // 2)
        a, b = (_hidden(model, torch.cat([text[:, :half], end[:, -half:]], 1))[:half] for end in (text, other))
        moved.append(float((a - b).norm(dim=-1).mean() / a.norm(dim=-1).mean()))
    told = "move of a first half when the second half changes; 0 is causal"
    yield Row("future sensitivity", float(np.mean(moved)), meaning=told)


def _hidden(model: SentenceTransformer, ids: torch.Tensor) -> torch.Tensor:
    ids = ids.to(model.device)
    mask = torch.ones_like(ids)
    features = model[0]({"input_ids": ids, "attention_mask": mask, "pooling_mask": mask, "modality": "text"})
    return torch.as_tensor(features["token_embeddings"][0]).float()  # (tokens, hidden)
