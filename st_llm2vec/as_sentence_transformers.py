"""Where the type of an encoder is found by name, by pickle, and by libraries that look for `sentence_transformers`.

`"sentence_transformers" in str(type(model))` and `type(model).__name__ == "SentenceTransformer"` are how KeyBERT,
BERTopic and others recognise a model; see the end of `model.py`.
"""

from .model import LLM2Vec as SentenceTransformer

__all__ = ["SentenceTransformer"]
