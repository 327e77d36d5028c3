"""Chat templates are small programs: one is run apart first, with a limit on time and memory."""

from __future__ import annotations

import subprocess
import sys

from ..errors import InvalidInputError

MAX_TEMPLATE = 1 << 17  # characters; the longest published ones have 30,000
_SECONDS = 1  # of processor time; published templates take milliseconds
_BYTES = 1 << 29
_PATIENCE = 30  # seconds by the clock, on a machine that is busy with other things

# What transformers renders with, as far as time and memory depend on it.
_CHILD = f"""
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS}, {_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({_BYTES}, {_BYTES}))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
given = json.load(sys.stdin)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = lambda x, **_: json.dumps(x)
def stop(*_):
    raise RuntimeError("raise_exception")
environment.globals |= dict(raise_exception=stop, strftime_now=lambda *_: "", **given["tokens"])
try:
    template = environment.from_string(given["template"])
    for turns in given["turns"]:
        template.render(messages=turns, tools=None, documents=None, add_generation_prompt=False)
except MemoryError:
    sys.exit(9)
except Exception:
    pass  # it ended; transformers says what is wrong with it
"""


def require_finite_template(template: str, turns: list[list[dict[str, str]]], tokens: dict[str, str]) -> None:
    """Raises where rendering a chat template does not end within a second and half a gigabyte.

    Args:
        template: Jinja, as in chat_template.jinja.
        turns: The conversations that it will be asked to render.
        tokens: Special tokens by name, which templates may use.

    Raises:
        InvalidInputError: It is too long, loops for ever, or fills the memory.
    """
    import json

    if len(template) > MAX_TEMPLATE:
        raise InvalidInputError(
            f"The tokenizer's chat template must have at most {MAX_TEMPLATE:,} characters, got {len(template):,}. "
            "Give a Template(prefix, suffix)."
        )
    given = json.dumps({"template": template, "turns": turns, "tokens": tokens})
    try:
        done = subprocess.run(  # noqa: S603 - our own text above, in our own interpreter
            [sys.executable, "-c", _CHILD], input=given.encode(), capture_output=True, timeout=_PATIENCE, check=False
        )
        ended = done.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        raise InvalidInputError(
            "The tokenizer's chat template cannot be used: rendering one short conversation takes more than "
            f"{_SECONDS} s or {_BYTES >> 20} MB. Give a Template(prefix, suffix)."
        )
