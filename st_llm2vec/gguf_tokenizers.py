"""The tokenizer of a GGUF file: vocabulary and merges through transformers' reader, all else as the decoder's own.

transformers cuts text by GPT-2's pattern where it does not know the one that a file names, adds BOS only where a file
says so, and adds tokens of its own; ids would be others than those that the decoder was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InvalidCheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


class _Split(NamedTuple):
    """How text is cut before byte-level BPE, as the tokenizer.json of those decoders has it."""

    pattern: str | None = None  # None: GPT-2's, which is ByteLevel's own
    digits: bool = False  # each digit alone, first
    normalizer: str | None = None
    ignore_merges: bool = False
    add_bos: bool = False  # where the file does not say, as in llama.cpp


# tokenizer.ggml.pre; those that are not here are refused.
_SPLITS: dict[str, _Split] = {
    "gpt-2": _Split(),
    "smollm": _Split(digits=True),
    "starcoder": _Split(digits=True),
    "qwen2": _Split(_QWEN_2, normalizer="NFC"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _Split(_LLAMA_3, ignore_merges=True, add_bos=True)),
}
_MOST_ATOMIC = 1 << 14  # each is looked up alone; Gemma 3 has 6,414
_ATOMIC = (2, 3, 4)  # token types of llama.cpp that are never cut: unknown, control, defined by the user


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def value_of(reader: GGUFReader, key: str) -> Any:
    found = reader.fields.get(key)
    return None if found is None else found.contents()


def tokenizer_of(reader: GGUFReader, path: Path) -> Any:
    """The tokenizer, cut and normalized as the decoder's own; vocabulary and merges through transformers.

    Raises:
        InvalidCheckpointError: A kind that is not known, or ids that are not the file's.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    kind, tokens = value_of(reader, "tokenizer.ggml.model"), value_of(reader, "tokenizer.ggml.tokens")
    pre = value_of(reader, "tokenizer.ggml.pre")
    split = _SPLITS.get(str(pre)) if kind == "gpt2" else _Split(add_bos=True)
    if kind not in ("gpt2", "llama") or split is None:
        raise unsupported(
            path,
            f"its tokenizer is {kind!r} with pre-tokenizer {pre!r}, and those that are known are 'llama', and 'gpt2' "
            f"with {', '.join(_SPLITS)}",
        )
    types, ids, chat = _contents(reader, path, kind, tokens)
    try:
        read = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidCheckpointError(f"transformers cannot read the tokenizer of {path}: {error}") from error
    backend = Tokenizer(read.model)  # without tokens that only a class of transformers knows
    backend.decoder = read.decoder
    marked = {i: AddedToken(tokens[i], normalized=False, special=t != 4) for i, t in enumerate(types) if t in _ATOMIC}
    backend.add_tokens(list(marked.values()))
    if kind == "gpt2":
        cut: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
        cut += [pre_tokenizers.Split(Regex(split.pattern), "isolated")] if split.pattern else []
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cut, byte_level])
        backend.normalizer = normalizers.NFC() if split.normalizer == "NFC" else None
        backend.model.ignore_merges = split.ignore_merges
    else:  # SentencePiece: a blank before the text, unless the file says otherwise, and blanks as they are
        prefix = value_of(reader, "tokenizer.ggml.add_space_prefix") is not False
        steps = [normalizers.Prepend("▁")] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None

    around = {}
    for name, default in (("bos", split.add_bos), ("eos", False)):
        asked = value_of(reader, f"tokenizer.ggml.add_{name}_token")
        if (default if asked is None else asked) and ids[name] is not None:
            around[name] = tokens[ids[name]]
    backend.post_processor = processors.TemplateProcessing(
        single=[*([around["bos"]] if "bos" in around else []), "$A", *([around["eos"]] if "eos" in around else [])],
        special_tokens=[(token, ids[name]) for name, token in around.items()],
    )
    words = {"unknown": "unk_token", "padding": "pad_token"}
    named = {words.get(name, f"{name}_token"): tokens[i] for name, i in ids.items() if i is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    if chat:
        tokenizer.chat_template = chat
    _require_same_ids(tokenizer, path, tokens, marked)
    return tokenizer


def _contents(reader: GGUFReader, path: Path, kind: str, tokens: Any) -> tuple[list[int], dict[str, int | None], Any]:
    """Token types, special ids and chat template, each of the kind that it has to be."""
    if not _are_texts(tokens) or not _are_texts(value_of(reader, "tokenizer.ggml.merges") or []):
        raise unsupported(path, "tokenizer.ggml.tokens and tokenizer.ggml.merges must be lists of texts")
    types = value_of(reader, "tokenizer.ggml.token_type") or []
    if not isinstance(types, list) or len(types) > len(tokens):
        raise unsupported(path, f"tokenizer.ggml.token_type must be a list of at most {len(tokens)} numbers")
    if (atomic := sum(types.count(kind) for kind in _ATOMIC)) > _MOST_ATOMIC:
        raise unsupported(path, f"{atomic:,} tokens are never cut, and at most {_MOST_ATOMIC:,} may be")
    ids = {name: special_id(reader, name, kind) for name in ("bos", "eos", "unknown", "padding")}
    for name, i in ids.items():
        if i is not None and not (type(i) is int and 0 <= i < len(tokens)):
            raise unsupported(path, f"the id of {name} must be from 0 to {len(tokens) - 1}, got {i!r:.80}")
    chat = value_of(reader, "tokenizer.chat_template")
    if chat is not None and not isinstance(chat, str):
        raise unsupported(path, f"tokenizer.chat_template must be a text, got {chat!r:.80}")
    return types, ids, chat


def special_id(reader: GGUFReader, name: str, kind: str) -> int | None:
    """As llama.cpp: SentencePiece vocabularies have three of them at fixed places unless the file says otherwise."""
    found = value_of(reader, f"tokenizer.ggml.{name}_token_id")
    return {"unknown": 0, "bos": 1, "eos": 2}.get(name) if found is None and kind == "llama" else found


def _require_same_ids(tokenizer: Any, path: Path, tokens: list[str], atomic: Iterable[int]) -> None:
    """Raises where a special token is cut into pieces, or the vocabulary has another size."""
    for i in atomic:
        ids = tokenizer(tokens[i], add_special_tokens=False)["input_ids"]
        if ids != [i]:
            raise unsupported(path, f"its token {tokens[i]!r} is id {i}, and would be read as {ids}")
    if len(tokenizer) != len(tokens):
        raise unsupported(path, f"it names {len(tokens)} tokens, and {len(tokenizer)} would be read")


def unsupported(path: Path, what: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(
        f"{path} cannot be read exactly: {what}. Load the safetensors that it was made from instead."
    )
