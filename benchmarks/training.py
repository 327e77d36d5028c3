"""Measures training steps: this project, sentence-transformers' trainer, the matrix products: `make bench-training`.

    python benchmarks/training.py                               # 135M, bfloat16, LoRA, all stages
    python benchmarks/training.py --stage supervised --dtype float32 --rounds 5
    python benchmarks/training.py --train full --model FOLDER
    python benchmarks/training.py --curves 15 --batch 8         # loss curves alone: packed, and padded

All take turns in one process on the same batches, in another order each round; figures are medians, and a ratio is the
median of the ratios within each round. A step is the host trainer's own `training_step` (forward, backward) and an
AdamW step. Everyone starts from the same weights, and the loss of every step is printed for both: they are equal within
noise (SimCSE's dropout is drawn by each). The limit is the matrix products of the frozen layers on the tokens alone:
forward and the gradient of the input; with `--train full` that of the weight, too; and MNTP's head on the masked
positions.

MNTP is not in sentence-transformers. "stock" is our loss in its trainer; "stock, whole head" predicts at every position
and leaves out the others in the cross entropy, as transformers' losses (and the original's) do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from run import machine
from torch import Tensor, nn
from workloads import ROOT, SHAPES, bidirectional, docstrings, real_or_random, stored_texts

STAGES = {"mntp": "16 x 128 tokens", "simcse": "48 texts of 8 to 96 tokens", "supervised": "48 pairs of 8 to 96 tokens"}
FLOORS = {"against_stock": 1.5, "of_limit": 0.5}  # ours; the second in bfloat16
DROPOUT = 0.1  # of attention, SimCSE
CURVES = ("padded", "padded, in reverse order")


def make_rows(stage: str, model: Any, size: int, steps: int, data: Path | None) -> Any:
    """The training set: `steps` batches of `size`."""
    from datasets import Dataset

    from st_llm2vec.training import chunk_texts, simcse_pairs

    draw = random.Random(0)
    pool = list(dict.fromkeys(islice(stored_texts(data) if data else docstrings(), 8000)))
    draw.shuffle(pool)
    if stage == "mntp":
        texts, tokens = [], 0
        while tokens < 128 * size * steps * 1.1:
            texts.append(pool.pop())
            tokens += len(model.tokenizer(texts[-1])["input_ids"])
        return chunk_texts(texts, model.tokenizer, length=128).select(range(size * steps))
    pairs: list[list[str]] = []
    while len(pairs) < size * steps:  # two neighbouring pieces of one text, of evenly spread lengths
        ids = model.tokenizer(pool.pop())["input_ids"]
        first, second = draw.randint(8, 96), draw.randint(8, 96)
        if len(ids) >= first + second:
            pairs.append([model.tokenizer.decode(part) for part in (ids[:first], ids[first : first + second])])
    if stage == "simcse":
        return simcse_pairs([first for first, _ in pairs])
    return Dataset.from_dict({"anchor": [first for first, _ in pairs], "positive": [second for _, second in pairs]})


def ours(folder: Path, args: argparse.Namespace) -> Any:
    import st_llm2vec

    return st_llm2vec.load(str(folder), dtype=args.dtype, device=args.device).train()


def stock(folder: Path, args: argparse.Namespace) -> Any:
    """sentence-transformers' classes on the same decoder, bidirectional."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(folder), model_kwargs={"dtype": args.dtype}, max_seq_length=512)
    transformer.model.config.is_causal = False
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling], device=args.device).train()


def same_adapter(model: Any, other: Any, config: Any) -> None:
    """Gives a stock model the adapter of ours, as peft makes it."""
    model[0].model.requires_grad_(False)
    model[0].model.add_adapter(config)
    weights = dict(other[0].model.named_parameters())
    for name, parameter in model[0].model.named_parameters():
        if "lora_" in name:
            parameter.data = weights[name].detach().clone()


