"""The hub: what is fetched of a repository, and the folder of a name, which is downloaded if it is a hub id."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from .errors import InvalidInputError, ModelNotFoundError
from .settings import as_flag
from .vetting import require_safe

# What a snapshot needs; code and pickles stay on the hub, and so does a second copy of the weights in another layout.
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "README.md", "LICENSE*"]
_NOT_FILES = ["consolidated*", "original/*"]


@dataclass(frozen=True)
class Hub:
    """How the hub is reached.

    Args:
        cache_folder: Where downloads are kept; default: the hub's own cache.
        token: For repositories that are private or gated; default: the one that `hf auth login` stored.
        local_files_only: Touch no network.

    Raises:
        InvalidInputError: A value of the wrong type.
    """

    cache_folder: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        as_flag("local_files_only", self.local_files_only)
        for name, kinds in (("cache_folder", (str, os.PathLike)), ("token", (str, bool))):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                allowed = " or ".join(kind.__name__ for kind in kinds)
                shown = "..." if name == "token" else repr(value)
                raise InvalidInputError(f"{name} must be a {allowed}, got {shown} ({type(value).__name__}).")


def folder_of(name: str, revision: str | None, hub: Hub) -> Path:
    """The folder of a name, downloaded if it is a hub id; every path in its files stays inside."""
    if os.path.isdir(name):  # as Path.is_dir, which raises where a name is too long
        require_no_revision(name, revision)
        require_safe(Path(name))
        return Path(name)
    if not name or Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelNotFoundError(f"There is no folder {name!r}. Check the path; hub ids look like 'owner/name'.")
    repository, _, pinned = name.partition("@")
    if pinned and revision:
        raise ModelNotFoundError(f"revision must be given once, got {name!r} and revision={revision!r}.")
    revision = revision or pinned or None
    try:
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=_FILES,
            ignore_patterns=_NOT_FILES,
            local_files_only=hub.local_files_only,
            cache_dir=None if hub.cache_folder is None else os.fspath(hub.cache_folder),
            token=hub.token,
        )
    except HFValidationError as error:
        raise ModelNotFoundError(f"{name!r} is neither a folder nor a hub id ('owner/name').") from error
    except (OSError, ValueError) as error:
        where = "the local cache (local_files_only=True)" if hub.local_files_only else "the hub or its cache"
        where = f"{where} at revision {revision!r}" if revision else where
        answer = " ".join(str(error).split()).rstrip(".") + "."
        raise ModelNotFoundError(
            f"{name!r} is no folder here and could not be read from {where}: {type(error).__name__}: {answer} Gated "
            f"repositories need their licence accepted at https://huggingface.co/{repository} and a token: "
            "hf auth login."
        ) from error
    require_safe(Path(found))
    return Path(found)


def repository_of(folder: Path) -> str | None:
    """The hub id of a snapshot in the hub's cache: models--owner--name/snapshots/commit."""
    name = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return name if folder.parent.name == "snapshots" else None


def require_no_revision(name: str, revision: str | None) -> None:
    """Raises `InvalidInputError` where a revision was given for something on this machine."""
    if revision is not None:
        raise InvalidInputError(
            f"revision must be left out for {name!r}, got {revision!r}: it is on this machine, and only repositories "
            "on the hub have revisions."
        )
