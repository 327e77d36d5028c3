"""`EncoderSettings`: what an encoder reads and pools. Each setting is one row: its check, its help, its names in files.

`load`, `register_alias`, `aliases.json`, `llm2vec_config.json` (ours and the original package's), saved folders and the
command line all read this table. Nothing heavy is imported: settings are checked before anything is fetched.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from operator import index
from typing import Any

from .errors import InvalidCheckpointError, InvalidInputError
from .templates import CHAT, TEMPLATES, Template
from .types import gives_names

DEFAULT_MAX_SEQ_LENGTH = 512
# LLM2Vec's published checkpoints are adapters, and were evaluated with documents cut to this (parity section 3.10).
PUBLISHED_DOCUMENT_MAX_LENGTH = 400

# Our names (those of the original package) to sentence-transformers' own; an EOS token is the last one after a suffix.
POOLING_MODES: dict[str, str] = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "last_token": "lasttoken",
    "eos_token": "lasttoken",
    "bos_token": "cls",
}
# sentence-transformers' names to ours; what is pooled last is the last token unless an EOS token is asked for.
OUR_POOLING_MODES: dict[str, str] = {host: ours for ours, host in reversed(POOLING_MODES.items())}
ATTENTION = ("bidirectional", "causal")


def one_of(name: str, value: Any, allowed: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Return `value` if it is one of the allowed names.

    Raises:
        InvalidInputError: It is not.
    """
    if isinstance(value, str) and value in allowed:
        return value
    known = ", ".join(map(repr, sorted(allowed)))
    raise InvalidInputError(f"{name} must be one of {known}, got {value!r}.")


def as_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; numpy's are understood, texts and numbers are not."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise InvalidInputError(f"{name} must be True or False, got {value!r} ({type(value).__name__}).")


def as_share(name: str, value: Any, allowed: str = "[0, 1)") -> float:
    """Return `value` as a float if it is a number in the interval, "[0, 1)" or "(0, 1]".

    Raises:
        InvalidInputError: It is not.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if 0 < number < 1 or (number == 0 and allowed[0] == "[") or (number == 1 and allowed[-1] == "]"):
        return number
    raise InvalidInputError(f"{name} must be in {allowed}, got {value!r}.")


def as_count(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int of at least `least`; numpy's are understood, texts, floats and bools are not.

    Raises:
        InvalidInputError: It is not.
    """
    try:
        number = least - 1 if isinstance(value, bool) else index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InvalidInputError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return number


def as_positive(name: str, value: Any) -> float:
    """Return `value` as a finite float greater than 0; numpy's are understood, texts and bools are not.

    Raises:
        InvalidInputError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise InvalidInputError(f"{name} must be a number greater than 0, got {value!r}.")
    return float(value)


def as_texts(name: str, value: Iterable[Any]) -> list[str]:
    """Return the texts as a list.

    Raises:
        InvalidInputError: A single text, whose letters would be taken for texts, or an element that is no text.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable) or gives_names(value):
        raise InvalidInputError(f"{name} must be texts, such as a list or column of them, got {value!r:.80}.")
    found = list(value)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise InvalidInputError(f"{name} must be texts, got {text!r:.80} ({type(text).__name__}) as number {i}.")
    return found


def _pooling_mode(name: str, value: Any) -> str:
    if isinstance(value, str) and value in OUR_POOLING_MODES:
        return OUR_POOLING_MODES[value]
    return one_of(name, value, POOLING_MODES)


def _template(name: str, value: Any) -> str | Template:
    if isinstance(value, Template):
        value = value.to_dict()
    if isinstance(value, Mapping):
        if set(value) <= {"prefix", "suffix"} and all(isinstance(part, str) for part in value.values()):
            return Template(**value)
        raise InvalidInputError(f"{name} must have the texts 'prefix' and 'suffix' and nothing else, got {value!r}.")
    if isinstance(value, str) and value in (*TEMPLATES, CHAT):
        return value
    raise InvalidInputError(
        f"{name} must be one of {', '.join(sorted([*TEMPLATES, CHAT]))}, or a Template, got {value!r}."
    )


def as_length(name: str, value: Any) -> int:
    """Return `value` as a number of tokens, at least 1; numpy's integers are understood."""
    try:
        number = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InvalidInputError(f"{name} must be an integer of tokens, at least 1, got {value!r}.")
    return number


def _attention(name: str, value: Any) -> str:
    return one_of(name, value, ATTENTION)


