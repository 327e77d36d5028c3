"""Recipes: what a training run is told. Each field is one row: its check, its help, the objectives that know it.

Python (`TrainingSettings`), TOML files (recipe_files.py), presets and the command line all read this table. Nothing
heavy is imported: a recipe is checked whole before a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .errors import InvalidInputError
from .presets import DEFAULTS, PRESETS
from .settings import ATTENTION, EncoderSettings, as_count, as_flag, as_positive, as_share, one_of

OBJECTIVES = tuple(DEFAULTS)
CONTRASTIVE = ("simcse", "supervised")
SCALED, PROMPTED = (*CONTRASTIVE, "distill"), ("supervised", "distill")
DISTANCES = ("cosine", "mse", "l2")
ALIGNMENTS = ("none", "rotation", "projection")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
DTYPES = ("float32", "bfloat16", "float16")

Check = Callable[[str, Any], Any]


def _not_negative(name: str, value: Any) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else as_positive(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InvalidInputError(f"{name} must be a text, got {value!r}.")
    return os.fspath(value)


def _prompt(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a text, got {value!r}.")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise InvalidInputError(f"{name} must be a list of names, such as ['question', 'answer'], got {value!r}.")
    if len(set(value)) != len(value):
        raise InvalidInputError(f"{name} must name each column once, got {list(value)}.")
    return tuple(value)


def _dims(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InvalidInputError(f"{name} must be a list of numbers of dimensions, such as [64, 128], got {value!r}.")
    dims = tuple(as_count(name, each) for each in value)
    if len(set(dims)) != len(dims):
        raise InvalidInputError(f"{name} must name each number of dimensions once, got {list(dims)}.")
    return tuple(sorted(dims, reverse=True))


def _of(allowed: tuple[str, ...]) -> Check:
    return lambda name, value: one_of(name, value, allowed)


def _from(least: int) -> Check:
    return lambda name, value: as_count(name, value, least)


def _in(interval: str) -> Check:
    return lambda name, value: as_share(name, value, interval)


def _encoder(name: str, value: Any) -> Any:
    return getattr(EncoderSettings(**{name: value}), name)


def unknown(what: str, names: Sequence[str], known: Sequence[str]) -> InvalidInputError:
    """Return the error for names that are not known, with the nearest one that is."""
    near = get_close_matches(names[0], known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return InvalidInputError(f"{what} has {names[0]!r}, which is not known. {hint}")


@dataclass(frozen=True)
class DataSet:
    """One data set of a stage; a batch never mixes two.

    Args:
        file: .jsonl, .csv, .parquet or .txt; from Python also rows: a list of dicts or texts, a `datasets.Dataset`, or
            a `datasets.IterableDataset`, which is a stream.
        columns: mntp and simcse: the column of the text (default: text). supervised: anchor, positive and any number of
            hard negatives, distill: texts or pairs (default: all columns in their order). A column of lists of texts
            stands for as many columns.
        limit: Take this many rows, drawn with the stage's seed, of a stream the first; default: all.
        weight: How often a row is read in an epoch; 0.5 takes half of the rows.
        query_prompt: Before each anchor; default: the stage's.
        document_prompt: Before each positive and negative; default: the stage's.
        stream: mntp: Read the file while training, in place of all rows before; it need not fit into memory.

    Raises:
        InvalidInputError: A value of the wrong type or size.

    Example:
        >>> DataSet("faq.csv", columns=("question", "answer"), weight=0.5).columns
        ('question', 'answer')
    """

    file: Any
    columns: tuple[str, ...] | None = None
    limit: int | None = None
    weight: float = 1.0
    query_prompt: str | None = None
    document_prompt: str | None = None
    stream: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.file, os.PathLike):
            object.__setattr__(self, "file", os.fspath(self.file))
        checks = {"columns": _names, "limit": _from(1), "weight": as_positive}
        checks |= {"query_prompt": _prompt, "document_prompt": _prompt, "stream": as_flag}
        for name, check in checks.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check(name, value))

    @classmethod
    def of(cls, name: str, value: Any, folder: Path = Path()) -> DataSet:
        """Make a data set of a path, rows or a mapping of the fields; paths start at `folder`."""
        if isinstance(value, DataSet):
            return value
        if isinstance(value, Mapping):
            if value and all(hasattr(each, "column_names") for each in value.values()):  # as load_dataset gives them
                first = next(iter(value))
                raise InvalidInputError(
                    f"data.{name} must be one data set, got those of {', '.join(value)}. Give one, such as [{first!r}]."
                )
            if odd := [key for key in value if key not in DATA_FIELDS]:
                raise unknown(f"data.{name}", odd, DATA_FIELDS)
            if not isinstance(value.get("file"), str):
                raise InvalidInputError(f"data.{name} must name its file: file = 'pairs.jsonl'.")
            return cls(**{**value, "file": str(folder / value["file"])})
        return cls(str(folder / value) if isinstance(value, str | os.PathLike) else value)


DATA_FIELDS = tuple(row.name for row in fields(DataSet))


def _data(name: str, value: Any) -> dict[str, DataSet]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) and key for key in value):
        raise InvalidInputError(
            f"{name} must be data sets by name, such as {{'pairs': 'pairs.jsonl'}}, got {value!r:.80}."
        )
    return {key: DataSet.of(key, each) for key, each in value.items()}


def _row(check: Check, kind: Any, said: str, only: tuple[str, ...] = OBJECTIVES, *, fixed: bool = True) -> Any:
    """A field: its check, its kind on the command line (None: none), its help, and whether a resumed run keeps it."""
    return field(default=None, metadata={"check": check, "kind": kind, "help": said, "only": only, "fixed": fixed})


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of one training stage; None takes the preset's value, or the objective's default.

    `objective`, `model`, `data` and `output` have to be said. The others are documented in docs/train.md, which this
    table writes.

    Raises:
        InvalidInputError: A value of the wrong type or size, or one that the objective does not know.

    Example:
        >>> settings = TrainingSettings("mntp", "llm2vec-tiny", {"mine": "texts.txt"}, "step2", max_steps=100)
        >>> settings["max_steps"], settings["mask_probability"]
        (100, 0.2)
    """

    objective: str = _row(_of(OBJECTIVES), None, f"What is trained: {', '.join(OBJECTIVES)}.")
    model: str | None = _row(_text, None, "Alias, folder or hub id to start from.")
    data: Mapping[str, DataSet] | None = _row(_data, None, "Data sets by name.")
    output: str | None = _row(_text, None, "Folder of the trained encoder and its checkpoints.", fixed=False)
    preset: str | None = _row(_of(tuple(PRESETS)), str, f"Settings to start from: {', '.join(PRESETS)}.", fixed=False)
    eval_file: str | None = _row(
        _text, str, "Columns sentence1, sentence2, score: Spearman. Otherwise as the data: the loss on it.", fixed=False
    )
    keep_best: bool | None = _row(as_flag, bool, "End with the checkpoint that is best on eval_file.")
    full: bool | None = _row(as_flag, bool, "Train all weights instead of LoRA.")
    lora_r: int | None = _row(_from(1), int, "Rank of LoRA.")
    lora_alpha: float | None = _row(as_positive, float, "LoRA counts alpha / r times. Default: 2 r.")
    lora_dropout: float | None = _row(_in("[0, 1)"), float, "Dropout on the input of every LoRA branch.")
    lora_targets: tuple[str, ...] | None = _row(_names, list, "Layers that LoRA adapts, by the ends of their names.")
    adapter_dtype: str | None = _row(_of(("float32", "float16")), str, "Of the adapter in OUTPUT/adapter.")
    max_steps: int | None = _row(_from(1), int, "Optimizer steps.", fixed=False)
    epochs: float | None = _row(as_positive, float, "Passes over the data, in place of max_steps.", fixed=False)
    batch_size: int | None = _row(_from(1), int, "Rows of a step, in each process.")
    mini_batch_size: int | None = _row(_from(1), int, "Rows in memory at once (GradCache).", CONTRASTIVE)
    gradient_accumulation: int | None = _row(_from(1), int, "Batches of a step.")
    gradient_checkpointing: bool | None = _row(as_flag, bool, "Compute layers again in place of keeping their states.")
    learning_rate: float | None = _row(as_positive, float, "Of AdamW, at its highest.")
    embedding_learning_rate: float | None = _row(
        as_positive, float, "Of the token embeddings, where all weights train."
    )
    weight_decay: float | None = _row(_not_negative, float, "Of AdamW.")
    scheduler: str | None = _row(_of(SCHEDULERS), str, f"Of the learning rate: {', '.join(SCHEDULERS)}.")
    warmup_steps: int | None = _row(_from(0), int, "Steps in which the learning rate rises.")
    max_seq_length: int | None = _row(
        _from(1), int, "Tokens of a text in training, of a chunk in mntp; the encoder keeps its own length."
    )
    cross_documents: bool | None = _row(
        as_flag, bool, "A chunk may run on into the next text; default: it may.", ("mntp",)
    )
    mask_probability: float | None = _row(_in("(0, 1]"), float, "Share of the tokens that are predicted.", ("mntp",))
    all_mask: bool | None = _row(as_flag, bool, "Mask all of them; default: 80/10/10, as BERT.", ("mntp",))
    mask_token: str | None = _row(_text, str, "Default: the tokenizer's own, else _.", ("mntp",))
    train_head: bool | None = _row(as_flag, bool, "Train the language-model head, too.", ("mntp",))
    attention_dropout: float | None = _row(
        _in("[0, 1)"), float, "Of the two passes, which it makes differ.", ("simcse",)
    )
    scale: float | None = _row(as_positive, float, "Of the cosine similarities: 1 / temperature.", SCALED)
    symmetric: bool | None = _row(as_flag, bool, "Each positive finds its anchor, too.", CONTRASTIVE)
    guide: str | None = _row(
        _text,
        str,
        "Encoder that finds false negatives: what is nearer to an anchor than its positive is left out (GISTEmbed).",
        ("supervised",),
    )
    guide_margin: float | None = _row(
        _not_negative, float, "A negative is left out from this far below the positive on.", ("supervised",)
    )
    matryoshka_dims: tuple[int, ...] | None = _row(_dims, list, "Train the first dimensions alone, too.", CONTRASTIVE)
    query_prompt: str | None = _row(_prompt, str, "Before each anchor; saved as the query prompt.", PROMPTED)
    document_prompt: str | None = _row(
        _prompt, str, "Before each positive and negative; saved as the document prompt.", PROMPTED
    )
    teacher: str | None = _row(_text, str, "Any sentence-transformers model, whose vectors are learned.", ("distill",))
    teacher_pca: int | None = _row(
        _from(1), int, "Principal components of the teacher's centred vectors, in their place.", ("distill",)
    )
    teacher_dtype: str | None = _row(_of(DTYPES), str, "That the teacher computes in.", ("distill",))
    distance: str | None = _row(
        _of(DISTANCES),
        str,
        f"Of vectors to the teacher's: {', '.join(DISTANCES)}.",
        ("distill",),
    )
    alignment: str | None = _row(
        _of(ALIGNMENTS),
        str,
        "Of the teacher's space and the student's: none (of one width), rotation (the teacher is no wider; keeps its "
        "distances) or projection (learned and dropped). Default: the first that the widths allow.",
        ("distill",),
    )
    contrast_weight: float | None = _row(
        _not_negative, float, "Of contrast with the rest of the batch, where rows are pairs; 0 is none.", ("distill",)
    )
    pooling_mode: str | None = _row(_encoder, str, "mean, weighted_mean, last_token, eos_token or bos_token.")
    template: str | None = _row(_encoder, str, "Chat template around every text.")
    attention: str | None = _row(_of(ATTENTION), str, "bidirectional or causal.")
    share: float | None = _row(_in("(0, 1]"), float, "Of what is learned, this much is kept; 1 is all (WiSE-FT).")
    save_steps: int | None = _row(_from(1), int, "Steps between checkpoints.", fixed=False)
    eval_steps: int | None = _row(_from(1), int, "Steps between scores on eval_file.", fixed=False)
    logging_steps: int | None = _row(_from(1), int, "Steps between points of the learning curve.", fixed=False)
    dtype: str | None = _row(_of(DTYPES), str, f"Of the weights: {', '.join(DTYPES)}.")
    bf16: bool | None = _row(as_flag, bool, "Compute in bfloat16, keep the weights' dtype.")
    cpu: bool | None = _row(as_flag, bool, "Leave a GPU alone.", fixed=False)
    seed: int | None = _row(_from(0), int, "Of everything random.")

    def __post_init__(self) -> None:
        objective = one_of("objective", self.objective, OBJECTIVES)
        for row in fields(self):
            if (value := getattr(self, row.name)) is None:
                continue
            if objective not in row.metadata["only"]:
                only = " and ".join(row.metadata["only"])
                raise InvalidInputError(
                    f"{row.name} is for {only}, got {row.name}={value!r} for {objective}. Leave it out."
                )
            object.__setattr__(self, row.name, row.metadata["check"](row.name, value))
        for name, data in (self.data or {}).items():
            prompts = [key for key in ("query_prompt", "document_prompt") if getattr(data, key) is not None]
            if prompts and objective not in PROMPTED:
                raise InvalidInputError(
                    f"data.{name} has a {prompts[0]}, which is for {' and '.join(PROMPTED)}, not for {objective}. "
                    "Leave it out."
                )
        if self.max_steps is not None and self.epochs is not None:
            raise InvalidInputError(
                f"max_steps={self.max_steps} and epochs={self.epochs} exclude each other. Give one."
            )
        if self.full and (odd := [name for name in LORA if getattr(self, name) is not None]):
            raise InvalidInputError(f"{odd[0]} is for LoRA, and full=True trains all weights. Leave one of them out.")
        if self.guide and self["symmetric"]:
            raise InvalidInputError("symmetric is without a guide, which is asked of anchors only. Leave one out.")
        if self.guide_margin is not None and not self.guide:
            raise InvalidInputError(f"guide_margin={self.guide_margin} is of a guide. Give one, or leave it out.")
        if self.embedding_learning_rate and not self["full"]:
            raise InvalidInputError("embedding_learning_rate needs full=True: LoRA leaves the embeddings as they are.")

    def __getitem__(self, name: str) -> Any:
        """The value of a field: as said, else the preset's, else the objective's default, else None."""
        said = getattr(self, name)
        if said is not None:
            return said
        if name == "max_steps" and self.epochs is not None:
            return None
        if name == "warmup_steps" and self.max_steps is not None:  # a shorter run has a shorter warm-up
            usual = replace(self, max_steps=None)
            warmup, steps = usual[name], usual["max_steps"]
            return warmup and min(warmup, round(warmup * self.max_steps / steps))
        preset = PRESETS[self.preset] if self.preset else {}
        for values in (preset.get(self.objective, {}), preset.get("all", {}), DEFAULTS[self.objective]):
            if name in values:
                return values[name]
        return None

    def require_complete(self) -> None:
        """Raise `InvalidInputError` where a field that has no default is not said."""
        for name in ("model", "data", "output", *REQUIRED.get(self.objective, ())):
            if self[name] is None:
                raise InvalidInputError(f"{name} is missing: {FIELDS[name].metadata['help']}")

    def to_dict(self) -> dict[str, Any]:
        """Return all that is in force as JSON knows it; rows that were given from Python by their number."""
        values = {name: self[name] for name in FIELDS if not (self["full"] and name in LORA)}
        values["data"] = {name: _named(data) for name, data in (self.data or {}).items()}
        return {name: value for name, value in values.items() if value is not None}

    def must_stay(self) -> dict[str, Any]:
        """Return what a resumed run cannot change: the weights' shape and meaning, what is drawn, in which order.

        Data may lie elsewhere: it is known by its hash.
        """
        fixed = {name: value for name, value in self.to_dict().items() if FIELDS[name].metadata["fixed"]}
        data = {
            name: {key: said for key, said in each.items() if key != "file"} for name, each in fixed["data"].items()
        }
        return {**fixed, "data": data}


def _named(data: DataSet) -> dict[str, Any]:
    file = data.file if isinstance(data.file, str) else "rows from Python"
    values = {row.name: getattr(data, row.name) for row in fields(data)} | {"file": file}
    return {name: value for name, value in values.items() if value is not None}


REQUIRED = {"distill": ("teacher",)}  # besides model, data and output
FIELDS = {row.name: row for row in fields(TrainingSettings)}
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets", "adapter_dtype")
