"""`push` writes an encoder's own files to the hub, in one commit, and refuses everything else before it asks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import FakeHub, serving

import st_llm2vec
from st_llm2vec.cli import main
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.publishing import push

TOKEN = "hf_secret"


@pytest.fixture(scope="module")
def saved(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "encoder"
    st_llm2vec.load(str(decoder), device="cpu", pooling_mode="weighted_mean").save_pretrained(str(folder))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """As a run of training leaves it."""
    place = tmp_path / "encoder"
    shutil.copytree(saved, place)
    for name in ("training/settings.json", "adapter/adapter_config.json", "checkpoints/checkpoint-1/optimizer.pt"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("{}")
    return place


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub()) as hub:
        yield hub


def test_an_encoder_goes_in_one_commit(folder: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), "me/encoder", "--token", TOKEN]) == 0
    (commit,) = hub.commits
    wanted = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert wanted.pop("checkpoints/checkpoint-1/optimizer.pt")
    assert {"model.safetensors", "README.md", "modules.json", "adapter/adapter_config.json"} <= commit.keys()
    assert commit == wanted
    assert hub.repositories == {"me/encoder": "private"}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    said = capsys.readouterr()
    assert "me/encoder. The trainer's checkpoints stay here" in said.err
    assert TOKEN not in said.out + said.err


def test_public_is_what_is_asked_for(folder: Path, hub: FakeHub) -> None:
    assert push(folder, "me/encoder", public=True, token=TOKEN).url.endswith("/me/encoder")
    assert hub.repositories == {"me/encoder": "public"}


def test_a_dry_run_lists_the_files_and_asks_nothing(
    folder: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), "me/encoder", "--dry-run", "--token", TOKEN]) == 0
    said = capsys.readouterr()
    assert "model.safetensors" in said.out
    assert "optimizer.pt" not in said.out
    assert "would go to" in said.err
    assert hub.requests == []


def _odd(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")


CHANGES: dict[str, Callable[[Path], object]] = {
    "is a link": lambda folder: (folder / "LICENSE").symlink_to("/etc/hostname"),
    "is a link, and": lambda folder: (folder / "2_Dense").symlink_to(folder.parent),
    r"does not write: notes\.txt": lambda folder: _odd(folder, "notes.txt"),
    r"does not write: \.env": lambda folder: _odd(folder, ".env"),
    r"does not write: modeling\.py": lambda folder: _odd(folder, "modeling.py"),
    r"does not write: pytorch_model\.bin": lambda folder: _odd(folder, "pytorch_model.bin"),
    r"does not write: \.git/config\.json": lambda folder: _odd(folder, ".git/config.json"),
    "no model card": lambda folder: (folder / "README.md").unlink(),
    "no tag": lambda folder: (folder / "README.md").write_text("---\ntags: [x]\n---\n# A model"),
    "no modules.json": lambda folder: (folder / "modules.json").unlink(),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_is_not_an_encoders_is_refused_before_the_hub_is_asked(folder: Path, hub: FakeHub, said: str) -> None:
    CHANGES[said](folder)
    with pytest.raises(InvalidCheckpointError, match=said):
        push(folder, "me/encoder", token=TOKEN)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["encoder", "me/", "a/b/c", "me/en coder", "", "--me/x"])
def test_a_name_that_no_repository_can_have_is_refused(folder: Path, hub: FakeHub, name: str) -> None:
    with pytest.raises(InvalidInputError, match="repository must be 'owner/name'"):
        push(folder, name, token=TOKEN)
    assert hub.requests == []


def test_a_refusal_of_the_hub_does_not_show_the_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeHub(refuses=403)) as hub:
        assert main(["push", str(folder), "me/encoder", "--token", TOKEN, "--debug"]) == 1
        assert hub.commits == []
    said = capsys.readouterr().err
    assert "could not be written" in said
    assert "hf auth login" in said
    assert TOKEN not in said
