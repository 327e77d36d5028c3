"""What a saved folder says of itself: how to open it, what it was made of, how it was trained, whom to cite."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard

from .vetting import read_json

if TYPE_CHECKING:
    from .model import LLM2Vec

TAG = "llm2vec"
CITATION = """@inproceedings{behnamghader2024llm2vec,
    title = "LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders",
    author = "BehnamGhader, Parishad and Adlakha, Vaibhav and Mosbach, Marius and Bahdanau, Dzmitry and Chapados,
        Nicolas and Reddy, Siva",
    booktitle = "First Conference on Language Modeling",
    year = "2024",
    url = "https://arxiv.org/abs/2404.05961",
}"""
# A folder that is opened and saved again keeps its card: what is ours is written anew, not once more.
_BEGIN, _END = "<!-- st_llm2vec: begin -->\n", "<!-- st_llm2vec: end -->\n"
_OURS = re.compile(f"{_BEGIN}.*?{_END}", re.S)
_MARKUP = re.compile(r"[^\w ./:@,;()+-]")  # in a name that somebody else chose
_IMPORT = "from sentence_transformers import SentenceTransformer\n"


def names_our_classes(folder: Path) -> bool:
    """Return whether a saved folder names classes of st_llm2vec, which plain sentence-transformers does not have."""
    return any(str(row.get("type", "")).startswith("st_llm2vec.") for row in read_json(folder / "modules.json", list))


def how_to_open(folder: Path) -> str:
    """Return one sentence on what a saved folder needs to be opened."""
    if names_our_classes(folder):
        return (
            "It names classes of st_llm2vec, as no stock ones give these vectors: open it after `import st_llm2vec`, "
            "or with trust_remote_code=True."
        )
    return "It names stock classes only: plain SentenceTransformer (transformers 5.2 or newer) gives the same vectors."


def complete_card(folder: Path, model: LLM2Vec) -> None:
    """Add to the card that the host wrote: tag, base model and licence; opening, origin, training and citation."""
    file = folder / "README.md"
    if not file.is_file():
        return
    card: Any = ModelCard(_OURS.sub("", file.read_text(encoding="utf-8")))
    card.data.tags = [*(tag for tag in card.data.tags or [] if tag != TAG), TAG]
    if base := _hub_id(model):
        card.data.base_model = base
    if license_name := model.provenance.get("license"):
        card.data.license = license_name
    sections = [_opening(folder, model), _origin(model), _training(model), _adapted(model)]
    text = card.text
    if names_our_classes(folder) and f"import st_llm2vec\n{_IMPORT}" not in text:
        text = text.replace(_IMPORT, f"import st_llm2vec\n{_IMPORT}", 1)
        text = text.replace("pip install -U sentence-transformers", "pip install -U st-llm2vec", 1)
    card.text = _before(text, "## Model Details\n", "\n".join(section for section in sections if section))
    card.text = _before(card.text, "<!--\n## Glossary", f"#### LLM2Vec\n```bibtex\n{CITATION}\n```\n")
    file.write_text(str(card), encoding="utf-8")


def _before(text: str, heading: str, section: str) -> str:
    """The text with a section of ours before a heading, or at its end if there is none."""
    place = text.find(heading)
    place = len(text) if place < 0 else place
    return f"{text[:place]}{_BEGIN}{section}{_END}{text[place:]}"


def _hub_id(model: LLM2Vec) -> str | None:
    """The hub id of the decoder; folders of this machine are no names for others."""
    base = model.provenance.get("base_model")
    return base if isinstance(base, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None


def _opening(folder: Path, model: LLM2Vec) -> str:
    lines = ["import st_llm2vec"] if names_our_classes(folder) else []
    lines += [_IMPORT.strip(), "", 'model = SentenceTransformer("this folder, or its name on the hub")']
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    said = ""
    if prompts:
        lines.append('model.encode_query(["a question"]), model.encode_document(["a text that may answer"])')
        shown = {name.replace("`", "'"): json.dumps(prompt).replace("`", "'")[1:-1] for name, prompt in prompts.items()}
        said = "".join(f"\nPrompt `{name}`: `{prompt}`\n" for name, prompt in shown.items())
    code = "\n".join(lines)
    return f"## How to open it\n\n{how_to_open(folder)}\n\n```python\n{code}\n```\n{said}"


def _origin(model: LLM2Vec) -> str:
    told = model.provenance
    made_of = "; ".join(
        f"{each['name']} at {each['commit'] or 'no known commit'}" for each in told.get("checkpoints") or []
    )
    audit = model[0].audit
    layers = len({row.layer for row in audit.rows}) if audit else 0
    attention = f"{model[0].attention}, proven layer by layer ({layers} layers)" if layers else model[0].attention
    rows = {
        "Base model": _MARKUP.sub("_", told.get("base_model") or ""),
        "Made from": _MARKUP.sub("_", made_of),
        "Stages": ", ".join(told.get("stages") or []) or "none by st_llm2vec",
        "Attention": attention,
        "Pooling": f"{model.pooling_mode}, {'prompt included' if _pools_prompt(model) else 'prompt left out'}",
        "Licence of the base model": told.get("license") or "not known; see the base model",
    }
    lines = "".join(f"- **{name}:** {value}\n" for name, value in rows.items() if value)
    return (
        "## An LLM2Vec encoder\n\nA decoder-only LLM as a text encoder, by "
        f"[LLM2Vec](https://arxiv.org/abs/2404.05961).\n\n{lines}"
    )


def _pools_prompt(model: LLM2Vec) -> bool:
    return bool(getattr(model._pooling(), "include_prompt", False))


def _training(model: LLM2Vec) -> str:
    """A row and the settings of every stage that `train_stage` ran."""
    stages: list[dict[str, Any]] = model.provenance.get("training") or []
    if not stages:
        return ""
    head = "## Stages\n\n| stage | steps | data | seed | score | before | after |\n|---|--:|---|--:|---|--:|--:|\n"
    rows, told = [], []
    for stage in stages:
        settings, data = stage["settings"], stage["data"]
        names = ", ".join(f"{_MARKUP.sub('_', name)} ({_rows(each)})" for name, each in data.items())
        scores = [(name, f"{stage['before'][name]:.4f}", f"{value:.4f}") for name, value in stage["after"].items()]
        for score in scores or [("", "", "")]:
            cells = [settings["objective"], f"{stage['steps']:,}", names, str(settings["seed"]), *score]
            rows.append(f"| {' | '.join(cells)} |\n")
        shown = json.dumps({"settings": settings, "data": data}, indent=2, ensure_ascii=False)
        summary = f"<details><summary>Settings and data of {settings['objective']}</summary>"
        told.append(f"{summary}\n\n```json\n{shown}\n```\n</details>\n")
    return head + "".join(rows) + "\n" + "\n".join(told)


def _rows(data: dict[str, Any]) -> str:
    return f"{data['rows']:,} rows" if "rows" in data else "a stream"


def _adapted(model: LLM2Vec) -> str:
    """What each stage trained with LoRA."""
    stages = model.provenance.get("lora")
    if not stages:
        return ""
    head = "## LoRA\n\n| stage | r | alpha | adapted |\n| --- | --- | --- | --- |\n"
    rows = ([stage["stage"], stage["r"], stage["alpha"], ", ".join(stage["targets"])] for stage in stages)
    return head + "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
