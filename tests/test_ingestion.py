"""Inputs to passages: what is read and how, what is split, and what is said of bad input before anything is encoded."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pypdf
import pytest
from fake_encoder import FakeEncoder

from st_llm2vec import encode_corpus
from st_llm2vec.chunking import Chunker
from st_llm2vec.errors import InvalidInputError
from st_llm2vec.ingestion import Passage, Passages, Reading, read_texts, split
from st_llm2vec.readers import TABLES, Table, delimited

SKIP = Reading(on_error="skip")


def chunker(size: int | None = None, overlap: int = 0) -> Chunker:
    return Chunker(FakeEncoder(max_seq_length=1000), size, overlap)


def read_passages(inputs: Any, reading: Reading, chunker: Chunker, **options: Any) -> Passages:
    passages = read_texts(inputs, reading, **options)
    split(passages, chunker)
    return passages


def read(*inputs: str | Path, reading: Reading | None = None, size: int | None = None, **options: Any) -> list[Passage]:
    with read_passages(inputs, reading or Reading(), chunker(size), **options) as passages:
        return [passage for batch in passages.batches(7) for passage in batch]


def said(*inputs: str | Path, reading: Reading = SKIP) -> tuple[list[str], list[str]]:
    """Texts that were read, and what was said of the rest."""
    with read_passages(inputs, reading, chunker()) as passages:
        texts = [passage.text for batch in passages.batches(100) for passage in batch]
        return texts, [*passages.report.errors, *passages.report.notes]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- types -------------------------------------------------------------------------------------------------------------

CSV = """text,year,price,zip,when,open,note,mixed
one,2001,1.5,01234,2024-05-01,true,,1
two,1999,2,98765,2023-12-31,False,seen,two
three,,3e2,00001,2024-01-01,,,
"""


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_have_the_type_of_their_column(here: Path, mark: str) -> None:
    name = "a.tsv" if mark == "\t" else "a.csv"
    Path(name).write_text(CSV.replace(",", mark))
    one, two, three = (passage.metadata for passage in read(name))
    base = {"source": name}
    assert one == base | {
        "year": 2001,
        "price": 1.5,
        "zip": "01234",
        "when": "2024-05-01",
        "open": True,
        "mixed": "1",
    }
    assert two == base | {
        "year": 1999,
        "price": 2.0,
        "zip": "98765",
        "when": "2023-12-31",
        "open": False,
        "note": "seen",
        "mixed": "two",
    }
    assert three == base | {"price": 300.0, "zip": "00001", "when": "2024-01-01"}
    assert type(one["year"]) is int
    assert said(name)[1] == [f"{name}, line 3: 'two' makes column 'mixed' a column of texts."]


def test_text_and_id_are_texts_whatever_they_look_like(here: Path) -> None:
    Path("a.csv").write_text("doi,text\n007,1984\n8,2001\n")
    assert [(p.id, p.text) for p in read("a.csv", reading=Reading(id_column="doi"))] == [("007", "1984"), ("8", "2001")]


def test_dates_and_missing_values_of_typed_formats(here: Path) -> None:
    import datetime

    rows = [
        {"text": "a", "day": datetime.date(2024, 5, 1), "n": 1.5, "id": 7},
        {"text": "b", "day": None, "n": float("nan"), "id": 8},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    first, second = read("a.parquet", reading=Reading(id_column="id"))
    assert first[:3] == ("7", "a", {"day": "2024-05-01", "n": 1.5, "source": "a.parquet"})
    assert second[:3] == ("8", "b", {"source": "a.parquet"})


def test_a_column_of_several_types_becomes_texts_everywhere(here: Path) -> None:
    Path("a.jsonl").write_text('{"text": "a", "v": 1, "w": 1}\n{"text": "b", "v": "x", "w": 2.5}\n')
    Path("b.jsonl").write_text('{"text": "c", "v": [true, 2]}\n')
    assert [p.metadata.get("v") for p in read("a.jsonl", "b.jsonl")] == ["1", "x", ["true", "2"]]
    assert [p.metadata.get("w") for p in read("a.jsonl")] == [1, 2.5]
    assert said("a.jsonl", "b.jsonl")[1] == ["The column 'v' has values of several types; all are kept as texts."]


# -- documents ---------------------------------------------------------------------------------------------------------


def test_markdown_is_split_at_headings_and_keeps_them(here: Path) -> None:
    sections = [f"## Part {i}\n\n{' '.join([f'word{i}'] * 30)}.\n" for i in range(3)]
    text = "---\ntitle: My notes\ntags: [a, b]\ndate: 2024-05-01\nnested: {a: 1}\n---\n# Top\n\nIntro.\n\n" + "\n".join(
        sections
    )
    Path("a.md").write_text(text + "\n```\n# no heading\n```\n")
    found = read("a.md", size=34)
    assert [p.id for p in found] == [f"a.md#{i}" for i in range(1, len(found) + 1)]
    base = {"source": "a.md", "title": "My notes", "tags": ["a", "b"], "date": "2024-05-01"}
    assert [p.metadata for p in found][:2] == [
        base | {"chunk": i, "heading": h} for i, h in [(1, "Top"), (2, "Part 0")]
    ]
    assert {p.metadata["heading"] for p in found} == {"Top", "Part 0", "Part 1", "Part 2"}
    assert (
        "".join("".join(p.text.split()) for p in found) == "".join(text.split("---\n")[2].split()) + "```#noheading```"
    )
    assert all(len(p.text.split()) <= 34 for p in found)


HTML = """<!doctype html><html><head><title>The <b>page</b> &amp; more</title><style>.x{}</style>
<script>var hidden = "<p>no</p>";</script></head><body><nav>Home</nav><h1>Opening   hours</h1><p>Open on
<em>Monday</em>.<p>Closed<br>on Sunday.<ul><li>one<li>two</ul><table><tr><td>a<td>b</tr></table>
<pre>x = 1
  y = 2</pre><!-- note --></body></html>"""


def test_html_is_read_as_lines_with_headings(here: Path) -> None:
    Path("a.HTML").write_text(HTML)
    (found,) = read("a.HTML")
    assert found.metadata == {"source": "a.HTML", "title": "The page & more", "chunk": 1, "heading": "Opening hours"}
    assert found.text.split("\n") == [
        "Home", "", "# Opening hours", "", "Open on Monday.", "", "Closed", "on Sunday.", "", "- one", "- two", "",
        "a | b", "", "x = 1", "  y = 2",
    ]  # fmt: skip


def test_html_says_its_encoding(here: Path) -> None:
    Path("a.html").write_bytes('<meta charset="iso-8859-1"><p>café</p>'.encode("latin-1"))
    Path("b.html").write_bytes("<p>café</p>".encode("latin-1"))
    assert read("a.html")[0].text == "café"
    with pytest.raises(InvalidInputError, match=r"b\.html: byte 0xe9 is not UTF-8"):
        read("b.html")


@pytest.mark.parametrize(
    "content",
    [
        "<p>“café”</p>".encode(),
        b"\xef\xbb\xbf" + '<meta charset="windows-1252"><p>“café”</p>'.encode(),
        "<p>“café”</p>".encode("utf-16"),
        '<meta charset="iso-8859-1"><p>“café”</p>'.encode("cp1252"),
        '<meta charset="us-ascii"><p>“café”</p>'.encode("cp1252"),
        '<meta charset="utf-16"><p>“café”</p>'.encode(),  # saved again as UTF-8, with its old head
        '<meta charset="utf-16"> <p>“café”</p>'.encode(),  # of an even and an odd length
    ],
)
def test_html_is_decoded_as_browsers_do(here: Path, content: bytes) -> None:
    Path("a.html").write_bytes(content)
    assert read("a.html")[0].text == "“café”"


def test_bytes_without_a_character_in_latin_1_lose_no_page(here: Path) -> None:
    Path("a.html").write_bytes(b"<meta charset=iso-8859-1><p>a\x81b \x93c\x94</p>")
    assert read("a.html")[0].text == "a\x81b “c”"


RULES = [
    ("---\n\n# One\nfirst\n\n---\n# Two\nsecond\n", {}),
    ("---\n- first\n---\nsecond\n", {}),
    ("---\n# first\n---\nsecond\n", {}),
    ("---\r\n---\r\nfirst\r\n\r\n---\r\nsecond\r\n", {}),
    ("---\nyear: 2024\n---\nfirst\n---\nsecond\n", {"year": 2024}),
]


@pytest.mark.parametrize(("text", "fields"), RULES)
def test_text_between_two_rules_is_no_front_matter(here: Path, text: str, fields: dict[str, Any]) -> None:
    Path("a.md").write_bytes(text.encode())
    (found,) = read("a.md")
    assert "first" in found.text
    assert "second" in found.text
    assert {name: value for name, value in found.metadata.items() if name == "year"} == fields


def test_what_documents_call_as_chunks_call_something_else_is_told(here: Path) -> None:
    Path("a.md").write_text("---\nsource: https://x.org\nchunk: 7\ntopic: bears\n---\nBears sleep.\n")
    Path("b.jsonl").write_text(f'{{"text": "{"many words " * 40}", "chunk": 7, "source": "mine"}}\n')
    with read_passages(["a.md", "b.jsonl"], Reading(), chunker(20)) as passages:
        (first, second, *_), notes = next(passages.batches(9)), passages.report.notes
    assert first.metadata == {"source": "a.md", "topic": "bears", "title": "a", "chunk": 1}
    assert second.metadata == {"source": "mine", "chunk": 1}
    assert [note.partition(" was left out")[0] for note in notes] == [
        "The 'source' of 1 documents",
        "The 'chunk' of 2 documents",
    ]


def test_the_first_column_with_a_text_is_taken(here: Path) -> None:
    Path("a.csv").write_text("abstract,title\n,one\ntwo,three\n,\n")
    Path("b.jsonl").write_text('{"abstract": null, "title": "four"}\n')
    reading = Reading(text_columns=("abstract", "title"), on_error="skip")
    texts, notes = said("a.csv", "b.jsonl", reading=reading)
    assert texts == ["one", "two", "four"]
    assert notes == ["a.csv, line 4: the text is missing, in 'abstract' and 'title'."]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
@pytest.mark.parametrize("ending", ["csv", "md"])
def test_a_file_whose_name_is_no_text_is_told(here: Path, ending: str) -> None:
    Path("a.txt").write_text("ok")
    Path(os.fsdecode(b"caf\xe9." + ending.encode())).write_text("text\nlost")
    with pytest.raises(InvalidInputError, match=f"the name of .*caf�.{ending} is not UTF-8.*Rename"):
        read(here)
    texts, notes = said(here)
    assert texts == ["ok"]
    assert "is not UTF-8" in notes[0]


@pytest.mark.parametrize("given", ["", "  "])
def test_no_path_is_not_the_folder_one_is_in(here: Path, given: str) -> None:
    Path("a.txt").write_text("private")
    with pytest.raises(InvalidInputError, match="must be a file, a folder or a glob, got"):
        read(given)


def test_a_table_that_changes_while_it_is_read_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its columns are typed by a first reading: a cell that comes later may be of another type, or of none."""
    Path("a.csv").write_text("text,year,late\none,1,\n")
    kinds = delimited._kinds

    def then_changed(table: Table) -> dict[str, str]:
        found = kinds(table)
        Path("a.csv").write_text("text,year,late\none,1,\ntwo,soon,\nthree,3,now\nfour,4,\n")
        return found

    monkeypatch.setattr(delimited, "_kinds", then_changed)
    texts, notes = said("a.csv")
    assert texts == ["one", "four"]
    assert notes == [f"a.csv, line {line}: the file was changed while it was read. Run it again." for line in (3, 4)]


