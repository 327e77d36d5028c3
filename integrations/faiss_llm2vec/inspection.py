"""Looking at a store as a whole: what it is, what is wrong with it, and what can be saved."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faiss_llm2vec import lexical
from faiss_llm2vec.connections import named
from faiss_llm2vec.database import COLUMNS, Database
from faiss_llm2vec.manifest import Manifest
from faiss_llm2vec.rows import Row, checksum
from st_llm2vec.errors import StoreCorruptedError

if TYPE_CHECKING:
    from faiss_llm2vec.contents import Contents


def damage(database: Database, manifest: Manifest) -> list[str]:
    """Reads everything and returns what is wrong with it."""
    problems = []
    count = digest = expected = 0
    try:
        database.check_pages(thorough=True)
        for row in database.everything():
            count += 1
            if not row.sound:
                problems.append(f"{database.path}: document {row.id!r} (row {row.docid}) is damaged or was edited.")
                continue
            digest ^= row.checksum
            try:
                for entry in row.fields:
                    expected ^= checksum(*entry, row.docid)
            except StoreCorruptedError as error:
                problems.append(f"{database.path}: {error}")
        for entry in database.sql.execute("SELECT field, type, value, docid FROM fields"):
            expected ^= checksum(*entry)
    except (StoreCorruptedError, sqlite3.Error) as error:
        return [*problems, str(error)]
    if (count, digest) != (manifest.count, manifest.digest):
        problems.append(f"{database.path}: {count} documents that are not the {manifest.count} that were written.")
    if lexical.exists(database.sql) and not problems:
        with named(database.path):
            problem = lexical.difference(database.sql)
        problems += [f"{database.path}: {problem}."] if problem else []
    if expected and not problems:
        problems.append(f"{database.path}: the table of fields does not agree with the metadata; filters are not safe.")
    return problems


def salvage(database: Database) -> Iterator[Row]:
    """All documents that can still be read and are what was written; reads around damaged pages."""
    found: set[int] = set()
    most = database.most_rows
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.DatabaseError):  # a damaged page: go on from the other end, up to it
            query = f"SELECT {COLUMNS} FROM docs ORDER BY docid {order} LIMIT {most}"  # noqa: S608
            for row in map(Row._make, database.sql.execute(query)):
                if row.docid not in found and row.sound:
                    found.add(row.docid)
                    with suppress(StoreCorruptedError):
                        _ = row.fields
                        yield row


def stats(contents: Contents) -> dict[str, Any]:
    """What a store is and what it costs."""
    manifest, segments = contents.manifest, contents.segments
    alive = sum(int(segment.alive.sum()) for segment in segments)
    vector_bytes = sum(file.size for entry in manifest.segments for file in entry.files)
    names = ("kind", "metric", "dimension", "model_dimension", "model", "revision", "fingerprint", "prompts", "pooling")
    return {
        "path": str(contents.path),
        **{name: getattr(manifest, name) for name in names},
        "documents": manifest.count,
        "deleted_rows": sum(entry.rows for entry in manifest.segments) - alive,
        "segments": len(manifest.segments),
        "word_index": lexical.exists(contents.database.sql),
        "generation": manifest.generation,
        "bytes_on_disk": vector_bytes + sum(file.stat().st_size for file in contents.path.glob("store.db*")),
        "bytes_in_memory": sum(segment.in_memory for segment in segments),
    }


# What a notebook shows of `stats`.
_SHOWN = ("documents", "model", "dimension", "kind", "metric", "segments", "word_index", "bytes_on_disk", "writer")


def as_html(path: Path, found: Mapping[str, Any] | None) -> str:
    """A table of what a store is; None for one that was closed."""
    title = f"<caption>FaissStore {escape(str(path))}{'' if found else ' (closed)'}</caption>"
    shown = {name: found[name] for name in _SHOWN} if found else {}
    if found:
        shown["model"] = shown["model"] or found["fingerprint"] or "none"
        shown["bytes_on_disk"] = f"{shown['bytes_on_disk']:,}"
    rows = (
        f"<tr><th style='text-align: left'>{escape(name.replace('_', ' '))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in shown.items()
    )
    return f"<table>{title}{''.join(rows)}</table>"
