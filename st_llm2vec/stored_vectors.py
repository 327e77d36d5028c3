"""A folder that `encode_corpus` wrote, read again: its passages as a whole, and their vectors shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .errors import InvalidInputError
from .ingestion import MANIFEST, Passage, Passages, Report
from .shard_files import embeddings, is_as_listed, read_manifest, require_vectors, rows_of

Tag = TypeVar("Tag")


class StoredVectors:
    """Passages and their vectors, which nobody has to encode again. Takes the place of `Embed`.

    Args:
        folder: Of `encode_corpus`.
        progress: Called with the passages that are done and those that are to be done in all.

    Raises:
        InvalidInputError: It is none, was not finished, or a shard is missing or was changed; or its texts were not
            encoded as documents of their model, so that a store could not go on with them.
    """

    total = 0

    def __init__(self, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._progress = progress
        manifest = read_manifest(folder)
        if manifest is None:
            raise InvalidInputError(f"{folder} has no {MANIFEST}. Give a folder that st-llm2vec encode wrote.")
        if not manifest["complete"] or not manifest["shards"]:
            raise InvalidInputError(f"{folder} is not finished. Run the same st-llm2vec encode again first.")
        if manifest["task"] != "document" or manifest["prompt"] is not None:
            how = "queries" if manifest["task"] != "document" else f"the prompt {manifest['prompt']!r:.60}"
            raise InvalidInputError(
                f"{folder} was encoded as {how}, and a store holds documents as its model encodes them. Encode without "
                "--as and --prompt; a prompt of the model itself is kept by save_pretrained."
            )
        entries = manifest["shards"]
        self._paths = [folder / entry["file"] for entry in entries]
        for path, entry in zip(self._paths, entries, strict=True):
            if not is_as_listed(path, entry):
                raise InvalidInputError(
                    f"{path} is missing or was changed. Run the same st-llm2vec encode again, which makes it again."
                )
            require_vectors(path, entry)
        self._ends = np.array([*accumulate(entry["texts"] for entry in entries)])
        self.fingerprint: str = manifest["fingerprint"]
        self.model: str | None = manifest.get("model")
        self.dimension: int = entries[0]["dimension"]
        self.normalized = bool(manifest.get("normalize"))
        self.dtype, self.quantized = str(manifest.get("dtype")), bool(manifest.get("quantized"))

    def passages(self) -> Passages:
        """Return the passages, in a temporary database; close them.

        Raises:
            InvalidInputError: An id is there twice.
        """
        with ExitStack() as stack:
            passages = stack.enter_context(Passages(Report("stop")))
            for path, end in zip(self._paths, self._ends.tolist(), strict=True):
                for row, passage in enumerate(rows_of(path), 1):
                    split = "chunk" in passage.metadata and "#" in passage.id
                    parent = passage.id.rpartition("#")[0] if split else passage.id
                    passages.add([passage], parent, f"{path}, row {row}")
                if len(passages) != end:
                    raise InvalidInputError(f"{path} has not as many texts as vectors. Encode its texts again.")
            stack.pop_all()
        return passages

    def each(self, batches: Iterable[tuple[Tag, list[Passage]]]) -> Iterator[tuple[Tag, list[Passage], Any]]:
        """Yield each batch with its vectors: float32 (passages, dimension)."""
        done = 0
        for tag, passages in batches:
            yield tag, passages, self._vectors(np.array([passage.number - 1 for passage in passages], dtype=np.int64))
            done += len(passages)
            self._progress(done, self.total)

    def _vectors(self, places: Any) -> Any:
        found = np.empty((len(places), self.dimension), dtype=np.float32)
        shards = np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            vectors = embeddings(self._paths[shard])
            found[here] = vectors[places[here] - (self._ends[shard] - len(vectors))]
        return found
