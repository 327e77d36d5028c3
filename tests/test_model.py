"""load, encode, save, reopen: the vectors stay the same, whoever opens the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import KIT, save_decoder, tiny_decoder, tiny_tokenizer

import st_llm2vec
from st_llm2vec.bidirectional import twin
from st_llm2vec.errors import (
    InvalidCheckpointError,
    InvalidInputError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from st_llm2vec.modules import POOLING_MODES, LLM2VecTransformer
from st_llm2vec.templates import Template

TEXTS = ["a", "the quick brown fox", "lazy dog " * 300, "naïve café 编码器", "search"]
STOCK = ["Transformer", "Pooling"]
OURS = ["LLM2VecTransformer", "LLM2VecPooling"]
CHAT = Template("<s>user\n", "</s>")


def class_names(folder: Path) -> list[str]:
    return [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]


def plain_encode(folder: Path, texts: list[str], prompt: str = "", trust: bool = False) -> np.ndarray:
    """Vectors from a fresh process that imports sentence-transformers only."""
    out = folder.parent / "plain.npy"
    script = (
        "import sys, numpy as np\nfrom sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(folder)!r}, device='cpu', trust_remote_code={trust})\n"
        f"assert ('st_llm2vec' in sys.modules) is {trust}\n"
        f"np.save({str(out)!r}, model.encode({texts!r}, prompt={prompt!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300)
    return np.load(out)


def test_stock_row_is_saved_in_stock_classes_and_opens_without_us(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    model.save_pretrained(str(tmp_path / "encoder"))
    assert class_names(tmp_path / "encoder") == STOCK
    for prompt in ("", "Find what answers:"):
        ours = model.encode(TEXTS, prompt=prompt)
        assert np.abs(plain_encode(tmp_path / "encoder", TEXTS, prompt) - ours).max() <= 1e-5
        assert (
            np.abs(
                SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(TEXTS, prompt=prompt) - ours
            ).max()
            <= 1e-5
        )


@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        ({}, OURS),
        ({"include_prompt": True}, STOCK),
        ({"pooling_mode": "last_token"}, STOCK),
        ({"pooling_mode": "weighted_mean"}, OURS),
        ({"pooling_mode": "bos_token"}, OURS),
        ({"pooling_mode": "eos_token"}, OURS),
        ({"include_prompt": True, "document_max_length": 8}, OURS),
        ({"include_prompt": True, "template": CHAT}, OURS),
        ({"include_prompt": True, "attention": "causal"}, OURS),
    ],
    ids=str,
)
def test_classes_of_a_bos_decoder_and_reopening_through_the_plugin(
    bos_decoder: Path, tmp_path: Path, settings: dict, classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu", **settings)
    folder = tmp_path / "encoder"
    model.save_pretrained(str(folder))
    assert class_names(folder) == classes
    assert ("names st_llm2vec's own" in caplog.text) is (classes == OURS)
    again = SentenceTransformer(str(folder), device="cpu")
    assert isinstance(again, st_llm2vec.LLM2Vec)
    for prompt in ("", "Find: "):
        assert np.abs(again.encode(TEXTS, prompt=prompt) - model.encode(TEXTS, prompt=prompt)).max() <= 1e-5
    loaded = st_llm2vec.load(str(folder), device="cpu")
    assert again.fingerprint == model.fingerprint == loaded.fingerprint
    assert loaded.provenance == model.provenance
    again.save_pretrained(str(tmp_path / "again"))
    assert class_names(tmp_path / "again") == classes


def test_our_classes_open_in_plain_st_with_the_flag_only(bos_decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(bos_decoder), template=CHAT, device="cpu")
    model.save_pretrained(str(tmp_path / "encoder"))
    plain = plain_encode(tmp_path / "encoder", TEXTS, "Find: ", trust=True)
    assert np.abs(plain - model.encode(TEXTS, prompt="Find: ")).max() <= 1e-5
    with pytest.raises(subprocess.CalledProcessError):
        plain_encode(tmp_path / "encoder", TEXTS)


def test_without_excluding_bos_stock_would_differ(bos_decoder: Path) -> None:
    """The row that decides the class is real: pooling BOS changes the vector."""
    ours = st_llm2vec.load(str(bos_decoder), device="cpu").encode(TEXTS)
    stock = st_llm2vec.load(str(bos_decoder), device="cpu", include_prompt=True).encode(TEXTS)
    assert np.abs(ours - stock).max() > 1e-2


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("include_prompt", [False, True])
def test_vectors_do_not_depend_on_the_batch(bos_decoder: Path, mode: str, include_prompt: bool) -> None:
    model = st_llm2vec.load(str(bos_decoder), pooling_mode=mode, include_prompt=include_prompt, device="cpu")
    texts = [*TEXTS, "", "   "]
    together = model.encode(texts, prompt="Find: ")
    alone = np.stack([model.encode(text, prompt="Find: ") for text in texts])
    assert np.isfinite(together).all()
    assert (np.linalg.norm(together, axis=1) > 1e-3).all()
    assert np.abs(together - alone).max() <= 1e-5
    assert np.abs(model.encode(texts[::-1], prompt="Find: ", batch_size=2)[::-1] - together).max() <= 1e-5


def test_empty_and_odd_inputs(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    assert model.encode([]).shape == (0, 32)
    assert model.encode("").shape == (32,)
    assert np.abs(model.encode("")).max() > 0
    assert np.isfinite(model.encode("x" * 100_000)).all()
    assert np.allclose(model.encode(["a", ""])[1], model.encode(""), atol=1e-6)
    with pytest.raises(InvalidInputError, match=r"Input 1 must be .*, got int"):
        model.encode(["a", 3])
    with pytest.raises(ValueError, match="qeury"):
        model.encode("a", prompt_name="qeury")
    pair = model.encode([["Find:", "lazy dog"]])
    assert np.allclose(pair, model.encode(["lazy dog"], prompt="Find: "), atol=1e-6)
    assert not np.allclose(pair, model.encode(["lazy dog"]), atol=1e-3)


def test_causal_on_request_and_both_directions_differ(decoder: Path) -> None:
    causal = st_llm2vec.load(str(decoder), attention="causal", device="cpu")
    both = st_llm2vec.load(str(decoder), device="cpu")
    assert np.abs(causal.encode(TEXTS) - both.encode(TEXTS)).max() > 1e-2
    causal[0].attention = "bidirectional"
    assert np.allclose(causal.encode(TEXTS), both.encode(TEXTS), atol=1e-6)


def test_multi_process_gives_the_same_vectors(decoder: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    assert np.abs(model.encode(TEXTS, device=["cpu"], chunk_size=2) - model.encode(TEXTS)).max() <= 1e-5


def test_saved_folder_states_its_needs_and_origin(decoder: Path, tmp_path: Path) -> None:
    shutil.copytree(decoder, tmp_path / "licensed")
    (tmp_path / "licensed" / "README.md").write_text("---\nlicense: mit\n---\n# A decoder\n")
    model = st_llm2vec.load(str(tmp_path / "licensed"), device="cpu")
    model.prompts["query"] = "Find what answers: "
    model.save_pretrained(str(tmp_path / "encoder"))
    read = {
        name: json.loads((tmp_path / "encoder" / name).read_text())
        for name in ("config_sentence_transformers.json", "llm2vec_config.json", "config.json")
    }
    assert read["config_sentence_transformers.json"]["requirements"]["transformers"]["specifier"] == ">=5.2"
    assert read["config_sentence_transformers.json"]["prompts"]["query"] == "Find what answers: "
    assert read["config.json"]["is_causal"] is False
    assert read["llm2vec_config.json"]["provenance"]["license"] == "mit"
    assert read["llm2vec_config.json"]["audit"]["bidirectional"] is True
    assert "license: mit" in (tmp_path / "encoder" / "README.md").read_text()
    again = st_llm2vec.load(str(tmp_path / "encoder"), device="cpu")
    assert again.prompts["query"] == "Find what answers: "
    assert again.provenance["license"] == "mit"


def test_saving_over_a_folder_is_all_or_nothing(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu")
    folder = tmp_path / "encoder"
    model.save_pretrained(str(folder))
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model[0].model), "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(str(folder))
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(str(tmp_path / "new"))
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    assert [item.name for item in tmp_path.iterdir()] == ["encoder"]  # no half-written folder is left


def test_a_tokenizer_without_pad_token_is_handled(tmp_path: Path) -> None:
    save_decoder(tmp_path / "no-pad", tokenizer=tiny_tokenizer(pad=False))
    model = st_llm2vec.load(str(tmp_path / "no-pad"), device="cpu")
    assert np.abs(model.encode(["a", "a b c d e"])[0] - model.encode("a")).max() <= 1e-5


def test_names_and_folders_that_cannot_be_loaded(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no folder"):
        st_llm2vec.load(str(tmp_path / "absent"))
    with pytest.raises(ModelNotFoundError, match="owner/absent"):
        st_llm2vec.load("owner/absent", local_files_only=True)
    shutil.copytree(decoder, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    with pytest.raises(InvalidCheckpointError, match=r"no \*.safetensors weights"):
        st_llm2vec.load(str(tmp_path / "empty"))
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidCheckpointError, match=r"pytorch_model.bin, a pickle"):
        st_llm2vec.load(str(tmp_path / "empty"))
    shutil.copytree(decoder, tmp_path / "cut")
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InvalidCheckpointError, match="cannot be read"):
        st_llm2vec.load(str(tmp_path / "cut"))


def test_missing_weights_stop_instead_of_being_random(decoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(decoder, tmp_path / "hole")
    tensors = load_file(tmp_path / "hole" / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "hole" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidCheckpointError, match=r"lack 1 tensors.*layers.1.mlp.up_proj.weight"):
        st_llm2vec.load(str(tmp_path / "hole"))


def test_encoders_and_unknown_settings_are_refused(decoder: Path, tmp_path: Path) -> None:
    tiny_decoder("bert").save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(UnsupportedArchitectureError, match="bidirectional already"):
        st_llm2vec.load(str(tmp_path / "bert"))
    for setting, value in {
        "pooling_mode": "max",
        "attention": "both",
        "template": "alpaca",
        "max_seq_length": 0,
    }.items():
        with pytest.raises(InvalidInputError, match=f"{setting} must be .*, got {value!r}"):
            st_llm2vec.load(str(decoder), **{setting: value})


def test_half_precision_checkpoints_pool_in_float32(decoder: Path) -> None:
    full = st_llm2vec.load(str(decoder), device="cpu")
    half = st_llm2vec.load(str(decoder), device="cpu", dtype=torch.bfloat16)
    a, b = full.encode(TEXTS), half.encode(TEXTS)
    assert b.dtype == np.float32
    assert (np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.999
    tokens = torch.randn(2, 300, 32, generator=torch.Generator().manual_seed(0)).bfloat16()  # of any host's module
    pooled = half[1]({"token_embeddings": tokens, "pooling_mask": torch.ones(2, 300, dtype=torch.long)})
    assert torch.allclose(pooled["sentence_embedding"].double(), tokens.double().mean(1), atol=1e-6)


def test_a_decoder_that_config_alone_leaves_causal_is_not_saved_in_stock_classes(tmp_path: Path) -> None:
    save_decoder(tmp_path / "stablelm", "stablelm")
    model = st_llm2vec.load(str(tmp_path / "stablelm"), device="cpu", include_prompt=True)
    model.save_pretrained(str(tmp_path / "encoder"))
    assert class_names(tmp_path / "encoder") == OURS


def test_the_eos_of_an_over_long_text_survives_whatever_is_pooled(bos_decoder: Path) -> None:
    model = st_llm2vec.load(
        str(bos_decoder), device="cpu", pooling_mode="eos_token", template="none", include_prompt=True
    )
    suffix = model.tokenizer(model[0].text_template.suffix, add_special_tokens=False)["input_ids"]
    features = model.preprocess(["lazy dog " * 300])
    assert features["input_ids"][0, -len(suffix) :].tolist() == suffix


@pytest.mark.parametrize("include_prompt", [False, True])
def test_what_is_pooled_can_be_changed_later(bos_decoder: Path, include_prompt: bool) -> None:
    changed, expected = (
        st_llm2vec.load(str(bos_decoder), device="cpu", template=CHAT, include_prompt=include_prompt is same)
        for same in (False, True)
    )
    changed.set_pooling_include_prompt(include_prompt)
    for prompt in (None, "Find: "):  # one text is over-long: what is cut from it follows what is pooled
        assert np.abs(changed.encode(TEXTS, prompt=prompt) - expected.encode(TEXTS, prompt=prompt)).max() <= 1e-5


def test_texts_are_cut_where_the_positions_end() -> None:
    """The file's own tokenizer takes the place of the one that the host made, and keeps the length that it set."""
    transformer = LLM2VecTransformer(str(KIT / "models" / "gemma-base"))
    assert transformer.max_seq_length == transformer.config.max_position_embeddings
    assert transformer.tokenizer.model_max_length == transformer.max_seq_length


