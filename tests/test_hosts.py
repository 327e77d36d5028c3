"""The private parts of the hosts: each is there, and no file uses one that the table does not name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

import st_llm2vec
from st_llm2vec import hosts
from st_llm2vec.errors import MissingExtraError

PACKAGE = Path(st_llm2vec.__file__).parent


@pytest.mark.parametrize("hook", hosts.HOOKS, ids=lambda hook: f"{hook.host} {hook.name}")
def test_the_installed_host_has(hook: hosts.Hook) -> None:
    assert hosts.missing(hook) == ""


@pytest.mark.parametrize("name", hosts.INSTANCE_HOOKS)
def test_a_config_has(name: str) -> None:
    assert hasattr(transformers.LlamaConfig(), name)


def test_a_host_without_a_hook_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Transformer, "_get_prompt_length")
    with pytest.raises(MissingExtraError, match=r"sentence-transformers \d.*_get_prompt_length.*include_prompt"):
        hosts.require_hooks()


def test_a_host_that_renamed_a_parameter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SentenceTransformer, "_inference", lambda self, inputs, *, prompt, batch_size: None)
    with pytest.raises(MissingExtraError, match="_inference has no parameter 'output_value'"):
        hosts.require_hooks()


def private_names() -> set[str]:
    """Names with one underscore that the package reads from, or takes over from, a host's objects."""
    defined, used = set(), set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                (defined if isinstance(node.ctx, ast.Store) and is_self(node.value) else used).add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
    classes = (SentenceTransformer, Transformer, transformers.PreTrainedModel)
    host_names = {name for host in classes for name in dir(host)}
    host_names |= set(dir(transformers.PretrainedConfig()))
    overridden = {name for name in defined if name in host_names and name.startswith("_")}
    return {name for name in (used - defined) | overridden if name in host_names and not name.startswith("__")}


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def test_no_other_private_name_of_a_host_is_used() -> None:
    torchs = {name for name in dir(torch.nn.Module()) if name.startswith("_")}
    named = {hook.name for hook in hosts.HOOKS} | set(hosts.INSTANCE_HOOKS)
    assert private_names() - torchs <= named
