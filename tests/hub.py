"""A hub of the tests' own: a cache filled by hand, and a server that takes commits.

The cache has tiny checkpoints under the published names, in the layout that downloads leave.
"""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
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


class FakeHub:
    """What the hub was asked for: repositories with their visibility, commits with their files, tokens.

    Args:
        refuses: Status of its answers to commits, in place of taking them.
    """

    def __init__(self, refuses: int | None = None) -> None:
        self.refuses, self.requests, self.tokens = refuses, [], set()
        self.repositories: dict[str, str] = {}
        self.commits: list[dict[str, bytes]] = []

    def answer(self, path: str, body: bytes, url: str) -> tuple[int, Any]:
        self.requests.append(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, asked["visibility"])
            return 200, {"url": f"{url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if self.refuses:
            return self.refuses, {"error": f"{self.tokens} may not write"}
        rows = [json.loads(line) for line in body.splitlines()]
        files = [row["value"] for row in rows if row["key"] == "file"]
        self.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
        return 200, {"commitUrl": f"{url}/{'/'.join(path.split('/')[3:5])}/commit/{COMMIT}", "commitOid": COMMIT}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """A hub that `huggingface_hub` reaches, and no other."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            hub.tokens.add(self.headers.get("authorization"))
            status, answer = hub.answer(self.path.partition("?")[0], body, url)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{server.server_port}"
        patch.setattr("huggingface_hub.constants.ENDPOINT", url)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