def test_what_transformers_takes_is_passed_on(decoder: Path) -> None:
    expected = st_llm2vec.load(str(decoder), device="cpu").encode(TEXTS)
    eager = st_llm2vec.load(str(decoder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    assert {row.implementation for row in eager[0].audit.rows} == {"eager"}
    mapped = st_llm2vec.load(str(decoder), model_kwargs={"device_map": "cpu"}, dtype=torch.float32)
    assert mapped.device.type == "cpu"
    for model in (eager, mapped):
        assert np.abs(model.encode(TEXTS) - expected).max() <= 1e-5
    with pytest.raises(InvalidInputError, match=r"model_kwargs must be .*, got 'attention_is_all'"):
        st_llm2vec.load(str(decoder), device="cpu", model_kwargs={"attention_is_all": True})


def test_adapters_are_merged_before_weights_are_quantized(decoder: Path) -> None:
    from transformers import BitsAndBytesConfig

    quantized = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    with pytest.raises(InvalidInputError, match="Merge first"):
        st_llm2vec.load(str(KIT / "models" / "llama-mntp"), model_kwargs=quantized)
    with pytest.raises((ImportError, RuntimeError), match=r"bitsandbytes|GPU"):  # it reaches transformers
        st_llm2vec.load(str(decoder), model_kwargs=quantized)


def test_both_directions_in_threads_on_one_set_of_weights(decoder: Path) -> None:
    both = st_llm2vec.load(str(decoder), device="cpu")
    causal = twin(both)
    causal[0].attention = "causal"
    expected = {
        id(model): st_llm2vec.load(str(decoder), attention=direction, device="cpu").encode(TEXTS)
        for model, direction in ((both, "bidirectional"), (causal, "causal"))
    }

    def same(model: st_llm2vec.LLM2Vec) -> bool:
        return bool(np.abs(model.encode(TEXTS, show_progress_bar=False) - expected[id(model)]).max() <= 1e-5)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(same, [both, causal] * 4))
    assert all(a is b for a, b in zip(both.parameters(), causal.parameters(), strict=True))


def test_the_tokenizers_own_template_is_saved_and_survives_truncation(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    save_decoder(tmp_path / "chat", tokenizer=tokenizer)
    model = st_llm2vec.load(str(tmp_path / "chat"), template="chat", max_seq_length=32, device="cpu")
    assert model[0].template == {"prefix": "[user] ", "suffix": "</s>"}
    model.save_pretrained(str(tmp_path / "encoder"))
    again = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert again[0].template == model[0].template
    for inputs in (TEXTS, [["Find:", text] for text in TEXTS]):
        assert np.abs(again.encode(inputs) - model.encode(inputs)).max() <= 1e-5
        for text in inputs:  # whatever its length: the template around it, and something of the text
            ids = again.preprocess([text])["input_ids"][0].tolist()
            read = again.tokenizer.decode(ids)
            assert read.startswith("<s>[user] ")
            assert read.endswith("</s>")
            assert len(read) > len("<s>[user] </s>")
            assert len(ids) <= 32


def test_published_checkpoints_cut_documents_as_they_were_evaluated(decoder: Path, tmp_path: Path) -> None:
    mntp = KIT / "models" / "mistral-mntp"
    model = st_llm2vec.load(str(mntp), device="cpu")
    assert (model[0].document_max_length, model.max_seq_length) == (400, 512)
    told = st_llm2vec.load(str(mntp), adapter=str(KIT / "models" / "mistral-mntp-supervised"), device="cpu")
    assert (told[0].document_max_length, told.max_seq_length) == (80, 96)  # its llm2vec_config.json
    assert st_llm2vec.load(str(decoder), device="cpu")[0].document_max_length is None
    model.save_pretrained(str(tmp_path / "encoder"))
    assert st_llm2vec.load(str(tmp_path / "encoder"), device="cpu")[0].document_max_length == 400
