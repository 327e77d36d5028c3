"""Documents from .md, .html and .pdf files, and from .txt files read whole: a title, and text with its headings.

HTML becomes Markdown of the plainest kind (headings, list items, paragraphs), so that one splitter finds the headings
of both. What is no text (scripts, styles, comments, pictures) is left out; everything else stays.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidInputError, MissingExtraError
from .table import decoded


class Page(NamedTuple):
    """A stretch of a document that is split by itself; `number` is None where the document has no pages."""

    text: str
    number: int | None = None


@dataclass(frozen=True)
class Document:
    """A title, which the file gives or its name, and the pages.

    Args:
        marked: Headings are marked as in Markdown.
        fields: What the document says of itself, for its metadata.
        empty: Pages without any text.
    """

    title: str
    pages: list[Page]
    marked: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    empty: int = 0


class Heading(NamedTuple):
    """A heading, and the character at which its line begins."""

    start: int
    text: str


_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*)")
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[Heading]:
    """The headings of a Markdown text, in their order; those inside of code are none."""
    found, start, fence = [], 0, ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not line.strip(" `~\r\n"):
            fence = ""
        elif not fence and (heading := _HEADING.match(line.rstrip("\r\n"))):
            # Not by a pattern: three repeats side by side take time without end on a line of blanks.
            name = heading[1].rstrip(" \t").rstrip("#").rstrip(" \t")
            found += [Heading(start, name)] if name else []
        start += len(line)
    return found


def read_markdown(path: Path) -> Document:
    """A Markdown file: its title is that of its front matter, or its first heading."""
    text = decoded(path.read_bytes())
    fields: dict[str, Any] = {}
    if (front := _FRONT.match(text)) and (found := _front_matter(front[1])) is not None:
        fields, text = found, text[front.end() :]
    title = fields.pop("title", None)
    first = next((heading.text for heading in headings(text)), path.stem)
    return Document(title if isinstance(title, str) and title else first, [Page(text)], marked=True, fields=fields)


def _front_matter(text: str) -> dict[str, Any] | None:
    """Names and values at the head of a note, those that metadata can hold; dates as ISO 8601.

    None where there are none: `---` is a rule as well, and what stands between two of them the text of a slide.
    """
    import yaml

    from .columnar import plain

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"the front matter is not valid YAML ({str(error).splitlines()[0]}). Correct it; if it is text, begin the "
            "file with a blank line."
        ) from error
    if not isinstance(found, dict):
        return None if text.strip() else {}
    # Nested lists are dropped unseen: by its aliases, YAML of one line can have 10^9 items.
    kept = {name: value for name, value in found.items() if not isinstance(value, list) or not any(map(_nests, value))}
    values = {str(name): plain(value) for name, value in kept.items()}
    return {name: value for name, value in values.items() if _is_flat(value)}


def _nests(value: Any) -> bool:
    return isinstance(value, list | dict | set | tuple)


def _is_flat(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str | bool | int | float) for item in value)
    return isinstance(value, str | bool | int | float)


def read_text(path: Path) -> Document:
    """A .txt file as one document."""
    return Document(path.stem, [Page(decoded(path.read_bytes()))])


_SKIPPED = {"script", "style", "template", "noscript", "svg", "math", "title"}
_LINES = {"address", "article", "aside", "blockquote", "dd", "div", "dl", "dt", "fieldset", "figcaption", "figure"} | {
    *(
        "footer",
        "form",
        "header",
        "hr",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "ul",
        "br",
        "tr",
        "li",
        "body",
    ),
    *("h1", "h2", "h3", "h4", "h5", "h6"),
}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Python's names of encodings that a page gives, and what browsers read it as.
_AS_BROWSERS = {"iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}
_NO_CHARACTER = {0xDC00 + byte: byte for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}  # in cp1252; browsers go on
_CHARSET = re.compile(rb"<meta[^>]*?charset\s*=\s*[\"']?([\w:.-]+)", re.IGNORECASE)


class _Text(HTMLParser):
    """Collects the text of a page, line by line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = [""]
        self.title = ""
        self._skipped: list[str] = []
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skipped.append(tag)
        if tag in _LINES:
            self._new_line(blank=tag not in ("br", "li", "tr"))
        if tag in ("td", "th") and self.lines[-1]:
            self.lines[-1] += " | "
        self._pre += tag == "pre"
        start = "- " if tag == "li" else f"{'#' * int(tag[1])} " if re.fullmatch("h[1-6]", tag) else ""
        self.lines[-1] += start

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped:  # with everything that was left open in it
            del self._skipped[self._skipped.index(tag) :]
        if tag in _LINES:
            self._new_line(blank=tag not in ("li", "tr"))
        self._pre = max(0, self._pre - (tag == "pre"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _LINES:
            self._new_line(blank=False)

    def handle_data(self, data: str) -> None:
        if self._skipped:
            self.title += data if self._skipped == ["title"] else ""
        elif self._pre:
            first, *others = data.split("\n")
            self.lines[-1] += first
            self.lines += others
        else:
            data = re.sub(r"\s+", " ", data)
            if not self.lines[-1] or self.lines[-1].endswith(" "):
                data = data.lstrip(" ")
            self.lines[-1] += data

    def _new_line(self, *, blank: bool) -> None:
        if self.lines[-1].strip() or self._pre:
            self.lines.append("")
        if blank and len(self.lines) > 1 and self.lines[-2]:
            self.lines.append("")


def _decoded_page(content: bytes) -> str:
    """The text of a page: by its byte order mark, by what it says of itself, or else UTF-8."""
    charset = _CHARSET.search(content[:2048])
    name = "utf-8" if charset is None or content.startswith(codecs.BOM_UTF8) else charset[1].decode("ascii")
    with contextlib.suppress(LookupError):
        name = codecs.lookup(name).name
    name = "utf-16" if content.startswith(_UTF16_MARKS) else _AS_BROWSERS.get(name, name)
    try:
        if name == "cp1252":
            return content.decode(name, "surrogateescape").translate(_NO_CHARACTER)
        return decoded(content) if name == "utf-8" else content.decode(name)
    except (LookupError, UnicodeError) as error:
        raise InvalidInputError(f"it says that it is {name}, and is not ({error}). Save the file as UTF-8.") from error


def read_html(path: Path) -> Document:
    """An HTML file: its title is its <title>, or its first heading."""
    text = _decoded_page(path.read_bytes())
    parser = _Text()
    parser.feed(text)
    parser.close()
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in parser.lines)).strip()
    first = next((heading.text for heading in headings(body)), path.stem)
    return Document(" ".join(parser.title.split()) or first, [Page(body)], marked=True)


