"""A packed sequence gives the vectors of its texts alone: architectures, poolings, prompts, precisions and lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_models import WORDS, save_decoder, tiny_decoder, tiny_tokenizer
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

import st_llm2vec
from st_llm2vec import encoding, modules
from st_llm2vec.backend import attention, deciding, packing
from st_llm2vec.backend.packed_batch import PackedBatch, batches, packed
from st_llm2vec.backend.packing import disable_packing, enable_packing, is_packing
from st_llm2vec.backend.residual import keeps_residual_in_float32
from st_llm2vec.bidirectional import ARCHITECTURES, attn_implementation_of, enable_bidirectional_attention
from st_llm2vec.errors import LLM2VecError
from st_llm2vec.training import MNTPDataCollator, MNTPLoss, attention_dropout

# Their attention never asks transformers for a function, so there is nothing to hand a packed sequence to.
UNPACKED = {"bloom", "codegen", "falcon", "gpt_neox_japanese", "gptj", "xglm"}
TEXTS = ["", "a", "seven wizards", WORDS, "the quick brown fox " * 40, "search and find", "compress files", "é ∑ 编码"]


def hidden_states(model: Any, ids: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(alone, in one sequence), both (total tokens, hidden), in the order of `ids`."""
    longest = max(map(len, ids))
    mask = torch.arange(longest) < torch.tensor([len(text) for text in ids])[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long)
    padded[mask] = torch.cat(ids)
    batch = PackedBatch.of(mask)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=text[None])[0][0] for text in ids])
        with packed(batch):
            together = model(input_ids=batch.gather(padded), position_ids=batch.position_ids)[0]
    return alone, batch.scatter(together, mask.shape)[mask]


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_architecture(model_type: str, implementation: str, attention: str) -> None:
    try:
        model = tiny_decoder(model_type, implementation)
        if attention == "bidirectional":
            enable_bidirectional_attention(model)
    except (ValueError, LLM2VecError):
        return  # no such implementation, as docs/architectures.md says and test_bidirectional.py checks
    status = enable_packing(model)
    if model_type in UNPACKED or (model_type == "llama4_text" and attention == "causal"):
        assert not status
        assert status.reason
        assert not is_packing(model)
        return
    assert status, status
    torch.manual_seed(1)
    alone, together = hidden_states(model, [torch.randint(3, 300, (n,)) for n in (1, 7, 7, 19, 2, 30)])
    assert torch.allclose(alone, together, atol=1e-5 * float(alone.abs().max()))


def test_causal_window() -> None:
    model = tiny_decoder("mistral", sliding_window=5)
    assert enable_packing(model)
    alone, together = hidden_states(model, [torch.arange(3, 3 + n) for n in (1, 4, 5, 6, 40)])
    assert torch.allclose(alone, together, atol=1e-5)


def test_float64_stays_float64() -> None:
    model = tiny_decoder("llama").double()
    assert enable_packing(model)
    alone, together = hidden_states(model, [torch.arange(3, 3 + n) for n in (1, 4, 5)])
    assert torch.allclose(alone, together, rtol=0, atol=1e-12)


def without_positions(batch: PackedBatch) -> PackedBatch:
    return PackedBatch(batch.positions, torch.zeros_like(batch.position_ids), batch.lengths)


@pytest.mark.parametrize("fault", ["leaks", "ignores positions", "is not called"])
def test_a_model_that_would_differ_is_not_packed(fault: str) -> None:
    model = tiny_decoder("llama")
    enable_bidirectional_attention(model)
    patch = {
        "leaks": mock.patch.object(PackedBatch, "runs", property(lambda batch: [(1, sum(batch.lengths))])),
        "ignores positions": mock.patch.object(
            PackedBatch, "of", lambda mask, of=PackedBatch.of: without_positions(of(mask))
        ),
        "is not called": mock.patch.dict(
            attention.ALL_ATTENTION_FUNCTIONS._global_mapping,
            {"packed_sdpa": attention.ALL_ATTENTION_FUNCTIONS["sdpa"]},
        ),
    }[fault]
    with patch:
        assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"
    assert enable_packing(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("packing") / "llama", tokenizer=tiny_tokenizer(bos=True))


