"""A hub cache filled by hand: tiny checkpoints under the published names, in the layout that downloads leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny_models import KIT

MISTRAL = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"
DECODER = "mistralai/Mistral-7B-Instruct-v0.2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_repository(cache: Path, name: str, folder: Path, **adapter: str) -> Path:
    """Puts a folder under a repository's name; `adapter` changes its adapter_config.json."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if adapter:
        file = snapshot / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | adapter))
    return snapshot


def fill(cache: Path) -> Path:
    """Mistral's decoder, its MNTP stage and both second stages, as McGill-NLP names them."""
    add_repository(cache, DECODER, KIT / "models" / "mistral-base")
    for ending in ("", "-unsup-simcse", "-supervised"):
        folder = KIT / "models" / f"mistral-mntp{ending}"
        add_repository(cache, MISTRAL + ending, folder, base_model_name_or_path=DECODER)
    return cache
