"""Chat templates are small programs: they run apart, with a limit on time and memory, and never in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ..errors import InvalidInputError

MAX_TEMPLATE = 1 << 17  # characters; the longest published ones have 30,000
_SECONDS = 1  # of processor time; published templates take milliseconds
_BYTES = 1 << 29
_PATIENCE = 30  # seconds by the clock, on a machine that is busy with other things

# transformers' own function, so that what it renders is what transformers would.
_CHILD = f"""
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
given = json.load(sys.stdin)
try:
    import resource
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + {_SECONDS}
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + {_BYTES}
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError):
    pass  # another system: the clock is what is left
try:
    found = [render_jinja_template([turns], chat_template=given["template"], **given["tokens"])[0][0]
             for turns in given["turns"]]
    if max(map(len, found)) > {1 << 20}:
        raise MemoryError
except MemoryError:
    sys.exit(9)
except Exception as error:
    found = str(error)[:500]
print(json.dumps(found))
"""


def render_apart(template: str, turns: list[list[dict[str, str]]], tokens: dict[str, Any]) -> list[str]:
    """Render a chat template in a process of its own.

    Args:
        template: Jinja, as in chat_template.jinja.
        turns: The conversations to render.
        tokens: Special tokens by name, which templates may use.

    Returns:
        What the template makes of each conversation.

    Raises:
        InvalidInputError: It is too long, raises, does not end within a second, or fills half a gigabyte.
    """
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
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        found = None
    if found is None:
        raise InvalidInputError(
            "The tokenizer's chat template cannot be used: rendering one short conversation takes more than "
            f"{_SECONDS} s or {_BYTES >> 20} MB. Give a Template(prefix, suffix)."
        )
    if isinstance(found, str):
        raise InvalidInputError(
            f"The tokenizer's chat template cannot be used ({found}). Give a Template(prefix, suffix)."
        )
    return list(found)
