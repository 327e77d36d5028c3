"""`st-llm2vec` and `python -m st_llm2vec`: the command line, or what to install for it."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command line and return its exit code."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f'Error: the command line needs {error.name}. Type: pip install "st-llm2vec[cli]"\n')
        return 1
    from .cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
