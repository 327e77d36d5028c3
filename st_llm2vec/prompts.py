"""The old home of templates.py and tokenization.py: what was imported from here still is."""

from .templates import CHAT, TEMPLATES, Template, choose_template, own_template
from .tokenization import TokenizedText, split_input, tokenize

__all__ = [
    "CHAT",
    "TEMPLATES",
    "Template",
    "TokenizedText",
    "choose_template",
    "own_template",
    "split_input",
    "tokenize",
]
