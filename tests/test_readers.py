"""Reading texts: four formats say the same, and every complaint names file and line."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from st_llm2vec.errors import InvalidInputError
from st_llm2vec.readers import columnar, read_rows
from st_llm2vec.readers.documents import headings, read_markdown

TEXTS = ["plain", 'a "quoted", one', "naïve café 编码器"]


def write(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(texts), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    return path


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    assert read_rows(write(tmp_path / f"file{ending}", TEXTS)).texts("text") == TEXTS


def test_a_byte_order_mark_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \ntwo\n")
    rows = read_rows(path)
    assert rows.texts("text") == ["one", "two"]
    assert rows.numbers == [1, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\xff\n", "a.txt, line 2: byte 0xff is not UTF-8"),
        ("a.txt", b"\n\n", "a.txt is empty"),
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl, line 1: a JSON array"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"title": "x"}\n', "line 3: there is no column 'text'; it has 'title'"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl, line 1: the text is missing, in 'text'"),
        ("a.csv", b'text,year\n"two\nlines",1\nshort\n', "a.csv, line 4: more or fewer fields than the 2"),
        ("a.csv", b'text\n"open\n', "a.csv, line 2: not valid CSV"),
        ("a.parquet", b"nonsense", "a.parquet cannot be read as parquet"),
        ("a.pdf", b"", "Give a file that ends in .txt, .jsonl, .json, .csv, .tsv"),
    ],
)
def test_complaints_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as raised:
        read_rows(path).texts("text")
    assert message in str(raised.value)


def test_front_matter_that_refers_to_itself_is_not_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = 0, columnar.plain

    def counted(value: object) -> object:
        nonlocal calls
        calls += 1
        return plain(value)

    monkeypatch.setattr(columnar, "plain", counted)
    names = "abcdef"
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    path = tmp_path / "a.md"
    path.write_text("\n".join(["---", "a: &a [x, y]", *lines, "---", "text"]))
    assert read_markdown(path).fields == {"a": ["x", "y"]}
    assert calls < 20  # and not 9^5


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# a" + " \t" * 60_000 + "x", "a" + " \t" * 60_000 + "x"),  # in time
        ("## a b ## \t", "a b"),
        ("# a#", "a"),
        ("# a # b", "a # b"),
    ],
)
def test_marks_after_a_heading_are_no_part_of_it(line: str, heading: str) -> None:
    assert [each.text for each in headings(line)] == [heading]


def test_a_heading_of_marks_alone_is_none() -> None:
    assert headings("# \n## ##\n###") == []
