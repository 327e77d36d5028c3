"""A GGUF file gives the vectors of the decoder that it was made from, or an error; never something in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_writer import write_gguf
from sentence_transformers import SentenceTransformer
from tiny_models import KIT, save_decoder
from transformers import AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import st_llm2vec
from st_llm2vec import gguf_configs
from st_llm2vec.errors import (
    InvalidCheckpointError,
    InvalidInputError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)

TEXTS = [
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "Steps:\n\n1. Mix  12 eggs\n  2. It's 3.14159 o'clock",
    "  two blanks first, naïve cafe\u0301 编码器 and one last ",
]
MODELS = KIT / "models"
# A decoder's model_type, the tokenizer of the parity kit that it gets, and tokenizer.ggml.pre.
ROWS = [
    ("llama", "llama-base", "llama-bpe"),
    ("llama", "mistral-base", None),
    ("qwen2", "qwen2-base", "qwen2"),
    ("qwen3", "qwen2-base", "qwen2"),
    ("gemma2", "gemma-base", None),
]


def decoder_of(folder: Path, model_type: str, tokenizer: str, **changes: object) -> Path:
    read = AutoTokenizer.from_pretrained(MODELS / tokenizer)
    changes = {"vocab_size": 1024, "tie_word_embeddings": True} | changes
    save_decoder(folder, model_type, **changes)
    for file in (MODELS / tokenizer).glob("*token*"):
        shutil.copy(file, folder)
    assert read.vocab_size <= 1024
    return folder


@pytest.fixture(autouse=True)
def names_of_tensors_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes the same table of names anew for every module of a decoder: half a minute for 46 layers."""
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_of(tmp_path_factory.mktemp("llama") / "decoder", "llama", "llama-base")


@pytest.fixture(scope="module")
def file(llama: Path) -> Path:
    return write_gguf(llama, llama.parent / "tiny.gguf", pre="llama-bpe")


@pytest.mark.parametrize(("model_type", "tokenizer", "pre"), ROWS)
def test_every_row_gives_the_decoders_own_ids_and_vectors(
    model_type: str, tokenizer: str, pre: str | None, tmp_path: Path
) -> None:
    # Not the sizes that transformers takes where it does not look: heads of 8, though 32 wide in 4 heads of 16.
    changes = {"head_dim": 16} if model_type in ("qwen3", "gemma2") else {}
    if model_type == "gemma2":
        changes |= {"sliding_window": 8, "attn_logit_softcapping": 7.0, "query_pre_attn_scalar": 16}
    decoder = decoder_of(tmp_path / "decoder", model_type, tokenizer, **changes)
    keys = {"tokenizer.ggml.add_space_prefix": False} if "gemma" in tokenizer else {}
    path = write_gguf(decoder, tmp_path / "tiny.gguf", pre=pre, keys=keys)
    for attention in ("bidirectional", "causal"):
        expected = st_llm2vec.load(str(decoder), attention=attention, device="cpu")
        model = st_llm2vec.load(str(path), attention=attention, device="cpu")
        assert [model.tokenizer(text)["input_ids"] for text in TEXTS] == [
            expected.tokenizer(text)["input_ids"] for text in TEXTS
        ]
        assert np.abs(model.encode(TEXTS) - expected.encode(TEXTS)).max() <= 1e-5
    assert {architecture for architecture, *_ in ROWS} == gguf_configs._ARCHITECTURES.keys()


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "gpt-2"])
def test_digits_are_cut_before_blanks_where_the_decoders_own_tokenizer_does(pre: str, tmp_path: Path) -> None:
    """'\\n\\n1': SmolLM2 reads both line breaks as one token, and GPT-2's pattern leaves the last one to the digit."""
    decoder = save_decoder(tmp_path / "decoder")
    tokenizer = st_llm2vec.load(
        str(write_gguf(decoder, tmp_path / "tiny.gguf", pre=pre)), device="cpu"
    ).tokenizer.backend_tokenizer
    cut = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")]
    assert cut == (["a", "Ċ", "Ċ", "12"] if pre == "gpt-2" else ["a", "ĊĊ", "1", "2"])


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("qwen2", False), ("gpt-2", False)])
def test_whole_words_of_the_vocabulary_are_not_merged_where_the_decoder_does_not(
    llama: Path, tmp_path: Path, pre: str, expected: bool
) -> None:
    tokenizer = st_llm2vec.load(str(write_gguf(llama, tmp_path / "a.gguf", pre=pre)), device="cpu").tokenizer
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["ignore_merges"] is expected


