"""`serve`: an encoder over HTTP, in OpenAI's schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from . import options
from .options import note, open_model

KEY = "ST_LLM2VEC_API_KEY"


def serve(
    model: Annotated[str, typer.Argument(help="Alias, folder or hub id of the encoder.")],
    store: Annotated[Path | None, typer.Option(help="A store of this encoder: POST /search answers from it.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model. Default: the folder's name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    max_seq_length: options.MaxSeqLength = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    compile: options.Compile = False,
    device: options.Device = None,
) -> None:
    """Serve embeddings over HTTP: /v1/embeddings as OpenAI has it, /search, /health, /metrics.

    The prompt is chosen by the model's name: MODEL:query, MODEL:document. With ST_LLM2VEC_API_KEY in the environment,
    clients must send that key.

    \b
    Examples:
      st-llm2vec serve llm2vec-tiny
      st-llm2vec serve my-encoder --store my-store --port 9000
    """
    from ..serving import create_app, listen, take_address

    key = os.environ.get(KEY)
    if key == "":
        raise InvalidInputError(f"{KEY} is empty, and would let everybody in. Set it to a key, or unset it.")
    with take_address(host, port) as address:  # before the model, which takes longer to load
        if store:
            from faiss_llm2vec import FaissStore

            FaissStore.open(store).close()  # the same
        how = {"dtype": dtype, "quantize": quantize, "compile": compile, "device": device}
        encoder = open_model(model, max_seq_length=max_seq_length, **how)
        opened = FaissStore.open(store, encoder) if store else None
        served = name or Path(model).name
        app = create_app(encoder, served, store=opened, api_key=key)
        if key is None and host not in ("127.0.0.1", "localhost", "::1"):
            note(f"Listening on {host} without a key: everybody who reaches it may use it. Set {KEY} to ask for one.")
        listen(app, address, lambda url: note(f"{served} is ready at {url}"))