def test_ids_with_a_nul_are_whole(here: Path) -> None:
    Path("a.jsonl").write_text('{"text": "x", "id": "a\\u0000b"}\n')
    with read_passages(["a.jsonl"], Reading(id_column="id"), chunker()) as passages:
        assert passages.having(["a\0b", "a", "a\0c"]) == {"a\0b"}


def pdf(path: Path, *pages: str, password: str = "", title: str = "") -> None:
    """A PDF file with a line of text on every page."""
    writer = pypdf.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        name = pypdf.generic.NameObject
        resources = pypdf.generic.DictionaryObject(
            {name("/F1"): pypdf.generic.DictionaryObject({name(k): name(v) for k, v in font.items()})}
        )
        page[name("/Resources")] = pypdf.generic.DictionaryObject({name("/Font"): resources})
        content = pypdf.generic.DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[name("/Contents")] = writer._add_object(content)
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)


def test_pdf_keeps_the_page(here: Path) -> None:
    pdf(here / "a.pdf", "The first page.", "", "The third page.", title="Paper")
    one, three = read("a.pdf")
    assert one[:3] == ("a.pdf#1", "The first page.", {"source": "a.pdf", "title": "Paper", "chunk": 1, "page": 1})
    assert three[:3] == ("a.pdf#2", "The third page.", {"source": "a.pdf", "title": "Paper", "chunk": 2, "page": 3})
    assert said("a.pdf")[1] == ["a.pdf: 1 pages have no text."]


