"""Headers of GGUF files from strangers end in an error of ours, at once."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
from fuzz_checkpoints import HANGS

import st_llm2vec
from st_llm2vec import gguf_files
from st_llm2vec.errors import InvalidCheckpointError, LLM2VecError
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


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pytest.importorskip("gguf")
    from gguf_writer import write_gguf
    from test_gguf_files import decoder_of

    decoder = decoder_of(tmp_path_factory.mktemp("gguf") / "llama", "llama", "llama-base")
    return write_gguf(decoder, decoder.parent / "tiny.gguf", pre="llama-bpe").read_bytes()


def tensor(content: bytes, name: str) -> tuple[int, int]:
    """Where the dimensions of a tensor stand in a file, and how many they are."""
    at = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    (dimensions,) = struct.unpack_from("<I", content, at)
    return at + 4, dimensions


def changed(content: bytes, name: str, place: int, value: int, form: str = "<Q") -> bytes:
    """The file with another number in a tensor's entry: a dimension, or behind them its type and its place."""
    at, _ = tensor(content, name)
    made = bytearray(content)
    struct.pack_into(form, made, at + place, value)
    return bytes(made)


NAME = "blk.0.ffn_gate.weight"  # 2 dimensions: 8 bytes each, 4 for the type, 8 for the place


@pytest.mark.parametrize(
    ("place", "value", "form"),
    [
        (0, 0, "<Q"),
        (0, 1, "<Q"),
        (0, 48, "<Q"),  # turned round below: as many numbers, in another shape
        (0, 2**32, "<Q"),
        (0, 2**63, "<Q"),
        (8, 2**64 - 1, "<Q"),
        (16, 99, "<I"),
        (16, 2, "<I"),  # Q4_0, of blocks of 32
        (16, 1, "<I"),  # float16: half of the bytes
        (20, 2**62, "<Q"),
        (20, 3, "<Q"),
        (20, 0, "<Q"),  # where the first tensor lies
    ],
)
def test_tensors_of_other_shapes_types_and_places_are_refused(
    sound: bytes, tmp_path: Path, place: int, value: int, form: str
) -> None:
    content = changed(sound, NAME, place, value, form)
    if value == 48:
        content = changed(content, NAME, 8, 32)
    (tmp_path / "x.gguf").write_bytes(content)
    started = time.process_time()
    with pytest.raises(LLM2VecError):
        st_llm2vec.load(str(tmp_path / "x.gguf"), device="cpu")
    assert time.process_time() - started < HANGS


def test_a_tensor_named_twice_is_refused(sound: bytes, tmp_path: Path) -> None:
    twice = sound.replace(b"blk.1.ffn_gate.weight", NAME.encode())
    assert twice != sound
    (tmp_path / "x.gguf").write_bytes(twice)
    with pytest.raises(InvalidCheckpointError):
        st_llm2vec.load(str(tmp_path / "x.gguf"), device="cpu")


def test_a_tensor_of_another_name_is_no_random_weight(sound: bytes, tmp_path: Path) -> None:
    """As many numbers as the decoder has, and one weight that they are not for."""
    (tmp_path / "x.gguf").write_bytes(sound.replace(b"blk.1.ffn_gate.weight", b"blk.1.ffn_gatx.weight"))
    with pytest.raises(InvalidCheckpointError, match="lacks 1 weights"):
        st_llm2vec.load(str(tmp_path / "x.gguf"), device="cpu")


def test_the_unchanged_file_opens(sound: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(sound)
    st_llm2vec.load(str(tmp_path / "x.gguf"), device="cpu")
