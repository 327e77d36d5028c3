"""Writes an encoder as GGUF, opens it in llama.cpp, and compares the vectors.

    pip install st-llm2vec gguf llama-cpp-python
    python examples/export_gguf.py

llm2vec-tiny has a tokenizer of its own, which llama.cpp's converter does not know, so its few lines are written here.
A decoder that the converter knows needs one command: convert_hf_to_gguf.py FOLDER --outtype f32 (docs/export.md).
"""

import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import LLAMA_POOLING_TYPE_MEAN, Llama
from safetensors.numpy import load_file

import st_llm2vec

TEXTS = [
    "Spring tides are higher than neap tides.",
    "How do I open a file in Python?",
    "with open('notes.txt') as file: print(file.read())",
    "The moon and the sun pull in one line at new moon and at full moon, and the sea rises highest then. " * 3,
    "a",
    "Twice a day, more or less; 12 h 25 min between two of them.",
]


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection as llama.cpp's Llama pairs them: neighbours, where transformers pairs halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder: Path, path: Path) -> None:
    """A Llama folder with mean pooling, as `save_pretrained` of st_llm2vec wrote it."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_causal_attention(config.get("is_causal", True))  # what makes it an encoder
    writer.add_pooling_type(gguf.PoolingType.MEAN)

    ids = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    vocabulary = sorted(ids, key=ids.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocabulary])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in load_file(folder / "model.safetensors").items():
        rotary = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        rows = rotary_order(weight, rotary) if rotary else weight
        writer.add_tensor(names.get_name(f"model.{name}", try_suffixes=(".weight",)), rows.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# 1. Save the portable folder.
encoder = st_llm2vec.load("llm2vec-tiny", device="cpu")
scratch = Path(tempfile.mkdtemp())
encoder.save_pretrained(str(scratch / "encoder"))
ours = encoder.encode(TEXTS)

# 2. Write it as GGUF.
write_gguf(scratch / "encoder", scratch / "encoder.gguf")

# 3. Open that in llama.cpp. A text has to fit in one batch (n_ubatch): each of its tokens sees all the others.
llama = Llama(
    str(scratch / "encoder.gguf"),
    embedding=True,
    pooling_type=LLAMA_POOLING_TYPE_MEAN,
    n_ctx=512,
    n_batch=512,
    n_ubatch=512,
    verbose=False,
)
# llama.cpp has no normalizer, and no blank before the first word: both are done here.
normalizer = encoder.tokenizer.backend_tokenizer.normalizer
prepared = [" " + normalizer.normalize_str(text) for text in TEXTS]
theirs = np.array([llama.embed(text, normalize=False) for text in prepared])

# 4. The same vectors.
same_tokens = all(
    llama.tokenize(text.encode(), add_bos=False, special=False) == encoder.tokenizer(original)["input_ids"][:-1]
    for text, original in zip(prepared, TEXTS, strict=True)
)
cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
print(f"tokens equal: {same_tokens}; cosine of llama.cpp to ours, worst of {len(TEXTS)}: {cosine.min():.6f}")
