"""How a text becomes token ids, and which of them are pooled: instruction, template, truncation, span.

LLM2Vec pools the text and the template's suffix; the BOS token, the template's prefix and the instruction take part
in attention only. Sections named here are those of the parity kit's README (semantics of the original package).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import InvalidCheckpointError, InvalidInputError
from .templates import Template, special_counts


def split_input(item: Any, position: int, prompt: str) -> tuple[str, str]:
    """(what stands before the text, text) of one input of `encode`.

    Args:
        item: A text, or `[instruction, text]` as the original package takes it (a third element is ignored).
        position: Index of the input, for the error.
        prompt: The prompt that applies to texts without an instruction of their own.
    """
    if isinstance(item, str):
        return prompt, item
    if isinstance(item, (list, tuple)) and len(item) in (2, 3) and all(isinstance(part, str) for part in item[:2]):
        instruction, text = item[0], item[1]
        if instruction and prompt:
            raise InvalidInputError(
                f"Input {position} must have one instruction, got {instruction[:60]!r} of its own and the prompt "
                f"{prompt[:60]!r}. Give plain texts with prompt=, or pairs with prompt=''."
            )
        return (instruction.strip() + " " if instruction else prompt), text
    raise InvalidInputError(
        f"Input {position} must be a text or [instruction, text], got {type(item).__name__}: {str(item)[:60]!r}."
    )


class TokenizedText(NamedTuple):
    """Token ids of one text with everything around it, and how many of the *last* of them are pooled."""

    input_ids: list[int]
    n_pooled: int


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    template: Template,
    *,
    max_length: int,
    document_max_length: int | None = None,
    keep_suffix: bool = True,
) -> list[TokenizedText]:
    """Token ids and pooled spans of (what stands before, text) pairs: sections 3.2 to 3.6.

    Args:
        pairs: What stands before the text (a prompt, blank included, or nothing), and the text.
        max_length: Tokens at most, special tokens, prompt and template included.
        document_max_length: Cut the text alone to this many tokens first, word by word. None: do not.
        keep_suffix: Over-long inputs lose the end of their *text*, not the template's suffix, so that the span stays
            aligned (defect Q5). False: cut at the right, whatever is there.
    """
    pairs = list(pairs)
    full = _ids(tokenizer, [_render(pair, template) for pair in pairs], special=True)
    if document_max_length is not None and document_max_length < max_length:
        # Counting with everything around it is an upper bound; one more for a blank that only a text alone gets.
        long = [i for i, ids in enumerate(full) if len(ids) >= document_max_length]
        for i in long:
            pairs[i] = (pairs[i][0], _cut_document(tokenizer, pairs[i][1], document_max_length, max_length))
        cut = _ids(tokenizer, [_render(pairs[i], template) for i in long], special=True)
        for i, ids in zip(long, cut, strict=True):
            full[i] = ids

    before, after = special_counts(tokenizer)
    n_pooled = [len(ids) - before for ids in full]
    # After a blank, the span is as long as text and suffix are when tokenized alone (section 3.6) ...
    inside = [i for i, (prompt, _) in enumerate(pairs) if prompt or template.prefix]
    glued = {pairs[i][0] for i in inside if pairs[i][0] and not pairs[i][0][-1].isspace()}
    apart = [i for i in inside if pairs[i][0] not in glued]
    texts = [(pairs[i][1].rstrip() if template else pairs[i][1]) + template.suffix for i in apart]
    for i, ids in zip(apart, _ids(tokenizer, texts), strict=True):
        n_pooled[i] = min(len(ids), max_length) + after
    # ... but directly after a prompt a text has other tokens than alone: there the prompt's are counted, as stock does.
    prefixes = {prompt: len(_ids(tokenizer, [template.prefix + prompt])[0]) for prompt in glued}
    for i in inside:
        n_pooled[i] -= prefixes.get(pairs[i][0], 0)

    found = [TokenizedText(ids, max(0, min(n, len(ids)))) for ids, n in zip(full, n_pooled, strict=True)]
    for i, (ids, _) in enumerate(found):
        if len(ids) > max_length:
            found[i] = _truncate(tokenizer, pairs[i], template, ids, (before, after), max_length, keep_suffix)
        elif not ids:  # an empty text and a tokenizer without special tokens: one token that says nothing
            found[i] = TokenizedText([_neutral_id(tokenizer)], 1)
    return found


def _render(pair: tuple[str, str], template: Template) -> str:
    prompt, text = pair
    if template:
        text = text.rstrip()
        prompt = prompt.lstrip()
        if not text:
            prompt = prompt.rstrip()
    return template.prefix + prompt + text + template.suffix


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = False) -> list[list[int]]:
    if not texts:
        return []
    options: dict[str, Any] = {"truncation": False, "padding": False, "return_attention_mask": False}
    try:  # verbose=False: texts longer than the model are cut below, no warning needed
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=special, verbose=False, **options)["input_ids"]
    except TypeError:
        require_unicode(*texts)
        raise
    except BaseException as error:  # of tokenizers: a plain Exception, or a panic, which is none
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise InvalidCheckpointError(
            f"The tokenizer cannot read a text ({str(error)[:200]}): its tokenizer.json fits no text like it. Download "
            "it again, or load the tokenizer that the decoder was trained with."
        ) from error
    return ids


def require_unicode(*texts: str) -> None:
    """Raise `InvalidInputError` where a text has half of a surrogate pair, which no tokenizer takes."""
    for text in texts:
        if (odd := next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)) is not None:
            raise InvalidInputError(
                f"A text has {text[odd]!r} at character {odd}, half of a surrogate pair and no character "
                f"({text[max(0, odd - 20) : odd + 20]!r}). Replace it: text.encode('utf-8', 'replace').decode()."
            )


def _neutral_id(tokenizer: PreTrainedTokenizerBase) -> int:
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return next(int(i) for i in candidates if i is not None)


class LocatedText(NamedTuple):
    """Token ids of one text with everything around it, uncut, and where the text itself is among them.

    Attributes:
        input_ids: Special tokens, template and prompt included.
        start, stop: The text's own tokens.
        offsets: For every token its first character in the text and the one after its last; around the text, these lie
            outside of it.
    """

    input_ids: list[int]
    start: int
    stop: int
    offsets: list[tuple[int, int]]


def locate(tokenizer: PreTrainedTokenizerBase, pair: tuple[str, str], template: Template) -> LocatedText:
    """Tokenize one (what stands before, text) pair, and find the text in it by character offsets."""
    before, after = special_counts(tokenizer)
    rendered = _render(pair, template)
    first = len(template.prefix) + len(pair[0].lstrip() if template else pair[0])
    length = len(rendered) - len(template.suffix) - first
    encoding = tokenizer(rendered, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    offsets = [(start - first, end - first) for start, end in encoding["offset_mapping"]]
    content = range(before, len(offsets) - after)
    # A token that begins in the prompt and ends in the text (a blank and the first word) belongs to the text.
    start = next((i for i in content if offsets[i][1] > 0), content.stop)
    stop = next((i for i in content if offsets[i][0] >= length and i >= start), content.stop)
    return LocatedText(encoding["input_ids"], start, stop, offsets)


def _cut_document(tokenizer: PreTrainedTokenizerBase, text: str, limit: int, max_length: int) -> str:
    """Section 3.2: whole words from the start until at most `limit` tokens are left; by tokens if no word would be."""

    def count(text: str) -> int:
        return min(len(_ids(tokenizer, [text])[0]), max_length)

    n = count(text)
    while n > limit:
        words = text.split()
        kept = " ".join(words[: int(len(words) * (limit / n))])
        if not kept:  # one long word, or a language without blanks: the original embeds the empty text (Q4)
            offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return text[: offsets["offset_mapping"][limit - 1][1]]
        text, n = kept, count(kept)
    return text


def _truncate(
    tokenizer: PreTrainedTokenizerBase,
    pair: tuple[str, str],
    template: Template,
    ids: list[int],
    special: tuple[int, int],
    max_length: int,
    keep_suffix: bool,
) -> TokenizedText:
    """Cuts one over-long text to `max_length` tokens and finds the span by character offsets."""
    before, after = special
    around = before + after + (len(_ids(tokenizer, [template.suffix])[0]) if keep_suffix and template.suffix else 0)
    if around >= max_length:
        raise InvalidInputError(
            f"max_seq_length must be more than {around}, the special tokens and the template's suffix, got "
            f"{max_length}."
        )
    if not keep_suffix:
        kept = ids[: max_length - after] + ids[len(ids) - after :]
        return TokenizedText(kept, len(kept))
    located = locate(tokenizer, pair, template)
    prompt_end, suffix_start = located.start, located.stop
    room = max_length - before - (len(ids) - suffix_start)
    # A prompt that would crowd the text out is cut instead: the text keeps at least half of the room.
    n_text = min(suffix_start - prompt_end, max(room - (prompt_end - before), room // 2))
    head = ids[: before + min(prompt_end - before, room - n_text)]
    tail = ids[suffix_start:]
    return TokenizedText(head + ids[prompt_end : prompt_end + n_text] + tail, n_text + len(tail))


def as_stored(rebuilt: Any, name: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer as its file has it.

    Tokenizer classes of transformers 5 rebuild parts of tokenizer.json from their own rules (leading blanks of Llama
    2); the model was trained with the file.
    """
    if type(rebuilt) is PreTrainedTokenizerFast and rebuilt.name_or_path == name:
        return rebuilt
    try:
        stored = PreTrainedTokenizerFast.from_pretrained(name, **options)
    except (OSError, ValueError):
        return rebuilt  # no tokenizer.json: a SentencePiece model only, which that class has read
    stored.model_max_length = rebuilt.model_max_length
    return stored


def keep_within(tokenizer: Any, rows: int, name: str) -> None:
    """Let what is added to texts be tokens that the decoder has an embedding for; its tokenizer may have more.

    Args:
        rows: Embeddings of the decoder.

    Raises:
        InvalidCheckpointError: Every text would get a token without an embedding.
    """
    tokenizer.embedded = min(rows, len(tokenizer))  # training draws its random tokens below
    if odd := [i for i in tokenizer("")["input_ids"] if i >= rows]:
        raise InvalidCheckpointError(
            f"The tokenizer of {name!r} adds token {odd[0]} ({tokenizer.convert_ids_to_tokens(odd[0])!r}) to every "
            f"text, and the decoder has {rows} embeddings: this is the tokenizer of another decoder."
        )
    if tokenizer.pad_token_id >= rows:  # what stands there is masked, but it is looked up
        others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, 0)
        within = next(i for i in others if i is not None and i < rows)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(within)
