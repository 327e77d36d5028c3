"""How a store comes to be in a folder: complete or not at all, whether the folder is new, empty or a mounted volume."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from faiss_llm2vec import files, inputs, models
from faiss_llm2vec.database import Database
from faiss_llm2vec.kinds import METRICS, kind_of
from faiss_llm2vec.lock import Lock
from faiss_llm2vec.manifest import Manifest
from faiss_llm2vec.models import StoreModel
from st_llm2vec.atomic import move, sync_folder
from st_llm2vec.errors import InvalidInputError, StoreError, StoreExistsError, StoreLockedError
from st_llm2vec.types import Encoder

# What may be in a folder that counts as empty: a file system's own, and what a `create` that was interrupted left.
_NOTHING = ("lost+found", "lock", "segments")


def check_free(path: Path) -> None:
    """Raise StoreExistsError if there is anything at `path` but an empty folder."""
    try:
        if os.path.lexists(path) and not (path.is_dir() and all(map(_is_nothing, path.iterdir()))):
            raise _exists(path)
    except OSError as error:
        if isinstance(error, StoreExistsError):
            raise
        raise StoreError(f"cannot make a store in {path}: {error}.") from error


def check_kind(kind: str, metric: str) -> None:
    """Raise InvalidInputError unless there are such a kind and metric, and they go together."""
    if metric not in METRICS:
        raise InvalidInputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    if (kind_of(kind).factory or "").startswith("B") and metric != "cosine":
        raise InvalidInputError(f"metric must be 'cosine' with kind={kind!r}, which keeps signs, got {metric!r}.")


def manifest_of(model: StoreModel, kind: str, metric: str, truncate_dim: int | None) -> Manifest:
    """What a new store of a model is."""
    dimension = model_dimension = models.dimension_of(model.encoder)
    if truncate_dim is not None:
        truncate_dim = inputs.whole("truncate_dim", truncate_dim)
        if model_dimension is not None and truncate_dim > model_dimension:
            raise InvalidInputError(f"truncate_dim must be at most the model's {model_dimension}, got {truncate_dim}.")
        dimension = None if model_dimension is None else truncate_dim
    if dimension is not None:
        kind_of(kind, dimension)
    return Manifest(
        kind=kind,
        metric=metric,
        dimension=dimension,
        truncate_dim=truncate_dim,
        model_dimension=model_dimension,
        fingerprint=models.fingerprint_of(model.encoder, model.stated),
        model=model.name,
        revision=model.revision,
        prompts=models.prompts_of(model.encoder),
        pooling=models.pooling_of(model.encoder),
    )


def make(
    path: Path,
    model: Encoder | str | None,
    kind: str,
    metric: str,
    truncate_dim: int | None,
    fingerprint: str | None,
    model_name: str | None,
) -> Encoder | None:
    """Make a store as `FaissStore.create` says, and return its encoder, opened if it was a name.

    Raises:
        StoreExistsError: There is something at `path`; it was left as it is, and nothing was opened.
        StoreError: The folder cannot be made or written.
        InvalidInputError: There is no such kind or metric, or they do not go together, or with the model.
    """
    check_free(path)
    check_kind(kind, metric)
    opened = StoreModel(path)
    opened.give(model, model_name, fingerprint)
    write(path, manifest_of(opened, kind, metric, truncate_dim))
    return opened.encoder


def write(path: Path, manifest: Manifest) -> None:
    """Write a store without documents, durable on return.

    The database is built under another name and then renamed, while a lock keeps others from doing the same: at no
    moment is there half a store.

    Raises:
        StoreExistsError: There is something at `path`; it was left as it is.
        StoreError: The folder cannot be made or written.
    """
    check_free(path)
    draft = path / f".store-{uuid.uuid4().hex}.db"
    fresh = not os.path.lexists(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock.acquire(path / "lock")
        try:
            check_free(path)
            Database.create(draft, manifest)
            (path / "segments").mkdir(exist_ok=True)
            move(draft, path / "store.db")
            sync_folder(path.parent)
        finally:
            lock.release()
    except StoreLockedError:
        raise _exists(path) from None
    except (OSError, StoreError) as error:
        if isinstance(error, StoreExistsError):
            raise
        _remove(path, draft, fresh)
        raise StoreError(f"cannot make a store in {path}: {error}") from error


def _remove(path: Path, draft: Path, fresh: bool) -> None:
    """Removes what an attempt left; only what is certainly its own."""
    names = [draft, *(draft.with_name(draft.name + ending) for ending in ("-wal", "-shm", "-journal"))]
    for name in [*names, path / "lock"] if fresh else names:
        with contextlib.suppress(OSError):
            name.unlink()
    for folder in (path / "segments", path) if fresh else ():
        with contextlib.suppress(OSError):
            folder.rmdir()


def _is_nothing(path: Path) -> bool:
    if path.name == "segments":
        return files.folder(path) is not None and not any(path.iterdir())
    if path.name == "lock":
        status = files.regular(path)
        return status is not None and status.st_size == 0
    return path.name in _NOTHING or files.is_draft(path.name)


def _exists(path: Path) -> StoreExistsError:
    return StoreExistsError(
        f"{path} exists already and was left as it is. Open it with FaissStore.open({str(path)!r}, model), or choose "
        "another path."
    )
