"""int8: this project's and torchao's on one encoder, taking turns in one process: time, and cosine to our float32.

    python benchmarks/quantization.py --model FOLDER_OR_NAME --data DIR      pip install torchao first

Short texts, 5 to 40 tokens, those of `make bench`. All but stock run packed; torchao's weights
(Int8DynamicActivationInt8WeightConfig) are put into the encoder that `load` makes, and its layers are compiled as ours
are. Figures are medians, a ratio is the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from run import machine
from torch.nn.functional import cosine_similarity
from workloads import ROOT, bidirectional, count_tokens, make_texts, real_or_random

BASELINE = "stock float32"
EXACT = "ours float32"  # pools and cuts as the encoder does, which stock classes need not


def ours(name: str, **options: Any) -> Any:
    import st_llm2vec

    return st_llm2vec.load(name, device="cpu", **options)


def torchaos(name: str, compiled: bool) -> Any:
    """The encoder of `load` with torchao's linear layers in the decoder."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    from st_llm2vec.backend.compilation import compile_layers

    model = ours(name)
    model.encode("a", show_progress_bar=False)  # packing is proven before
    quantize_(model[0].model, Int8DynamicActivationInt8WeightConfig())
    if compiled and not (status := compile_layers(model[0].model, model.tokenizer)):
        raise RuntimeError(f"its layers do not compile: {status.reason}")
    return model


def stock(folder: Path) -> Any:
    from worker import Stock

    return Stock(folder, "cpu", "float32")


VARIANTS: dict[str, Callable[[str, Path], Any]] = {
    BASELINE: lambda name, folder: stock(folder),
    "ours float32": lambda name, folder: ours(name, dtype="float32"),
    "ours bfloat16": lambda name, folder: ours(name, dtype="bfloat16"),
    "ours int8": lambda name, folder: ours(name, quantize="int8"),
    "torchao int8": lambda name, folder: torchaos(name, compiled=False),
    "ours compiled float32": lambda name, folder: ours(name, dtype="float32", compile=True),
    "ours compiled int8": lambda name, folder: ours(name, quantize="int8", compile=True),
    "torchao compiled int8": lambda name, folder: torchaos(name, compiled=True),
}


def vectors(model: Any, texts: list[str]) -> torch.Tensor:
    encode = model.model.encode if hasattr(model, "batch_size") else model.encode  # Stock holds its model
    options = {"batch_size": model.batch_size} if hasattr(model, "batch_size") else {}
    return torch.as_tensor(encode(texts, convert_to_tensor=True, show_progress_bar=False, **options)).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Default: the decoder of `make model`, else random weights of its shape")
    parser.add_argument("--variant", nargs="+", default=[""], help="Only variants whose names begin so, and stock")
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7, help="0: cosines only")
    parser.add_argument("--data", type=Path, help="Folder of jsonl files with texts; default: docstrings")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    folder, said = real_or_random("135m", args.out)
    name = args.model or str(folder)
    plain = args.out / "models" / f"quantization-{Path(name).name}"
    if not plain.exists():  # what stock classes open: the decoder that `load` makes, adapters merged
        ours(name)[0].model.save_pretrained(plain / "merged")
        ours(name).tokenizer.save_pretrained(plain / "merged")
    folder = bidirectional(plain / "merged", plain / "encoder")
    texts = make_texts("short", args.tokens, args.data)
    print(f"{machine()}, torchao {version('torchao')}; {args.model or said}; {torch.get_num_threads()} threads")
    tokens = count_tokens(texts, folder)
    models: dict[str, Any] = {}
    for variant, make in VARIANTS.items():
        if variant in (BASELINE, EXACT) or variant.startswith(tuple(args.variant)):
            try:
                models[variant] = make(name, folder)
            except Exception as error:  # a package of others, on weights that it may not be made for
                print(f"{variant} is left out: {type(error).__name__}: {str(error)[:200]}", flush=True)
    if args.rounds:
        models[BASELINE].tune(texts)
    found = {variant: vectors(model, texts) for variant, model in models.items()}
    seconds: dict[str, list[float]] = {variant: [] for variant in models}
    for turn in range(args.rounds):
        for variant in random.Random(turn).sample(list(models), len(models)):
            start = time.perf_counter()
            vectors(models[variant], texts)
            seconds[variant].append(time.perf_counter() - start)
    print("| | tokens/s | x stock | smallest cosine | mean |\n| --- | ---: | ---: | ---: | ---: |")
    for variant, times in seconds.items():
        cosines = cosine_similarity(found[variant], found[EXACT])
        speed = "| "
        if times:
            ratio = statistics.median(b / a for a, b in zip(times, seconds[BASELINE], strict=True))
            speed = f"{tokens / statistics.median(times):,.0f} | {ratio:.2f}x"
        print(f"| {variant} | {speed} | {cosines.min():.5f} | {cosines.mean():.5f} |")


if __name__ == "__main__":
    main()