def read_pdf(path: Path) -> Document:
    """A PDF file, page by page."""
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtraError('.pdf files need pypdf. Install it with: pip install "st-llm2vec[ingest]"') from error
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # what it repaired by itself
    try:
        with path.open("rb") as file:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise InvalidInputError("it is encrypted. Save a copy without a password.")
            texts = [page.extract_text() for page in reader.pages]
            title = reader.metadata.title if reader.metadata else None
    except (InvalidInputError, OSError, MemoryError):
        raise
    except pypdf.errors.DependencyError as error:
        raise InvalidInputError(f"it is encrypted, and {error}. Save a copy without a password.") from error
    except Exception as error:  # damaged files raise anything: KeyError, TypeError, RecursionError
        raise InvalidInputError(f"it cannot be read as a PDF ({type(error).__name__}: {error}).") from error
    # Half characters come from fonts without a table of their letters.
    whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    pages = [Page(text, number) for number, text in enumerate(whole, 1) if text.strip()]
    if not pages:
        raise InvalidInputError("none of its pages has text: they are pictures. Give a copy that has been through OCR.")
    return Document(str(title or "").strip() or path.stem, pages, empty=len(whole) - len(pages))


DOCUMENTS: dict[str, Callable[[Path], Document]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
}


def heading_at(found: list[Heading], start: int, end: int) -> str | None:
    """The heading that a stretch of text stands under: the last that begins before it, or else the first inside."""
    before = [heading.text for heading in found if heading.start <= start]
    inside = [heading.text for heading in found if start < heading.start < end]
    return before[-1] if before else inside[0] if inside else None
