"""Encoders in mteb: its tasks on ours, our short names in its registry, the paper's instructions by task.

Without instructions an encoder is asked as everywhere else: `encode_query` and `encode_document` where a task has two
sides, `encode` where it has one, with the prompts that were saved. With them every text but a document gets the task's,
as LLM2Vec was evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import aliases
from ..errors import InvalidInputError, MissingExtraError
from ..loading import load

try:
    import mteb
    from mteb.models import ModelMeta
    from mteb.models.model_implementations import MODEL_REGISTRY
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
except ImportError as error:
    raise MissingExtraError('mteb tasks need mteb 2. Install it with: pip install "st-llm2vec[mteb]"') from error

ORGANIZATION = "st-llm2vec"  # mteb's names are owner/name
INSTRUCTIONS: dict[str, str] = json.loads((Path(__file__).parent / "instructions.json").read_text(encoding="utf-8"))[
    "instructions"
]


class MTEBEncoder(SentenceTransformerEncoderWrapper):  # type: ignore[misc]
    """An encoder as mteb asks for it.

    Args:
        model: Any `SentenceTransformer`.
        instructions: Give every text but a document the task's instruction: one of the paper's 67, else mteb's own.
        meta: What mteb is to know of it; default: what it finds out by itself.
    """

    def __init__(self, model: Any, *, instructions: bool = False, meta: ModelMeta | None = None) -> None:
        super().__init__(model)
        self.instructions = instructions
        if meta is not None:
            self.mteb_model_meta = meta

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **options: Any) -> Any:
        """Vectors of a data loader's texts: float32 (n, dimension)."""
        if not self.instructions:
            return super().encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **options)
        document = prompt_type == PromptType.document
        own = partial(self.get_instruction, task_metadata, prompt_type)
        prompt = "" if document else f"{instruction(task_metadata.name, own)} "
        texts = [text for batch in inputs for text in batch["text"]]
        kept = {name: value for name, value in options.items() if name not in ("hf_split", "hf_subset")}
        return self.model.encode(texts, prompt=prompt, **kept)


def instruction(task: str, otherwise: Callable[[], str]) -> str:
    """The paper's instruction for a task of mteb; else another one, made to end in a colon as the paper's do."""
    return INSTRUCTIONS.get(task) or f"{otherwise().strip().rstrip('.:')}:"


def model_meta(name: str) -> ModelMeta:
    """What mteb is to know of a short name; `load_model` opens it as `load` does.

    The names of published LLM2Vec checkpoints are given the paper's instructions.
    """
    published = any(name.startswith(known) for known in aliases.PUBLISHED)
    return ModelMeta(
        loader=partial(_load, name, instructions=published),
        name=f"{ORGANIZATION}/{name}",
        revision=None,
        release_date=None,
        languages=["eng-Latn"],
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=None,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["Sentence Transformers", "PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=published,
        training_datasets=None,
    )


def _load(
    alias: str, name: str, revision: str | None = None, device: str | None = None, *, instructions: bool, **options: Any
) -> MTEBEncoder:
    if options.pop("embed_dim", None) is not None:
        raise ValueError(f"embed_dim is not known for {alias}.")
    return MTEBEncoder(load(alias, device=device, **options), instructions=instructions, meta=model_meta(alias))


def register() -> None:
    """Put our short names into mteb's registry: `mteb.get_model("llm2vec-tiny")`. The plugin does it."""
    for name in aliases.names():
        meta = model_meta(name)
        MODEL_REGISTRY[name] = MODEL_REGISTRY[f"{ORGANIZATION}/{name}"] = meta


def require_tasks(tasks: Sequence[Any]) -> list[Any]:
    """The tasks of these names; tasks are taken as they are.

    Raises:
        InvalidInputError: mteb has none of this name.
    """
    try:
        found = [mteb.get_task(task) if isinstance(task, str) else task for task in tasks]
    except KeyError as error:
        raise InvalidInputError(f"tasks must be mteb's, got {', '.join(map(repr, tasks))}: {error.args[0]}") from error
    if not found:
        raise InvalidInputError("tasks must name at least one of mteb's.")
    return found


def evaluate_mteb(model: Any, tasks: Sequence[Any], *, instructions: bool = False, name: str = "encoder") -> Any:
    """Run tasks of mteb on an encoder; their data is fetched from the hub by mteb where it is not there.

    Args:
        model: Any `SentenceTransformer`.
        tasks: Names, or tasks.
        instructions: As for `MTEBEncoder`.
        name: What the results call it.

    Returns:
        mteb's `ModelResult`. Nothing is read from, or written to, mteb's cache of results, which knows models by name.
    """
    found = require_tasks(tasks)
    meta = ModelMeta.create_empty({"name": f"{ORGANIZATION}/{name}"})
    encoder = MTEBEncoder(model, instructions=instructions, meta=meta)
    return mteb.evaluate(encoder, found, cache=None, show_progress_bar=False, co2_tracker=False)