def test_txt_is_lines_or_a_document(here: Path) -> None:
    Path("a.txt").write_text("one\n\ntwo\n")
    assert [(p.id, p.text) for p in read("a.txt")] == [("a.txt:1", "one"), ("a.txt:3", "two")]
    (whole,) = read("a.txt", reading=Reading(whole_txt=True))
    assert whole[:3] == ("a.txt#1", "one\n\ntwo", {"source": "a.txt", "title": "a", "chunk": 1})


@pytest.mark.parametrize("overlap", [0, 5])
def test_nothing_of_a_long_text_is_lost_and_no_chunk_is_too_long(here: Path, overlap: int) -> None:
    words = [f"w{i}{'.' if i % 9 == 0 else ''}" for i in range(1000)]
    Path("a.jsonl").write_text(f'{{"text": "{" ".join(words)}", "year": 7}}\n')
    with read_passages(["a.jsonl"], Reading(), chunker(50, overlap)) as passages:
        found = next(passages.batches(1000))
    assert all(len(p.text.split()) <= 50 for p in found)
    assert [p.metadata for p in found] == [{"year": 7, "source": "a.jsonl", "chunk": i + 1} for i in range(len(found))]
    joined: list[str] = []
    for passage in found:
        part = passage.text.split()
        shared = next(n for n in range(overlap, -1, -1) if n == 0 or joined[-n:] == part[:n])
        joined += part[shared:]
    assert joined == words


