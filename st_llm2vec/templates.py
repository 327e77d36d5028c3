"""Chat templates as data: what stands before and after a text, by name, and which models are known for which.

Sections named here are those of the parity kit's README (semantics of the original package).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from os.path import commonprefix
from typing import TYPE_CHECKING

from .errors import InvalidInputError
from .vetting import render_apart

MAX_LENGTH = 20_000  # characters before and after every text; the longest of TEMPLATES have 60

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """What stands before and after the text (section 3.4). Blanks at the text's end go when there is any."""

    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or len(value) > MAX_LENGTH:
                given = f"{len(value):,} characters" if isinstance(value, str) else repr(value)
                raise InvalidInputError(
                    f"the template's {name} must be a text of at most {MAX_LENGTH:,} characters, got {given:.80}."
                )

    def __bool__(self) -> bool:
        return bool(self.prefix or self.suffix)

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


TEMPLATES: dict[str, Template] = {
    "none": Template(),
    "llama-3": Template("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "llama-2": Template("[INST] ", " [/INST]"),
    "mistral": Template("[INST] ", " [/INST]"),
    "gemma": Template("<start_of_turn>user\n", "<end_of_turn>"),
    "chatml": Template("<|im_start|>user\n", "<|im_end|>"),
    # No chat: asks a causal decoder for the text in one word (PromptEOL, arXiv 2307.16645); pool with last_token.
    "prompt-eol": Template('This sentence : "', '" means in one word:"'),
}
CHAT = "chat"  # the name of the tokenizer's own template

# Templates that the published checkpoints were evaluated with, by the name of their original model.
KNOWN_TEMPLATES: dict[str, str] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3",
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral",
    "meta-llama/Llama-2-7b-chat-hf": "llama-2",
    "Qwen/Qwen2-1.5B-Instruct": "chatml",
    "Qwen/Qwen2-7B-Instruct": "chatml",
}

# What `eos_token` pooling appends to models of the original package; " </s>" is kept, blank and all (defect Q10).
KNOWN_EOS: dict[str, str] = {
    "meta-llama/Meta-Llama-3-8B": "<|end_of_text|>",
    "llama": " </s>",
    "mistral": " </s>",
    "gemma": "<eos>",
    "qwen2": "<|endoftext|>",
}


def own_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The user's turn of the tokenizer's own chat template, without system message and generation prompt.

    Raises:
        InvalidInputError: There is no chat template, or it does not show where the text stands.
    """
    first, reply, second = "FIRST", "REPLY", "SECOND"
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": reply}]
    turns += [{"role": "user", "content": second}]

    if not tokenizer.chat_template:
        raise InvalidInputError(
            f"template must be one of {', '.join(sorted(TEMPLATES))}: the tokenizer has no chat template; got {CHAT!r}."
        )
    # The second turn of the user: a system message stands before the first one only.
    answered, whole = render_apart(tokenizer.get_chat_template(), [turns[:2], turns], tokenizer.special_tokens_map)
    closing = answered.partition(reply)[2]
    between, found, suffix = whole.partition(reply)[2].partition(second)
    prefix = between.removeprefix(closing)
    if prefix == between:  # the last turn ends in another way (phi3): what both turns of the user begin with
        opening = render_apart(tokenizer.get_chat_template(), [turns[:1]], tokenizer.special_tokens_map)[0]
        prefix = commonprefix([opening.partition(first)[0][::-1], between[::-1]])[::-1]  # noqa: RUF071 - of texts
    if not found:
        raise InvalidInputError("The tokenizer's chat template changes the text. Give a Template(prefix, suffix).")
    if special_counts(tokenizer)[0]:
        prefix = prefix.removeprefix(tokenizer.bos_token or "")  # the tokenizer adds it by itself
    return Template(prefix, suffix.rstrip())


def choose_template(template: str | Template | None, *names: str | None) -> Template:
    """The template of a model: the one asked for, else the one that a name of it is known for, else none.

    Args:
        template: A name of `TEMPLATES`, a `Template`, or None.
        names: Hub names of the decoder that the weights come from, the surest first.
    """
    if isinstance(template, Template):
        return template
    known = (KNOWN_TEMPLATES[name] for name in names if name in KNOWN_TEMPLATES)
    name = next(known, "none") if template is None else template
    if name not in TEMPLATES:
        raise InvalidInputError(
            f"template must be one of {', '.join(sorted([*TEMPLATES, CHAT]))}, or a Template, got {name!r}."
        )
    return TEMPLATES[name]


def require_tokens(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the control tokens of a template of `TEMPLATES` are tokens of this tokenizer.

    Raises:
        InvalidInputError: It would split one into pieces, and the pieces would be pooled.
    """
    needed = dict.fromkeys(_CONTROL_TOKEN.findall(template.prefix + template.suffix))
    if missing := [token for token in needed if not _is_control_token(token, tokenizer)]:
        name = next(name for name, known in TEMPLATES.items() if known == template)
        raise InvalidInputError(
            f"template={name!r} needs {', '.join(missing)}, which this tokenizer would split into pieces. Use "
            f"template={CHAT!r} (the tokenizer's own), 'none', or a Template(prefix, suffix) of your own."
        )


_CONTROL_TOKEN = re.compile(r"<\|?\w+\|?>")


def _is_control_token(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    added = tokenizer.added_tokens_decoder.values()
    return text in tokenizer.all_special_tokens or any(token.special and token.content == text for token in added)


def with_eos(
    template: Template,
    original_name: str | None,
    model_type: str,
    eos_token: str | None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Template:
    """Return the template that `eos_token` pooling reads its last token from (section 3.4, last paragraph).

    Args:
        template: What stands around the text already.
        original_name: Hub name of the decoder.
        model_type: Of the decoder's config.
        eos_token: The tokenizer's own.
        tokenizer: A known suffix that is no special token of this tokenizer gives way to `eos_token`. None, for the
            checkpoints of the original package, keeps it as text (defect Q10): they were evaluated with it.

    Raises:
        InvalidInputError: There is no EOS token.
    """
    if template == TEMPLATES["llama-3"]:
        return template  # ends in its own end-of-turn token
    known = KNOWN_EOS.get(original_name or "") or KNOWN_EOS.get(model_type)
    if known and tokenizer is not None and not _is_control_token(known.strip(), tokenizer):
        known = None
    suffix = known or eos_token
    if not suffix:
        raise InvalidInputError(
            "pooling_mode must not be 'eos_token': the tokenizer has no EOS token. Use pooling_mode='last_token'."
        )
    if template.suffix.endswith(suffix):
        return template
    return Template(template.prefix, template.suffix + suffix)


def special_counts(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many tokens the tokenizer itself puts before (BOS) and after (EOS) a text."""
    for text in chain("a", _words(tokenizer)):  # not every alphabet has an "a": DNA, proteins
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        for before in range(len(ids) - len(plain) + 1) if plain else ():
            if ids[before : before + len(plain)] == plain:
                return before, len(ids) - len(plain) - before
    raise InvalidInputError(
        "The tokenizer gives no token of its own vocabulary for any text. Give the right tokenizer."
    )


def _words(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What the tokenizer's ordinary tokens stand for, in the order of their ids."""
    special = set(tokenizer.all_special_ids)
    for token_id in sorted(set(tokenizer.get_vocab().values()) - special):
        yield tokenizer.convert_tokens_to_string([tokenizer.convert_ids_to_tokens(token_id)])
