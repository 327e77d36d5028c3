"""Arbitrary JSON in the files of a checkpoint: a few cases, always the same; fuzz_checkpoints.py runs thousands."""

from __future__ import annotations

from pathlib import Path

from fuzz_checkpoints import HANGS, fuzz, prepare


def test_arbitrary_json_ends_in_an_encoder_or_in_our_error(tmp_path: Path) -> None:
    tally = fuzz(prepare(tmp_path), 60, HANGS, derandomize=True)
    assert sum(tally.values()) >= 60
    assert any(name.endswith("opened") for name in tally)
    assert any(name.endswith("InvalidCheckpointError") for name in tally)