@pytest.fixture(scope="module")
def model(folder: Path) -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def padded(folder: Path) -> st_llm2vec.LLM2Vec:
    return st_llm2vec.load(str(folder), device="cpu", packing=False)


def test_a_batch_is_packed_once(model: st_llm2vec.LLM2Vec, padded: st_llm2vec.LLM2Vec) -> None:
    """By `encode`, on the CPU, before it goes to the device; neither again in the module, nor given to the decoder."""
    of = PackedBatch.of
    for encoder in (model, padded):
        encoder.encode("a")
        with mock.patch.object(PackedBatch, "of", side_effect=of) as made:
            encoder.encode(TEXTS[:3])
        assert made.call_count == int(encoder is model)


def test_load_says_so(model: st_llm2vec.LLM2Vec, padded: st_llm2vec.LLM2Vec) -> None:
    model.encode("a")
    padded.encode("a")
    assert model[0].packing
    assert model[0].status["packed"]
    assert is_packing(model[0].model)
    assert attn_implementation_of(model[0].model) == "sdpa"
    assert not padded[0].packing
    assert str(padded[0].status["packed"]) == "no: packing=False"
    assert not is_packing(padded[0].model)


@pytest.mark.parametrize("prompt", ["", "Find what answers: "])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token", "eos_token", "bos_token"])
def test_poolings_and_prompts(folder: Path, pooling: str, prompt: str) -> None:
    one, other = (
        st_llm2vec.load(str(folder), device="cpu", pooling_mode=pooling, max_seq_length=50, packing=packing)
        for packing in (True, False)
    )
    expected = other.encode(TEXTS, prompt=prompt)
    for batch_size in (1, 3, 32):
        assert np.allclose(one.encode(TEXTS, prompt=prompt, batch_size=batch_size), expected, atol=1e-5)
    assert np.allclose(one.encode(TEXTS[::-1], prompt=prompt)[::-1], expected, atol=1e-5)
    assert one[0].status["packed"]


def test_bfloat16(folder: Path) -> None:
    one, other = (st_llm2vec.load(str(folder), device="cpu", dtype="bfloat16", packing=p) for p in (True, False))
    a, b = (m.encode(TEXTS, convert_to_tensor=True).float() for m in (one, other))
    assert one[0].status["packed"]
    assert cosine_similarity(a, b).min() >= 0.9999


