"""`load(X)` and `SentenceTransformer(X)` give the same vectors for every folder that both open; else it is said why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_models import save_decoder
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import st_llm2vec
from st_llm2vec.errors import InvalidCheckpointError, InvalidInputError
from st_llm2vec.modules import TEXT_ONLY
from st_llm2vec.templates import Template

TEXTS = ["a", "the quick brown fox", "lazy dog " * 100, " naïve café 编码器 ", "search"]
MODES = ["mean", "weightedmean", "lasttoken", "cls"]
ENCODES: list[Callable[[Any], np.ndarray]] = [
    lambda model: model.encode(TEXTS),
    lambda model: model.encode_query(TEXTS),
    lambda model: model.encode_document(TEXTS),
    lambda model: model.encode(TEXTS, prompt="Find what answers:"),
]


def plain(decoder: Path, folder: Path, further: tuple[Any, ...] = (), **options: Any) -> Path:
    """A folder as plain sentence-transformers writes it, of a decoder that stays causal."""
    pooling = {key: options.pop(key) for key in ("pooling_mode", "include_prompt") if key in options}
    transformer = Transformer(str(decoder), modality_config=TEXT_ONLY, module_output_name="token_embeddings")
    transformer.max_seq_length = options.pop("max_seq_length", None) or transformer.max_seq_length
    SentenceTransformer(modules=[transformer, Pooling(32, **pooling), *further], device="cpu", **options).save(
        str(folder)
    )
    return folder


def opened(folder: Path) -> SentenceTransformer:
    """As people do who have not imported us."""
    st_llm2vec.disable_plugin()
    try:
        return SentenceTransformer(str(folder), device="cpu")
    finally:
        st_llm2vec.enable_plugin()


def require_same(folder: Path, *others: SentenceTransformer) -> st_llm2vec.LLM2Vec:
    model = st_llm2vec.load(str(folder), device="cpu")
    for other in (SentenceTransformer(str(folder), device="cpu"), *others):
        for encode in ENCODES:
            a, b = encode(model), encode(other)
            assert a.shape == b.shape
            assert np.abs(a - b).max() <= 1e-5
        assert model.similarity_fn_name == other.similarity_fn_name
        assert model.max_seq_length == other.max_seq_length
        assert model.prompts == other.prompts
    return model


def change(folder: Path, file: str, **values: Any) -> Path:
    path = folder / file
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def test_a_prompt_is_pooled_where_the_folder_does_not_say(decoder: Path, tmp_path: Path) -> None:
    folder = change(plain(decoder, tmp_path / "x"), "1_Pooling/config.json", include_prompt=None)
    model = st_llm2vec.load(str(folder), device="cpu")
    assert model[1].include_prompt is True
    expected = opened(folder).encode(["lazy dog"], prompt="find: ")
    assert np.abs(model.encode(["lazy dog"], prompt="find: ") - expected).max() <= 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_pooling_is_read_or_refused(
    decoder: Path, bos_decoder: Path, tmp_path: Path, mode: str, include_prompt: bool, bos: bool
) -> None:
    where = bos_decoder if bos else decoder
    folder = plain(where, tmp_path / "x", pooling_mode=mode, include_prompt=include_prompt)
    same = include_prompt or mode == "lasttoken"
    if not same:  # "query: " ends in a blank, after which a text's tokens are counted in another way
        with pytest.raises(InvalidInputError, match=r"takes other tokens there than here.*SentenceTransformer"):
            st_llm2vec.load(str(folder), device="cpu")
        assert st_llm2vec.load(str(folder), device="cpu", include_prompt=False)[1].include_prompt is False
        return
    model = require_same(folder, opened(folder))
    assert model[1].pooling_mode == mode
    assert model[0].attention == "causal"  # as it was saved; and as it is if it is asked for
    both = st_llm2vec.load(str(folder), device="cpu", attention="bidirectional")
    assert both[0].audit
    assert np.abs(both.encode(TEXTS) - model.encode(TEXTS)).max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_length": 16},
        {"prompts": {"query": "find: ", "document": "text: "}},
        {"prompts": {"query": "find: "}, "default_prompt_name": "query"},
        {"similarity_fn_name": "dot", "truncate_dim": 8},
        {"further": (Normalize(),)},
        {"further": (Dense(32, 16), Normalize())},
        {"further": (Normalize(),), "pooling_mode": "weightedmean", "max_seq_length": 24, "truncate_dim": 5},
    ],
    ids=str,
)
def test_what_the_host_keeps_is_kept(bos_decoder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = plain(bos_decoder, tmp_path / "x", **({"pooling_mode": "lasttoken"} | options))
    model = require_same(folder, opened(folder))
    model.save_pretrained(str(tmp_path / "again"))
    again = require_same(tmp_path / "again")
    for encode in ENCODES:
        assert np.abs(encode(model) - encode(again)).max() <= 1e-5
    assert again.fingerprint == model.fingerprint
    st_llm2vec.loading.convert(str(folder), tmp_path / "converted")
    assert np.abs(require_same(tmp_path / "converted").encode_query(TEXTS) - model.encode_query(TEXTS)).max() <= 1e-5


def test_each_saved_prompt_is_tried(tmp_path: Path) -> None:
    """To a tokenizer of words, blanks do not matter, but a prompt may run into the first word; none of ours does."""
    known = ["<pad>", "<unk>", "lazy", "dog", ":"]  # a prompt that ends in a special token is counted otherwise
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    decoder = save_decoder(tmp_path / "words", tokenizer=tokenizer)
    plain(decoder, tmp_path / "apart", include_prompt=False, prompts={"query": "lazy: "})
    require_same(tmp_path / "apart")
    plain(decoder, tmp_path / "joined", include_prompt=False, prompts={"query": "lazy"})
    with pytest.raises(InvalidInputError, match="takes other tokens there than here after the prompt 'lazy'"):
        st_llm2vec.load(str(tmp_path / "joined"), device="cpu")


def test_what_follows_the_pooling_is_part_of_the_fingerprint(decoder: Path, tmp_path: Path) -> None:
    folders = [plain(decoder, tmp_path / "x"), plain(decoder, tmp_path / "y", (Normalize(),))]
    one, other = (st_llm2vec.load(str(folder), device="cpu").fingerprint for folder in folders)
    assert one != other


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"pooling_mode": "last_token", "max_seq_length": 24}, {"query": "find: "}),
        ({"pooling_mode": "eos_token"}, {}),
        ({"template": Template("<s>user\n", "</s>"), "document_max_length": 8}, {"query": "find: "}),
        ({"attention": "causal", "pooling_mode": "weighted_mean"}, {}),
        ({"include_prompt": True}, {"document": "text: "}),
    ],
    ids=str,
)
def test_our_folders_and_what_the_host_makes_of_them(
    bos_decoder: Path, tmp_path: Path, settings: dict[str, Any], prompts: dict[str, str]
) -> None:
    model = st_llm2vec.load(str(bos_decoder), device="cpu", prompts=prompts, **settings)
    model.save_pretrained(str(tmp_path / "ours"))
    assert np.abs(require_same(tmp_path / "ours").encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5
    through = SentenceTransformer(str(tmp_path / "ours"), device="cpu")  # with the plugin; saved by the host's method
    through.default_prompt_name, through.truncate_dim = "query", 8
    SentenceTransformer.save_pretrained(through, str(tmp_path / "again"))
    (tmp_path / "again" / "llm2vec_config.json").unlink(missing_ok=True)
    names = json.loads((tmp_path / "again" / "modules.json").read_text())
    if names[1]["type"].startswith("st_llm2vec"):
        assert np.abs(st_llm2vec.load(str(tmp_path / "again")).encode(TEXTS) - through.encode(TEXTS)).max() <= 1e-5


def test_a_folder_of_our_classes_is_bidirectional_whatever_its_config_leaves_out(decoder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(decoder), device="cpu", pooling_mode="weighted_mean")
    model.save_pretrained(str(tmp_path / "ours"))
    (tmp_path / "ours" / "llm2vec_config.json").unlink()
    change(tmp_path / "ours", "config.json", is_causal=None)
    again = st_llm2vec.load(str(tmp_path / "ours"), device="cpu")
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5


def test_our_folder_saved_again_by_plain_sentence_transformers(bos_decoder: Path, tmp_path: Path) -> None:
    settings = {"pooling_mode": "last_token", "include_prompt": True, "prompts": {"query": "find: "}}
    ours = st_llm2vec.load(str(bos_decoder), device="cpu", **settings)
    ours.save_pretrained(str(tmp_path / "ours"))
    host = opened(tmp_path / "ours")
    host.max_seq_length = 16
    for name in ("again", "ours"):  # elsewhere, and over it: then our file says what is no longer so
        st_llm2vec.disable_plugin()
        host.save(str(tmp_path / name))
        st_llm2vec.enable_plugin()
        model = require_same(tmp_path / name, opened(tmp_path / name))
        assert (model.pooling_mode, model.max_seq_length, model[0].attention) == ("last_token", 16, "bidirectional")
        assert np.abs(model.encode_query(TEXTS[:2]) - ours.encode_query(TEXTS[:2])).max() <= 1e-5


def test_what_is_asked_for_comes_first(decoder: Path, tmp_path: Path) -> None:
    folder = plain(decoder, tmp_path / "x", pooling_mode="lasttoken", prompts={"query": "find: ", "document": "d: "})
    model = st_llm2vec.load(
        str(folder), pooling_mode="mean", max_seq_length=8, prompts={"query": "q: "}, include_prompt=True, device="cpu"
    )
    assert (model.pooling_mode, model.max_seq_length) == ("mean", 8)
    assert model.prompts == {"query": "q: ", "document": "d: "}


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling_mode 'max'"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, r"pooling_mode 'cls\+mean'"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": None, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"pooling_mode 'cls\+mean'",
        ),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case=True"),
        ("sentence_bert_config.json", {"tokenizer_args": {"use_fast": False}}, "tokenizer_args="),
        (
            "sentence_bert_config.json",
            {"modality_config": TEXT_ONLY | {"message": TEXT_ONLY["text"]}},
            "modality_config=",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "a SparseEncoder"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused(
    decoder: Path, tmp_path: Path, file: str, values: dict[str, Any], said: str
) -> None:
    change(plain(decoder, tmp_path / "x"), file, **values)
    with pytest.raises(InvalidInputError, match=f"{said}.*Open it with SentenceTransformer"):
        st_llm2vec.load(str(tmp_path / "x"), device="cpu")


def test_processing_of_the_folders_own_is_refused(decoder: Path, tmp_path: Path) -> None:
    change(plain(decoder, tmp_path / "x"), "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 5}})
    with pytest.raises(InvalidCheckpointError, match="processing_kwargs must be null"):
        st_llm2vec.load(str(tmp_path / "x"), device="cpu")


@pytest.mark.parametrize("module", ["sentence_transformers.sentence_transformer.modules.dropout.Dropout", "theirs.Odd"])
def test_other_modules_are_refused(decoder: Path, tmp_path: Path, module: str) -> None:
    folder = plain(decoder, tmp_path / "x", (Normalize(),))
    path = folder / "modules.json"
    path.write_text(path.read_text().replace("sentence_transformers.base.modules.normalize.Normalize", module))
    with pytest.raises(InvalidInputError, match="Open it with SentenceTransformer"):
        st_llm2vec.load(str(folder), device="cpu")


def test_files_of_older_hosts_are_read(bos_decoder: Path, tmp_path: Path) -> None:
    folder = plain(bos_decoder, tmp_path / "x", pooling_mode="lasttoken")
    (folder / "sentence_bert_config.json").unlink()
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    change(folder, "1_Pooling/config.json", pooling_mode=None, pooling_mode_lasttoken=True, embedding_dimension=None)
    change(folder, "1_Pooling/config.json", word_embedding_dimension=32, pooling_mode_mean_tokens=False)
    model = require_same(folder, opened(folder))
    assert (model.max_seq_length, model.pooling_mode) == (12, "last_token")


@pytest.mark.parametrize("unpad", [None, True, False])
def test_unpadding_is_the_hosts_matter(decoder: Path, tmp_path: Path, unpad: bool | None) -> None:
    folder = change(plain(decoder, tmp_path / "x"), "sentence_bert_config.json", unpad_inputs=unpad)
    require_same(folder, opened(folder))


def test_lengths_of_queries_and_documents_are_kept(decoder: Path, tmp_path: Path) -> None:
    folder = plain(decoder, tmp_path / "x", pooling_mode="lasttoken")
    change(folder, "sentence_bert_config.json", query_length=6, document_length=9)
    require_same(folder, opened(folder))


def test_an_adapter_on_a_saved_encoder_keeps_its_settings(decoder: Path, tmp_path: Path) -> None:
    from st_llm2vec.training import add_lora

    first = st_llm2vec.load(
        str(decoder), device="cpu", pooling_mode="last_token", max_seq_length=24, prompts={"query": "find: "}
    )
    first.save_pretrained(str(tmp_path / "first"))
    second = st_llm2vec.load(str(tmp_path / "first"), device="cpu")
    add_lora(second, "simcse")
    for name, weight in second.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.02)
    second[0].model.save_pretrained(str(tmp_path / "adapter"))
    model = st_llm2vec.load(str(tmp_path / "first"), adapter=str(tmp_path / "adapter"), device="cpu")
    assert (model.pooling_mode, model.max_seq_length, model.prompts["query"]) == ("last_token", 24, "find: ")
    assert model[0].document_max_length is None
    assert np.abs(model.encode_query(TEXTS) - second.eval().encode_query(TEXTS)).max() <= 1e-5
    # what the adapter says itself lies over it
    (tmp_path / "adapter" / "llm2vec_config.json").write_text('{"format": 1, "pooling_mode": "weighted_mean"}')
    model = st_llm2vec.load(str(tmp_path / "first"), adapter=str(tmp_path / "adapter"), device="cpu")
    assert (model.pooling_mode, model.max_seq_length, model.prompts["query"]) == ("weighted_mean", 24, "find: ")


def test_settings_of_the_wrong_type_in_a_folder_are_named(decoder: Path, tmp_path: Path) -> None:
    for file, values in {
        "llm2vec_config.json": {"skip_instruction": "no"},
        "sentence_bert_config.json": {"max_seq_length": "512"},
        "1_Pooling/config.json": {"include_prompt": "no"},
        "config_sentence_transformers.json": {"prompts": {"query": 3}},
    }.items():
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        plain(decoder, tmp_path / "x")
        (tmp_path / "x" / "llm2vec_config.json").write_text("{}")
        change(tmp_path / "x", file, **values)
        with pytest.raises(InvalidCheckpointError, match=next(iter(values))):
            st_llm2vec.load(os.fspath(tmp_path / "x"), device="cpu")


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
def test_a_symmetric_window_is_kept(tmp_path: Path, model_type: str) -> None:
    from st_llm2vec import enable_bidirectional_attention

    save_decoder(tmp_path / "x", model_type, sliding_window=4)
    model = st_llm2vec.load(str(tmp_path / "x"), device="cpu")
    wide = model.encode(TEXTS)
    enable_bidirectional_attention(model[0].model, sliding_window="symmetric")
    model[0].packing = model[0].packing  # proven for another mask
    model.save_pretrained(str(tmp_path / "windowed"))
    again = require_same(tmp_path / "windowed", opened(tmp_path / "windowed"))
    assert again[0].model.config.sliding_window == 4
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() <= 1e-5
    assert np.abs(again.encode(TEXTS) - wide).max() > 1e-2
    (tmp_path / "windowed" / "modules.json").unlink()  # a decoder whose config says is_causal: false
    decoder = st_llm2vec.load(str(tmp_path / "windowed"), device="cpu", max_seq_length=256)
    assert decoder[0].model.config.sliding_window == 4


BY_DESIGN = {
    "gemma3_text": {"use_bidirectional_attention": True, "sliding_window": 8},
    "gemma4_text": {"use_bidirectional_attention": "all", "sliding_window": 8},
    "embedding_gemma2_text": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 4,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "embedding_dim": 16,
    },
}


@pytest.mark.parametrize("model_type", BY_DESIGN)
def test_a_decoder_that_is_bidirectional_already_keeps_its_masks(tmp_path: Path, model_type: str) -> None:
    from tiny_models import tiny_decoder, tiny_tokenizer

    model = tiny_decoder(model_type, **BY_DESIGN[model_type])
    model.save_pretrained(tmp_path / "x")
    tiny_tokenizer().save_pretrained(tmp_path / "x")
    stock = plain(tmp_path / "x", tmp_path / "stock", pooling_mode="mean")
    encoder = require_same(stock, opened(stock))
    assert encoder[0].attention == "bidirectional"
    assert encoder[0].audit
    bare = st_llm2vec.load(str(tmp_path / "x"), device="cpu", include_prompt=True, max_seq_length=256)
    assert np.abs(bare.encode(TEXTS) - encoder.encode(TEXTS)).max() <= 1e-5
    bare.save_pretrained(str(tmp_path / "saved"))
    require_same(tmp_path / "saved", opened(tmp_path / "saved"))
    with pytest.raises(st_llm2vec.errors.UnsupportedArchitectureError, match="no causal form"):
        st_llm2vec.load(str(tmp_path / "x"), device="cpu", attention="causal")


@pytest.mark.parametrize("length", [40, 41, 42, 43])
def test_a_tokenizer_that_cuts_at_the_left_is_refused(decoder: Path, tmp_path: Path, length: int) -> None:
    folder = change(plain(decoder, tmp_path / "x"), "tokenizer_config.json", truncation_side="left")
    change(folder, "sentence_bert_config.json", max_seq_length=length)
    with pytest.raises(InvalidInputError, match="takes other tokens there"):
        st_llm2vec.load(str(folder), device="cpu")


def test_weights_in_a_subfolder_are_named(decoder: Path, tmp_path: Path) -> None:
    folder = plain(decoder, tmp_path / "x")
    (folder / "0_Transformer").mkdir()
    (folder / "model.safetensors").rename(folder / "0_Transformer" / "model.safetensors")
    with pytest.raises(InvalidCheckpointError, match=r"subfolder.*save it again"):
        st_llm2vec.load(str(folder), device="cpu")
