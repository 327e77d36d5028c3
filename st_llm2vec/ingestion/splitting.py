"""Texts to passages, by the tokenizer of an encoder."""

from __future__ import annotations

import hashlib
from typing import Any

from ..chunking import Chunker, Piece
from ..errors import InvalidInputError
from ..readers.documents import heading_at, headings
from .passages import LATE, Passage, Passages, Text

_BETWEEN_PAGES = "\n\n"  # where a document is read as one


def split(passages: Passages, chunker: Chunker) -> None:
    """Make the passages of the texts that were read.

    Args:
        passages: As of `read_texts`.
        chunker: Splits texts that are too long.

    Raises:
        InvalidInputError: A text has no token, or its chunks have ids that are taken, and that is not to be passed
            over; or no text is left.
        OSError: There is no room for the passages in the system's temporary folder.
    """
    report = passages.report
    for text in passages.taken_out():
        try:
            found = _chunks(text, chunker) if text.document else _row(text, chunker, passages)
            if chunker.late:
                found = _late(found, text, chunker)
        except InvalidInputError as error:
            report(error)
            continue
        passages.add(found, text.name, text.place)
    if not len(passages):
        raise no_text(passages)
    for name, count in passages.taken.items():
        report.note(f"The {name!r} of {count} documents was left out: chunks have one of their own. Rename it.")
    for name in passages.mixed:
        report.note(f"The column {name!r} has values of several types; all are kept as texts.")


def no_text(passages: Passages) -> InvalidInputError:
    """The error where nothing is left to encode."""
    errors = passages.report.errors
    return InvalidInputError(f"There is no text in {passages.origin}{f': {errors[0]}' if errors else '.'}")


def _row(text: Text, chunker: Chunker, passages: Passages) -> list[Passage]:
    """A passage, or several where the text is too long."""
    ((_, content),) = text.pages
    if not chunker.has_token(content):
        raise InvalidInputError(f"{text.place}: the text {content!a:.60} has no token, and so no vector.")
    pieces = [Piece(0, content)]
    if not chunker.split_rows:
        passages.cut += not chunker.fits(content, chunker.room)
    else:
        pieces = chunker.split(content, document=False)
    if len(pieces) == 1:
        return [Passage(text.name, pieces[0].text, text.metadata, start=pieces[0].start)]
    if "chunk" in text.metadata:
        passages.taken["chunk"] += 1
    return [
        Passage(f"{text.name}#{k}", piece, {**text.metadata, "chunk": k}, start=start)
        for k, (start, piece) in enumerate(pieces, 1)
    ]


def _chunks(text: Text, chunker: Chunker) -> list[Passage]:
    """The chunks of the pages of a document."""
    found: list[Passage] = []
    before = 0  # characters of the pages before
    for number, page in text.pages:
        marks = headings(page) if text.marked else []
        for start, piece in chunker.split(page, document=True, marked=text.marked):
            fields: dict[str, Any] = {**text.metadata, "chunk": len(found) + 1}
            fields |= {"page": number} if number else {}
            if heading := heading_at(marks, start, start + len(piece)):
                fields["heading"] = heading
            found.append(Passage(f"{text.name}#{fields['chunk']}", piece, fields, start=before + start))
        before += len(page) + len(_BETWEEN_PAGES)
    if not found:
        raise InvalidInputError(f"{text.place} has no text.")
    return found


def _late(passages: list[Passage], text: Text, chunker: Chunker) -> list[Passage]:
    """The passages with what they are read in."""
    if LATE in text.metadata:
        raise InvalidInputError(f"{text.place}: a column is called {LATE!r}, which late_chunking calls its own.")
    document = _BETWEEN_PAGES.join(page for _, page in text.pages)
    digest = hashlib.sha256(f"{chunker.size_of(document=True)} {document}".encode()).hexdigest()[:16]
    return [
        passage._replace(document=document, metadata={**passage.metadata, LATE: f"{digest}:{passage.start}"})
        for passage in passages
    ]
