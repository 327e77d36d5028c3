"""Published names in a hub cache that is filled by hand: what belongs on what, at which commit, without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import KIT

import st_llm2vec
from st_llm2vec.checkpoints import SECOND_STAGES, resolve
from st_llm2vec.errors import InvalidCheckpointError, ModelNotFoundError

DECODER = "mistralai/Mistral-7B-Instruct-v0.2"
MNTP = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"
SUPERVISED = f"{MNTP}-supervised"
SIMCSE = f"{MNTP}-unsup-simcse"
TEXTS = [["Retrieve passages that answer", "how much protein"], ["", "a passage"]]


class FakeHub:
    """The layout of a real cache: refs, and a snapshot for each commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, content: Path, commit: str, ref: str = "main") -> Path:
        cache = self.folder / f"models--{name.replace('/', '--')}"
        shutil.copytree(content, cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / ref).write_text(commit)
        return cache / "snapshots" / commit


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Tiny checkpoints under the names of the published Mistral stages; every adapter names the raw decoder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub = FakeHub(tmp_path / "hub")
    for i, (name, stage) in enumerate(
        {DECODER: "base", MNTP: "mntp", SUPERVISED: "mntp-supervised", SIMCSE: "mntp-unsup-simcse"}.items()
    ):
        folder = hub.add(name, KIT / "models" / f"mistral-{stage}", f"{i + 1:040x}")
        if stage != "base":
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": DECODER}))
    return hub


def from_folders(stage: str | None) -> np.ndarray:
    models = KIT / "models"
    adapter = str(models / f"mistral-mntp-{stage}") if stage else None
    return st_llm2vec.load(str(models / "mistral-mntp"), adapter=adapter, device="cpu").encode(TEXTS)


@pytest.mark.parametrize(("name", "stage"), [(MNTP, None), (SUPERVISED, "supervised"), (SIMCSE, "unsup-simcse")])
def test_a_published_name_alone_gives_the_whole_stack(hub: FakeHub, name: str, stage: str | None) -> None:
    model = st_llm2vec.load(name, local_files_only=True, device="cpu")
    assert np.abs(model.encode(TEXTS) - from_folders(stage)).max() <= 1e-6
    assert model.provenance["base_model"] == DECODER  # by which the template is chosen, too
    assert model[0].text_template.prefix == "[INST] "
    commits = {source["name"]: source["commit"] for source in model.provenance["checkpoints"]}
    assert commits[DECODER] == f"{1:040x}"
    assert commits[MNTP] == f"{2:040x}"
    assert (len(commits) == 3) is (stage is not None)


def test_a_second_stage_with_a_config_of_its_own_does_not_skip_mntp(hub: FakeHub) -> None:
    snapshot = hub.folder / f"models--{SUPERVISED.replace('/', '--')}" / "snapshots" / f"{3:040x}"
    shutil.copy(KIT / "models" / "mistral-mntp" / "config.json", snapshot)
    plan = resolve(SUPERVISED, local_files_only=True)
    assert str(plan).splitlines()[:3] == [
        f"decoder    {DECODER} at 000000000000",
        f"+ adapter  {MNTP} at 000000000000",
        f"+ adapter  {SUPERVISED} at 000000000000",
    ]


def test_clones_of_published_stages_find_each_other(hub: FakeHub, tmp_path: Path) -> None:
    for name in (MNTP, SUPERVISED):
        (snapshot,) = (hub.folder / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
        shutil.copytree(snapshot, tmp_path / name)
    plan = resolve(str(tmp_path / SUPERVISED), local_files_only=True)
    assert plan.adapters == (tmp_path / MNTP, tmp_path / SUPERVISED)
    shutil.rmtree(tmp_path / MNTP)
    from_cache = resolve(str(tmp_path / SUPERVISED), local_files_only=True).adapters[0]
    assert from_cache.is_relative_to(hub.folder)


def test_revisions_are_pinned_and_recorded(hub: FakeHub) -> None:
    (snapshot,) = (hub.folder / f"models--{MNTP.replace('/', '--')}" / "snapshots").iterdir()
    hub.add(MNTP, snapshot, "f" * 40, ref="v2")
    for revision in ("v2", "f" * 40):
        pinned = {"name": MNTP, "commit": "f" * 40}
        assert resolve(MNTP, revision=revision, local_files_only=True).sources[0] == pinned
        assert resolve(f"{MNTP}@{revision}", local_files_only=True).sources[0] == pinned
        assert resolve(SUPERVISED, base=f"{MNTP}@{revision}", local_files_only=True).sources[1] == pinned
    assert resolve(SUPERVISED, local_files_only=True).sources[1] == {"name": MNTP, "commit": f"{2:040x}"}
    assert resolve(f"{DECODER}@{1:040x}", local_files_only=True).original_name == DECODER
    with pytest.raises(ModelNotFoundError, match="v9"):
        resolve(MNTP, revision="v9", local_files_only=True)
    with pytest.raises(ModelNotFoundError, match="given once"):
        resolve(f"{MNTP}@main", revision="v2", local_files_only=True)


def test_stages_on_something_else_are_refused(hub: FakeHub) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"was trained on top of .*-mntp, and mistralai"):
        resolve(DECODER, adapter=SUPERVISED, local_files_only=True)  # MNTP would be missing
    hub.add("owner/adapter", KIT / "models" / "mistral-mntp-supervised", "e" * 40)
    with pytest.raises(InvalidCheckpointError, match="base="):
        resolve("owner/adapter", local_files_only=True)
    assert len(resolve("owner/adapter", base=MNTP, local_files_only=True).adapters) == 2


def test_a_repository_that_names_a_local_path_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    shutil.copytree(KIT / "models" / "mistral-mntp", tmp_path / "x")
    path = tmp_path / "x" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(KIT / "models")}))
    hub.add("owner/absolute", tmp_path / "x", "d" * 40)
    with pytest.raises(InvalidCheckpointError, match="neither a folder beside it nor a hub id"):
        resolve("owner/absolute", local_files_only=True)


def test_what_is_not_in_the_cache_is_named(hub: FakeHub) -> None:
    shutil.rmtree(hub.folder / f"models--{DECODER.replace('/', '--')}")
    with pytest.raises(ModelNotFoundError, match=DECODER):
        st_llm2vec.load(SUPERVISED, local_files_only=True)


def test_the_table_has_both_second_stages_of_every_published_decoder() -> None:
    assert len(SECOND_STAGES) == 10
    for second, stage in SECOND_STAGES.items():
        assert second in (f"{stage}-unsup-simcse", f"{stage}-supervised")
