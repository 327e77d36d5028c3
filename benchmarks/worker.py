"""One variant in a process of its own: reads commands from standard input, answers with seconds and vectors.

    python benchmarks/worker.py VARIANT MODEL_FOLDER DEVICE [--prepare]

Runs in the variant's own environment, so nothing is imported here that another environment might not have. Whoever
takes texts tokenizes them within the time that is taken; all see the same token ids, the closing special token
included, and pool the mean of all of them. How many texts run at once is tuned for everyone who has to be told.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MAX_LENGTH = 2048
BATCH_SIZES = (2, 4, 8, 16, 32, 128)
HERE = Path(__file__).resolve().parent


class Ours:
    """st_llm2vec."""

    def __init__(self, folder: Path, device: str, kind: str, **options: Any) -> None:
        import st_llm2vec

        if kind != "default":
            options |= {"quantize": "int8"} if kind == "int8" else {"dtype": kind}
        self.model = st_llm2vec.load(str(folder), device=device, max_seq_length=MAX_LENGTH, **options)

    def tune(self, texts: list[str]) -> str:
        return ""

    def encode(self, texts: list[str]) -> Any:
        return self.model.encode(texts, show_progress_bar=False)


class Stock:
    """sentence-transformers, made bidirectional by config.json, at whichever batch size is fastest."""

    def __init__(self, folder: Path, device: str, kind: str, attention: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        options = {"dtype": kind, **({"attn_implementation": attention} if attention else {})}
        transformer = Transformer(str(folder), model_kwargs=options, max_seq_length=MAX_LENGTH)
        assert transformer.model.config.is_causal is False
        pooling = Pooling(transformer.get_embedding_dimension(), "mean")
        self.model = SentenceTransformer(modules=[transformer, pooling], device=device)
        self.batch_size = 32

    def tune(self, texts: list[str]) -> str:
        self.batch_size = _fastest(BATCH_SIZES, texts, self.encode)
        return f"batch size {self.batch_size}"

    def encode(self, texts: list[str], batch_size: int | None = None) -> Any:
        return self.model.encode(texts, batch_size=batch_size or self.batch_size, show_progress_bar=False)


class Original:
    """The llm2vec package, bidirectional Llama of its own."""

    def __init__(self, folder: Path, device: str, kind: str) -> None:
        import torch
        from llm2vec import LLM2Vec
        from llm2vec.models import LlamaBiModel
        from tokenizers import Tokenizer
        from transformers import LlamaConfig, PreTrainedTokenizerFast

        settings = json.loads((folder / "config.json").read_text())
        settings["rope_theta"] = (settings.pop("rope_parameters", None) or {}).get("rope_theta", 10000.0)
        config = LlamaConfig(**{key: value for key, value in settings.items() if key not in ("dtype", "is_causal")})
        model = LlamaBiModel.from_pretrained(folder, config=config, torch_dtype=getattr(torch, kind))
        rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        # Its tokenizers package reads merges as "a b" only.
        rules["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in rules["model"]["merges"]]
        older = Tokenizer.from_str(json.dumps(rules))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=older, padding_side="left", model_input_names=["input_ids", "attention_mask"]
        )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
        self.model = LLM2Vec(model, tokenizer, pooling_mode="mean", max_length=MAX_LENGTH, doc_max_length=MAX_LENGTH)
        self.device = device
        self.batch_size = 32

    def tune(self, texts: list[str]) -> str:
        self.batch_size = _fastest(BATCH_SIZES, texts, self.encode)
        return f"batch size {self.batch_size}"

    def encode(self, texts: list[str], batch_size: int | None = None) -> Any:
        return self.model.encode(
            texts, batch_size=batch_size or self.batch_size, show_progress_bar=False, device=self.device
        )


class Padded:
    """What runners of exported graphs share: tokens in batches sorted by length, mean over the tokens."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()  # the file may ask for it
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.batch_size = 32

    def hidden(self, ids: Any, mask: Any) -> Any:
        raise NotImplementedError

    def tune(self, texts: list[str]) -> str:
        self.batch_size = _fastest(BATCH_SIZES, texts, self.encode)
        return f"batch size {self.batch_size}"

    def encode(self, texts: list[str], batch_size: int | None = None) -> Any:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        size = batch_size or self.batch_size
        vectors: list[Any] = [None] * len(rows)
        for start in range(0, len(rows), size):
            batch = order[start : start + size]
            longest = len(rows[batch[-1]])
            ids = np.zeros((len(batch), longest), dtype=np.int64)
            mask = np.zeros((len(batch), longest), dtype=np.int64)
            for at, i in enumerate(batch):
                ids[at, : len(rows[i])], mask[at, : len(rows[i])] = rows[i], 1
            hidden = self.hidden(ids, mask)
            means = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
            for at, i in enumerate(batch):
                vectors[i] = means[at]
        return np.stack(vectors)


