"""What the JSON files of a checkpoint may hold, as tables: file -> key -> what fits; and the rules for config.json."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidCheckpointError
from .files import leaves, require_below
from .provenance import is_number, is_provenance, is_whole
from .tokens import MAX_ADDED, require_finite_pattern

MAX_PROMPT = 20_000  # characters, before every text; the longest published instructions have 2,000
MAX_PATTERNS = 4096  # of an adapter: more than a decoder has linear layers (Llama 405B: 882)
MAX_SHARDS = 4096  # files of weights; DeepSeek-V3 has 163
# Attention implementations that come with torch and transformers: nothing is fetched for them.
BUILT_IN = ("eager", "sdpa", "flex_attention")
_BUILT_IN_EXPERTS = ("eager", "batched_mm", "grouped_mm")


class Field(NamedTuple):
    """What a value has to be; null is what is not said, everywhere."""

    what: str
    fits: Callable[[Any], bool]


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_prompts(value: Any) -> bool:
    return _are_texts(value) and all(len(text) <= MAX_PROMPT for text in value.values())


def _are_host_prompts(value: Any) -> bool:
    return isinstance(value, dict) and _are_prompts({name: text for name, text in value.items() if text is not None})


def _is_template(value: Any) -> bool:
    return isinstance(value, str) or (_are_prompts(value) and value.keys() <= {"prefix", "suffix"})


def _are_patterns(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_PATTERNS and all(map(is_number, value.values()))


def _are_options(value: Any) -> bool:
    """Arguments of from_pretrained, kept in a file: none that chooses a file, code or something to fetch."""
    if not isinstance(value, dict) or value.keys() & {"use_safetensors", "use_kernels", "weights_only"}:
        return False
    texts = {key: item for key, item in value.items() if item is not None and not isinstance(item, (bool, int, float))}
    built_in = texts.pop("attn_implementation", "sdpa") in BUILT_IN
    return built_in and texts.keys() <= {"dtype", "torch_dtype", "padding_side", "truncation_side"}


def _are_tokens(value: Any) -> bool:
    return isinstance(value, (list, dict)) and len(value) <= MAX_ADDED


def _is_auto_mapping(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("base_model_class", ""), str)


TEXT = Field("a text", lambda value: isinstance(value, str))
SHORT = Field("a text or true or false", lambda value: isinstance(value, (str, bool)))
TRUTH = Field("true or false", lambda value: isinstance(value, bool))
WHOLE = Field("a whole number", is_whole)
COUNT = Field("a whole number from 1 on", lambda value: is_whole(value) and value >= 1)
NUMBER = Field("a finite number", is_number)
OBJECT = Field("an object", lambda value: isinstance(value, dict))
PROMPTS = Field(f"an object of texts of at most {MAX_PROMPT:,} characters", _are_prompts)
HOST_PROMPTS = Field(f"an object of texts of at most {MAX_PROMPT:,} characters, or null", _are_host_prompts)
TOKENS = Field(f"at most {MAX_ADDED:,} tokens", _are_tokens)
PROVENANCE = Field("an object as save_pretrained writes it", is_provenance)
TEMPLATE = Field(f"a name, or prefix and suffix of at most {MAX_PROMPT:,} characters", _is_template)
PATTERNS = Field(f"an object of at most {MAX_PATTERNS:,} numbers", _are_patterns)
OPTIONS = Field("an object of numbers and dtypes, without names of files, kernels or repositories", _are_options)
NAMES = Field("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
NOTHING = Field("null: what it chooses is the user's to say", lambda value: not value)

_OF_OURS = {
    **dict.fromkeys(("pooling_mode", "attention"), TEXT),
    **dict.fromkeys(("max_length", "doc_max_length", "max_seq_length", "document_max_length"), COUNT),
    **dict.fromkeys(("include_prompt", "skip_instruction"), TRUTH),
    "template": TEMPLATE,
    "prompts": PROMPTS,
    "provenance": PROVENANCE,
    "format": WHOLE,
}
_TRANSFORMER = {
    **dict.fromkeys(("max_seq_length", "query_length", "document_length", "document_max_length"), COUNT),
    **dict.fromkeys(("transformer_task", "module_output_name", "attention", "backend"), TEXT),
    **dict.fromkeys(("model_args", "tokenizer_args", "config_args"), OPTIONS),
    **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), OPTIONS),
    **dict.fromkeys(("modality_config", "query_expansion"), OBJECT),
    **dict.fromkeys(("tokenizer_name_or_path", "tokenizer_folder", "processing_kwargs"), NOTHING),
    **dict.fromkeys(("do_lower_case", "unpad_inputs"), TRUTH),
    "template": TEMPLATE,
}
_ADAPTER = {
    **dict.fromkeys(("peft_type", "bias"), TEXT),
    **dict.fromkeys(("alpha_pattern", "rank_pattern"), PATTERNS),
    **dict.fromkeys(("use_rslora", "fan_in_fan_out"), TRUTH),
    "auto_mapping": Field("an object that names a class", _is_auto_mapping),
    "init_lora_weights": SHORT,
    "lora_alpha": NUMBER,
    "megatron_config": NOTHING,  # peft would import the module that megatron_core names
    "r": WHOLE,
}
_TOKENIZER = {
    "fast_tokenizer_files": NAMES,
    "model_max_length": NUMBER,
    **dict.fromkeys(("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"), TOKENS),
    # Arguments of the tokenizer's class that no saved file has: transformers would open what they name.
    **dict.fromkeys(("init_inputs", "vocab", "merges", "tokenizer_object", "gguf_file", "post_processor"), NOTHING),
}
_MODULE = dict.fromkeys(("path", "type", "name"), TEXT)
_OF_HOST = {
    **dict.fromkeys(("default_prompt_name", "similarity_fn_name", "model_type"), TEXT),
    "prompts": HOST_PROMPTS,
    "truncate_dim": COUNT,
}
_CONFIG = {
    **dict.fromkeys(("model_type", "_name_or_path"), TEXT),
    # How attributes of the config are looked up, and which of them are configs: no content of a file.
    **dict.fromkeys(("attribute_map", "sub_configs"), NOTHING),
    "quantization_config": OBJECT,
    "pooling_mode": Field("a name, or a list of names", lambda value: isinstance(value, str) or NAMES.fits(value)),
    "include_prompt": TRUTH,
}
_HOST_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")

# Every JSON file that is opened here or by a library: what kind it is, and what its keys hold.
CONTENTS: dict[str, tuple[type, dict[str, Field]]] = {
    "config.json": (dict, _CONFIG),
    "adapter_config.json": (dict, _ADAPTER),
    "llm2vec_config.json": (dict, _OF_OURS),
    "config_sentence_transformers.json": (dict, _OF_HOST),
    **{f"sentence_{name}_config.json": (dict, _TRANSFORMER) for name in _HOST_NAMES},
    "model.safetensors.index.json": (dict, {"weight_map": OBJECT}),
    "modules.json": (list, _MODULE),
    "tokenizer_config.json": (dict, _TOKENIZER),
    "added_tokens.json": (dict, {}),
    "chat_template.json": (dict, {}),
    "generation_config.json": (dict, {}),
    "preprocessor_config.json": (dict, {}),
    "processor_config.json": (dict, {}),
    "video_preprocessor_config.json": (dict, {}),
    "audio_tokenizer_config.json": (dict, {}),
    "router_config.json": (dict, {}),
    "special_tokens_map.json": (dict, dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), TOKENS)),
    "vocab.json": (dict, {}),
}


def require_fields(path: Path, content: Any) -> None:
    """Raises `InvalidCheckpointError` where a value is of another kind than what reads it expects."""
    fields = CONTENTS[path.name][1]
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            raise _wrong(path, "an entry", "an object", part)
        for key in fields.keys() & part.keys():
            if part[key] is not None and not fields[key].fits(part[key]):
                raise _wrong(path, key, fields[key].what, part[key])
    if special := _RULES.get(path.name):
        special(path, content)


def _wrong(path: Path, key: str, what: str, value: Any) -> InvalidCheckpointError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return InvalidCheckpointError(f"{path}: {key} must be {what}, got {shown}.")


def _require_few_tokens(path: Path, content: dict[str, Any]) -> None:
    if not TOKENS.fits(content):
        raise _wrong(path, "it", TOKENS.what, f"{len(content):,}")


def _require_modules(path: Path, content: list[dict[str, Any]]) -> None:
    if len(content) > 64:
        raise _wrong(path, "it", "a list of at most 64 modules", len(content))
    for module in content:
        if not isinstance(module.get("type"), str):
            raise _wrong(path, "type", "a text", module.get("type"))
        require_below(path, module.get("path"))


def named_weights(path: Path, content: dict[str, Any]) -> list[Path]:
    """The files that a model.safetensors.index.json names, in the order of their names.

    Raises:
        InvalidCheckpointError: A name that leads out of the folder, no safetensors, or more files than any has.
    """
    if not isinstance(content.get("weight_map") or {}, dict):
        raise _wrong(path, "weight_map", OBJECT.what, content["weight_map"])
    names = list((content.get("weight_map") or {}).values())
    if odd := [name for name in names if not isinstance(name, str)]:
        require_below(path, odd[0])  # raises
    files = sorted(set(names))
    if len(files) > MAX_SHARDS:
        raise _wrong(path, "weight_map", f"an object of at most {MAX_SHARDS:,} files", f"{len(files):,}")
    for name in files:
        if not name.endswith(".safetensors") and not leaves(name):
            raise _wrong(path, "weight_map", "an object of names that end in .safetensors", name)
    return [require_below(path, name) for name in files]


def _require_tokenizer_names(path: Path, content: dict[str, Any]) -> None:
    for name in content.get("fast_tokenizer_files") or []:
        require_below(path, name)
    for key, value in content.items():
        # Old files carry where they were saved. What is there on this machine would be read.
        if key.endswith("_file") and isinstance(value, str) and (not leaves(value) or os.path.exists(value)):
            require_below(path, value)


def _require_adapter(path: Path, content: dict[str, Any]) -> None:
    patterns = [*(content.get("alpha_pattern") or ()), *(content.get("rank_pattern") or ())]
    others = (content.get(key) for key in ("target_modules", "exclude_modules", "layers_pattern"))
    for pattern in [*patterns, *(pattern for pattern in others if isinstance(pattern, str))]:
        require_finite_pattern(path, pattern, nested=False)


def require_config(path: Path, content: dict[str, Any]) -> None:
    """Raises `InvalidCheckpointError` where a config has sizes beyond any decoder's, or has something fetched."""
    if "in_features" in content:  # of a Dense; sentence-transformers takes another function where it knows none
        name = content.get("activation_function", "torch.nn.Tanh")
        if not isinstance(name, str) or not re.fullmatch(r"torch\.nn\.(modules\.\w+\.)?\w+", name, re.ASCII):
            raise _wrong(path, "activation_function", "a class of torch.nn", name)
    left: list[Any] = [content]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += [item for item in part if isinstance(item, (dict, list))]
            continue
        for key, value in part.items():
            if key.strip("_").startswith(("attn_implementation", "experts_implementation")):
                _require_no_fetching(path, key, value)
            elif isinstance(value, (dict, list)):
                left.append(value)
            elif is_number(value):
                _require_size(path, key, value)


