"""What a name stands for: a decoder, and the LoRA adapters that are merged into it, in which order (merging.py).

LLM2Vec publishes adapters only: base decoder + MNTP adapter + SimCSE or supervised adapter. The second adapter's own
files name the raw decoder, so a loader that trusts them skips MNTP silently (defect Q18 of the original). Nothing of
a checkpoint is executed, only safetensors are read, and its files are vetted first (vetting/).
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .aliases import PUBLISHED
from .errors import InvalidCheckpointError
from .hub import Hub, folder_of, repository_of
from .settings import EncoderSettings, is_original, translated
from .vetting import leaves, named_weights, read_json

SETTINGS_FILE = "llm2vec_config.json"
# The published second stages, and the MNTP stage that each belongs on: their own files name the raw decoder.
SECOND_STAGES: dict[str, str] = {
    f"{mntp}-{stage}": mntp
    for mntp in (*PUBLISHED.values(), "McGill-NLP/LLM2Vec-Meta-Llama-31-8B-Instruct-mntp")
    for stage in ("unsup-simcse", "supervised")
}
# Ends the name of a decoder with merged stages that is in no folder; an adapter on top of it carries that name.
NOT_SAVED = "-merged-but-not-saved"


@dataclass(frozen=True)
class Checkpoint:
    """A decoder, the adapters to merge into it in this order, and where tokenizer and settings come from."""

    decoder: Path
    adapters: tuple[Path, ...]
    tokenizer: Path
    original_name: str | None
    settings: dict[str, Any]
    sources: tuple[dict[str, str | None], ...]  # what was asked for, and the commit that it resolved to

    @property
    def folders(self) -> tuple[Path, ...]:
        """The decoder and its adapters, the last adapter first: whose settings come before whose."""
        return (*reversed(self.adapters), self.decoder)

    @property
    def is_original(self) -> bool:
        """Whether it was made by the original package, by whose rules it was evaluated."""
        return any(_is_originals_adapter(folder) for folder in self.adapters) or any(
            is_original(read_json(folder / SETTINGS_FILE)) for folder in self.folders
        )

    def __str__(self) -> str:
        lines = [f"decoder    {_shown(self.decoder)}"]
        lines += [f"+ adapter  {_shown(folder)}" for folder in self.adapters]
        return "\n".join([*lines, f"tokenizer  {_shown(self.tokenizer)}"])


def resolve(
    name: str,
    *,
    adapter: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_folder: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Checkpoint:
    """Finds the decoder and the adapters of a name; downloads what is not a local folder.

    Args:
        name: Folder or hub id of a decoder, of an MNTP stage (config.json and an adapter, no weights), or of a
            published second stage. A hub id may carry its revision, here and below: "owner/name@revision".
        adapter: Folder or hub id of a second adapter on top.
        base: What the adapter in `name` belongs on; needed where its files cannot be trusted to say so.
        revision: Branch, tag or commit of `name`.
        local_files_only, cache_folder, token: As for `Hub`.

    Raises:
        ModelNotFoundError: Neither a folder nor a repository that can be reached.
        InvalidCheckpointError: Files are missing, are of a kind that is not read, point outside of their folder, or do
            not belong on top of one another.
    """
    hub = Hub(cache_folder, token, local_files_only)
    top = folder_of(name, revision, hub)
    second = [] if adapter is None else [folder_of(adapter, None, hub)]
    if second and not _is_adapter(second[0]):
        raise InvalidCheckpointError(
            f"adapter={adapter!r} has no adapter_config.json, but weights of its own; load it alone."
        )
    settings = read_settings(second[0] if second else top)
    sources = tuple(_source(folder) for folder in (top, *second))
    repository = repository_of(top)

    if not _is_adapter(top):
        if base is not None:
            raise InvalidCheckpointError(
                f"base={base!r} was given, but {name!r} has weights of its own; leave base out, or give the adapter."
            )
        _require_order(top, second)
        original = read_json(top / "config.json").get("_name_or_path") or repository
        return Checkpoint(top, tuple(second), top, original, settings, sources)

    below = resolve(base or _base_of(top), **vars(hub))
    adapters = (*below.adapters, top, *second)
    _require_order(below.decoder, adapters)
    original, tokenizer = below.original_name, below.tokenizer
    if _is_first_stage(top):
        # Section 3.4: what chooses a chat template is named by the adapter in a repository, by the config in a folder.
        file, key = ("adapter_config", "base_model_name_or_path") if repository else ("config", "_name_or_path")
        original = read_json(top / f"{file}.json").get(key) or original
        tokenizer = top if (top / "tokenizer_config.json").is_file() else tokenizer
    return Checkpoint(below.decoder, adapters, tokenizer, original, settings, (*sources, *below.sources))


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings in `llm2vec_config.json`, ours or the original package's, under our names; empty if there is none.

    Raises:
        InvalidCheckpointError: A setting of the wrong type, or one that is not known.
    """
    content = read_json(folder / SETTINGS_FILE)
    EncoderSettings.from_file(content, folder / SETTINGS_FILE)  # before a decoder is fetched for it
    return translated(content)


def _is_originals_adapter(folder: Path) -> bool:
    """Whether the original package trained an adapter: it is published, or names one of that package's classes."""
    trained_on = (read_json(folder / "adapter_config.json").get("auto_mapping") or {}).get("base_model_class") or ""
    known = {stage for pair in SECOND_STAGES.items() for stage in pair}
    return _published_id(folder) in known or bool(re.search(r"(Bi|Encoder)(Model|ForMNTP)$", str(trained_on)))


def _published_id(folder: Path) -> str | None:
    """The hub id of a snapshot, or of a published stage's clone in a folder of its name."""
    published = {stage.rpartition("/")[2]: stage for pair in SECOND_STAGES.items() for stage in pair}
    return repository_of(folder) or published.get(folder.name)


