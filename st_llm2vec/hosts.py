"""The private parts of sentence-transformers, transformers and peft that we stand on: each with why, in one table.

A private name may change in any release. Where one is gone, `require_hooks` says so in one sentence, before anything
is loaded, and tests/test_hosts.py holds that the package uses no other. `make test-bounds` runs the oldest hosts.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple

from .errors import MissingExtraError


class Hook(NamedTuple):
    """A private name of a host, where it is found, and the parameters that we pass or take."""

    host: str
    place: str  # module, or module:Class
    name: str
    why: str
    parameters: tuple[str, ...] = ()


_BASE = "sentence_transformers.base.model:BaseModel"
_DENSE = "sentence_transformers:SentenceTransformer"
_TRANSFORMER = "sentence_transformers.base.modules:Transformer"
_ST, _HF, _PEFT = "sentence-transformers", "transformers", "peft"

HOOKS = (
    Hook(_ST, _BASE, "_load_module_class_from_ref", "our classes in modules.json", ("class_ref",)),
    Hook(_ST, _BASE, "_resolve_inference_device", "where a batch runs", ("device",)),
    Hook(_ST, _BASE, "_placement_is_delegated", "whether accelerate places the weights"),
    Hook(_ST, _DENSE, "_get_model_config", "requirements of a saved folder"),
    Hook(
        _ST,
        _DENSE,
        "_inference",
        "batches of tokens instead of texts",
        ("prompt", "batch_size", "output_value", "save_to_cpu", "normalize_embeddings", "truncate_dim", "device"),
    ),
    Hook(_ST, _TRANSFORMER, "_load_model", "weights that a file lacks are an error", ("model_name_or_path",)),
    Hook(_ST, _TRANSFORMER, "_get_prompt_length", "what include_prompt=False leaves out", ("prompt",)),
    Hook(_ST, _TRANSFORMER, "_merge_processing_kwargs", "options of one call over those of the module"),
    Hook(_HF, "transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS", "the implementation that packing wraps"),
    Hook(_HF, "transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS", "its mask function"),
    Hook(_HF, "transformers:PretrainedConfig", "_attn_implementation", "the implementation that a model has"),
    Hook(_HF, "transformers:PreTrainedModel", "_supports_sdpa", "what stock classes will choose"),
    Hook(_HF, "transformers:PreTrainedModel", "_hf_peft_config_loaded", "a merged copy is no adapter any more"),
    Hook(
        _HF,
        "transformers.models.auto.modeling_auto",
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "encoders, which have no causal mask",
    ),
    Hook(_HF, "transformers.trainer_utils", "PREFIX_CHECKPOINT_DIR", "folders that stay adapter + optimizer"),
    Hook(_PEFT, "peft.tuners.tuners_utils", "BaseTunerLayer", "the layers that adapters are merged from"),
    Hook(_PEFT, "peft.utils.other", "get_pattern_key", "ranks and alphas of single layers"),
)
# Set on objects rather than on classes: tests/test_hosts.py looks for them on a model.
INSTANCE_HOOKS = ("_attn_implementation_internal", "_experts_implementation")


def missing(hook: Hook) -> str:
    """What of a hook the installed host lacks; empty if nothing."""
    module, _, owner = hook.place.partition(":")
    try:
        place = importlib.import_module(module)
        found = getattr(getattr(place, owner) if owner else place, hook.name)
    except (ImportError, AttributeError):
        return f"{hook.place} has no {hook.name}"
    if hook.parameters:
        known = inspect.signature(found).parameters
        if unknown := [name for name in hook.parameters if name not in known]:
            return f"{hook.place}.{hook.name} has no parameter {unknown[0]!r}"
    return ""


def require_hooks() -> None:
    """Raises `MissingExtraError` where an installed host is a version that we cannot stand on."""
    for hook in HOOKS:
        if hook.host == _PEFT:  # is imported only where adapters are
            continue
        if lack := missing(hook):
            raise MissingExtraError(
                f"{hook.host} {version(hook.host)} is not supported: {lack}, which st_llm2vec needs for: {hook.why}. "
                f"Install a tested version: pip install --upgrade st-llm2vec (its bounds choose {hook.host})."
            )


@contextmanager
def no_load_report() -> Iterator[None]:
    """Keep transformers' report on tensors that a model does not use, such as an encoder's language-model head."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_load_report)
    try:
        yield
    finally:
        log.removeFilter(_is_no_load_report)


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
