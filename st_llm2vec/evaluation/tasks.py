"""The tasks: public sets by name, each one row of a table, and a user's own files by their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidInputError
from . import classification, clustering, pair_classification, reranking, retrieval, sts, words
from .files import Source, columns_of, ending, shards, splits
from .kind import Kind

# In this order a file's columns are tried.
KINDS: dict[str, Kind] = {
    each.KIND.name: each.KIND for each in (sts, pair_classification, reranking, retrieval, classification, clustering)
} | {kind.name: kind for kind in words.KINDS}


@dataclass(frozen=True)
class Task:
    """A public set: its kind, the folder it lies in, and its columns where they have other names than the kind's."""

    kind: str
    folder: str
    columns: Mapping[str, str] = field(default_factory=dict)


_PAIR = {"query": "question1", "document": "question2"}
_CLUSTER = {"cluster": "label"}
TASKS: dict[str, Task] = {
    "stsb": Task("sts", "stsb"),
    "scifact": Task("retrieval", "scifact"),
    "cranfield": Task("retrieval", "cranfield"),
    "cisi": Task("retrieval", "cisi"),
    "quora": Task("retrieval", "quora_duplicates", _PAIR),
    "wikiqa": Task("reranking", "wikiqa"),
    "banking77": Task("classification", "banking77"),
    "emotion": Task("classification", "emotion"),
    "trec_qc": Task("classification", "trec_qc"),
    "sst2": Task("classification", "sst2"),
    "snips": Task("classification", "snips"),
    "ag_news": Task("clustering", "ag_news", _CLUSTER),
    "stackoverflow_clustering": Task("clustering", "stackoverflow_clustering", _CLUSTER),
    "mrpc": Task("pair_classification", "mrpc"),
}
# Word level: <set>_<tags>, then _f1 for whole spans, then _next for the reading that MNTP is trained for.
TASKS |= {
    f"{folder}_{tags}{of}{reading}": Task(kind + reading, folder, {"tags": tags})
    for folder, tags, figures in (
        ("conll2003", "pos", {"": "words"}),
        ("conll2003", "chunk", {"": "words", "_f1": "spans"}),
        ("conll2003", "ner", {"": "words", "_f1": "spans"}),
        ("ud_ewt", "upos", {"": "words"}),
        ("ud_ewt", "xpos", {"": "words"}),
    )
    for of, kind in figures.items()
    for reading in ("", "_next")
}


@dataclass(frozen=True)
class Found:
    """A task that lies in files."""

    name: str
    kind: Kind
    source: Source


def find(
    data: str | Path,
    tasks: Sequence[str] = (),
    *,
    split: str = "test",
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Found]:
    """Find tasks in files, before any model is loaded.

    Args:
        data: A folder of task folders, the folder of one task, or one file.
        tasks: Names of `TASKS`, or of folders in `data`; none for one folder or file.
        split: Which files are scored.
        kind: What a user's own files are, of `KINDS`; default: by their columns.
        columns: Where a user's own columns have other names: the kind's -> the files'.

    Raises:
        InvalidInputError: A task that is not there, or files of no known kind.
    """
    data = Path(data)
    if kind is not None and kind not in KINDS:
        raise InvalidInputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if not data.exists():
        raise InvalidInputError(f"There is no file or folder {data}.")
    if isinstance(tasks, str):
        raise InvalidInputError(f"tasks must be a list of names, got {tasks!r}.")
    if not tasks:
        if not _is_task(data, split):
            inside = [each.name for each in sorted(data.iterdir()) if each.is_dir()]
            raise InvalidInputError(
                f"tasks must be named, as {data} is no single task: it has no {split}.jsonl, and the folders "
                f"{', '.join(inside) or '(none)'}."
            )
        name = data.name.removesuffix(ending(data) or "")
        return [_own(name, data, split, kind, columns or {})]
    if data.is_file():
        raise InvalidInputError(f"tasks must be left out for one file, got {list(tasks)}.")
    return [_named(name, data, split, kind, columns or {}) for name in dict.fromkeys(tasks)]


def _is_task(data: Path, split: str) -> bool:
    return data.is_file() or bool(shards(data, split) or shards(data, "corpus"))


def _named(name: str, data: Path, split: str, kind: str | None, columns: Mapping[str, str]) -> Found:
    task = TASKS.get(name)
    if task and kind is None and not columns and (data / task.folder).is_dir():
        return Found(name, KINDS[task.kind], Source(data / task.folder, split, task.columns))
    if (data / name).is_dir():
        return _own(name, data / name, split, kind, columns)
    if task:
        raise InvalidInputError(
            f"{name} must lie in {data / task.folder}, which is no folder. Give its data: --data DIR."
        )
    raise InvalidInputError(f"There is no task {name!r}. Known: {', '.join(sorted(TASKS))}; or folders in {data}.")


def _own(name: str, path: Path, split: str, kind: str | None, columns: Mapping[str, str]) -> Found:
    source = Source(path, split, columns)
    if path.is_dir() and shards(path, "corpus"):
        if kind not in (None, "retrieval"):
            raise InvalidInputError(f"kind must be 'retrieval' for a folder with a corpus, got {kind!r}.")
        return Found(name, KINDS["retrieval"], source)
    files = [path] if path.is_file() else shards(path, split)
    if not files:
        raise InvalidInputError(
            f"There is no {split}.jsonl in {path}; it has {', '.join(splits(path)) or 'no such file'}."
        )
    has = columns_of(files[0])
    renamed = has | {ours for ours, theirs in columns.items() if theirs in has}
    unknown = [theirs for theirs in columns.values() if theirs not in has]
    if unknown:
        raise InvalidInputError(f"{files[0]} has no column {unknown[0]!r}; it has {', '.join(sorted(has))}.")
    candidates = [KINDS[kind]] if kind else list(KINDS.values())
    for each in candidates:
        if renamed.issuperset(each.columns):
            return Found(name, each, source)
    layouts = "; ".join(f"{each.name}: {', '.join(each.columns)}" for each in candidates)
    raise InvalidInputError(
        f"{files[0]} has the columns {', '.join(sorted(has))}, which are of no known kind ({layouts}). Rename them, or "
        "say which is which with columns (--column sentence1=question)."
    )


def layouts() -> str:
    """The files that each kind of task reads, one line each."""
    return "\n".join(f"{kind.name}: {kind.layout}" for kind in KINDS.values())
