"""tokenizer.json: patterns that would be matched for ever and replacements that would fill the memory are refused.

tokenizers runs both in native code, which no limit of ours reaches: a text of a few letters can kill the process. So
the file is looked through before it is opened, even for its added tokens are normalized while it is read.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpointError
from .files import read_json, require_shallow

MAX_PATTERN = 4096  # characters; the longest published one has about 1,000
MAX_REPEAT = 1000  # of {n,m}
MAX_OPTIONAL = 12  # "?" in one alternative: each doubles the ways to match
MAX_GROWTH = 64  # characters that one can become; Unicode's own (NFKD) makes 18 of one
MAX_PARTS = 64  # of a sequence of normalizers, ..., or of tokens around a text; published ones have less than 10
MAX_LENGTH = 1 << 20  # tokens that texts are padded to
MAX_WORD = 1000  # characters that WordPiece cuts, in the square of their number; BERT has 100
MAX_ADDED = 1 << 14  # tokens beside the vocabulary, each of them looked up alone; Gemma 3 has 6,414
_LOOP = re.compile(r"[*+?]|\{(?=[\d,])(?P<least>\d{0,9})(?P<comma>,?)(?P<most>\d{0,9})\}")
_NAMED = re.compile(r"\\[pPx]\{[^}]*\}")
# "x" is no flag here: blanks and comments would stand between a group and what repeats it.
_OPENING = re.compile(r"\((?:\?(?:[:=!>]|<[=!]|P?<\w+>|[aimsuL-]+(?=[:)]):?))?")


@dataclass
class _Group:
    """What an open group of a pattern has so far."""

    loops: int = 0  # parts that repeat without a bound, in this alternative
    optional: int = 0
    most: tuple[int, int] = (0, 0)  # of both, in any alternative before
    varies: bool = False  # whether it can match in more than one way

    def next_alternative(self) -> None:
        self.most = self.total
        self.loops, self.optional, self.varies = 0, 0, True

    @property
    def total(self) -> tuple[int, int]:
        return max(self.loops, self.most[0]), max(self.optional, self.most[1])


def require_finite_pattern(path: Path, pattern: str, *, repeats: int = 3, nested: bool = True) -> None:
    """Raises where a regular expression can take more time than a polynomial of low degree of the text's length.

    Args:
        path: The file that it stands in, for the message.
        pattern: Of Python or of Oniguruma.
        repeats: Unbounded repeats that may stand in one alternative.
        nested: Whether classes stand in classes, "[a[b]]", as in Oniguruma; in Python they do not.

    Raises:
        InvalidCheckpointError: A repeated group that repeats or chooses inside, too many repeats, a back reference, or
            what this does not know.
    """
    if len(pattern) > MAX_PATTERN:
        raise _endless(path, pattern, f"has {len(pattern):,} characters, and may have {MAX_PATTERN:,}")
    groups = [_Group()]
    varies = False  # whether the part before is a group that does
    i = 0
    while i < len(pattern):
        char, group = pattern[i], groups[-1]
        if (loop := _LOOP.match(pattern, i)) is not None:
            _repeat(path, pattern, loop, group, varies)
            i = _end_of_repeat(path, pattern, loop, group, nested)
            varies = False
            continue
        varies = False
        if char == "\\":
            i = _end_of_escape(path, pattern, i)
        elif char == "[":
            i = _end_of_class(pattern, i, nested)
        elif char == "(":
            groups.append(_Group())
            opened = _OPENING.match(pattern, i)
            i = opened.end() if opened else i + 1
            if pattern[i : i + 1] == "?":
                raise _endless(path, pattern, f"has {pattern[i - 1 : i + 2]}, which is not known here,")
        elif char == ")":
            inner = groups.pop()
            if not groups:
                raise _endless(path, pattern, "closes a group that it does not open")
            groups[-1].loops += inner.total[0]
            groups[-1].optional += inner.total[1]
            groups[-1].varies |= inner.varies
            varies, i = inner.varies, i + 1
        else:
            if char == "|":
                group.next_alternative()
            i += 1
    loops, optional = map(max, zip(*(group.total for group in groups), strict=True))
    if loops > repeats or optional > MAX_OPTIONAL:
        allowed = f"{repeats} and {MAX_OPTIONAL} are allowed"
        raise _endless(path, pattern, f"has {loops} repeats and {optional} optional parts in a row ({allowed})")


def _end_of_escape(path: Path, pattern: str, start: int) -> int:
    if pattern[start + 1 : start + 2] in tuple("123456789kg"):
        raise _endless(path, pattern, "refers back to what it has matched")
    if pattern[start + 1 : start + 2] in tuple("cCM"):
        raise _endless(path, pattern, f"has {pattern[start : start + 2]}, which takes what stands behind it")
    named = _NAMED.match(pattern, start)
    return named.end() if named else start + 2


def _repeat(path: Path, pattern: str, loop: re.Match[str], group: _Group, varies: bool) -> None:
    """Counts a quantifier of a group; `varies` says whether it stands after another group that does."""
    least, comma, most = (loop.group(name) for name in ("least", "comma", "most"))
    if max(int(least or 0), int(most or 0)) > MAX_REPEAT:
        raise _endless(path, pattern, f"repeats more than {MAX_REPEAT} times")
    if loop.group() == "?":
        group.optional += 1
    elif varies:
        raise _endless(path, pattern, "repeats a group that repeats or chooses inside")
    elif comma or loop.group() in ("*", "+"):
        group.loops += 1
    else:
        return  # {3}: in one way only
    group.varies = True


def _end_of_repeat(path: Path, pattern: str, loop: re.Match[str], group: _Group, nested: bool) -> int:
    """Where a quantifier ends, with the mark that makes it lazy or possessive."""
    i = loop.end()
    mark = pattern[i : i + 1]
    if mark in ("?", "+"):
        i += 1
        if nested and loop.group().endswith("}"):  # Oniguruma: no mark, but a further quantifier
            if mark == "?":
                group.optional += 1
            elif pattern[i : i + 1] not in ("", "|"):  # else nothing can fail behind it
                raise _endless(path, pattern, "repeats what repeats")
    if _LOOP.match(pattern, i):
        raise _endless(path, pattern, "repeats what repeats")
    return i


def _end_of_class(pattern: str, start: int, nested: bool) -> int:
    depth, i = 0, start
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[" and (depth == 0 or nested):
            depth += 1
            i += pattern[i + 1 : i + 2] == "^"
            i += pattern[i + 1 : i + 2] == "]"  # the first one is a character
        elif pattern[i] == "]":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return i


def _endless(path: Path, pattern: str, why: str) -> InvalidCheckpointError:
    return InvalidCheckpointError(
        f"{path}: the pattern {pattern[:80]!r} {why}, so that a short text could keep it busy for ever. Do not use "
        "this checkpoint, or write the pattern without that."
    )


def require_sane_tokenizer(path: Path) -> None:
    """Raises where tokenizer.json could hang or kill the process, or give other tokens each time.

    Raises:
        InvalidCheckpointError: Patterns, replacements, templates or lengths beyond what published tokenizers have.
    """
    content = read_json(path)
    model = content.get("model", {})
    if not isinstance(model, dict):
        raise InvalidCheckpointError(f"{path}: model must be an object, got {model!r:.80}.")
    if model.get("dropout"):
        raise InvalidCheckpointError(
            f"{path}: dropout must be null, got {model['dropout']!r:.80}: the same text would have other tokens, and "
            "another vector, each time. Set it to null."
        )
    rest = {key: value for key, value in content.items() if key != "model"}
    require_shallow(path, rest)
    require_shallow(path, {key: value for key, value in model.items() if key not in ("vocab", "merges")})
    _require_limit(path, "max_input_chars_per_word", model.get("max_input_chars_per_word"), MAX_WORD)
    added = content.get("added_tokens")
    _require_limit(path, "length of added_tokens", len(added) if isinstance(added, list) else 0, MAX_ADDED)
    for key in ("padding", "truncation"):
        for inner, value in _pairs(content.get(key)):
            _require_limit(path, f"{key}.{inner}", value, MAX_LENGTH)
    if ("length", 0) in _pairs(content.get("pre_tokenizer")):
        raise InvalidCheckpointError(f"{path}: pre_tokenizer.length must be at least 1, got 0.")
    growth = 1
    for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for inner, value in _pairs(content.get(key)):
            if inner == "Regex" and isinstance(value, str):
                require_finite_pattern(path, value)
            if inner == "content" and isinstance(value, str) and key == "normalizer":
                growth *= max(1, len(value))
            if inner in ("prepend", "replacement") and isinstance(value, str):
                _require_limit(path, f"length of {inner}", len(value), MAX_GROWTH)
            if inner == "precompiled_charsmap" and isinstance(value, str):
                growth *= max(1, _longest(path, value) // 18)
            if isinstance(value, list) and inner != "precompiled_charsmap":
                _require_limit(path, f"length of {key}.{inner}", len(value), MAX_PARTS)
    _require_limit(path, "characters that replacements make of one", growth, MAX_GROWTH)


def _pairs(part: Any) -> list[tuple[str, Any]]:
    """Every key and value of a part of the file, at any depth."""
    found: list[tuple[str, Any]] = []
    left = [part]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found += value.items()
            left += value.values()
        elif isinstance(value, list):
            left += value
    return found


def _longest(path: Path, charsmap: str) -> int:
    """Bytes of the longest text that a map of SentencePiece puts in the place of a character."""
    try:
        blob = base64.b64decode(charsmap)
    except (binascii.Error, ValueError) as error:
        raise InvalidCheckpointError(f"{path}: precompiled_charsmap is no base64 ({error}).") from error
    size = int.from_bytes(blob[:4], "little")  # of the trie, which comes first
    if len(blob) < 4 or size % 4 or size > len(blob) - 4:  # tokenizers would take memory for it, or end the process
        raise InvalidCheckpointError(
            f"{path}: precompiled_charsmap has {len(blob):,} bytes and names {size:,} of them."
        )
    return max((len(text) for text in blob[4 + size :].split(b"\0")), default=0)


def _require_limit(path: Path, what: str, value: Any, limit: int) -> None:
    if isinstance(value, (int, float)) and value > limit:
        raise InvalidCheckpointError(f"{path}: {what} must be at most {limit:,}, got {value:,}.")
