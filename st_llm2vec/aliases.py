"""Short names of encoders. A local folder of the same name always wins."""

from __future__ import annotations

from pathlib import Path

from .errors import ModelNotFoundError

PREFIX = "llm2vec-"

# Name to the folder that holds the encoder.
ALIASES: dict[str, Path] = {
    "llm2vec-tiny": Path(__file__).parent / "tiny",
}


def folder_of(name: str) -> str | None:
    """The folder that an alias stands for; None if `name` is no alias or is a folder itself.

    Raises:
        ModelNotFoundError: A name of our kind that is neither known nor a folder; nothing is asked of the network.
    """
    if name.count("/") or not name.startswith(PREFIX) or Path(name).is_dir():
        return None
    if name not in ALIASES:
        raise ModelNotFoundError(
            f"{name!r} is no folder here and no encoder that st_llm2vec knows. Known: {', '.join(sorted(ALIASES))}. "
            "Any decoder can be loaded by its folder or hub id: st_llm2vec.load('owner/name')."
        )
    return str(ALIASES[name])