class WholeHead(nn.Module):
    """MNTP's loss with scores of every position, as transformers' own losses compute it."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.model, self.inner = loss.model, loss

    def forward(self, sentence_features: Any, labels: Tensor) -> Tensor:
        (features,) = sentence_features
        hidden = self.model(features)["token_embeddings"][:, :-1]
        logits = self.inner.logits(hidden.flatten(0, 1)).float()
        return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)


class Side:
    """One model in the host's trainer, a step at a time."""

    def __init__(self, model: Any, loss: Any, rows: Any, collator: Any, stage: str, args: argparse.Namespace) -> None:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

        self.model, self.dropout = model, DROPOUT if stage == "simcse" else 0.0
        self.folder = tempfile.TemporaryDirectory()
        options = SentenceTransformerTrainingArguments(
            output_dir=self.folder.name,
            per_device_train_batch_size=args.batch or (16 if stage == "mntp" else 48),
            learning_rate=1e-4,
            report_to=[],
            use_cpu=args.device == "cpu",
            disable_tqdm=True,
            seed=1,
        )
        self.trainer = SentenceTransformerTrainer(
            model=model, args=options, train_dataset=rows, loss=loss, data_collator=collator
        )
        self.trainer.current_gradient_accumulation_steps = 1  # what `train` sets
        self.optimizer = self.trainer.create_optimizer()
        self.losses: list[float] = []

    def batches(self) -> Iterator[Any]:
        yield from self.trainer.get_train_dataloader()

    def step(self, batch: Any) -> float:
        """Seconds of one step on a batch."""
        attention = [m for m in self.model.modules() if hasattr(m, "attention_dropout")]
        for module in attention:
            module.attention_dropout = self.dropout
        batch = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
        start = now(self.model.device)
        self.losses.append(float(self.trainer.training_step(self.model, batch)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now(self.model.device) - start


class Limit:
    """The matrix products that a step cannot do without, on weights of the decoder's shapes."""

    def __init__(self, model: Any, args: argparse.Namespace) -> None:
        decoder = model[0].model
        layers = [(name, m) for name, m in decoder.named_modules() if isinstance(m, nn.Linear)]
        # what reads the embeddings hands no gradient on where only an adapter trains
        first = (".0.self_attn.q_proj", ".0.self_attn.k_proj", ".0.self_attn.v_proj")
        self.full, self.embeddings = args.train == "full", decoder.get_input_embeddings().weight.detach()
        self.layers = [(m.weight.detach(), self.full or not any(end in n for end in first)) for n, m in layers]

    def step(self, tokens: int, masked: int) -> float:
        inputs = {}
        jobs = [(weight, tokens, hands_on) for weight, hands_on in self.layers]
        if masked:
            jobs.append((self.embeddings, masked, True))
        for weight, rows, _ in jobs:
            for width in weight.shape:
                key = (rows, width)
                inputs[key] = inputs.get(key, torch.randn(key, dtype=weight.dtype, device=weight.device))
        start = now(self.embeddings.device)
        for weight, rows, hands_on in jobs:
            x, g = inputs[rows, weight.shape[1]], inputs[rows, weight.shape[0]]
            nn.functional.linear(x, weight)
            if hands_on:
                g @ weight
            if self.full:
                g.t() @ x
        return now(self.embeddings.device) - start


def now(device: Any) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def sides_of(stage: str, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Side], Limit]:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from st_llm2vec.training import MNTPDataCollator, MNTPLoss, add_lora

    first = ours(folder, args)
    limit = Limit(first, args)
    size = args.batch or (16 if stage == "mntp" else 48)
    rows = make_rows(stage, first, size, args.curves or args.rounds + 1, args.data)
    models = {"ours": first}
    for name in CURVES if args.curves else ():
        models[name] = ours(folder, args)
        models[name][0].packing = False
    if not args.curves:
        models["stock"] = stock(folder, args)
    if stage == "mntp" and not args.quick and not args.curves:
        models["stock, whole head"] = stock(folder, args)
    config = add_lora(first, stage, dropout=args.dropout) if args.train == "lora" else None
    collator = MNTPDataCollator(first.preprocess, tokenizer=first.tokenizer) if stage == "mntp" else None
    sides: dict[str, Side] = {}
    for name, model in models.items():
        if config and model is not first:
            same_adapter(model, first, config)
        if stage == "mntp":
            plain = MNTPLoss(model)
            loss: nn.Module = WholeHead(plain) if "whole" in name else plain
        else:
            loss = MultipleNegativesRankingLoss(model)
        sides[name] = Side(model, loss, rows, collator, stage, args)
    return sides, limit


def curves(stage: str, folder: Path, args: argparse.Namespace) -> str:
    """Rows of Markdown: the loss of every step, packed and padded (with peft's LoRA layers) on the same batches.

    How far two equal trainings part by themselves (rounding; dropout, of SimCSE) is seen of the padded one whose
    batches come in reverse order, which changes neither loss nor gradients.
    """
    sides, _ = sides_of(stage, folder, args)
    for batch in sides["ours"].batches():
        for name, side in sides.items():
            back = "reverse" in name
            side.step({k: v.flip(0) if back and isinstance(v, Tensor) else v for k, v in batch.items()})
    packed = [bool(side.model[0].status["packed"]) for side in sides.values()]
    assert packed == [True, False, False], packed
    lines, expected = [], sides[CURVES[0]].losses
    for name, side in sides.items():
        apart = [abs(a - b) for a, b in zip(side.losses, expected, strict=True)]
        curve = " ".join(f"{loss:.3f}" for loss in side.losses)
        lines.append(f"| {stage} | {name} | {curve} | {statistics.mean(apart):.4f} | {max(apart):.4f} |")
    return "\n".join(lines)


def measure(stage: str, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    sides, limit = sides_of(stage, folder, args)
    seconds: dict[str, list[float]] = {name: [] for name in (*sides, "limit")}
    tokens: list[int] = []
    for turn, batch in enumerate(sides["ours"].batches()):
        here = sum(int(v.sum()) for name, v in batch.items() if name.endswith("attention_mask"))
        masked = int((batch["label"][:, 1:] != -100).sum()) if stage == "mntp" else 0
        order: list[tuple[str, Callable[[], float]]] = [
            *((name, lambda side=side, batch=batch: side.step(batch)) for name, side in sides.items()),
            ("limit", lambda here=here, masked=masked: limit.step(here, masked)),
        ]
        for name, step in random.Random(turn).sample(order, len(order)):
            taken = step()
            if turn:  # the first proves packing and fetches memory
                seconds[name].append(taken)
        tokens += [here] * bool(turn)
    assert sides["ours"].model[0].status["packed"], sides["ours"].model[0].status["packed"]
    found = []
    for name, times in seconds.items():
        ratios = {
            other: statistics.median(b / a for a, b in zip(times, seconds[other], strict=True))
            for other in ("stock", "limit")
        }
        found.append(
            {
                "stage": stage,
                "variant": name,
                "dtype": args.dtype,
                "train": args.train,
                "dropout": args.dropout,
                "device": args.device,
                "tokens": tokens,
                "seconds": times,
                "tokens_per_second": statistics.median(n / t for n, t in zip(tokens, times, strict=True)),
                "against_stock": ratios["stock"],
                "of_limit": ratios["limit"],
                "losses": sides[name].losses if name in sides else None,
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: throughput and ratios; then the loss of every step."""
    lines = ["| stage | | tokens/s | x stock | of limit |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        cells = f"{row['tokens_per_second']:,.0f} | {row['against_stock']:.2f}x | {row['of_limit']:.0%}"
        lines.append(f"| {row['stage']} | {row['variant']} | {cells} |")
    lines += ["", *(f"Floor, {name.replace('_', ' ')}: {floor}." for name, floor in FLOORS.items())]
    lines += ["", "| stage | loss of each step | | largest difference to stock |", "| --- | --- | --- | ---: |"]
    stocks = {row["stage"]: row["losses"] for row in rows if row["variant"] == "stock"}
    for row in rows:
        if row["losses"]:
            apart = max(abs(a - b) for a, b in zip(row["losses"], stocks[row["stage"]], strict=True))
            curve = " ".join(f"{loss:.3f}" for loss in row["losses"])
            lines.append(f"| {row['stage']} | {row['variant']} | {curve} | {apart:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--model", type=Path, help="A decoder's folder, instead of --shape")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--train", default="lora", choices=("lora", "full"))
    parser.add_argument("--dropout", type=float, default=0.0, help="Of LoRA's branches")
    parser.add_argument("--batch", type=int, help="Texts or pairs; default: 16 for MNTP, 48 for the others")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--curves", type=int, default=0, metavar="STEPS", help="Loss curves, packed and padded, alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="Folder of jsonl files with texts; default: docstrings")
    parser.add_argument("--quick", action="store_true", help="Two rounds of eight texts: does it run?")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.batch = 2, 8
    args.out.mkdir(parents=True, exist_ok=True)
    folder, weights = (args.model, str(args.model)) if args.model else real_or_random(args.shape, args.out, args.device)
    if args.model or "real" in weights:
        folder = bidirectional(folder, args.out / "models" / f"{args.shape}-{folder.name}")
    threads = os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()
    print(f"{machine()}; {threads} threads; {weights}; {args.dtype}, {args.train}", flush=True)
    if args.curves:
        print("| stage | | loss of each step | mean distance to padded | largest |\n| --- | --- | --- | ---: | ---: |")
        for stage in args.stage:
            print(curves(stage, folder, args), flush=True)
        return
    rows: list[dict[str, Any]] = []
    for stage in args.stage:
        rows += measure(stage, folder, args)
        for row in rows[-4:]:
            if row["stage"] == stage:
                print(json.dumps(row), flush=True)
    (args.out / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = table(rows)
    (args.out / "training.md").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