def _prompts(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and all(isinstance(part, str) for prompt in value.items() for part in prompt):
        return dict(value)
    raise InvalidInputError(f"{name} must be texts by name, such as {{'query': 'Find what answers: '}}, got {value!r}.")


_NOT_KEPT = object()  # kept by the pooling, the tokenizer or the encoder


def _setting(check: Callable[[str, Any], Any], kind: type, said: str, plain: Any = _NOT_KEPT) -> Any:
    return field(default=None, metadata={"check": check, "kind": kind, "help": said, "plain": plain})


_TEMPLATES_HELP = f"{', '.join(TEMPLATES)}; {CHAT}: the tokenizer's own."


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of an encoder, each checked; None where nothing is said.

    Raises:
        InvalidInputError: A value of the wrong type, or one that is not known.
    """

    pooling_mode: str | None = _setting(_pooling_mode, str, "mean, weighted_mean, last_token, eos_token or bos_token.")
    template: str | Template | None = _setting(  # noqa: RUF009 - a field
        _template, str, _TEMPLATES_HELP, plain=Template().to_dict()
    )
    max_seq_length: int | None = _setting(as_length, int, "Cut texts to this many tokens.")
    document_max_length: int | None = _setting(as_length, int, "Cut the text alone first, word by word.", plain=None)
    include_prompt: bool | None = _setting(as_flag, bool, "Pool BOS, template and prompt, too.")
    attention: str | None = _setting(_attention, str, "bidirectional or causal.", plain="bidirectional")
    prompts: Mapping[str, str] | None = _setting(_prompts, dict, "Texts to put before queries and documents, by name.")

    def __post_init__(self) -> None:
        for row in fields(self):
            if (value := getattr(self, row.name)) is not None:
                object.__setattr__(self, row.name, row.metadata["check"](row.name, value))

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "settings") -> EncoderSettings:
        """Make settings of a mapping from names to values.

        Args:
            values: Settings by name.
            where: What the mapping is, for the error.

        Raises:
            InvalidInputError: A name or value that is not known.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"{where} must be settings by name, got {values!r} ({type(values).__name__}).")
        if unknown := sorted(map(str, set(values) - set(NAMES))):
            raise InvalidInputError(f"{where} must be some of {', '.join(NAMES)}, got {', '.join(map(repr, unknown))}.")
        return cls(**values)

    @classmethod
    def from_file(cls, content: Mapping[str, Any], path: Any = "llm2vec_config.json") -> EncoderSettings:
        """Read the content of an `llm2vec_config.json`, ours or the original package's; other keys are left alone.

        Raises:
            InvalidCheckpointError: A value of the wrong type, or one that is not known.
        """
        try:
            return cls(**{name: value for name, value in translated(content).items() if name in NAMES})
        except InvalidInputError as error:
            raise InvalidCheckpointError(f"{path} cannot be used: {error}") from error

    def over(self, below: EncoderSettings) -> EncoderSettings:
        """Return these settings, and those of `below` where nothing is said here; prompts name by name."""
        given = {name: value for name in NAMES if (value := getattr(self, name)) is not None}
        if self.prompts is not None:
            given["prompts"] = {**(below.prompts or {}), **self.prompts}
        return replace(below, **given)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as `llm2vec_config.json` holds them."""
        values = {name: getattr(self, name) for name in NAMES}
        if isinstance(self.template, Template):
            values["template"] = self.template.to_dict() if self.template else None
        return values


NAMES = tuple(row.name for row in fields(EncoderSettings))
# Settings that `LLM2VecTransformer` keeps under their names, saves and follows, and their values in an encoder that
# stock classes read alike.
KEPT: dict[str, Any] = {
    row.name: row.metadata["plain"] for row in fields(EncoderSettings) if row.metadata["plain"] is not _NOT_KEPT
}
# Names of the original package's llm2vec_config.json, and ours.
_ORIGINAL_NAMES = {"max_length": "max_seq_length", "doc_max_length": "document_max_length"}
_ORIGINAL_FLAG = "skip_instruction"


def translated(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an `llm2vec_config.json` under our names.

    Raises:
        InvalidInputError: The original's `skip_instruction` is no flag.
    """
    values = {_ORIGINAL_NAMES.get(key, key): value for key, value in content.items()}
    if (skips := values.pop(_ORIGINAL_FLAG, None)) is not None:
        values["include_prompt"] = not as_flag(_ORIGINAL_FLAG, skips)
    return values


def is_original(content: Mapping[str, Any]) -> bool:
    """Return whether an `llm2vec_config.json` was written by the original package."""
    return "format" not in content and not content.keys().isdisjoint({*_ORIGINAL_NAMES, _ORIGINAL_FLAG})
