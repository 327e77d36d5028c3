"""`train`: the three steps of LLM2Vec, each from a file of texts to a saved encoder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class StageName(str, Enum):
    """The steps, in the order of the paper."""

    mntp = "mntp"
    simcse = "simcse"
    supervised = "supervised"


def train(
    stage: Annotated[StageName, typer.Argument(help="mntp, simcse or supervised.", show_default=False)],
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id to start from.")],
    texts: Annotated[Path, typer.Argument(help=".txt, .jsonl, .csv or .parquet.")],
    output: Annotated[Path, typer.Argument(help="Folder of the trained encoder and its checkpoints.")],
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            "--text-column",
            help="mntp, simcse: the text's column (text). supervised: anchor,positive,negatives (all, in their order).",
        ),
    ] = None,
    eval_file: Annotated[
        Path | None,
        typer.Option(help="Columns sentence1, sentence2, score: Spearman. Otherwise as TEXTS: the loss on it."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    lora_r: Annotated[int, typer.Option("--lora-r", min=1, help="Rank of LoRA.")] = 16,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Default: the paper's 1000.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: 32, 128, 64, by stage.")] = None,
    mini_batch_size: Annotated[
        int | None, typer.Option(min=1, help="simcse, supervised: rows in memory at once (GradCache).")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: 5e-5, 3e-5, 2e-4, by stage.")] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens per row in training; the encoder keeps its own length.")
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="supervised: before each anchor; saved as the query prompt.")
    ] = None,
    document_prompt: Annotated[
        str | None, typer.Option(help="supervised: before each positive and negative; saved as the document prompt.")
    ] = None,
    save_steps: Annotated[int | None, typer.Option(min=1, help="Default: a checkpoint every 200 steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUTPUT.")] = False,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, keep the weights' dtype.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU alone.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
) -> None:
    """Train one step; the next one starts from its OUTPUT.

    mntp: masked next-token prediction on plain text.
    simcse: each text is its own positive.
    supervised: pairs, or triplets with hard negatives.

    \b
    Examples:
      st-llm2vec train mntp Qwen/Qwen3-0.6B wiki.txt step2 --max-steps 1000
      st-llm2vec train simcse step2 sentences.txt step3 --eval-file sts-dev.jsonl
      st-llm2vec train supervised step2 pairs.jsonl step3 --columns question,answer
      st-llm2vec train mntp Qwen/Qwen3-0.6B wiki.txt step2 --resume
    """
    from .stages import Settings, run

    settings = Settings(
        stage=stage.value,
        model=model,
        columns=tuple(name.strip() for name in (columns or "").split(",") if name.strip()),
        full=full,
        lora_r=lora_r,
        max_steps=max_steps,
        batch_size=batch_size,
        mini_batch_size=mini_batch_size,
        learning_rate=learning_rate,
        max_seq_length=max_seq_length,
        save_steps=save_steps,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        dtype=dtype,
        bf16=bf16,
        cpu=cpu,
        seed=seed,
    )
    run(settings, texts, eval_file, output, resume=resume)