def _shown(folder: Path) -> str:
    repository = repository_of(folder)
    return f"{repository} at {folder.name[:12]}" if repository else str(folder)


def _source(folder: Path) -> dict[str, str | None]:
    repository = repository_of(folder)  # no local paths on cards
    return {"name": repository or folder.name, "commit": folder.name if repository else None}


def _is_first_stage(folder: Path) -> bool:
    return (folder / "config.json").is_file() and _published_id(folder) not in SECOND_STAGES


def _base_of(folder: Path) -> str:
    """What an adapter belongs on: by the table if it is a published second stage, by its files if it is a first one."""
    local = repository_of(folder) is None
    stage = SECOND_STAGES.get(_published_id(folder) or "")
    if stage is not None:
        clone = folder.parent / stage.rpartition("/")[2]
        return str(clone) if local and clone.is_dir() else stage
    shown = repository_of(folder) or str(folder)
    remedy = f"Say what it belongs on: load({shown!r}, base='<the MNTP stage or decoder>')."
    if not _is_first_stage(folder):
        raise InvalidCheckpointError(
            f"{shown!r} holds an adapter only, and adapters of a second stage name the raw decoder although they "
            f"belong on top of an MNTP stage. {remedy}"
        )
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise InvalidCheckpointError(f"The adapter {shown!r} does not name its decoder. {remedy}")
    if local and os.path.isabs(named):  # where it was trained, on this machine
        return named
    if leaves(named):
        raise InvalidCheckpointError(
            f"{folder / 'adapter_config.json'} names {named!r} as its decoder, which is neither a folder beside it nor "
            f"a hub id. {remedy}"
        )
    below = str(folder.parent / named)
    return below if local and os.path.isdir(below) else named  # as Path.is_dir, which raises at a long name


def _is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; raises if it holds neither an adapter nor weights, or both."""
    adapter, weights = (folder / "adapter_config.json").is_file(), weight_files(folder)
    if adapter and weights:
        raise InvalidCheckpointError(
            f"{folder} holds weights ({weights[0].name}) and an adapter, so it is not clear whether the adapter is in "
            "the weights already. Remove adapter_config.json if it is; else move the adapter into a folder of its own "
            "and give that as adapter=."
        )
    if not adapter and (folder / "adapter_model.safetensors").is_file():
        raise InvalidCheckpointError(f"{folder} has an adapter's tensors and no adapter_config.json to read them by.")
    if not adapter and not weights:
        raise InvalidCheckpointError(no_weights(folder))
    return adapter


def _require_order(decoder: Path, adapters: Sequence[Path]) -> None:
    """A first stage, then at most one second stage, each on what it was trained on, as far as their files can tell."""
    shown = [repository_of(folder) or str(folder) for folder in adapters]
    if len(adapters) > 2:
        raise InvalidCheckpointError(
            f"{' + '.join(shown)} are {len(adapters)} adapters, and the last two exclude each other: an encoder is a "
            "decoder, an MNTP stage and one second stage. To build on two stages, save them merged and give that "
            "folder as the decoder."
        )
    stage = SECOND_STAGES.get(_published_id(adapters[-1]) or "") if adapters else None
    if len(adapters) == 2:
        one, other = (folder / "adapter_model.safetensors" for folder in adapters)
        if one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False):
            raise InvalidCheckpointError(f"{shown[0]} and {shown[1]} are one adapter, which would be merged twice.")
        if _is_first_stage(adapters[1]):
            raise InvalidCheckpointError(
                f"{shown[1]} would be merged after {shown[0]}, but has a config.json as first stages have. The MNTP "
                f"stage goes first: load({shown[1]!r}, adapter={shown[0]!r}). If it is a second stage, remove its "
                "config.json."
            )
    below = _published_id(adapters[0] if len(adapters) == 2 else decoder)
    if stage is not None and below not in (stage, None):
        raise InvalidCheckpointError(
            f"{shown[-1]} was trained on top of {stage}, and {below} is something else. Load it by its name alone: "
            f"load({shown[-1]!r})."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a decoder, in the order of their names; empty if there are none.

    Raises:
        InvalidCheckpointError: The index names a file that is not there, or lies elsewhere.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    files = named_weights(index, read_json(index))
    if missing := [file.name for file in files if not file.is_file()]:
        raise InvalidCheckpointError(
            f"{folder} lacks {missing[0]}, one of the {len(files)} files that model.safetensors.index.json names. "
            "Download it again."
        )
    return files


def no_weights(folder: Path) -> str:
    """What to say of a folder without safetensors."""
    pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is opened; only "
            "safetensors are read. Convert it where you trust it: AutoModel.from_pretrained(...).save_pretrained(...)."
        )
    if (folder / "modules.json").is_file():
        return (
            f"{folder} is a sentence-transformers folder whose weights lie in a subfolder, or are missing. Open it "
            "with SentenceTransformer(...) and save it again: then they lie beside modules.json."
        )
    return f"{folder} has no *.safetensors weights. Give the folder that save_pretrained wrote."


def require_saved_base(folder: Path) -> None:
    """Raises where a trainer's adapter belongs on merged stages that were never saved."""
    named = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path"))
    if named.endswith(".gguf"):
        raise InvalidCheckpointError(
            f"The adapter in {folder} was trained on the GGUF file {named!r}, which only load() reads."
            f" Type st_llm2vec.load({str(folder)!r})."
        )
    if named.endswith(NOT_SAVED):
        raise InvalidCheckpointError(
            f"The adapter in {folder} was trained on {named!r}: stages that lie in no folder together with their "
            f"decoder. Name what was merged: st_llm2vec.load({str(folder)!r}, base='<the stage below>')."
        )
