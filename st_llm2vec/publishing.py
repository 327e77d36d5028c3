"""A saved folder goes to the hub: its own files and nothing else, all in one commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from .cards import TAG
from .errors import InvalidCheckpointError, InvalidInputError, ModelNotFoundError
from .vetting import require_safe

# What `save_pretrained` and a run of training write, by the folder and by the name.
_PLACES = re.compile(r"\.|\d+_\w+|adapter|training|additional_chat_templates")
_FILES = re.compile(
    r"README\.md|LICENSE[\w.-]*|(model|adapter_model)(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|(\w+_)?config\.json|config_sentence_transformers\.json|modules\.json|tokenizer\.(json|model)|vocab\.(json|txt)"
    r"|special_tokens_map\.json|added_tokens\.json|merges\.txt|\w+\.jinja|settings\.json|curve\.(jsonl|svg)",
    re.ASCII,
)
_LEFT_OUT = "checkpoints"  # of the trainer: for resuming, and several times as large as the encoder


@dataclass(frozen=True)
class Pushed:
    """What went to the hub, or would go.

    Args:
        url: Of the repository.
        sizes: Bytes of each file, by its path.
        left_out: Bytes of what stays here: the trainer's checkpoints.
    """

    url: str
    sizes: dict[str, int]
    left_out: int


def push(
    folder: str | Path,
    repository: str,
    *,
    public: bool = False,
    message: str = "Upload an LLM2Vec encoder",
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Write a folder that `save_pretrained` wrote to a repository on the hub, in one commit.

    Everything is checked before the hub is asked for anything. The files of a commit before that are not in the folder
    stay in the repository.

    Args:
        folder: The encoder.
        repository: "owner/name"; made if it is not there.
        public: Let everybody read a repository that is made now; one that is there stays as it is.
        message: Of the commit.
        token: One that may write; default: the one that `hf auth login` stored.
        dry_run: Check, and return what would go.

    Returns:
        What went.

    Raises:
        ModelNotFoundError: There is no such folder.
        InvalidCheckpointError: It is no saved encoder, has no card, or holds links or files that we do not write.
        InvalidInputError: A name that no repository can have, or a refusal of the hub.

    Example:
        push("my-encoder", "owner/my-encoder", dry_run=True).sizes
    """
    folder = Path(folder)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InvalidInputError(f"repository must be 'owner/name', got {repository!r}: {error}") from error
    if repository.count("/") != 1:
        raise InvalidInputError(f"repository must be 'owner/name', got {repository!r}.")
    sizes, left_out = _files(folder)
    _require_card(folder)
    api = HfApi(token=token)
    pushed = Pushed(f"{api.endpoint}/{repository}", sizes, left_out)
    if dry_run:
        return pushed
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        api.create_commit(
            repository, [CommitOperationAdd(name, folder / name) for name in sizes], commit_message=message
        )
    except Exception as error:  # of the hub, or of whatever library brings us there
        answer = " ".join(str(error).split()).rstrip(".")
        for secret in filter(None, (token, get_token())):
            answer = answer.replace(secret, "...")
        raise InvalidInputError(
            f"repository={repository!r} could not be written: {type(error).__name__}: {answer}. Log in with a token "
            "that may write to it: hf auth login."
        ) from None  # the error before may hold the token
    return pushed


def _files(folder: Path) -> tuple[dict[str, int], int]:
    """Bytes of the files that go, by their paths, and bytes of the checkpoints, which stay."""
    if not folder.is_dir():
        raise ModelNotFoundError(f"There is no folder {str(folder)!r}. Give one that save_pretrained or convert wrote.")
    found: dict[str, int] = {}
    odd, left_out = [], 0
    for path in sorted(folder.rglob("*")):  # which follows no link
        place = path.relative_to(folder)
        if path.is_symlink():
            raise InvalidCheckpointError(
                f"{path} is a link, and what it leads to may be anything. Copy the file there."
            )
        if path.is_dir():
            continue
        if place.parts[0] == _LEFT_OUT:
            left_out += path.stat().st_size
        elif path.is_file() and _PLACES.fullmatch(place.parent.as_posix()) and _FILES.fullmatch(place.name):
            found[place.as_posix()] = path.stat().st_size
        else:
            odd.append(place.as_posix())
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise InvalidCheckpointError(
            f"{folder} has files that st_llm2vec does not write: {', '.join(odd[:3])}{more}. Remove them, or push the "
            "encoder's own folder."
        )
    if "modules.json" not in found:
        raise InvalidCheckpointError(
            f"{folder} is no saved encoder: it has no modules.json. Give the output of convert."
        )
    require_safe(folder)
    return found, left_out


def _require_card(folder: Path) -> None:
    file = folder / "README.md"
    try:
        card: Any = ModelCard(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        said = f" ({error})" if file.is_file() else ""
        raise InvalidCheckpointError(
            f"{folder} has no model card in README.md{said}. Save the encoder again."
        ) from error
    if TAG not in (card.data.tags or []):
        raise InvalidCheckpointError(f"{file} has no tag {TAG!r}, as our cards have. Save the encoder again.")
