"""`search`: ranked answers from a store, with what is known about each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .options import listed, loading, note, open_model
from .tables import print_table
from .terminal import escaped, message

if TYPE_CHECKING:
    from faiss_llm2vec import FaissStore

SHOWN = 200  # characters of a text in the table of answers
_SHOWN_VALUE = 40  # characters of a value of the metadata
_LOOKED_AT = 1000  # documents whose fields are listed, where a filter names another one


def search(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    questions: Annotated[list[str], typer.Argument(help="One or more questions.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The store's encoder, where it does not know it by name.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Answers per question.")] = 5,
    where: Annotated[str | None, typer.Option(help="Filter on the metadata, as JSON.")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Look for the words of the questions as well.")] = False,
    rerank: Annotated[
        str | None, typer.Option(help="Cross-encoder (folder or hub id) that puts the answers into its own order.")
    ] = None,
    show: Annotated[
        str | None, typer.Option(metavar="A,B", help="Fields of the metadata to show. Default: all; '' for none.")
    ] = None,
    as_json: options.AsJson = False,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
) -> None:
    """Print the best answers to questions, best first, with their metadata.

    \b
    Examples:
      st-llm2vec search notes-store "when does the library open?"
      st-llm2vec search papers-store "protein folding" "gene drift" -k 3
      st-llm2vec search papers-store "error E4217" --hybrid --rerank cross-encoder/ms-marco-MiniLM-L6-v2
      st-llm2vec search papers-store "protein folding" --where '{"year": {"$gte": 2024}}' --json
    """
    from faiss_llm2vec import FaissStore

    if show is not None and as_json:
        raise typer.BadParameter("JSON has all fields; leave it out", param_hint="'--show'")
    condition = read_condition(where)
    with FaissStore.open(store, mmap=True) as opened:  # before the model, which takes longer to load
        wanted = None if show is None else list(listed(show))
        for unknown in unknown_fields(opened, [*fields_of(condition), *(wanted or [])]):
            note(unknown)
        matching = opened.count(condition)
    how = {"max_seq_length": max_seq_length, "dtype": dtype, "quantize": quantize, "device": device}
    with FaissStore.open(store, open_model(model, **how) if model else None) as opened:
        if model is None:
            loading(opened.stats()["model"] or "the store's model")
            opened.encoder(**how)
        mode = "hybrid" if hybrid else "dense"
        answers = opened.search_batch(questions, k, where=condition, mode=mode, rerank=rerank)
    if not matching:
        note(f"{store}: {'it is empty.' if where is None else 'no document matches the filter.'}")
    if as_json:
        found = [
            {"question": question, "hits": [hit.as_dict() for hit in hits]}
            for question, hits in zip(questions, answers, strict=True)
        ]
        typer.echo(escaped(json.dumps(found, ensure_ascii=False, indent=2), keep="\n"))
        return
    left_out: list[str] = []
    for question, hits in zip(questions, answers, strict=True):
        if hits:
            typer.echo(message(question))
            left_out += _print(hits, wanted)
    if left_out:
        names = ", ".join(dict.fromkeys(left_out))
        note(f"There is no room for {names}. Choose fields with --show, or take --json.")


def read_condition(where: str | None) -> dict[str, Any] | None:
    """The filter of a `--where`."""
    try:
        condition: dict[str, Any] | None = None if where is None else json.loads(where)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"not valid JSON ({error})", param_hint="'--where'") from error
    return condition


def fields_of(condition: Any) -> Iterator[str]:
    """The fields that a filter names."""
    if isinstance(condition, dict):
        for name, operand in condition.items():
            if not name.startswith("$"):
                yield name
            else:
                yield from fields_of(operand)
    elif isinstance(condition, list):
        for item in condition:
            yield from fields_of(item)


def unknown_fields(store: FaissStore, names: Sequence[str]) -> Iterator[str]:
    """What to say of the fields that no document has."""
    missing = [name for name in dict.fromkeys(names) if not store.count({name: {"$exists": True}})]
    if not missing:
        return
    known = sorted({name for record in store.get(where={}, limit=_LOOKED_AT) for name in record.metadata})
    for name in missing:
        close = get_close_matches(name, known, 1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        yield f"no document has a field {name!r}; fields: {', '.join(known) or 'none'}.{meant}"


def _print(hits: Sequence[Any], wanted: list[str] | None) -> list[str]:
    """Print answers with the fields that are wanted, or else with those that there is room for; return the others."""
    names = _columns(hits, wanted)
    rows = [
        (str(i), f"{hit.score:.3f}", _shortened(hit.text), *(_cell(hit.metadata.get(n)) for n in names), hit.id)
        for i, hit in enumerate(hits, 1)
    ]
    may_go = range(3, 3 + len(names)) if wanted is None else ()
    return print_table(("#", "score", "text", *names, "id"), rows, wide=2, optional=may_go)


def _columns(hits: Sequence[Any], wanted: list[str] | None) -> list[str]:
    """The fields to show: those asked for, else all that the answers have, but for what their ids say already."""
    if wanted is not None:
        return wanted
    names = dict.fromkeys(name for hit in hits for name in hit.metadata)
    return [name for name in names if name not in ("source", "chunk")]


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _shortened(text, _SHOWN_VALUE)


def _shortened(text: str, most: int = SHOWN) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
