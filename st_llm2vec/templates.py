"""Chat templates as data: what stands before and after a text, by name, and which models are known for which.

Sections named here are those of the parity kit's README (semantics of the original package).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

from .errors import InvalidInputError
from .vetting import require_finite_template

MAX_LENGTH = 20_000  # characters before and after every text; the longest of TEMPLATES have 60


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

    def render(turns: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    if not tokenizer.chat_template:
        raise InvalidInputError(
            f"template={CHAT!r} was asked for, and the tokenizer has no chat template. Use one of {sorted(TEMPLATES)}."
        )
    tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    require_finite_template(tokenizer.get_chat_template(), [turns, turns[:2], turns[:1]], tokens)
    try:
        # The second turn of the user: a system message stands before the first one only.
        closing = render(turns[:2]).partition(reply)[2]
        between, found, suffix = render(turns).partition(reply)[2].partition(second)
        prefix = between.removeprefix(closing)
        if prefix == between:  # the last turn ends in another way (phi3): what both turns of the user begin with
            opening = render(turns[:1]).partition(first)[0]
            prefix = commonprefix([opening[::-1], between[::-1]])[::-1]  # noqa: RUF071 - of texts, not of paths
    except Exception as error:  # whatever a template raises that wants other turns
        raise InvalidInputError(
            f"The tokenizer's chat template cannot be used ({error}). Give a Template(prefix, suffix)."
        ) from error
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
            f"template={name!r} is not known. Use one of {sorted([*TEMPLATES, CHAT])}, or a Template."
        )
    return TEMPLATES[name]


def with_eos(template: Template, original_name: str | None, model_type: str, eos_token: str | None) -> Template:
    """The template that `eos_token` pooling reads its last token from (section 3.4, last paragraph)."""
    if template == TEMPLATES["llama-3"]:
        return template  # ends in its own end-of-turn token
    suffix = KNOWN_EOS.get(original_name or "") or KNOWN_EOS.get(model_type) or eos_token
    if not suffix:
        raise InvalidInputError(
            "pooling_mode='eos_token' needs an EOS token, and the tokenizer has none. Use pooling_mode='last_token'."
        )
    if template.suffix.endswith(suffix):
        return template
    return Template(template.prefix, template.suffix + suffix)


def special_counts(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many tokens the tokenizer itself puts before (BOS) and after (EOS) a text."""
    ids = tokenizer("a", add_special_tokens=True, return_special_tokens_mask=True)
    text = [i for i, special in enumerate(ids["special_tokens_mask"]) if not special]
    return text[0], len(ids["input_ids"]) - 1 - text[-1]