class OnnxRuntime(Padded):
    """ONNX Runtime, dynamic int8 (per channel)."""

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(folder)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others wait for their turn
        self.session = onnxruntime.InferenceSession(
            str(folder / "export" / "int8.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def hidden(self, ids: Any, mask: Any) -> Any:
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    @staticmethod
    def prepare(folder: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = folder / "export" / "int8.onnx"
        if not target.is_file():
            target.parent.mkdir(exist_ok=True)
            _export_onnx(folder, target.with_name("float.onnx"))
            quantize_dynamic(
                target.with_name("float.onnx"),
                target,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
                extra_options={"MatMulConstBOnly": True},
            )


class OpenVino(Padded):
    """OpenVINO, bfloat16 inference, of float or of int8 weights."""

    def __init__(self, folder: Path, device: str, kind: str) -> None:
        super().__init__(folder)
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": _threads(), "INFERENCE_PRECISION_HINT": "bf16"}
        if kind == "int8":
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(2**32 - 1)
        self.model = core.compile_model(folder / "export" / f"{kind}.xml", "CPU", settings)

    def hidden(self, ids: Any, mask: Any) -> Any:
        return self.model({"input_ids": ids, "attention_mask": mask})[0]

    @staticmethod
    def prepare(folder: Path) -> None:
        import openvino

        target = folder / "export" / "bfloat16.xml"
        target.parent.mkdir(exist_ok=True)
        if not target.is_file():
            model, example = _explicit_mask(folder)
            converted = openvino.convert_model(model, example_input=example)
            for port, name in zip(converted.inputs, example, strict=True):
                port.get_tensor().set_names({name})
            openvino.save_model(converted, target, compress_to_fp16=False)
        if not target.with_name("int8.xml").is_file():
            import nncf

            converted = openvino.Core().read_model(target)
            int8 = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_SYM)
            openvino.save_model(int8, target.with_name("int8.xml"), compress_to_fp16=False)


class LlamaCpp:
    """llama.cpp, bfloat16 weights, the sequences that run at once packed by itself, mean pooling of its own."""

    def __init__(self, folder: Path, device: str) -> None:
        import xllamacpp
        from tokenizers import Tokenizer

        self.api = xllamacpp
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()  # the file may ask for it
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.path = str(folder / "export" / "bfloat16.gguf")
        self._open(8)

    def _open(self, sequences: int) -> None:
        api, settings = self.api, self.api.CommonParams()
        settings.model.path, settings.embedding, settings.embd_normalize = self.path, True, -1
        settings.pooling_type = api.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        settings.attention_type = api.llama_attention_type.LLAMA_ATTENTION_TYPE_NON_CAUSAL
        settings.n_ctx = settings.n_batch = settings.n_ubatch = MAX_LENGTH  # each token sees its whole text
        settings.n_parallel, settings.kv_unified = sequences, True
        settings.cache_prompt = False  # the same texts come round after round
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = _threads()
        settings.verbosity = 0
        self.server = None  # the memory of the one before
        self.server = api.Server(settings)
        self.sequences = sequences

    def tune(self, texts: list[str]) -> str:
        def run(texts: list[str], sequences: int) -> None:
            if sequences != self.sequences:
                self._open(sequences)
            self.encode(texts)

        longest = max(len(encoding.ids) for encoding in self.tokenizer.encode_batch(texts))
        fitting = tuple(size for size in (1, 4, 16) if size * longest <= MAX_LENGTH) or (1,)  # into the cache, whole
        self._open(_fastest(fitting, texts, run, opens=True) if len(fitting) > 1 else 1)
        built = "AVX512" if "AVX512 = 1" in self.api.get_system_info() else "AVX2 only"
        return f"{self.sequences} at once, built for {built}"

    def encode(self, texts: list[str]) -> Any:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        found = self.server.handle_embeddings({"input": rows, "embd_normalize": -1})["data"]
        return np.array([row["embedding"] for row in sorted(found, key=lambda row: row["index"])], dtype=np.float32)

    @staticmethod
    def prepare(folder: Path) -> None:
        import gguf
        from safetensors.numpy import load_file

        target = folder / "export" / "bfloat16.gguf"
        if target.is_file():
            return
        target.parent.mkdir(exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        if config["model_type"] != "llama":
            raise SystemExit("only written for the llama shapes")
        tensors = load_file(folder / "model.safetensors")
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        writer = gguf.GGUFWriter(str(target), "llama")
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10000.0))
        writer.add_rope_dimension_count(config["hidden_size"] // heads)
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("none")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
        for name, tensor in tensors.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp rotates neighbours, transformers halves
                n = heads if "q_proj" in name else groups
                tensor = tensor.reshape(n, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)  # noqa: PLW2901
            there = names.get_name(f"model.{name}", try_suffixes=(".weight",))
            if tensor.ndim == 1:
                writer.add_tensor(there, tensor)
            else:
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(there, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


class Limit:
    """The decoder's matrix products alone, on batches of 2,048 tokens, with prepacked weights."""

    def __init__(self, folder: Path, device: str, kind: str) -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer

        sys.path.insert(0, str(HERE))
        from workloads import shape_of

        self.torch, self.device, self.kind = torch, device, kind
        config = AutoConfig.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.layers = config.num_hidden_layers
        dtype = torch.float32 if kind == "int8" else getattr(torch, kind)
        # As many weights as the model has: they must not stay in the cache.
        self.products = [
            self._product(torch.randn(rows, width, dtype=dtype))
            for _ in range(self.layers)
            for rows, width in shape_of(config)
        ]

    def _product(self, weight: Any) -> Any:
        torch = self.torch
        width = weight.shape[1]
        if self.kind == "int8":
            from st_llm2vec.backend.int8 import Int8Product, Rounded

            none = torch.empty(0, dtype=torch.int64)
            rounded = Rounded.of(weight, torch.ones(1, width), none)
            whole = Int8Product.of([torch.nn.Linear(1, 1, bias=False)], [rounded])
            arguments = (
                1.0,
                128,
                whole._packed,
                whole._scale,
                whole._zeros,
                None,
                1.0,
                0,
                torch.bfloat16,
                "none",
                [],
                "",
            )

            def product(rows: int) -> Any:
                return torch.ops.onednn.qlinear_pointwise(self.inputs(rows, width), *arguments)

        elif self.device == "cpu":
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)

            def product(rows: int) -> Any:
                return torch.ops.mkldnn._linear_pointwise(self.inputs(rows, width), packed, None, "none", [], "")

        else:
            there = weight.to(self.device)

            def product(rows: int) -> Any:
                return torch.nn.functional.linear(self.inputs(rows, width), there)

        return product

    def inputs(self, rows: int, width: int) -> Any:
        key = (rows, width)
        if not hasattr(self, "_inputs"):
            self._inputs: dict[Any, Any] = {}
        if key not in self._inputs:
            if self.kind == "int8":
                self._inputs[key] = self.torch.randint(1, 255, key, dtype=self.torch.uint8)
            else:
                self._inputs[key] = self.torch.randn(key, dtype=getattr(self.torch, self.kind), device=self.device)
        return self._inputs[key]

    def tune(self, texts: list[str]) -> str:
        return ""

    def encode(self, texts: list[str]) -> Any:
        # The tokens are counted outside the time that is taken, see `answer`.
        with self.torch.inference_mode():
            for start in range(0, self.tokens, MAX_LENGTH):
                rows = min(MAX_LENGTH, self.tokens - start)
                for product in self.products:
                    product(rows)
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return np.zeros((len(texts), 1), dtype=np.float32)

    def count(self, texts: list[str]) -> None:
        self.tokens = sum(map(len, self.tokenizer(texts)["input_ids"]))


VARIANTS: dict[str, Any] = {
    "ours default float32": lambda folder, device: Ours(folder, device, "default"),
    "ours float32": lambda folder, device: Ours(folder, device, "float32"),
    "ours bfloat16": lambda folder, device: Ours(folder, device, "bfloat16"),
    "ours int8": lambda folder, device: Ours(folder, device, "int8"),
    "ours compiled float32": lambda folder, device: Ours(folder, device, "float32", compile=True),
    "ours compiled float32 causal": lambda folder, device: Ours(
        folder, device, "float32", compile=True, attention="causal"
    ),
    "ours compiled bfloat16": lambda folder, device: Ours(folder, device, "bfloat16", compile=True),
    "ours compiled int8": lambda folder, device: Ours(folder, device, "int8", compile=True),
    "stock float32": lambda folder, device: Stock(folder, device, "float32"),
    "stock bfloat16": lambda folder, device: Stock(folder, device, "bfloat16"),
    "stock flash bfloat16": lambda folder, device: Stock(folder, device, "bfloat16", "flash_attention_2"),
    "original bfloat16": lambda folder, device: Original(folder, device, "bfloat16"),
    "onnxruntime int8": OnnxRuntime,
    "openvino bfloat16": lambda folder, device: OpenVino(folder, device, "bfloat16"),
    "openvino int8": lambda folder, device: OpenVino(folder, device, "int8"),
    "llama.cpp bfloat16": LlamaCpp,
    "limit float32": lambda folder, device: Limit(folder, device, "float32"),
    "limit bfloat16": lambda folder, device: Limit(folder, device, "bfloat16"),
    "limit int8": lambda folder, device: Limit(folder, device, "int8"),
}
# What a variant's speed depends on, said beside the figures.
PACKAGES = {
    "original": ("llm2vec", "transformers", "torch"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino", "nncf"),
    "llama.cpp": ("xllamacpp",),
}
PREPARE = {"onnxruntime": OnnxRuntime.prepare, "openvino": OpenVino.prepare, "llama.cpp": LlamaCpp.prepare}


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _fastest(sizes: tuple[int, ...], texts: list[str], run: Any, opens: bool = False) -> int:
    """The size that `run(texts, size)` is fastest at: each is timed once, the best two once more."""
    enough = next((i for i, size in enumerate(sizes) if size >= len(texts)), len(sizes) - 1)
    sizes = sizes[: enough + 1]  # larger ones are the same batch
    times = {}
    for again in (False, True):
        for size in sorted(times, key=times.__getitem__)[:2] if again else sizes:
            if opens or not times:  # the first run allocates memory
                run(texts[:1] if times else texts, size)
            start = time.perf_counter()
            run(texts, size)
            times[size] = min(times.get(size, 1e9), time.perf_counter() - start)
    return min(times, key=times.__getitem__)


def _explicit_mask(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The decoder as a graph of ids and mask; the mask is explicit, as an export would bake `is_causal` in."""
    import torch
    from transformers import AutoModel

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            lowest = torch.finfo(torch.float32).min
            mask = (1.0 - attention_mask[:, None, None, :].float()) * lowest
            mask = mask.expand(-1, 1, input_ids.shape[1], -1)
            positions = torch.arange(input_ids.shape[1])[None]
            return self.model(
                input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state

    example = {"input_ids": torch.ones(2, 9, dtype=torch.long), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    return Graph().eval(), example


def _export_onnx(folder: Path, target: Path) -> None:
    import torch

    model, example = _explicit_mask(folder)
    axes = {0: "texts", 1: "tokens"}
    with torch.inference_mode():
        torch.onnx.export(
            model,
            tuple(example.values()),
            str(target),
            input_names=list(example),
            output_names=["hidden"],
            dynamic_axes=dict.fromkeys((*example, "hidden"), axes),
            opset_version=17,
            dynamo=False,
        )


def answer(runner: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Encodes all texts at once, or each alone; when asked for the vectors, it is tuned to the workload before."""
    texts = json.loads(Path(command["texts"]).read_text(encoding="utf-8"))
    each = command["do"] == "each"
    if isinstance(runner, Limit):
        runner.count(texts[:1] if each else texts)
    told = runner.tune(texts) if "vectors" in command and not each else ""
    seconds, vectors = [], []
    for part in [[text] for text in texts] if each else [texts]:
        start = time.perf_counter()
        vectors.append(runner.encode(part))
        seconds.append(time.perf_counter() - start)
    if "vectors" in command:
        np.save(command["vectors"], np.concatenate(vectors).astype(np.float32))
        _forget_peak()
    return {"seconds": seconds, "told": told}


def _forget_peak() -> None:
    """From here on the peak is that of encoding: not of loading, and not of other batch sizes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib(device: str) -> float:
    if device != "cpu":
        import torch

        return float(torch.cuda.max_memory_allocated() / 2**20)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    name, folder, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if "--prepare" in sys.argv:
        PREPARE[name.split()[0]](folder)
        return
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    runner = VARIANTS[name](folder, device)
    packages = [f"{package} {version(package)}" for package in PACKAGES.get(name.split()[0], ())]
    print(json.dumps({"packages": packages}), file=replies, flush=True)
    for line in sys.stdin:
        reply = answer(runner, json.loads(line))
        reply["peak_mib"] = _peak_mib(device)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