@pytest.mark.parametrize(("said", "expected"), [(None, True), (True, True), (False, False)])
def test_bos_is_added_where_llama_cpp_adds_it(llama: Path, tmp_path: Path, said: bool | None, expected: bool) -> None:
    path = write_gguf(llama, tmp_path / "a.gguf", pre="llama-bpe", keys={"tokenizer.ggml.add_bos_token": said})
    tokenizer = st_llm2vec.load(str(path), device="cpu").tokenizer
    assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) is expected
    assert tokenizer("<|eot_id|>", add_special_tokens=False)["input_ids"] == [1023]


def test_special_tokens_and_template_are_the_files(llama: Path, tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template": "{% for m in messages %}[{{ m.content }}]{% endfor %}"}
    path = write_gguf(llama, tmp_path / "a.gguf", pre="llama-bpe", keys=keys)
    model = st_llm2vec.load(str(path), device="cpu", template="chat")
    assert model[0].template == {"prefix": "[", "suffix": "]"}
    assert model.tokenizer.bos_token == "<|begin_of_text|>"


@pytest.mark.parametrize(("layers", "scalar"), [(3, 16), (46, 8)])
def test_gemma_2_scales_attention_as_llama_cpp_does(layers: int, scalar: int, tmp_path: Path) -> None:
    """No file says the scale; the default of transformers is that of the 2B and 9B, whose heads are 256 wide."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    sizes |= {"num_hidden_layers": layers, "query_pre_attn_scalar": scalar}
    decoder = decoder_of(tmp_path / "decoder", "gemma2", "gemma-base", **sizes)
    keys = {"tokenizer.ggml.add_space_prefix": False}
    model = st_llm2vec.load(str(write_gguf(decoder, tmp_path / "a.gguf", keys=keys)), device="cpu")
    assert model[0].model.config.query_pre_attn_scalar == scalar
    assert np.abs(model.encode(TEXTS) - st_llm2vec.load(str(decoder), device="cpu").encode(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize("factor", [None, 4.0])
def test_rotary_base_and_linear_scaling_are_the_files(factor: float | None, tmp_path: Path) -> None:
    rope, keys = {"rope_type": "default", "rope_theta": 250000.0}, {}
    if factor:
        rope |= {"rope_type": "linear", "factor": factor}
        keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": factor}
    decoder = decoder_of(tmp_path / "decoder", "llama", "llama-base", rope_parameters=rope)
    path = write_gguf(decoder, tmp_path / "a.gguf", pre="llama-bpe", keys=keys)
    found, expected = (st_llm2vec.load(str(name), device="cpu")[0].model.rotary_emb for name in (path, decoder))
    assert torch.equal(found.inv_freq, expected.inv_freq)
    assert found.inv_freq[0] == 1 / (factor or 1)


def test_llama_3_rotary_factors_are_read_or_refused(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = {"hidden_size": 128, "head_dim": 32, "rope_parameters": rope, "max_position_embeddings": 4096}
    decoder = decoder_of(tmp_path / "decoder", "llama", "llama-base", **sizes)
    config = LlamaConfig.from_pretrained(decoder)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, 32, 2).float() / 32)
    factors = {"rope_freqs.weight": (plain / scaled).numpy()}
    assert factors["rope_freqs.weight"].max() > 7
    path = write_gguf(decoder, tmp_path / "a.gguf", pre="llama-bpe", tensors=factors)
    expected = st_llm2vec.load(str(decoder), device="cpu", max_seq_length=2048)
    model = st_llm2vec.load(str(path), device="cpu", max_seq_length=2048)
    long = "the quick brown fox " * 300
    assert np.abs(model.encode(long) - expected.encode(long)).max() <= 1e-5
    other = {"rope_freqs.weight": np.linspace(1, 8, 16, dtype=np.float32)}
    path = write_gguf(decoder, tmp_path / "b.gguf", pre="llama-bpe", tensors=other)
    with pytest.raises(InvalidCheckpointError, match="not that of a Llama 3"):
        st_llm2vec.load(str(path), device="cpu")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rotary scaling 'yarn'"),
        ({"llama.expert_count": 8}, "expert_count=8"),
        ({"llama.attention.causal": False}, "attention.causal=False"),
        ({"llama.logit_scale": 2.0}, r"logit_scale=2\.0"),
        ({"llama.attention.value_length": 16}, "head_dim is 8 by another key"),
        ({"llama.block_count": None}, "does not say llama.block_count"),
        ({"llama.block_count": 2}, "holds .* weights"),
        ({"llama.block_count": 4}, "holds .* weights"),
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm'"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer is 't5'"),
        ({"split.count": 3}, "one of 3 parts"),
    ],
    ids=str,
)
def test_what_would_be_ignored_in_silence_is_refused(llama: Path, tmp_path: Path, keys: dict, message: str) -> None:
    import gguf

    class Writer(gguf.GGUFWriter):
        """Of keys that are given twice, keeps the first."""

        def add_key_value(self, key: str, *args: object, **options: object) -> None:
            if key not in self.kv_data[0]:
                super().add_key_value(key, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Writer)
        path = write_gguf(llama, tmp_path / "a.gguf", pre="llama-bpe", keys=keys)
    with pytest.raises(InvalidCheckpointError, match=message):
        st_llm2vec.load(str(path), device="cpu")


def test_a_control_token_that_no_text_gives_is_refused(llama: Path, tmp_path: Path) -> None:
    import gguf

    def without(tokens: list[str]) -> list[str]:
        return ["" if token == "<|end_header_id|>" else token for token in tokens]

    add = gguf.GGUFWriter.add_token_list
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_token_list", lambda self, tokens: add(self, without(tokens)))
        path = write_gguf(llama, tmp_path / "a.gguf", pre="llama-bpe")
    with pytest.raises(InvalidCheckpointError, match=r"its token '' is id 1022, and would be read as \[\]"):
        st_llm2vec.load(str(path), device="cpu")


def test_a_tensor_without_a_place_is_refused(llama: Path, tmp_path: Path) -> None:
    more = {"blk.0.attn_q.bias": np.ones(32, np.float32)}
    path = write_gguf(llama, tmp_path / "a.gguf", pre="llama-bpe", tensors=more)
    with pytest.raises(InvalidCheckpointError):
        st_llm2vec.load(str(path), device="cpu")
    path = write_gguf(llama, tmp_path / "b.gguf", pre="llama-bpe", tensors={"blk.0.extra.weight": np.ones(32)})
    with pytest.raises(InvalidCheckpointError, match="holds"):
        st_llm2vec.load(str(path), device="cpu")


def test_encoders_strangers_and_damaged_files(file: Path, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(UnsupportedArchitectureError, match="'bert'"):
        st_llm2vec.load(str(tmp_path / "bert.gguf"), device="cpu")
    (tmp_path / "text.gguf").write_text("not a GGUF file")
    with pytest.raises(InvalidCheckpointError, match="is no GGUF file"):
        st_llm2vec.load(str(tmp_path / "text.gguf"), device="cpu")
    content = file.read_bytes()
    for kept in (3, 4, 20, 200, len(content) // 8, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.gguf").write_bytes(content[:kept])
        with pytest.raises(InvalidCheckpointError):
            st_llm2vec.load(str(tmp_path / "cut.gguf"), device="cpu")
    with pytest.raises(ModelNotFoundError, match="There is no file"):
        st_llm2vec.load(str(tmp_path / "absent.gguf"), device="cpu")


def test_folders_with_gguf_files(file: Path, llama: Path, tmp_path: Path) -> None:
    expected = st_llm2vec.load(str(file), device="cpu").encode(TEXTS)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(file, folder / "one.gguf")
    assert np.array_equal(st_llm2vec.load(str(folder), device="cpu").encode(TEXTS), expected)
    shutil.copy(file, folder / "two.gguf")
    with pytest.raises(InvalidCheckpointError, match=r"one\.gguf, two\.gguf"):
        st_llm2vec.load(str(folder), device="cpu")
    named = {"model_kwargs": {"gguf_file": "two.gguf"}, "device": "cpu"}
    assert st_llm2vec.load(str(folder), **named).provenance["gguf"]["file"] == "two.gguf"
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    assert "gguf" not in st_llm2vec.load(str(folder), device="cpu").provenance  # the safetensors
    assert "gguf" in st_llm2vec.load(str(folder), **named).provenance
    for wrong, error in (
        ("three.gguf", ModelNotFoundError),
        ("../one.gguf", InvalidInputError),
        (1, InvalidInputError),
    ):
        with pytest.raises(error):
            st_llm2vec.load(str(folder), model_kwargs={"gguf_file": wrong}, device="cpu")
    with pytest.raises(InvalidInputError, match="gguf_file must be left out"):
        st_llm2vec.load(str(file), model_kwargs={"gguf_file": "two.gguf"}, device="cpu")


@pytest.mark.parametrize(("quantization", "dtype"), [("Q8_0", torch.float32), ("BF16", torch.bfloat16)])
def test_what_is_saved_and_said_of_a_quantized_file(
    llama: Path, tmp_path: Path, quantization: str, dtype: torch.dtype
) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", pre="llama-bpe", quantization=quantization)
    model = st_llm2vec.load(str(path), device="cpu")
    folder = tmp_path / "encoder"
    model.save_pretrained(str(folder))
    again = st_llm2vec.load(str(folder), device="cpu")
    assert again.provenance == model.provenance
    assert (again.provenance["base_model"], again.provenance["license"]) == ("tiny", "apache-2.0")
    told = again.provenance["gguf"]
    assert (told["file"], "Q8_0" in told["dequantized_from"]) == ("tiny.gguf", quantization == "Q8_0")
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-6
    assert stored_dtypes(folder) == {dtype}
    texts = [f.read_text() for f in folder.iterdir() if f.suffix in (".json", ".md") and f.name != "tokenizer.json"]
    assert not any("st-llm2vec-gguf-" in text for text in texts)  # the temporary folder, which is gone
    rounded = st_llm2vec.load(str(path), dtype="bfloat16", device="cpu")
    assert rounded[0].model.dtype == torch.bfloat16


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    from safetensors.torch import load_file

    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def test_weights_that_the_files_float_type_cannot_hold_stay_as_they_are(llama: Path, tmp_path: Path) -> None:
    norm = np.full(32, 1 + 2**-20, np.float32)  # float16 has 10 bits
    tensors = {"blk.0.attn_norm.weight": norm}
    path = write_gguf(llama, tmp_path / "a.gguf", pre="llama-bpe", quantization="F16", tensors=tensors)
    model = st_llm2vec.load(str(path), device="cpu")
    assert (model[0].model.layers[0].input_layernorm.weight.detach().numpy() == norm).all()


def test_convert_from_the_shell(file: Path, tmp_path: Path) -> None:
    from st_llm2vec.cli import main

    assert main(["convert", str(file), "-o", str(tmp_path / "encoder")]) == 0
    model = st_llm2vec.load(str(tmp_path / "encoder"), device="cpu")
    assert model.provenance["gguf"]["file"] == "tiny.gguf"
    assert np.abs(model.encode(TEXTS) - st_llm2vec.load(str(file), device="cpu").encode(TEXTS)).max() <= 1e-5


def test_an_adapter_that_was_trained_on_a_gguf_file(file: Path, tmp_path: Path) -> None:
    from st_llm2vec.training import add_lora

    model = st_llm2vec.load(str(file), device="cpu")
    add_lora(model, "simcse")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.eval().save_pretrained(str(tmp_path / "adapter"), merge=False)
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(file)
    with pytest.raises(InvalidCheckpointError, match="which only load"):
        SentenceTransformer(str(tmp_path / "adapter"), device="cpu")
    for base in (None, str(file)):
        again = st_llm2vec.load(str(tmp_path / "adapter"), base=base, device="cpu", document_max_length=512)
        assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5
        assert again.provenance["gguf"]["file"] == "tiny.gguf"


def test_without_the_extra(file: Path) -> None:
    script = (
        "import sys; sys.modules['gguf'] = None\n"
        "import st_llm2vec\nfrom st_llm2vec.errors import MissingExtraError\n"
        f"try:\n    st_llm2vec.load({str(file)!r}, device='cpu')\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert "st-llm2vec[gguf]" in done.stdout
    assert issubclass(MissingExtraError, ImportError)
