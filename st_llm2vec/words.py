"""Vectors of words: for tagging, alignment and looking inside, rather than for search.

Sub-tokens are averaged. A model that was trained with masked next-token prediction predicts a token from the position
before it, so its word may be read there, too (section 3.13 of the parity kit).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sentence_transformers.util import batch_to_device

from .errors import InvalidInputError
from .model import LLM2Vec
from .modules import LLM2VecTransformer
from .tokenization import TokenizedText
from .types import gives_names

Reading = Literal["same_token", "next_token"]


class _Sentence(NamedTuple):
    """Token ids, and the positions of each word's tokens among them."""

    input_ids: list[int]
    words: list[list[int]]


def encode_words(
    model: LLM2Vec,
    sentences: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    prompt: str = "",
    reading: Reading = "same_token",
    lost: Literal["raise", "nan"] = "raise",
    batch_size: int = 32,
) -> Any:
    """Encode every word of every sentence: the mean of the last hidden states of its tokens.

    Args:
        model: An encoder of `load`; its template and pooling are not used.
        sentences: Texts, whose words stand between blanks and are found by their character offsets; or lists of
            words, which are tokenized one by one as tagging data sets are; or one text.
        prompt: An instruction that is read before each sentence, and has no vectors. A list of words gets it as words.
        reading: "same_token" reads a token where it stands, "next_token" one position before, from which masked
            next-token prediction predicts it.
        lost: What "next_token" does with a first word that nothing stands before: raise, or give it a vector of nan.
        batch_size: Sentences at once.

    Returns:
        For each sentence float32 (words, hidden), in the order of the words; for one text that array alone.

    Raises:
        InvalidInputError: A sentence that is longer than the model reads, a word without tokens, or "next_token" for a
            first word that nothing stands before.

    Example:
        >>> nice, cat = st_llm2vec.encode_words(model, "nice cat")
        >>> cat.shape
        (256,)
    """
    if isinstance(sentences, str):
        (vectors,) = encode_words(model, [sentences], prompt=prompt, reading=reading, lost=lost, batch_size=batch_size)
        return vectors
    if gives_names(sentences):
        raise InvalidInputError(f"sentences must be texts or lists of words, got a {type(sentences).__name__}.")
    if not isinstance(model[0], LLM2VecTransformer):
        raise InvalidInputError(
            f"model must be an encoder of st_llm2vec.load, got a {type(model).__name__} with {type(model[0]).__name__}."
            " Open its folder with st_llm2vec.load."
        )
    if reading not in ("same_token", "next_token"):
        raise InvalidInputError(f"reading must be 'same_token' or 'next_token', got {reading!r}.")
    if lost not in ("raise", "nan"):
        raise InvalidInputError(f"lost must be 'raise' or 'nan', got {lost!r}.")
    read = [_tokenize(model, sentence, prompt, reading, lost, i) for i, sentence in enumerate(sentences)]
    vectors = [np.zeros((0, model.get_embedding_dimension()), np.float32)] * len(read)
    order = sorted((i for i, each in enumerate(read) if each.words), key=lambda i: len(read[i].input_ids))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            features = model[0].collate([TokenizedText(read[i].input_ids, len(read[i].input_ids)) for i in batch])
            with torch.no_grad():  # (batch, length, hidden), padded on the right
                hidden = model[0](batch_to_device(features, model.device))["token_embeddings"].float()
            for i, states in zip(batch, hidden, strict=True):
                none = states.new_full(states.shape[1:], torch.nan)
                means = [states[positions].mean(0) if positions else none for positions in read[i].words]
                vectors[i] = torch.stack(means).cpu().numpy()
    finally:
        model.train(was_training)
    return vectors


def _tokenize(
    model: LLM2Vec, sentence: str | Sequence[str], prompt: str, reading: Reading, lost: str, index: int
) -> _Sentence:
    if isinstance(sentence, str):
        words, ids, positions = _by_offsets(model.tokenizer, sentence, prompt)
    elif isinstance(sentence, (list, tuple)) and all(isinstance(word, str) for word in sentence):
        words, ids, positions = _word_by_word(model.tokenizer, list(sentence), prompt)
    else:
        raise InvalidInputError(f"sentences[{index}] must be a text or a list of words, got {sentence!r:.60}.")
    if len(ids) > model.max_seq_length:
        raise InvalidInputError(
            f"sentences[{index}] must have at most {model.max_seq_length} tokens, got {len(ids)}"
            f"{prompt and ', prompt included'}; words beyond would have no vector. Split it, or raise "
            "model.max_seq_length."
        )
    if empty := [word for word, where in zip(words, positions, strict=True) if not where]:
        raise InvalidInputError(f"Word {empty[0]!r} of sentence {index} has no token of its own. Leave it out.")
    if reading == "next_token":
        positions = [[position - 1 for position in word] for word in positions]
        if positions and positions[0][0] < 0 and lost == "nan":
            positions[0] = []
        elif positions and positions[0][0] < 0:
            raise InvalidInputError(
                f"reading='next_token' reads the token before each word, and nothing stands before the first word of "
                f"sentence {index}: the tokenizer adds no BOS token. Give a prompt, or read 'same_token'."
            )
    return _Sentence(ids, positions)


def _by_offsets(tokenizer: Any, text: str, prompt: str) -> tuple[list[str], list[int], list[list[int]]]:
    found = list(re.finditer(r"\S+", text))
    encoding = tokenizer(prompt + text, return_offsets_mapping=True, verbose=False)
    positions: list[list[int]] = [[] for _ in found]
    word = 0
    for position, (start, end) in enumerate(encoding["offset_mapping"]):
        start, end = start - len(prompt), end - len(prompt)  # noqa: PLW2901 - in the text, as the words are
        while word < len(found) and found[word].end() <= start:
            word += 1
        # A token may hold the end of one word and the start of the next.
        for i in range(word, len(found)):
            if max(start, found[i].start()) >= min(end, found[i].end()):
                break
            positions[i].append(position)
    return [match.group() for match in found], encoding["input_ids"], positions


def _word_by_word(tokenizer: Any, words: list[str], prompt: str) -> tuple[list[str], list[int], list[list[int]]]:
    before = prompt.split()
    encoding = tokenizer([*before, *words], is_split_into_words=True, verbose=False)
    positions: list[list[int]] = [[] for _ in words]
    for position, word in enumerate(encoding.word_ids()):
        if word is not None and word >= len(before):
            positions[word - len(before)].append(position)
    return words, encoding["input_ids"], positions
