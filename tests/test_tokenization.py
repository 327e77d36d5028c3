"""Which tokens are read and which are pooled, for every kind of tokenizer and over-long input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from st_llm2vec.errors import InvalidInputError
from st_llm2vec.templates import TEMPLATES, Template, choose_template, own_template, with_eos
from st_llm2vec.tokenization import split_input, tokenize

TOKENIZERS = {
    name: tiny_tokenizer(**{k: True for k in name.split("+") if k != "plain"}) for name in ("plain", "bos", "bos+eos")
}
CHAT = Template("<s>", "</s>")
NONE = TEMPLATES["none"]


def pooled_text(name: str, pair: tuple[str, str], template: Template = NONE, **options) -> tuple[str, str]:
    """(everything read, what is pooled), as text."""
    tokenizer = TOKENIZERS[name]
    (row,) = tokenize(tokenizer, [pair], template, **({"max_length": 64} | options))
    return tokenizer.decode(row.input_ids), tokenizer.decode(row.input_ids[len(row.input_ids) - row.n_pooled :])


def test_instruction_and_bos_are_read_but_not_pooled() -> None:
    assert pooled_text("bos", ("find: ", "lazy dog")) == ("<s>find: lazy dog", " lazy dog")


def test_template_suffix_is_pooled_and_prefix_is_not() -> None:
    read, pooled = pooled_text("plain", ("", "lazy dog  "), CHAT)
    assert (read, pooled) == ("<s>lazy dog</s>", "lazy dog</s>")


def test_the_tokenizers_own_eos_is_pooled() -> None:
    assert pooled_text("bos+eos", ("", "lazy dog")) == ("<s>lazy dog</s>", "lazy dog</s>")


def test_the_tokenizers_own_eos_is_counted_after_a_prompt() -> None:
    assert pooled_text("bos+eos", ("find: ", "lazy dog")) == ("<s>find: lazy dog</s>", " lazy dog</s>")


@pytest.mark.parametrize(("name", "end"), [("plain", ""), ("bos", ""), ("bos+eos", "</s>")])
def test_a_prompt_without_a_blank_at_its_end_is_not_pooled(name: str, end: str) -> None:
    assert pooled_text(name, ("find:", "lazy dog"))[1] == f"lazy dog{end}"
    assert pooled_text(name, ("find:", "lazy dog"), Template("query "))[1] == f"lazy dog{end}"


def test_without_a_template_blanks_stay() -> None:
    assert pooled_text("plain", ("", " lazy "))[0] == " lazy "


def test_in_a_template_a_prompt_begins_without_blanks() -> None:
    assert pooled_text("plain", ("  find: ", "lazy dog"), CHAT) == ("<s>find: lazy dog</s>", " lazy dog</s>")
    assert pooled_text("plain", ("  find: ", "lazy dog"))[0] == "  find: lazy dog"


def test_a_cut_at_the_right_keeps_the_tokenizers_own_eos() -> None:
    text = "lazy dog " * 50
    (row,) = tokenize(TOKENIZERS["bos+eos"], [("", text)], NONE, max_length=16, keep_suffix=False)
    assert row.input_ids == TOKENIZERS["bos+eos"](text, truncation=True, max_length=16)["input_ids"]
    assert row.input_ids[-1] == TOKENIZERS["bos+eos"].eos_token_id


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", [NONE, CHAT], ids=["none", "chat"])
@given(text=st.text(max_size=60), prompt=st.sampled_from(["", "find: ", "query:"]), limit=st.integers(4, 40))
def test_rows_fit_and_pool_something(name: str, template: Template, text: str, prompt: str, limit: int) -> None:
    (row,) = tokenize(TOKENIZERS[name], [(prompt, text)], template, max_length=limit)
    assert 1 <= len(row.input_ids) <= limit
    assert 0 <= row.n_pooled <= len(row.input_ids)
    if text.strip():
        assert row.n_pooled > 0


@pytest.mark.parametrize("keep", [True, False])
def test_over_long_texts_lose_their_own_end_not_the_suffix(keep: bool) -> None:
    read, pooled = pooled_text("bos", ("find: ", "lazy dog " * 50), CHAT, max_length=16, keep_suffix=keep)
    assert read.endswith("</s>") is keep
    assert "find" in read
    if keep:
        assert "find" not in pooled
        assert pooled.lstrip().startswith("lazy")


def test_a_prompt_that_fills_the_length_leaves_half_of_it_to_the_text() -> None:
    tokenizer = TOKENIZERS["plain"]
    (row,) = tokenize(tokenizer, [("seven wizards " * 50, "lazy dog " * 50)], NONE, max_length=16)
    assert len(row.input_ids) == 16
    assert row.n_pooled == 8
    assert "wizards" not in tokenizer.decode(row.input_ids[8:])


def test_documents_are_cut_by_words_and_the_instruction_is_kept() -> None:
    read, pooled = pooled_text("bos", ("find: ", "the  quick\nbrown fox " * 40), document_max_length=12, max_length=48)
    assert read.startswith("<s>find: the quick brown fox")
    tokenizer = TOKENIZERS["bos"]
    assert len(tokenizer(pooled.strip(), add_special_tokens=False)["input_ids"]) <= 12


def test_as_many_words_stay_as_fit() -> None:
    text = " ".join(["dog"] * 30)
    tokens = len(TOKENIZERS["plain"](text)["input_ids"])
    read, _ = pooled_text("plain", ("", text), document_max_length=tokens // 3)
    assert read.split() == ["dog"] * int(30 * (tokens // 3) / tokens)


def test_a_text_without_blanks_is_cut_by_tokens_not_to_nothing() -> None:
    _, pooled = pooled_text("bos", ("", "x1y2-" * 100), document_max_length=12, max_length=48)
    assert pooled.startswith("x1y2-")


def test_an_empty_text_is_one_neutral_token() -> None:
    (row,) = tokenize(TOKENIZERS["plain"], [("", "")], NONE, max_length=8)
    assert row == ([TOKENIZERS["plain"].eos_token_id], 1)


def test_pairs_of_the_original_package() -> None:
    assert split_input(["  Retrieve:  ", "text"], 0, "") == ("Retrieve: ", "text")
    assert split_input(["", "text", 0], 0, "prompt: ") == ("prompt: ", "text")
    assert split_input("text", 0, "prompt: ") == ("prompt: ", "text")


CHATS = {  # the chat formats of each family, in short
    "llama-3": "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}",
    "llama-2": "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }} </s>{% endif %}{% endfor %}",
    "mistral": "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    "{{ m.content }}</s>{% endif %}{% endfor %}",
    "gemma": "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}",
    "chatml": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}",
    "phi3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}</s>",
}


@pytest.mark.parametrize("name", CHATS)
def test_the_tokenizers_own_template_is_the_users_turn(name: str) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = CHATS[name]
    assert own_template(tokenizer) == (TEMPLATES | {"phi3": Template("<|user|>\n", "<|end|>\n</s>")})[name]


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[0].content | lower }}", "changes the text"),
    ],
)
def test_a_tokenizer_without_a_usable_template_is_refused(chat: str | None, said: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat
    with pytest.raises(InvalidInputError, match=said):
        own_template(tokenizer)


@pytest.mark.parametrize("item", [None, 3, b"bytes", ["one"], ["a", 2], ["a", "b", 0, 1]])
def test_other_inputs_are_named(item: object) -> None:
    with pytest.raises(InvalidInputError, match=f"Input 7 must be .*, got {type(item).__name__}"):
        split_input(item, 7, "")


def test_an_instruction_and_a_prompt_together_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="Input 1 must have one instruction"):
        split_input(["Retrieve:", "text"], 1, "query: ")


def test_templates_by_name_and_for_known_models() -> None:
    assert choose_template(None, "Qwen/Qwen2-7B-Instruct") == TEMPLATES["chatml"]
    assert choose_template(None, "some/other") == NONE
    assert choose_template("none", "Qwen/Qwen2-7B-Instruct") == NONE
    assert choose_template(None, "a/b", "Qwen/Qwen2-7B-Instruct") == TEMPLATES["chatml"]
    with pytest.raises(InvalidInputError, match="chatml"):
        choose_template("chat-ml", None)
    assert with_eos(NONE, None, "qwen3", "<eot>").suffix == "<eot>"
    with pytest.raises(InvalidInputError, match="last_token"):
        with_eos(NONE, None, "qwen3", None)
