"""Messages of the library in the words of the command line: what to type there, and not what a program would call."""

from __future__ import annotations

import re
from typing import Any

# What a message says, and what it says here instead.
REWORDINGS = (
    (r"Replace documents with store\.upsert\(\.\.\.\)\.", "Replace them with --upsert."),
    (r"To open it all the same, name it: .*? or -m (\S+) on the command line\.", r"To download it, say so: -m \1."),
    (
        r"does not know its name: FaissStore\.open\([^)]*\)\. Without one, give vectors\.",
        "does not know its name: name it with --model.",
    ),
    (r"the store needs its model: FaissStore\.open\([^)]*\)\. Without one, give vectors\.", "name it with --model."),
    (r" If both give the same vectors, say so: fingerprint=.*", ""),
    (r"with the dtype, quantize and max_seq_length of then", "with its --dtype, --quantize and --max-seq-length"),
    (r"Make one with FaissStore\.create\([^)]*\)\.?", "Make one with st-llm2vec index."),
    (r"Leave out txt\.", "Leave out --txt."),
    (r"\btext_columns\b", "--text-column"),
    (r"Name the column of the text\.", "Name the column of the text with --text-column."),
    (
        r"Choose the columns to keep \(metadata\), or say that it is the id \(id_column\)",
        "Give --metadata or --id-column",
    ),
    (r", or choose the columns that become metadata\.", ", or choose columns with --metadata."),
    (r"register it with register_alias\([^)]*\)", "see st-llm2vec models"),
    (r" \((?:FAISS: )?[^()]*\bError in .*\)", ""),  # of FAISS, in C++
    (r"\bsave_pretrained( or convert)?\b", "convert"),
    (r"folder or hub id: st_llm2vec\.load\('owner/name'\)", "folder or hub id (owner/name)"),
    (r"\bst_llm2vec\.load\b", "st-llm2vec"),
)


def reworded(message: str, options: dict[str, str]) -> str:
    """A message with the command line's words in the place of a program's.

    Args:
        message: Of an error.
        options: What the command line calls an argument of the library, such as {"truncate_dim": "--truncate-dim"}.
    """
    for pattern, instead in REWORDINGS:
        message = re.sub(pattern, instead, message, flags=re.DOTALL)
    names = "|".join(sorted(options, key=len, reverse=True))
    # What is quoted is not ours: `'kind=flat'` may be an id.
    pattern = rf"(?<![\w'\"./-])({names})(?:=(?=['\"\d\w])| (?=must |is missing: ))"
    message = re.sub(pattern, lambda found: f"{options[found[1]]} ", message)
    underscored = "|".join(name for name in options if "_" in name)
    return re.sub(rf"(?<![\w'\"./-])({underscored})(?![\w'\"])", lambda found: options[found[1]], message)


def options_of(command: Any) -> dict[str, str]:
    """The options of a command and those below it, by the names of their parameters."""
    found = {each.name: max(each.opts, key=len) for each in command.params if each.param_type_name == "option"}
    for below in getattr(command, "commands", {}).values():
        found |= options_of(below)
    return found
