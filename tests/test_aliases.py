"""Short names: what they stand for, how they are made once and kept, and what happens when something is in the way."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hub
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_models import KIT

import st_llm2vec
from st_llm2vec import aliases
from st_llm2vec.aliases import ALIASES, Alias
from st_llm2vec.cli import main
from st_llm2vec.errors import CacheError, InvalidInputError, ModelNotFoundError

CHAT = {"prefix": "<s>user\n", "suffix": "</s>"}
TEXTS = ["how much protein should a female eat", "summit define"]


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.fill(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def home(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of ours, and a hub cache that holds the published Mistral."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(aliases, "_registered", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def made(hub_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which llm2vec-mistral has been made."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
        patch.setenv("ST_LLM2VEC_HOME", str(folder))
        SentenceTransformer("llm2vec-mistral", device="cpu")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock")


def python(script: str, **environment: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_published_names() -> None:
    assert len(ALIASES) == 13
    assert str(ALIASES["llm2vec-mistral"]) == f"{hub.MISTRAL} + {hub.MISTRAL}-unsup-simcse"
    assert str(ALIASES["llm2vec-llama-3-supervised"]) == (
        "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp + McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-supervised"
    )
    assert str(ALIASES["llm2vec-llama-2-mntp"]) == "McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp"
    assert str(ALIASES["llm2vec-sheared-llama-mntp"]) == "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp"
    assert all(alias.revision is None for alias in ALIASES.values())


@pytest.mark.parametrize("ending", ["", "-supervised", "-mntp"])
def test_one_call_gives_the_vectors_of_the_stack(home: Path, ending: str) -> None:
    model = SentenceTransformer(f"llm2vec-mistral{ending}", device="cpu")
    adapter = {"": "-unsup-simcse", "-mntp": None}.get(ending, ending)
    stack = st_llm2vec.load(hub.MISTRAL, adapter=adapter and hub.MISTRAL + adapter, device="cpu")
    assert np.abs(model.encode(TEXTS) - stack.encode(TEXTS)).max() <= 1e-6
    prompt = "Given a web search query, retrieve relevant passages that answer the query: "
    assert np.abs(model.encode_query(TEXTS) - stack.encode(TEXTS, prompt=prompt)).max() <= 1e-6
    assert np.abs(model.encode_document(TEXTS) - stack.encode(TEXTS)).max() <= 1e-6
    assert model.pooling_mode == stack.pooling_mode
    assert {source["commit"] for source in model.provenance["checkpoints"]} == {hub.COMMIT}
    assert model.provenance["checkpoints"][0]["name"] == hub.MISTRAL


class Hub(BaseHTTPRequestHandler):
    """A hub that has no repository and one that is gated; it counts what it is asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        gated = "Llama-3" in self.path
        self.send_response(403 if gated else 401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "Access to this resource is restricted." if gated else "Not found.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the name that the server calls

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[str]]]:
    handler = type("Counting", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


def test_a_kept_name_asks_nothing_of_a_hub_that_is_there(
    made: Path, tmp_path: Path, endpoint: tuple[str, list[str]]
) -> None:
    """Online, with a hub that counts; then what that hub refuses is explained."""
    script = """
import st_llm2vec
from sentence_transformers import SentenceTransformer
print(SentenceTransformer("llm2vec-mistral", device="cpu").encode("a").shape, st_llm2vec.load("llm2vec-mistral").device)
print("now", flush=True); input()
for name in ("llm2vec-llama-3", "llm2vec-sheared-llama"):
    try:
        SentenceTransformer(name, device="cpu")
    except st_llm2vec.LLM2VecError as error:
        print(type(error).__name__, repr(str(error)))
"""
    url, asked = endpoint
    settings = {"ST_LLM2VEC_HOME": str(made), "HF_ENDPOINT": url, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, **settings}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline().startswith("(64,)")
    assert process.stdout.readline() == "now\n"
    assert asked == []
    gated, absent = process.communicate("\n", timeout=300)[0].splitlines()
    assert asked
    assert "GatedRepoError" in gated
    assert "https://huggingface.co/McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp" in gated
    assert "hf auth login" in gated
    assert "Run this where there is a network" not in gated + absent
    assert "RepositoryNotFoundError" in absent
    assert "hf auth login" in absent


def test_a_kept_name_needs_no_hub_cache(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setenv("ST_LLM2VEC_HOME", str(made))
    for name in ("snapshot_download", "hf_hub_download", "HfApi.model_info", "HfApi.repo_info"):
        monkeypatch.setattr(f"huggingface_hub.{name}", fail)
    monkeypatch.setattr("st_llm2vec.hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    a = SentenceTransformer("llm2vec-mistral", device="cpu").encode(TEXTS)
    b = st_llm2vec.load("llm2vec-mistral", device="cpu").encode(TEXTS)
    assert np.abs(a - b).max() <= 1e-5


def test_offline_and_absent_says_what_to_run(home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"st-llm2vec convert llm2vec-llama-2 -o llm2vec-llama-2"):
        SentenceTransformer("llm2vec-llama-2", device="cpu")
    assert files(home) == []


def test_a_revision_is_not_ignored(home: Path) -> None:
    for build in (SentenceTransformer, st_llm2vec.load):
        with pytest.raises(InvalidInputError, match=r"revision must be left out for 'llm2vec-.*got 'v1'"):
            build("llm2vec-mistral", revision="v1")


SLOW_FIRST_USE = """
import sys, time
from pathlib import Path
import st_llm2vec, st_llm2vec.loading
from sentence_transformers import SentenceTransformer
write = st_llm2vec.loading.write_alias
def slow(name, alias, folder, *args):
    print("making", flush=True)
    write(name, alias, folder, *args)
    time.sleep(float(sys.stdin.readline()))
st_llm2vec.loading.write_alias = slow
print("ready", flush=True)
sys.stdin.readline()
print(SentenceTransformer("llm2vec-mistral", device="cpu").encode("a fox").tolist(), flush=True)
"""


def first_use(home: Path, hub_cache: Path) -> subprocess.Popen[str]:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub_cache), "ST_LLM2VEC_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_FIRST_USE], env=settings, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_two_processes_at_once_make_it_once(home: Path, hub_cache: Path) -> None:
    both = [first_use(home, hub_cache) for _ in range(2)]
    assert [process.stdout.readline() for process in both if process.stdout] == ["ready\n"] * 2
    for process in both:
        assert process.stdin
        process.stdin.write("\n1\n")
        process.stdin.flush()
    lines = [process.communicate(timeout=300)[0].splitlines() for process in both]
    assert sorted(map(len, lines)) == [1, 2]  # one of them has said that it is making
    assert lines[0][-1] == lines[1][-1]
    assert len(json.loads(lines[0][-1])) == 64
    (kept,) = (home / "models" / "llm2vec-mistral").iterdir()
    assert kept.name == ALIASES["llm2vec-mistral"].digest


def test_a_process_that_is_killed_leaves_nothing_that_is_opened(home: Path, hub_cache: Path) -> None:
    process = first_use(home, hub_cache)
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n600\n")
    process.stdin.flush()
    place = home / "models" / "llm2vec-mistral"
    while not any(place.rglob("llm2vec_config.json")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [folder.name[:7] for folder in place.iterdir()] == [".draft-"]  # complete, but not said to be
    assert SentenceTransformer("llm2vec-mistral", device="cpu").encode("a fox").shape == (64,)
    assert [folder.name for folder in place.iterdir()] == [ALIASES["llm2vec-mistral"].digest]


def damaged(home: Path, change: Callable[[Path], object]) -> Path:
    SentenceTransformer("llm2vec-mistral", device="cpu")
    (place,) = (home / "models" / "llm2vec-mistral").iterdir()
    change(place)
    return place


@pytest.mark.parametrize(
    "change",
    [
        lambda place: (place / "model.safetensors").write_bytes(b"cut"),
        lambda place: (place / "modules.json").unlink(),
        lambda place: (place / "alias.json").write_text(""),
        lambda place: (place / "alias.json").unlink(),
    ],
    ids=["cut weights", "missing file", "empty list", "no list"],
)
def test_a_damaged_cache_is_not_opened(home: Path, change: Callable[[Path], object]) -> None:
    damaged(home, change)
    with pytest.raises(CacheError, match=r"damaged.*st-llm2vec models remove llm2vec-mistral"):
        SentenceTransformer("llm2vec-mistral", device="cpu")
    assert main(["models", "remove", "llm2vec-mistral"]) == 0
    assert SentenceTransformer("llm2vec-mistral", device="cpu").encode("a").shape == (64,)


def test_a_disk_that_fills_while_merging_leaves_a_consistent_cache(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the weights have 511,128 bytes
    try:
        with pytest.raises(CacheError, match=r"could not be written.*Nothing was left there"):
            SentenceTransformer("llm2vec-mistral", device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(home) == []
    assert SentenceTransformer("llm2vec-mistral", device="cpu").encode("a").shape == (64,)


def test_a_cache_that_cannot_be_written_is_named(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(CacheError, match="ST_LLM2VEC_HOME"):
        SentenceTransformer("llm2vec-mistral", device="cpu")


def test_a_folder_of_the_name_wins(home: Path, decoder: Path) -> None:
    st_llm2vec.load(str(decoder), device="cpu").save_pretrained("llm2vec-mistral")
    assert SentenceTransformer("llm2vec-mistral", device="cpu").get_embedding_dimension() == 32
    assert st_llm2vec.load("llm2vec-mistral", device="cpu").get_embedding_dimension() == 32
    assert not home.exists()


def test_a_registered_name_and_its_settings(home: Path, decoder: Path) -> None:
    st_llm2vec.register_alias(
        "mine", str(decoder), prompts={"query": "find: "}, settings={"pooling_mode": "last_token", "template": CHAT}
    )
    model = SentenceTransformer("mine", device="cpu")
    same = st_llm2vec.load(str(decoder), pooling_mode="last_token", template=CHAT, device="cpu")
    assert np.abs(model.encode_query(TEXTS) - same.encode(TEXTS, prompt="find: ")).max() <= 1e-5
    assert np.abs(st_llm2vec.load("mine", device="cpu").encode(TEXTS) - same.encode(TEXTS)).max() <= 1e-5

    st_llm2vec.register_alias("mine", str(decoder))  # another meaning is not answered from what was kept
    assert SentenceTransformer("mine", device="cpu").pooling_mode == "mean"
    st_llm2vec.unregister_alias("mine")
    assert aliases.find("mine") is None
    with pytest.raises(InvalidInputError, match="not registered"):
        st_llm2vec.unregister_alias("mine")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, *names: str) -> None:
    """A package that gives names, as pip would leave it in a folder of sys.path."""
    facts = folder / "encoders_of_others-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: encoders-of-others\nVersion: 1.0\n")
    points = "\n".join(f"{name} = encoders_of_others:alias" for name in names)
    (facts / "entry_points.txt").write_text(f"[{aliases.GROUP}]\n{points}\n")
    (folder / "encoders_of_others.py").write_text(body)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "encoders_of_others", raising=False)


def test_an_installed_package_gives_names(
    home: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"from st_llm2vec.aliases import Alias\ndef alias():\n    return Alias({str(decoder)!r})\n"
    install(tmp_path / "site", monkeypatch, body, "llm2vec-others", "llm2vec-tiny", "\x1b]0;x")
    assert {*ALIASES, "llm2vec-others"} <= set(aliases.names())
    assert "\x1b]0;x" not in aliases.names()
    assert "encoders_of_others" not in sys.modules, "listing names imports no package"
    assert aliases.find("llm2vec-tiny") == ALIASES["llm2vec-tiny"], "no package takes the place of our own names"
    model = SentenceTransformer("llm2vec-others", device="cpu")
    same = st_llm2vec.load(str(decoder), device="cpu")
    assert np.abs(model.encode(TEXTS) - same.encode(TEXTS)).max() <= 1e-5
    st_llm2vec.register_alias("llm2vec-others", str(decoder), prompts={"query": "find: "})
    assert aliases.find("llm2vec-others").prompts == {"query": "find: "}, "what this process says comes first"


@pytest.mark.parametrize(
    ("body", "said"),
    [("import not_there", "ModuleNotFoundError"), ("alias = 'owner/name'", "got a str"), ("", "AttributeError")],
)
def test_a_broken_package_is_named_and_disturbs_no_other_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    install(tmp_path / "site", monkeypatch, body, "llm2vec-others")
    with pytest.raises(InvalidInputError, match=f"encoders-of-others.*llm2vec-others.*{said}"):
        SentenceTransformer("llm2vec-others", device="cpu")
    assert SentenceTransformer("llm2vec-tiny", device="cpu").get_embedding_dimension() == 256


def test_a_name_of_a_package_that_is_not_installed_says_what_to_type(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "entry_points", lambda group: [])
    with pytest.raises(ModelNotFoundError, match="pip install st-llm2vec-smollm2"):
        SentenceTransformer("llm2vec-smollm2", device="cpu")


def test_an_encoders_folder_is_opened_where_it_lies(home: Path, decoder: Path, tmp_path: Path) -> None:
    st_llm2vec.load(str(decoder), device="cpu").save_pretrained("encoder")
    st_llm2vec.register_alias("near", "encoder")
    os.chdir(home.parent.parent)  # given relative to where it was registered
    assert SentenceTransformer("near", device="cpu").get_embedding_dimension() == 32
    assert not home.exists()


def test_a_changed_local_checkpoint_is_made_anew(home: Path, decoder: Path) -> None:
    before = Alias(str(decoder), prompts={"query": "a"}).digest
    os.utime(decoder / "config.json")
    assert Alias(str(decoder), prompts={"query": "a"}).digest != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("../up", "a/b"), "name must be .*, got '../up'"),
        (("a/b", "a/b"), "name must be .*, got 'a/b'"),
        ((".hidden", "a/b"), r"name must be .*, got '\.hidden'"),
        (("x", "nowhere"), "model must be a folder or a hub id .*, got 'nowhere'"),
        (("x", "../../etc/passwd"), "must be a folder or a hub id"),
        (("x", "llm2vec-mistral"), "must be a folder or a hub id"),
        (("x", "a/b@"), "must be a folder or a hub id"),
        (("x", "a/b", {"adapter": "nowhere"}), "adapter must be .*, got 'nowhere'"),
        (("x", "a/b", {"prompts": {"query": 3}}), "prompts must be texts by name"),
        (("x", "a/b", {"settings": {"pooling": "mean"}}), "'pooling'"),
    ],
)
def test_what_cannot_be_registered(home: Path, arguments: tuple[Any, ...], said: str) -> None:
    name, model, *options = arguments
    with pytest.raises(InvalidInputError, match=said):
        st_llm2vec.register_alias(name, model, **(options[0] if options else {}))


def test_a_hub_id_carries_its_revision_in_an_alias_as_in_load(home: Path) -> None:
    st_llm2vec.register_alias("x", "a/b@v1", adapter="a/c@refs/pr/1")
    assert str(aliases.find("x")) == "a/b@v1 + a/c@refs/pr/1"
    st_llm2vec.unregister_alias("x")


def test_names_of_the_users_file(home: Path) -> None:
    home.mkdir()
    names = {"ours": {"model": hub.MISTRAL, "adapter": f"{hub.MISTRAL}-supervised", "prompts": {"query": "Q: "}}}
    aliases.config_file().write_text(json.dumps(names))
    model = SentenceTransformer("ours", device="cpu")
    assert model.prompts["query"] == "Q: "
    assert np.array_equal(model.encode(TEXTS), SentenceTransformer("llm2vec-mistral-supervised").encode(TEXTS))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"x": 3}', '{"x": {}}', '{"x": {"model": 3}}', '{"../x": {"model": "a/b"}}', '{"x": {"path": "a/b"}}',
     '{"x": {"model": "a/b", "prompts": ["q"]}}', '{"x": {"model": "../../a"}}'],
)  # fmt: skip
def test_a_users_file_that_cannot_be_used_is_named(home: Path, content: str) -> None:
    home.mkdir()
    aliases.config_file().write_text(content)
    with pytest.raises(InvalidInputError, match=r"aliases\.json cannot be used"):
        SentenceTransformer("x")


