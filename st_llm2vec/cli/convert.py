"""`convert`: a decoder or checkpoint becomes a portable encoder folder. `models`: the names that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import note, open_model, print_table


def convert(
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id of a decoder or LLM2Vec checkpoint.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; new, or empty.")],
    adapter: Annotated[str | None, typer.Option(help="Second LoRA adapter (SimCSE or supervised) to merge.")] = None,
    base: Annotated[str | None, typer.Option(help="What an adapter-only MODEL belongs on.")] = None,
    pooling_mode: options.PoolingMode = None,
    template: options.Template = None,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.")] = None,
) -> None:
    """Make a decoder bidirectional, prove it, and save it as a sentence-transformers folder.

    Adapters are merged. Plain SentenceTransformer(OUTPUT) opens the folder, or the last line says what it needs.

    \b
    Examples:
      st-llm2vec convert Qwen/Qwen3-0.6B my-encoder
      st-llm2vec convert ./mntp-checkpoint my-encoder --adapter ./simcse-adapter
      st-llm2vec convert ./llama my-encoder --pooling-mode weighted_mean --dtype bfloat16
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists already and was left as it is. Choose another folder.")
    encoder = open_model(
        model,
        adapter=adapter,
        base=base,
        pooling_mode=pooling_mode,
        template=template,
        max_seq_length=max_seq_length,
        dtype=dtype,
        device=device,
        revision=revision,
    )
    encoder.save_pretrained(str(output))
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    layers = {row.layer for row in encoder[0].audit.rows}
    note(
        f"{output}: {encoder[0].config.model_type}, {encoder.get_embedding_dimension()} dimensions, "
        f"{encoder.pooling_mode} pooling, {len(layers)} layers audited, {size / 1e6:.1f} MB."
    )


def models() -> None:
    """List the encoders that have a name of their own.

    Any decoder works, too: give its folder or hub id wherever a command takes a model.

    \b
    Examples:
      st-llm2vec models
      st-llm2vec encode texts.txt vectors.npy --model llm2vec-tiny
    """
    from ..aliases import ALIASES

    rows = []
    for name, folder in sorted(ALIASES.items()):
        weights = [file.stat().st_size for file in folder.glob("*.safetensors")]
        rows.append((name, f"{sum(weights) / 1e6:.1f} MB" if weights else "not installed", str(folder)))
    print_table(("name", "weights", "folder"), rows)
