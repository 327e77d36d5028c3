"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from st_llm2vec import atomic
from st_llm2vec.atomic import Lock, only_writer, published, published_folder
from st_llm2vec.errors import CacheError, InvalidInputError


def write(place: Path, content: str = "new") -> None:
    """A file, or a folder of one, as the place's ending says."""
    if place.suffix:
        place.write_text(content)
    else:
        place.mkdir(exist_ok=True)
        (place / "part.txt").write_text(content)


def read(place: Path) -> str:
    return (place if place.suffix else place / "part.txt").read_text()


@pytest.mark.parametrize("name", ["vectors.npy", "folder", "x" * 250 + ".npy"])
def test_what_was_written_appears_and_nothing_else(tmp_path: Path, name: str) -> None:
    target = tmp_path / "new" / name
    with published(target) as draft:
        assert draft.name == name
        write(draft)
        assert not target.exists()
    assert read(target) == "new"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == (0o644 if target.suffix else 0o755) & ~_umask()


def _umask() -> int:
    os.umask(mask := os.umask(0o022))
    return mask


@pytest.mark.parametrize("name", ["vectors.npy", "folder"])
@pytest.mark.parametrize("make", [published, published_folder])
def test_a_failure_leaves_what_was_there_and_no_draft(tmp_path: Path, name: str, make: object) -> None:
    target = tmp_path / name
    if make is published_folder and target.suffix:
        return
    write(target, "old")

    def half() -> None:
        with make(target) as draft:  # type: ignore[operator]
            write(draft, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_and_a_folder_with_something_in_it_is_not(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", "old")
    with published(tmp_path / "a.npy") as draft:
        write(draft)
    assert read(tmp_path / "a.npy") == "new"
    write(tmp_path / "folder", "old")
    with pytest.raises(OSError, match=r"folder"), published(tmp_path / "folder") as draft:
        write(draft)
    assert read(tmp_path / "folder") == "old"


def test_a_folder_joins_the_one_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (target / "sub").mkdir(parents=True)
    for name in ("kept.txt", "part.txt", "old.weights", "sub/old.txt"):
        (target / name).write_text("old")
    with published_folder(target, ["*.weights"]) as draft:
        write(draft)
        (draft / "sub").mkdir()
    found = {str(file.relative_to(target)): file.read_text() for file in target.rglob("*") if file.is_file()}
    assert found == {"kept.txt": "old", "part.txt": "new"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_others_write_at_the_same_time_is_whole(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process of a training saves the same checkpoint, where the host's trainer has them all do so."""
    target, replace = tmp_path / "model", os.replace
    quicker = iter([True, True])
    if there:
        target.mkdir()

    def folder(path: Path, content: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "part.txt").write_text(content)

    def raced(source: Path, place: Path) -> None:
        if Path(source).is_dir() and next(quicker, False):  # another one has just put its own there
            folder(place / "sub" if place == target else place, "other")
        replace(source, place)

    monkeypatch.setattr(os, "replace", raced)
    with published_folder(target) as draft:
        folder(draft / "sub", "new")
        (draft / "whole.txt").write_text("new")
    found = {str(file.relative_to(target)): file.read_text() for file in target.rglob("*") if file.is_file()}
    assert found == {"sub/part.txt": "new", "whole.txt": "new"}
    assert next(quicker, None) is None  # it was


def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    opened = os.open

    def fsync(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        Path(source).rename(target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors have no names here")
    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(atomic.os, "replace", replace)
    with published(tmp_path / "model") as draft:
        write(draft)
        (draft / "deep").mkdir()
        write(draft / "deep")
    at = events.index("rename")
    assert sorted(events[:at]) == ["deep", "model", "part.txt", "part.txt"]  # type: ignore[type-var]
    assert events[at + 1 :] == [tmp_path.name]
    assert os.open is opened


def test_a_full_disk_is_said_in_one_way_and_our_errors_pass(tmp_path: Path) -> None:
    for error in (OSError(errno.ENOSPC, "full"), ValueError("I/O: No space left on device (os error 28)")):
        with pytest.raises(OSError, match="which is as it was before") as raised, published(tmp_path / "a.npy"):
            raise error
        assert raised.value.errno == errno.ENOSPC
    with pytest.raises(CacheError), published(tmp_path / "a.npy"):
        raise CacheError(errno.ENOSPC, "its own words")
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_leaves_a_draft_that_can_be_known(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from st_llm2vec.atomic import published\n"
        "with published(pathlib.Path(sys.argv[1])) as draft: draft.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.npy"], check=False).returncode == 9
    assert not (tmp_path / "a.npy").exists()
    (left,) = tmp_path.glob(atomic.DRAFTS)
    assert [file.name for file in left.iterdir()] == ["a.npy"]


HOLD = """
import sys, pathlib
from st_llm2vec.atomic import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_is_killed_locks_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "vectors.npy"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InvalidInputError, match=r"Another run .*vectors\.npy\. Wait"), only_writer(target):
            pass
        process.kill()
    with only_writer(target):
        assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_a_lock_that_is_removed_while_another_opens_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, take, removed = tmp_path / ".vectors.lock", Lock._take, []

    def late(lock: Lock) -> None:
        if not removed:
            removed.append(path.unlink())
        take(lock)

    monkeypatch.setattr(Lock, "_take", late)
    with only_writer(tmp_path / "vectors"):
        assert path.exists()
        with pytest.raises(BlockingIOError):
            Lock.acquire(path)


def test_an_output_without_a_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"), only_writer(tmp_path / "file" / "out"):
        pass