@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=24), batch_size=st.integers(1, 40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths(
    model: st_llm2vec.LLM2Vec, padded: st_llm2vec.LLM2Vec, lengths: list[int], batch_size: int
) -> None:
    words = (WORDS + " ") * 4
    texts = [words[3 * i : 3 * i + 3 * n] for i, n in enumerate(lengths)]
    assert np.allclose(model.encode(texts, batch_size=batch_size), padded.encode(texts), atol=1e-5)


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2048))
def test_batches_hold_every_text_once(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[i] for i in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert len(batch) == 1 or len(batch) * sizes[0] <= budget


def test_chunks_are_joined(model: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.encode(TEXTS)
    monkeypatch.setattr("st_llm2vec.encoding.CHUNK", 3)
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-6)
    counted = hasattr(SentenceTransformer, "_inference")  # before 6.2 the host sorts first, and counts in its batches
    with pytest.raises(LLM2VecError, match="Input 7 must be .*, got int" if counted else "got int"):
        model.encode([*TEXTS[:7], 5])


def test_batch_size_bounds_a_forward_pass(model: st_llm2vec.LLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what people lower when memory runs out: 64 tokens of each of `batch_size` texts."""
    sizes: list[int] = []
    run = encoding.run_batch

    def counted(one: Any, texts: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(sum(len(text.input_ids) for text in texts))
        return run(one, texts, *args, **kwargs)

    monkeypatch.setattr(encoding, "run_batch", counted)
    model.encode(["seven wizards"] * 200, batch_size=2)
    assert 64 < max(sizes) <= 128


@pytest.mark.parametrize("how", ["tensor", "list", "normalized", "truncated", "tokens"])
def test_every_form_of_the_result(model: st_llm2vec.LLM2Vec, padded: st_llm2vec.LLM2Vec, how: str) -> None:
    arguments: dict[str, Any] = {
        "tensor": {"convert_to_tensor": True},
        "list": {"convert_to_numpy": False},
        "normalized": {"normalize_embeddings": True},
        "truncated": {"truncate_dim": 8},
        "tokens": {"output_value": "token_embeddings"},
    }[how]
    one, other = model.encode(TEXTS, **arguments), padded.encode(TEXTS, **arguments)
    assert type(one) is type(other)
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.allclose(a, b, atol=1e-5)


def test_the_other_direction_is_proven_again(tmp_path: Path) -> None:
    """llama4 packs where it sees everything, and not in causal chunks."""
    source = str(save_decoder(tmp_path / "llama4", "llama4_text"))
    one = st_llm2vec.load(source, device="cpu")
    one.encode(TEXTS)
    assert one[0].status["packed"]
    one[0].attention = "causal"
    expected = st_llm2vec.load(source, device="cpu", packing=False, attention="causal").encode(TEXTS)
    assert np.allclose(one.encode(TEXTS), expected, atol=1e-5)
    assert one[0].status["packed"].on is False


def test_a_part_in_training_mode_is_brought_back(model: st_llm2vec.LLM2Vec) -> None:
    """Dropout in a single layer would give other vectors at every call."""
    model.encode(["a"])  # the proof of packing, at the first, does so as well
    part = model[0].model.layers[-1].mlp
    part.train()
    model.encode(["a"])
    assert not part.training


def test_two_threads(model: st_llm2vec.LLM2Vec) -> None:
    inputs = [TEXTS[i:] + TEXTS[:i] for i in range(len(TEXTS))]
    expected = [model.encode(texts) for texts in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(model.encode, inputs * 3), expected * 3, strict=True):
            assert np.allclose(found, one, atol=1e-5)


def test_an_architecture_that_cannot_pack_is_padded(tmp_path: Path) -> None:
    source = str(save_decoder(tmp_path / "falcon", "falcon"))
    one, other = (st_llm2vec.load(source, device="cpu", packing=packing) for packing in (True, False))
    assert np.allclose(one.encode(TEXTS), other.encode(TEXTS), atol=1e-5)
    assert "its code takes no packed sequences" in str(one[0].status["packed"])


def losses(model: st_llm2vec.LLM2Vec) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    collator = MNTPDataCollator(model.preprocess, tokenizer=model.tokenizer, mlm_probability=0.3)
    batch = collator([{"text": text} for text in TEXTS])
    model.train()
    model.zero_grad()
    features = {name.removeprefix("text_"): value for name, value in batch.items() if name != "label"}
    loss = MNTPLoss(model)([features], batch["label"])
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_training_sees_the_same_loss_and_gradients(folder: Path) -> None:
    one, other = (st_llm2vec.load(str(folder), device="cpu", packing=packing) for packing in (True, False))
    (loss, gradient), (expected_loss, expected) = losses(one), losses(other)
    assert one[0].status["packed"]
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))


def test_padded_on_the_left_a_first_token_is_predicted_from_the_pad_before_it(folder: Path) -> None:
    ids = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]])
    labels = torch.full_like(ids, -100)
    labels[0, 2] = 5
    batch = [{"input_ids": ids, "attention_mask": (ids > 0).long()}]
    models = (st_llm2vec.load(str(folder), device="cpu", packing=packing) for packing in (True, False))
    found, expected = (MNTPLoss(model)(batch, labels).item() for model in models)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_training_mode_as_it_was(training: bool) -> None:
    """In a model that is left in eval mode, training goes on without dropout."""
    model = tiny_decoder("llama").train(training)
    assert enable_packing(model)
    assert model.training is training


# Windows, caps, sinks, parallel blocks, experts, learned positions; the last two take no packed sequence.
TRAINED = ("llama", "qwen3", "gemma2", "gpt_neox", "mixtral", "gpt_oss", "opt", "falcon", "gptj")


def contrastive(
    source: str, packing: bool = True, checkpointing: dict[str, Any] | None = None
) -> tuple[float, torch.Tensor, bool]:
    """Loss and gradients of all weights where the loss knows nothing of packing; and whether the model packs."""
    model = st_llm2vec.load(source, device="cpu", packing=packing)
    model.train()
    if checkpointing:
        name = "activation" if hasattr(model[0].model, "activation_checkpointing_enable") else "gradient"
        getattr(model[0].model, f"{name}_checkpointing_enable")(checkpointing)
        model[0].model.enable_input_require_grads()
    columns = [model.preprocess(texts) for texts in (TEXTS[1:4], TEXTS[-1:-4:-1], ["a", *TEXTS[2:4]])]
    loss = MultipleNegativesRankingLoss(model)(columns, torch.arange(3))
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients), bool(model[0].status["packed"])


@pytest.mark.parametrize("model_type", TRAINED)
def test_contrastive_gradients(model_type: str, tmp_path: Path) -> None:
    without = {"dropout": 0.0} if model_type == "opt" else {}  # by default it draws, in each pass another
    source = str(save_decoder(tmp_path / model_type, model_type, **without))
    loss, gradient, packs = contrastive(source)
    expected_loss, expected, _ = contrastive(source, packing=False)
    assert packs == (model_type not in UNPACKED)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "falcon"])
def test_gradients_of_checkpointed_layers(model_type: str, reentrant: bool, tmp_path: Path) -> None:
    """A layer that runs again in the backward pass reads the packed sequence that it has read before."""
    source = str(save_decoder(tmp_path / model_type, model_type))
    _, gradient, packs = contrastive(source, checkpointing={"use_reentrant": reentrant})
    _, expected, _ = contrastive(source, packing=False)
    assert packs == (model_type not in UNPACKED)
    assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_checkpoint_that_cannot_take_the_packed_sequence_along_is_padded(folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu")
    layers = model[0].model.layers
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(layer)
    with mock.patch.object(modules, "packed", side_effect=AssertionError):
        losses(model)


def test_dropout_of_attention_is_drawn_in_packed_sequences_too(folder: Path) -> None:
    """SimCSE: two passes differ, and over many of them the mean and the spread are those of padded batches."""

    def passes(packing: bool) -> torch.Tensor:
        model = st_llm2vec.load(str(folder), device="cpu", packing=packing)
        features = model.preprocess(TEXTS[1:4])
        model.train()
        torch.manual_seed(0)
        with attention_dropout(model, 0.3), torch.no_grad():
            return torch.stack([model(dict(features))["sentence_embedding"] for _ in range(300)])

    found, expected = passes(True), passes(False)
    spread = expected.std(0)
    assert spread.min() > 0
    assert float(((found.mean(0) - expected.mean(0)) / spread).abs().max()) < 0.4  # 0.08 is one deviation of this
    assert float((found.std(0) / spread - 1).abs().mean()) < 0.05


def test_bfloat16_is_proven_for_training_without_its_own_rounding(folder: Path) -> None:
    """Training rounds the residual stream again, which the proof leaves out, and the weights stay as they were."""
    model = st_llm2vec.load(str(folder), device="cpu", dtype="bfloat16").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with attention_dropout(model, 0.3), mock.patch.object(deciding, "enable_packing", wraps=enable_packing) as prove:
        prove.side_effect = lambda decoder, _: kept.append(keeps_residual_in_float32(decoder)) or mock.DEFAULT
        drawn, kept = torch.get_rng_state(), []
        deciding._prove_packing(model[0])
    assert kept == [True]
    assert torch.equal(torch.get_rng_state(), drawn)  # else a resumed run would not be the straight one
    assert model[0].model.training
    losses(model)
    assert model[0].status["packed"]
    assert not keeps_residual_in_float32(model)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, before[name]), name


def test_switching_off_gives_the_plain_implementation_back(folder: Path, tmp_path: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu")
    packed_vectors = model.encode(TEXTS)
    model.save_pretrained(str(tmp_path / "saved"))
    assert "packed_" not in (tmp_path / "saved" / "config.json").read_text()
    assert "packed_" not in json.dumps(model[0].model.config.to_dict(), default=str)
    disable_packing(model[0].model)
    assert model[0].model.config._attn_implementation == "sdpa"
    model[0].packing = False
    assert np.allclose(model.encode(TEXTS), packed_vectors, atol=1e-5)


@pytest.fixture
def pool(model: st_llm2vec.LLM2Vec) -> Iterator[dict[str, Any]]:
    started = model.start_multi_process_pool(["cpu"])
    yield started
    model.stop_multi_process_pool(started)


def test_worker_process(model: st_llm2vec.LLM2Vec, pool: dict[str, Any]) -> None:
    assert np.allclose(model.encode(TEXTS, pool=pool, chunk_size=3), model.encode(TEXTS), atol=1e-5)


def test_a_single_text_is_a_packed_sequence_like_any_other() -> None:
    whole = PackedBatch.of(torch.ones(1, 4))
    padded = PackedBatch.of(torch.tensor([[1, 1, 1, 1, 0]]))
    assert whole.positions.tolist() == padded.positions.tolist() == [0, 1, 2, 3]
    assert whole.position_ids.tolist() == padded.position_ids.tolist() == [[0, 1, 2, 3]]
    assert whole.lengths == padded.lengths == [4]
    model = tiny_decoder("llama")
    assert enable_packing(model)
    ids = torch.arange(3, 7)[None]
    with torch.inference_mode():
        alone = model(input_ids=ids)[0]
        with packed(whole):
            batch = model(input_ids=ids, position_ids=whole.position_ids)[0]
    assert torch.allclose(batch, alone, atol=1e-5 * float(alone.abs().max()))


BATCH = PackedBatch.of(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]))


def test_flash_attention_is_told_where_texts_begin_and_the_longest_one() -> None:
    told: list[dict[str, Any]] = []

    def plain(query: torch.Tensor, *_: Any, **where: Any) -> tuple[torch.Tensor, None]:
        told.append(where)
        return query.transpose(1, 2), None

    x = torch.randn(1, 2, 8, 4)
    call = attention.Call(x, x, x, None, False, None, plain=plain, implementation="flash_attention_2")
    assert torch.equal(attention.within_texts(BATCH, call), x.transpose(1, 2))
    attention.within_texts(BATCH, call)
    found = told[0]
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 1, 4, 8]
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_q"] == found["max_length_k"] == 4
    assert told[1]["cu_seq_lens_q"] is found["cu_seq_lens_q"]  # copied to a GPU once, and not by every layer


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_way_to_attend_is_one_row(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's path takes: its name, when it applies, and a function."""
    model = tiny_decoder("llama", implementation)
    assert enable_packing(model)
    seen: list[attention.Call] = []

    def zeros(batch: PackedBatch, call: attention.Call) -> torch.Tensor:
        seen.append(call)
        assert sum(batch.lengths) == call.query.shape[2]
        return torch.zeros_like(call.query).transpose(1, 2)

    ids = [torch.arange(3, 3 + n) for n in (1, 4, 5)]
    alone, together = hidden_states(model, ids)
    monkeypatch.setattr(
        attention,
        "TABLE",
        [
            attention.Row("never", lambda call: False, zeros),
            attention.Row("fake", lambda call: True, zeros),
            *attention.TABLE,
        ],
    )
    _, faked = hidden_states(model, ids)
    assert len(seen) == model.config.num_hidden_layers
    assert torch.allclose(alone, together, atol=1e-5)
    assert not torch.allclose(alone, faked, atol=1e-2)


class Waits(TorchDispatchMode):
    """Lists what would make a program wait for its GPU: numbers that are read, and sizes that depend on values."""

    READS = ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        if name in self.READS or any(isinstance(at, torch.Tensor) and at.dtype == torch.bool for at in places):
            self.found.append(name)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_layer_waits_for_a_gpu(implementation: str, folder: Path) -> None:
    model = st_llm2vec.load(str(folder), device="cpu", model_kwargs={"attn_implementation": implementation})
    model.encode(TEXTS)
    assert model[0].status["packed"]
    features = model.preprocess(TEXTS)
    features["packed_batch"] = PackedBatch.of(features["attention_mask"])
    with torch.inference_mode(), Waits() as waits:
        model(features)
    assert waits.found == []
    with torch.inference_mode(), Waits() as waits:
        bool(torch.ones(()))
        torch.ones(2)[torch.ones(2, dtype=torch.bool)]
    assert waits.found == ["is_nonzero", "index"]  # it does see them


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *ends: Any, **options: Any) -> torch.Tensor:
    """What `varlen_attn` promises, text by text: (left, right) is how far a token sees, -1 for as far as there is."""
    left, right = (reach if reach >= 0 else 10**6 for reach in options["window_size"])
    parts = []
    for start, end in zip(ends[0][:-1].tolist(), ends[0][1:].tolist(), strict=True):
        at = torch.arange(end - start)
        ahead = at[None] - at[:, None]
        seen = (ahead <= right) & (ahead >= -left)
        one, *both = (x[start:end].transpose(0, 1) for x in (q, k, v))
        attend = torch.nn.functional.scaled_dot_product_attention
        parts.append(attend(one, *both, seen, scale=options["scale"], enable_gqa=options["enable_gqa"]).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("causal", [True, False])
def test_a_gpus_attention_over_texts_sees_what_a_cpus_does(causal: bool, window: int | None) -> None:
    """Only a GPU has the real one; what it is asked for can be compared here."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    batch = PackedBatch.of(torch.arange(9)[None] < torch.tensor([9, 1, 4, 4])[:, None])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 18, 8) for heads in (4, 2, 2))
    call = attention.Call(q, k, v, 0.3, causal, window)
    with mock.patch.object(varlen, "varlen_attn", flash):
        assert torch.allclose(attention._by_varlen(batch, call), attention._by_sdpa(batch, call), atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_reaches_as_far_as_the_masks_of_transformers(causal: bool) -> None:
    """Causal windows count the token itself, symmetric ones do not."""
    seen = attention._mask("sdpa", torch.zeros(1, 1, 6, 1), causal, 2)
    assert seen is not None
    assert seen[0, 0, 3].tolist() == [False, not causal, True, True, not causal, not causal]


@pytest.mark.parametrize(
    ("said", "own", "found"), [(None, True, True), (None, False, False), (True, False, True), (False, True, False)]
)
def test_the_direction_that_a_call_names_comes_before_its_modules(said: Any, own: bool, found: bool) -> None:
    module = torch.nn.Module()
    module.is_causal = own
    assert attention._is_causal(module, {"is_causal": said}) is found
    assert attention._is_causal(module, {}) is own
    assert attention._is_causal(torch.nn.Module(), {}) is True


@pytest.mark.parametrize(("calls", "packs"), [(0, False), (2, False), (3, True), (4, False), (6, True)])
def test_every_layer_asks_for_the_attention_as_often(calls: int, packs: bool) -> None:
    """However close the vectors are: a layer that does not ask would see across texts."""
    model, texts = tiny_decoder("llama"), [[3, 4, 5], [6, 7]]
    alone = packing.alone(model, texts)
    with mock.patch.object(packing, "_together", return_value=(alone, calls)):
        status = packing._probe(model, attn_implementation_of(model), texts)
    assert bool(status) is packs
    assert packs or status.reason == f"{calls} of 3 layers ask for the attention function"