def test_a_chunk_leaves_room_for_prompt_and_template() -> None:
    encoder = FakeEncoder(max_seq_length=50)
    assert Chunker(encoder).room == 49
    assert Chunker(encoder, prompt="find the passages about ").room == 45
    encoder.document_max_length = 20  # type: ignore[attr-defined]
    assert Chunker(encoder).room == 20
    for options, message in [
        ({"size": 21}, "chunk_size must be from 1 to 20, .* got 21"),
        ({"size": 10, "overlap": 10}, "chunk_overlap must be at least 0 and below the 10 tokens"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            Chunker(encoder, **options)


# -- finding files -----------------------------------------------------------------------------------------------------


def test_vectors_of_encode_among_the_inputs_are_no_texts(here: Path) -> None:
    """They were read as texts, with their vectors as metadata where what was wrong was to be skipped."""
    rows = [{"text": "one", "year": 1}]
    encode_corpus(FakeEncoder(), rows, "n/vectors")
    Path("n/a.txt").write_text("one\n")
    assert [p.id for p in read("n")] == ["n/a.txt:1"]
    assert said("n")[1] == ["n/vectors was passed over: it holds vectors that encode wrote."]
    with pytest.raises(InvalidInputError, match=r"n/vectors holds vectors that encode wrote.*--from-vectors"):
        read("n/vectors")
    assert [p.text for p in read("n/vectors/*.parquet")] == ["one"]
    assert said("n/*") == (["one"], ["n/vectors was passed over: it holds vectors that encode wrote."])


@pytest.mark.parametrize("output", ["n/vectors", "n/vectors.parquet"])
def test_an_output_that_a_glob_matches_is_not_read(here: Path, output: str) -> None:
    for _ in range(2):
        Path("n").mkdir(exist_ok=True)
        Path("n/a.txt").write_text("one\n")
        assert encode_corpus(FakeEncoder(), "n/*", output).texts == 1


def test_folders_globs_and_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("n/b.txt", "n/a.txt", "n/sub/c.txt", "n/.hidden/d.txt", "n/.e.txt", "n/p.png", "n/out/v.txt", "x.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    os.symlink("a.txt", "n/link.txt")
    assert [p.text for p in read("n", exclude=Path("n/out"))] == ["n/a.txt", "n/b.txt", "n/sub/c.txt"]
    assert [p.text for p in read("n/**/*.txt", "x.txt", "./n/a.txt")] == [
        "n/a.txt", "n/b.txt", "n/out/v.txt", "n/sub/c.txt", "x.txt"
    ]  # fmt: skip
    assert said("n")[1] == ["Files of other kinds were passed over: 1 .png."]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "hello"}\n')))
    assert [p[:3] for p in read("-", reading=Reading(ending=".jsonl"))] == [("-:1", "hello", {"source": "-"})]


def test_ids_are_the_names_as_they_were_typed(here: Path) -> None:
    Path("n").mkdir()
    Path("n/a.txt").write_text("one")
    assert [read(name)[0].id for name in ("n", "./n/", "n/a.txt", here / "n")] == [
        "n/a.txt:1", "n/a.txt:1", "n/a.txt:1", f"{here}/n/a.txt:1"
    ]  # fmt: skip


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", '{"text": "ok"}\n{"text"\n', r"a\.jsonl, line 2: not valid JSON"),
    ("a.jsonl", '{"text": "ok"}\n{"text": "b", "v": NaN}\n', r"line 2: not valid JSON \(NaN is no JSON"),
    ("a.jsonl", '{"text": "ok"}\n["b"]\n', "line 2: a JSON array"),
    ("a.jsonl", '{"text": "ok"}\n{"body": "b"}\n', "line 2: there is no column 'text'; it has 'body'"),
    ("a.jsonl", '{"text": "ok"}\n{"text": " "}\n', "line 2: the text is empty"),
    ("a.jsonl", '{"text": "ok"}\n{"text": "b", "v": {"a": 1}}\n', "line 2: the column 'v' is {'a': 1} .* flatten it"),
    ("a.jsonl", '{"text": "ok"}\n{"text": "b", "$v": 1}\n', r"line 2: a column is called '\$v'"),
    ("a.jsonl", '{"text": "ok"}\n{"text": "b", "v": "\\ud800"}\n', "line 2: the column 'v' is"),
    ("a.jsonl", '{"text": "ok"}\n{"text": "b", "v": 99999999999999999999}\n', "line 2: the column 'v' is 99999"),
    ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', "line 2: byte 0xff is not UTF-8"),
    ("a.json", '[{"text": "ok"}, 5]', r"a\.json, item 2: a JSON number"),
    ("a.csv", b'text,v\nok,1\n\xff,2\n', r"a\.csv, line 3: a byte is not UTF-8"),
    ("a.csv", "text,v\nok,1\nb\n", "line 3: more or fewer fields than the 2 of the header"),
    ("a.csv", 'text,v\nok,1\n"b"c,2\n', "line 3: not valid CSV"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_row_is_named_and_stops_everything_or_is_skipped(
    here: Path, name: str, content: str | bytes, message: str
) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInputError, match=message):
        read(name)
    texts, (error,) = said(name)
    assert texts == ["ok"]
    with pytest.raises(InvalidInputError, match=message):
        raise InvalidInputError(error)


def test_rows_after_a_bad_one_keep_their_place(here: Path) -> None:
    Path("a.csv").write_bytes(b'text,v\n"two\nlines",1\n"bad \xff\n",2\nlast,3\n')
    assert [(p.id, p.text, p.metadata["v"]) for p in read("a.csv", reading=SKIP)] == [
        ("a.csv:2", "two\nlines", 1),
        ("a.csv:6", "last", 3),
    ]


def test_bad_files_are_named_and_stop_everything_or_are_skipped(here: Path) -> None:
    Path("n").mkdir()
    Path("n/ok.txt").write_text("ok")
    pdf(here / "n/locked.pdf", "secret", password="x")
    pdf(here / "n/scan.pdf", "")
    Path("n/cut.pdf").write_bytes(b"%PDF-1.4 nonsense")
    Path("n/empty.md").write_text(" \n")
    Path("n/yaml.md").write_text("---\na: [\n---\ntext\n")
    Path("n/odd.md").write_bytes(b"caf\xe9")
    Path("n/cut.parquet").write_bytes(b"PAR1")
    Path("n/twice.csv").write_text("text,text\na,b\n")
    os.symlink("/etc/hosts", "n/outside.txt")
    os.symlink("nowhere.txt", "n/nowhere.txt")
    os.symlink("/etc", "n/folder")
    expected = {
        "locked.pdf": "is encrypted",
        "scan.pdf": "none of its pages has text",
        "cut.pdf": "cannot be read as a PDF",
        "empty.md": "has no text",
        "yaml.md": "the front matter is not valid YAML",
        "odd.md": "byte 0xe9 is not UTF-8",
        "cut.parquet": "cannot be read as parquet",
        "twice.csv": "two columns are called 'text'",
        "outside.txt": "is a link to /etc/hosts, outside of n",
        "nowhere.txt": "is a link to nothing",
        "folder": "is a link to /etc, outside of n",
    }
    texts, errors = said("n")
    assert texts == ["ok"]
    assert len(errors) == len(expected)
    for name, message in expected.items():
        assert any(error.startswith(f"n/{name}") and message in error for error in errors), (name, errors)
        if name not in ("folder", "outside.txt"):
            with pytest.raises(InvalidInputError, match=message):
                read(Path("n", name))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_of_a_large_row_group_are_read_a_few_at_a_time(here: Path, kind: str) -> None:
    made = pyarrow.table({"text": [f"{i} " + "x" * 20_000 for i in range(2500)]})
    size = made.nbytes
    if kind == "parquet":
        pyarrow.parquet.write_table(made, "a.parquet", use_dictionary=False, compression="none", write_batch_size=16)
    else:
        with pyarrow.ipc.new_stream("a.arrow", made.schema) as file:
            file.write_table(made)
    pool = pyarrow.default_memory_pool()
    before, most, read = pool.bytes_allocated(), 0, []  # `made` stays, so that nothing is given back meanwhile
    tracemalloc.start()
    try:
        for _, row in TABLES[f".{kind}"](Table(Path(f"a.{kind}"), "a", f".{kind}")):
            read.append(row["text"].split()[0])
            most = max(most, pool.bytes_allocated() - before)
        most += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == [str(i) for i in range(len(made))]
    assert most < size / 4


def test_inputs_that_are_not_there(here: Path) -> None:
    Path("empty").mkdir()
    Path("n").mkdir()
    Path("n/a.png").write_text("x")
    Path("n/blank.txt").write_text("\n")
    for name, message in [
        ("empty", r"empty has no file that ends in \.txt, "),
        ("*.md", r"No file matches \*\.md"),
        ("n/a.png", r"n/a\.png ends in '\.png'\. Give a file that ends in"),
        ("n/blank.txt", r"There is no text in n/blank\.txt"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            read(name)
    with pytest.raises(FileNotFoundError, match=r"There is no file nowhere\.txt"):
        read("nowhere.txt")
    Path("n/b.csv").write_text("text,year\n")
    Path("n/c.jsonl").write_text('{"text": "a fox"}\n')
    Path("n/d.jsonl").write_text("{\n")
    assert said("n")[1][1:] == [
        "Files of other kinds were passed over: 1 .png.", "n/b.csv has no rows.", "n/blank.txt has no rows."
    ]  # fmt: skip


def test_what_has_no_token_is_no_text_and_no_chunk(here: Path) -> None:
    """Zero-width characters are no blanks, and some tokenizers drop them."""
    Path("a.jsonl").write_text('{"text": "a fox"}\n{"text": " \\u200b "}\n{"text": "..."}\n')
    texts, (error,) = said("a.jsonl")
    assert texts == ["a fox", "..."]
    assert error == r"a.jsonl, line 2: the text ' \u200b ' has no token, and so no vector."
    Path("a.md").write_text("\u200b\n\n# one two\n\nthree four five", encoding="utf-8")
    assert [(passage.id, passage.text) for passage in read("a.md", size=3)] == [
        ("a.md#1", "# one two"),
        ("a.md#2", "three four five"),
    ]
    Path("b.md").write_text("\u200b", encoding="utf-8")
    assert said("b.md", "a.md")[1] == ["b.md has no text."]


def test_ids_and_columns_that_are_asked_for(here: Path) -> None:
    Path("a.jsonl").write_text(
        '{"id": 1, "text": "a", "y": 1, "z": 2}\n{"id": "1", "text": "b"}\n{"id": 1.5, "text": "c"}\n'
    )
    for reading, message in [
        (Reading(id_column="id"), "line 2: the id '1' is given already, in a.jsonl, line 1"),
        (Reading(id_column="key"), "line 1: there is no id in the column 'key'; it has 'id', 'text', 'y', 'z'"),
        (Reading(metadata=("y", "yeer")), "no row has a column 'yeer'"),
        (Reading(text_columns=("body", "abstract")), "there is no column 'body' or 'abstract'"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            read("a.jsonl", reading=reading)
    texts, errors = said("a.jsonl", reading=Reading(id_column="id", on_error="skip"))
    assert texts == ["a"]
    assert errors[1] == "a.jsonl, line 3: the id 1.5 is neither a text nor a whole number."
    assert read("a.jsonl", reading=Reading(metadata=("y",)))[0].metadata == {"y": 1, "source": "a.jsonl"}
    Path("b.jsonl").write_text('{"abstract": "long", "title": "short"}\n{"title": "short"}\n')
    assert [p.text for p in read("b.jsonl", reading=Reading(text_columns=("abstract", "title")))] == ["long", "short"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error must be one of stop, skip, got 'ignore'"),
        ({"ending": ".docx"}, r"ending must be one of \.txt, .*, got '\.docx'"),
        ({"text_columns": ()}, r"text_columns must name a column, got \[\]"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Reading(**options)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (Reading(text_columns=("abstract",)), "no input has columns, so text_columns names none"),
        (Reading(id_column="doi"), "no input has columns, so id_column names none"),
        (Reading(whole_txt=True), r"no input is a \.txt file"),
        (Reading(metadata=("year",)), "no row has a column 'year'"),
    ],
)
def test_what_has_nothing_to_do_with_the_inputs_is_not_ignored(here: Path, reading: Reading, message: str) -> None:
    Path("a.md").write_text("text")
    with pytest.raises(InvalidInputError, match=message):
        read("a.md", reading=reading)


def test_what_needs_no_tokenizer_is_checked_before_there_is_one(here: Path) -> None:
    Path("a.jsonl").write_text('{"text": "bears", "id": 1}\n{"text": "banks", "id": 1}\n')
    Path("empty.md").write_text("   \n")
    with pytest.raises(InvalidInputError, match=r"line 2: the id '1' is given already, in a\.jsonl"):
        read_texts(["a.jsonl"], Reading(id_column="id"))
    with pytest.raises(InvalidInputError, match="no row has a column 'yeer'"):
        read_texts(["a.jsonl"], Reading(metadata=("yeer",)))
    with pytest.raises(InvalidInputError, match=r"empty\.md has no text"):
        read_texts(["empty.md"], Reading())
    with read_texts(["a.jsonl", "empty.md"], Reading(id_column="id", on_error="skip")) as passages:
        assert (passages.texts, len(passages), passages.report.skipped) == (1, 0, 2)
        split(passages, chunker())
        assert (passages.texts, len(passages)) == (0, 1)
