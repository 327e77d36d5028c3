"""Headers of GGUF files from strangers end in an error of ours, at once."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from st_llm2vec import gguf_files
from st_llm2vec.errors import InvalidCheckpointError
from st_llm2vec.vetting import require_sane_gguf


def _head(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def _key(kind: int, value: bytes = b"") -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "content",
    [
        _head(0, 2**60),
        _head(2**60, 0),
        _head(1, 1) + struct.pack("<Q", 2**63),
        _head(1, 1) + _key(8, struct.pack("<Q", 2**63)),
        _head(1, 1) + _key(9, struct.pack("<IQ", 0, 2**60)),
        _head(1, 1) + _key(9, struct.pack("<IQ", 8, 2**60)),
        _head(1, 1) + _key(9, struct.pack("<IQ", 0, 1000)),
        _head(1, 1) + _key(9, struct.pack("<IQ", 9, 1) * 1000),
        _head(1, 1) + _key(99),
        _head(1, 1) + _key(8, struct.pack("<Q", 1) + b"\xff"),
        _head(1, 0) + struct.pack("<Q", 0) + struct.pack("<I", 2**31),
        b"GGUF",
        b"",
    ],
)
def test_lengths_and_counts_that_the_file_has_not(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidCheckpointError):
        require_sane_gguf(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_fifos_and_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "m.gguf")
    (tmp_path / "link").mkdir()
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "link" / "m.gguf").symlink_to(tmp_path / "x.gguf")
    for name in ("fifo", "link"):
        for named in (None, "m.gguf"):
            with pytest.raises(InvalidCheckpointError, match=r"FIFO|is a link"):
                gguf_files._find(str(tmp_path / name), named)