def test_superseded_builds_are_told_and_removed(home: Path, decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aliases.config_file().parent.mkdir(parents=True)

    def means(**meaning: Any) -> SentenceTransformer:
        aliases.config_file().write_text(json.dumps({"mine": {"model": str(decoder), **meaning}}))
        return SentenceTransformer("mine", device="cpu")

    old = means()
    assert main(["models"]) == 0
    assert "stand for something else" not in capsys.readouterr().err
    before = old.encode(TEXTS)
    new = means(prompts={"query": "find: "}).encode_query(TEXTS)
    place = home / "models" / "mine"
    (place / ".draft-of-another").mkdir()
    assert len(list(place.iterdir())) == 3
    assert main(["models"]) == 0
    assert re.search(r"[0-9.]+ MB are builds of names .*models remove --superseded", capsys.readouterr().err)
    assert main(["models", "remove", "llm2vec-mistral", "--superseded"]) == 1
    assert main(["models", "remove"]) == 2
    assert len(list(place.iterdir())) == 3
    assert main(["models", "remove", "--superseded"]) == 0
    assert {folder.name for folder in place.iterdir()} == {aliases.find("mine").digest, ".draft-of-another"}
    assert np.array_equal(old.encode(TEXTS), before)  # open, and still there for it
    assert np.array_equal(SentenceTransformer("mine", device="cpu").encode_query(TEXTS), new)
    assert main(["models", "remove", "--superseded"]) == 0
    assert "Superseded builds: 0.0 MB deleted" in capsys.readouterr().err


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ST_LLM2VEC_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert aliases.cache_folder() == tmp_path / "cache" / "st_llm2vec" / "models"
    assert aliases.config_file() == tmp_path / "config" / "st_llm2vec" / "aliases.json"


def test_the_kit_stands_in_for_the_published_checkpoints() -> None:
    config = json.loads((KIT / "models" / "mistral-mntp" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mistral-base"  # which hub.py changes to the published name


def test_langchain_and_llama_index_open_names_with_their_own_classes(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their classes where they are installed; else the calls that those make (versions 1.2 and 0.8)."""
    monkeypatch.setenv("ST_LLM2VEC_HOME", str(made))
    monkeypatch.chdir(tmp_path)
    wanted = SentenceTransformer("llm2vec-mistral", device="cpu").encode(TEXTS)
    try:
        from langchain_huggingface import HuggingFaceEmbeddings
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    except ImportError:
        cache: dict[str, Any] = {"cache_folder": None, "device": "cpu"}
        prompts = {"query": "", "text": ""}
        for options in (cache, {**cache, "trust_remote_code": False, "prompts": prompts}):
            assert np.array_equal(SentenceTransformer("llm2vec-mistral", **options).encode(TEXTS), wanted)
        return
    langchain = HuggingFaceEmbeddings(model_name="llm2vec-mistral", model_kwargs={"device": "cpu"})
    llama_index = HuggingFaceEmbedding(model_name="llm2vec-mistral", device="cpu", normalize=False)
    assert np.allclose(langchain.embed_documents(TEXTS), wanted, atol=1e-5)
    assert np.allclose(llama_index.get_text_embedding_batch(TEXTS), wanted, atol=1e-5)
