"""`index`: texts into a FAISS store. `search`: ranked answers from one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..atomic import published
from ..errors import StoreExistsError
from ..readers import TEXT_COLUMN, Rows, read_rows
from . import options
from .options import note, open_model, print_table
from .terminal import escaped, message

SHOWN = 200  # characters of a text in the table of answers


def index(
    texts: Annotated[Path, typer.Argument(help=".txt (a text per line), .jsonl, .csv or .parquet.")],
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    model: options.Model = options.DEFAULT_MODEL,
    text_column: Annotated[str, typer.Option("--text-column")] = TEXT_COLUMN,
    id_column: Annotated[str | None, typer.Option(help="Column of the id, a text. Default: TEXTS:LINE.")] = None,
    kind: Annotated[
        str, typer.Option(help="flat is exact; fp16, sq8, int8, hnsw, ivf, rabitq, binary or a FAISS factory string.")
    ] = "flat",
    metric: Annotated[str, typer.Option(help="cosine, dot or l2.")] = "cosine",
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first so many numbers of each vector.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the store that is there.")] = False,
    sync: Annotated[
        bool,
        typer.Option("--sync", help="Make the store hold exactly these texts, encoding what is new only."),
    ] = False,
    batch_size: options.BatchSize = 32,
    compile: options.Compile = False,
    device: options.Device = None,
) -> None:
    """Encode texts and put them into a FAISS store, with all other columns as metadata.

    The store appears, or the texts are added, when all of them are encoded; an existing one is never overwritten.

    \b
    Examples:
      st-llm2vec index notes.txt notes-store
      st-llm2vec index papers.jsonl papers-store --text-column abstract --id-column doi
      st-llm2vec index more.jsonl papers-store --text-column abstract --id-column doi --add
      st-llm2vec index papers.jsonl papers-store --text-column abstract --id-column doi --sync
    """
    from faiss_llm2vec import FaissStore

    if not (add or sync) and store.exists() and not (store.is_dir() and not any(store.iterdir())):
        raise StoreExistsError(
            f"{store} exists already and was left as it is. Add to it with --add, bring it up to date with --sync, or "
            "choose another."
        )
    rows = read_rows(texts)
    inputs = rows.texts(text_column)
    ids = rows.texts(id_column) if id_column else [f"{texts}:{number}" for number in rows.numbers]
    metadata = _metadata(rows, text_column, id_column)
    encoder = open_model(model, compile=compile, device=device)

    def put(target: FaissStore) -> int:
        with target:
            vectors = encoder.encode_document(inputs, batch_size=batch_size, show_progress_bar=True)
            target.add(inputs, ids=ids, metadata=metadata, vectors=vectors)
            return len(target)

    started = time.perf_counter()
    if sync and store.exists():
        with FaissStore.open(store, encoder) as opened:
            counts = opened.index(inputs, ids=ids, metadata=metadata, show_progress=True)
        note(f"{store}: {', '.join(f'{count} {what}' for what, count in counts.items())}.")
        return
    if add:
        total = put(FaissStore.open(store, encoder))
    else:
        with published(store) as draft:
            total = put(
                FaissStore.create(draft, encoder, kind=kind, metric=metric, truncate_dim=truncate_dim, model_name=model)
            )
    rate = len(inputs) / (time.perf_counter() - started)
    note(f"{store}: {len(inputs)} texts added, {total} in all, {rate:.1f} texts/s.")


def _metadata(rows: Rows, *taken: str | None) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in taken} for row in rows.values]


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
    as_json: options.AsJson = False,
    device: options.Device = None,
) -> None:
    """Print the best answers to questions, best first.

    \b
    Examples:
      st-llm2vec search notes-store "when does the library open?"
      st-llm2vec search papers-store "protein folding" "gene drift" -k 3
      st-llm2vec search papers-store "error E4217" --hybrid --rerank cross-encoder/ms-marco-MiniLM-L6-v2
      st-llm2vec search papers-store "protein folding" --where '{"year": 2024}' --json
    """
    from faiss_llm2vec import FaissStore

    condition = read_condition(where)
    FaissStore.open(store).close()  # before the model, which takes longer to load
    with FaissStore.open(store, open_model(model, device=device) if model else None) as opened:
        if model is None:
            opened.encoder(device=device)
        answers = opened.search_batch(
            questions, k, where=condition, mode="hybrid" if hybrid else "dense", rerank=rerank
        )
    if as_json:
        found = [
            {"question": question, "hits": [asdict(hit) for hit in hits]}
            for question, hits in zip(questions, answers, strict=True)
        ]
        typer.echo(escaped(json.dumps(found, ensure_ascii=False, indent=2), keep="\n"))
        return
    for question, hits in zip(questions, answers, strict=True):
        typer.echo(message(question))
        rows = [(str(i), f"{hit.score:.3f}", _shortened(hit.text), hit.id) for i, hit in enumerate(hits, 1)]
        print_table(("#", "score", "text", "id"), rows)


def read_condition(where: str | None) -> dict[str, Any] | None:
    """The filter of a `--where`."""
    try:
        condition: dict[str, Any] | None = None if where is None else json.loads(where)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"not valid JSON ({error})", param_hint="'--where'") from error
    return condition


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
