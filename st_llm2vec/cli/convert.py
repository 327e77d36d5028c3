"""`convert`: an alias, a decoder or a checkpoint becomes a portable encoder folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import aliases
from ..atomic import only_writer, published
from ..cards import how_to_open
from ..settings import NAMES, EncoderSettings
from . import options
from .options import cost_of, folder_size, megabytes, note, open_model


@options.with_settings
def convert(
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id of a decoder or LLM2Vec checkpoint.")],
    folder: Annotated[Path | None, typer.Argument(metavar="OUTPUT", help="Folder to write; new, or empty.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUTPUT", help="The same.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Second LoRA adapter (SimCSE or supervised) to merge.")] = None,
    base: Annotated[str | None, typer.Option(help="What an adapter-only MODEL belongs on.")] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.")] = None,
    cache_folder: Annotated[Path | None, typer.Option(help="Where downloads are kept.")] = None,
    token: Annotated[str | None, typer.Option(help="For private repositories. Default: that of hf auth login.")] = None,
    *,
    settings: EncoderSettings,
) -> None:
    """Make a decoder bidirectional, prove it, and save it as a sentence-transformers folder.

    Adapters are merged. Plain SentenceTransformer(OUTPUT) opens the folder, or a line says what it needs.
    An alias without options is written as it is kept in the cache, which is not filled for it.

    \b
    Examples:
      st-llm2vec convert llm2vec-mistral -o llm2vec-mistral
      st-llm2vec convert Qwen/Qwen3-0.6B my-encoder
      st-llm2vec convert ./mntp-checkpoint my-encoder --adapter ./simcse-adapter
      st-llm2vec convert ./llama my-encoder --pooling-mode weighted_mean --dtype bfloat16
    """
    if (folder is None) == (output is None):
        raise typer.BadParameter("give it once, as the second argument or with -o", param_hint="OUTPUT")
    asked: dict[str, Any] = {
        "adapter": adapter,
        "base": base,
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "cache_folder": cache_folder,
        "token": token,
        **{name: getattr(settings, name) for name in NAMES},
    }
    with only_writer(target := Path(folder or output or "")):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise FileExistsError(f"{target} exists already and was left as it is. Choose another folder.")
        _convert(model, target, asked)


def _convert(model: str, target: Path, asked: dict[str, Any]) -> None:
    alias = aliases.find(model)
    if alias and not alias.is_encoder and all(value is None for value in asked.values()):
        _write(model, alias, target)
        return
    if alias:
        encoder = open_model(model, **asked)
        encoder.save_pretrained(str(target))
    else:
        from ..loading import convert as write

        note(f"Converting {model} ...")
        encoder = write(model, target, **asked)
    layers = {row.layer for row in encoder[0].audit.rows} if encoder[0].audit else ()
    note(
        f"{target}: {encoder[0].config.model_type}, {encoder.get_embedding_dimension()} dimensions, "
        f"{encoder.pooling_mode} pooling, {len(layers)} layers audited, {megabytes(folder_size(target))}."
    )
    note(how_to_open(target))


def _write(name: str, alias: aliases.Alias, target: Path) -> None:
    """The folder of an alias: a copy of the one that is kept, or made here without filling the cache."""
    if cost := cost_of(name):
        note(cost)
    note(f"Writing {name}, which stands for {alias} ...")
    from ..loading import alias_folder, write_alias

    if aliases.kept_folder(name, alias).is_dir():
        with published(target) as draft:
            shutil.copytree(str(alias_folder(name)), draft, ignore=shutil.ignore_patterns(aliases.CONTENTS))
    else:
        write_alias(name, alias, target)
    note(f"{target}: {megabytes(folder_size(target))}.")
    note(how_to_open(target))