def _require_no_fetching(path: Path, key: str, value: Any) -> None:
    for name in value.values() if isinstance(value, dict) else [value]:
        if isinstance(name, str) and not re.fullmatch(r"\w*", name, re.ASCII):
            raise InvalidCheckpointError(
                f"{path}: {key} names {name!r}, which transformers would fetch from the hub and run. Only the caller "
                f"may choose that: remove the key, and give model_kwargs={{'attn_implementation': {name!r}}} if you "
                "trust it."
            )


# What a key of config.json counts, how much of it there can be, and why. The first row that fits counts.
SIZES: list[tuple[re.Pattern[str], int, str]] = [
    (re.compile(r"layer_?norm|theta|base|eps|scale|scaling|factor"), MAX_PROMPT**5, "no size"),
    (re.compile(r"label"), 1 << 16, "labels of a classifier; ImageNet has 21,843"),
    (re.compile(r"layer|depth|(^|_)blocks?$|num_blocks"), 1000, "layers; Llama 405B has 126"),
    (re.compile(r"expert"), 1 << 17, "experts, or their width"),
    (re.compile(r"head(s|_count)?$|n_head"), 1 << 14, "attention heads; Llama 405B has 128"),
    (re.compile(r"vocab"), 1 << 24, "tokens of the vocabulary; Gemma 3 has 262,144"),
    (re.compile(r"position|n_ctx|seq_len|context|window|chunk"), 1 << 27, "positions; Llama 4 has 10,485,760"),
    (
        re.compile(r"(^|_)(size|dims?|width|embd|inner|hidden|rank|kernel|groups|features|channels|model|state)(_|$)"),
        1 << 20,
        "a width; Llama 405B has 53,248",
    ),
]


def _require_size(path: Path, key: str, value: float) -> None:
    limit, reason = next(((limit, reason) for names, limit, reason in SIZES if names.search(key)), (None, ""))
    if limit is not None and abs(value) > limit:
        raise InvalidCheckpointError(f"{path}: {key} must be at most {limit:,} ({reason}), got {value:,}.")


_RULES: dict[str, Callable[[Path, Any], object]] = {
    "adapter_config.json": _require_adapter,
    "added_tokens.json": _require_few_tokens,
    "config.json": require_config,
    "model.safetensors.index.json": named_weights,
    "modules.json": _require_modules,
    "tokenizer_config.json": _require_tokenizer_names,
}


def own_attention(config: Any) -> None:
    """Takes back what config.json says of the attention implementation, unless it comes with torch or transformers.

    transformers fetches the others from the hub where their package is missing, `local_files_only` or not.
    """
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    for part in parts:
        if part is None or isinstance(part, dict):
            continue
        if getattr(part, "_attn_implementation", None) not in (None, *BUILT_IN):
            part._attn_implementation = None
        if getattr(part, "_experts_implementation", None) not in (None, *_BUILT_IN_EXPERTS):
            part._experts_implementation = None
