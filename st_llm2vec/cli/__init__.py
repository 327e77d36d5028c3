"""`st-llm2vec`, the command line: convert, train, encode, index, search and eval without writing Python.

    terminal.py   texts from files as they are shown: control characters escaped
    wording.py    messages of the library in the words of the command line
    config.py     defaults of options from the user's file
    options.py    options that several commands share, and how a model is opened
    inputs.py     options of commands that read texts from files
    convert.py    convert
    push.py       push
    models.py     models, models remove
    train.py      train mntp, train simcse, train supervised, train all
    mine.py       mine
    encode.py     encode
    index.py      index; updating.py is how a store is brought in line
    search.py     search
    explore.py    explore, with the page explore.html
    evaluate.py   eval
    ablate.py     ablate
    doctor.py     doctor
    serve.py      serve

Results go to stdout; notes, progress and errors to stderr. Exit codes: 0 done, 1 an error that the message says how to
fix, 2 a wrong command line. torch is imported inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from ..errors import LLM2VecError
from . import (
    ablate,
    convert,
    doctor,
    encode,
    evaluate,
    explore,
    index,
    mine,
    models,
    options,
    push,
    search,
    serve,
    train,
)
from .config import defaults
from .terminal import Commands, escaped, escaped_notes, message
from .wording import options_of, reworded

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="st-llm2vec",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # main() below decides what an error looks like
    context_settings=HELP,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert.convert,
    "push": push.push,
    "train": train.train,
    "mine": mine.mine,
    "encode": encode.encode,
    "index": index.index,
    "search": search.search,
    "explore": explore.explore,
    "eval": evaluate.evaluate,
    "ablate": ablate.ablate,
    "doctor": doctor.doctor,
    "serve": serve.serve,
}
for name, command in _COMMANDS.items():
    app.command(name, context_settings=HELP)(command)
app.add_typer(models.app, name="models", context_settings=HELP)

ANYWHERE = ("--debug", "--quiet")  # options that may stand anywhere


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"st-llm2vec {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show results and errors, no notes and no progress; may stand anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decoder-only LLMs as text encoders: convert, train, encode, index, search.

    \b
    Examples:
      st-llm2vec index notes/ notes-store
      st-llm2vec search notes-store "when does the library open?"
      st-llm2vec convert Qwen/Qwen3-0.6B my-encoder
    """


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code; errors become one message."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    said = {name for name in arguments[:end] if name in ANYWHERE}
    arguments = [name for name in arguments[:end] if name not in said] + arguments[end:]
    debug = "--debug" in said
    options.quiet("--quiet" in said)
    try:
        with escaped_notes():
            app(arguments, prog_name="st-llm2vec", default_map=defaults(typer.main.get_command(app)))
    except SystemExit as done:  # how typer ends, and with which code
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of tokenizers is no Exception
        if debug:
            typer.echo(escaped(traceback.format_exc(), keep="\n"), err=True)
            return 1
        what = str(error).strip() or type(error).__name__
        if not isinstance(error, (LLM2VecError, OSError, ValueError)):  # of a library, or a fault of ours
            what = f"{type(error).__name__}: {what}. --debug shows where it comes from."
        typer.echo(message(f"Error: {reworded(what, options_of(typer.main.get_command(app)))}"), err=True)
        return 1
    return 0
