"""Long texts in pieces that the encoder reads whole: by its tokens, cut at headings, paragraphs, sentences, words."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from .errors import InvalidInputError, MissingExtraError

DOCUMENT_TOKENS = 256  # of a piece of a document, unless it is said
_SLACK = 1  # a text can have a token more between a prompt and a template than alone


class Piece(NamedTuple):
    """A stretch of a text, and the character at which it begins."""

    start: int
    text: str


class Chunker:
    """Splits what is longer than `size` tokens.

    Args:
        encoder: Gives the tokenizer, and the room that its prompt and template leave.
        size: Tokens of a piece, at most. Default: 256 for documents; for rows what the encoder reads.
        overlap: Tokens that a piece may repeat of the one before, at most.
        prompt: What is put before every text.
        split_rows: Split the texts of rows as well; else the encoder cuts them.
        late: The pieces are for late chunking: rows are split as documents are, and a piece has at most some half of
            the tokens that the encoder reads, so that there is something around it.

    Raises:
        InvalidInputError: A size that the encoder would cut, or an overlap that is not smaller than the size.
    """

    def __init__(
        self,
        encoder: Any,
        size: int | None = None,
        overlap: int = 0,
        prompt: str = "",
        *,
        split_rows: bool = True,
        late: bool = False,
    ) -> None:
        self.split_rows = split_rows or late
        self.late = late
        self._tokenizer = encoder.tokenizer
        self.room = room(encoder, prompt)
        self.most = late_size(self.room) if late else self.room
        if size is not None and not (_is_whole(size) and 1 <= size <= self.most):
            reads = "half of what this encoder reads, for late chunking" if late else "what this encoder reads"
            raise InvalidInputError(f"chunk_size must be from 1 to {self.most}, {reads}, got {size!r}.")
        self.given = size
        self.overlap = overlap
        tokens = self.size_of(document=True)
        if not (_is_whole(overlap) and 0 <= overlap < tokens):
            raise InvalidInputError(
                f"chunk_overlap must be at least 0 and below the {tokens} tokens of a chunk, got {overlap!r}."
            )
        self._splitter = lru_cache(4)(self._new_splitter)

    def size_of(self, *, document: bool) -> int:
        """Tokens of a piece, at most."""
        return self.given or (min(DOCUMENT_TOKENS, self.most) if document or self.late else self.most)

    def tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def has_token(self, text: str) -> bool:
        """As the function of that name, for this encoder."""
        return has_token(self._tokenizer, text)

    def fits(self, text: str, size: int) -> bool:
        """Whether a text has at most so many tokens."""
        # A token is at least a byte; what is not ASCII may be normalised to more.
        return (text.isascii() and len(text) < size) or self.tokens(text) <= size

    def split(self, text: str, *, document: bool, marked: bool = False) -> list[Piece]:
        """The pieces of a text that have a token, in order; all of it if it fits. Blanks around them are left out.

        Args:
            text: The text.
            document: It is (a page of) a document rather than a row.
            marked: Its headings are marked as in Markdown; it is cut there first.

        Raises:
            MissingExtraError: It does not fit, and the splitter is not installed.
        """
        size = self.size_of(document=document)
        if self.fits(text, size):
            stripped = text.strip() if document else text
            pieces = [(text.find(stripped), stripped)]
        else:
            pieces = self._splitter(size, marked).chunk_indices(text)
        return [Piece(start, piece) for start, piece in pieces if self.has_token(piece)]

    def _new_splitter(self, size: int, marked: bool) -> Any:
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as error:
            raise MissingExtraError(
                "Texts that are too long for one vector need semantic-text-splitter. Install it with: pip install "
                '"st-llm2vec[ingest]"'
            ) from error
        kind = MarkdownSplitter if marked else TextSplitter
        return kind.from_callback(self.tokens, size, min(self.overlap, size - 1))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def has_token(tokenizer: Any, text: str) -> bool:
    """Whether anything but blanks is left of a text by itself: of zero-width characters, some tokenizers leave none."""
    if any(map(str.isalnum, text)):
        return True
    stripped = text.strip()
    return bool(stripped and tokenizer(stripped, add_special_tokens=False, verbose=False)["input_ids"])


def room(encoder: Any, prompt: str = "") -> int:
    """Tokens of a text that the encoder reads, with a prompt and its template around it."""
    tokenizer, module = encoder.tokenizer, encoder[0]
    template = getattr(module, "text_template", None)
    before, after = (template.prefix, template.suffix) if template else ("", "")
    around = len(tokenizer(f"{before}{prompt}a{after}", verbose=False)["input_ids"])
    alone = len(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    left = int(encoder.max_seq_length) - (around - alone) - _SLACK
    if (limit := getattr(module, "document_max_length", None)) is not None:
        left = min(left, int(limit))
    if left < 1:
        raise InvalidInputError(
            f"max_seq_length must leave a text a token beside the prompt, got {encoder.max_seq_length}."
        )
    return left


def late_size(room: int) -> int:
    """Tokens of a chunk, at most, where an encoder that reads so many is to see what is around it.

    Raises:
        InvalidInputError: It reads too few.
    """
    if room < 6:
        raise InvalidInputError(f"late_chunking needs an encoder that reads more than {room} tokens: max_seq_length.")
    return room // 2 - 2
