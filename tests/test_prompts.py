"""Prompts: the model's own template, opened for the answer, as the token ids that transformers itself would make."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
import pytest

from unmask.errors import ModelError
from unmask.models.prompts import end_mark, end_token_ids, prompt_ids_by_question, render_prompt, render_question
from unmask.records import PromptFormat

PLAIN = PromptFormat()


@pytest.fixture
def tokenizer(chat_tokenizer: Any) -> Any:
    """A copy whose template a test may replace."""
    return copy.deepcopy(chat_tokenizer)


def test_a_question_opens_the_assistants_turn(tokenizer: Any) -> None:
    prompt = render_question(tokenizer, "Is gold safe?", PLAIN)
    assert prompt.text == "<|im_start|>user\nIs gold safe?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("system", [None, "", "You are terse."])
@pytest.mark.parametrize("question", ["Is gold safe?", "  spaces, a\nnew line and ümläuts  ", "数字 7 🙂"])
def test_token_ids_are_those_of_transformers(tokenizer: Any, system: str | None, question: str) -> None:
    turns = [{"role": "user", "content": question}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    wanted = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert list(render_question(tokenizer, question, PromptFormat(system_prompt=system)).token_ids) == wanted


def test_marks_of_turns_are_single_tokens(tokenizer: Any) -> None:
    ids = render_question(tokenizer, "Is gold safe?", PLAIN).token_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_a_begin_mark_of_the_template_is_not_doubled(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    begin = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[begin]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    ids = render_question(tokenizer, "a", PLAIN).token_ids
    assert ids.count(tokenizer.bos_token_id) == 3  # the template's own, the user's turn, the assistant's turn


def test_the_system_prompt_stands_first_and_only_once(tokenizer: Any) -> None:
    terse = PromptFormat(system_prompt="You are terse.")
    turns = [{"role": "user", "content": "Hi"}]
    assert render_prompt(tokenizer, turns, terse).text.startswith("<|im_start|>system\nYou are terse.<|im_end|>\n")
    assert turns == [{"role": "user", "content": "Hi"}]
    own = [{"role": "system", "content": "You are long-winded."}, *turns]
    text = render_prompt(tokenizer, own, terse).text
    assert "long-winded" in text and "terse" not in text


def test_earlier_turns_are_kept_in_order(tokenizer: Any) -> None:
    turns = [{"role": r, "content": c} for r, c in [("user", "one"), ("assistant", "two"), ("user", "three")]]
    text = render_prompt(tokenizer, turns, PLAIN).text
    assert text.index("one") < text.index("two") < text.index("three")
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("thinking", [False, True])
def test_thinking_reaches_a_template_with_the_switch(tokenizer: Any, thinking: bool) -> None:
    tokenizer.chat_template += "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    text = render_question(tokenizer, "Hi", PromptFormat(thinking=thinking)).text
    assert text.endswith("</think>\n\n") is not thinking


def test_a_tokenizer_without_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        render_question(tokenizer, "Hi", PLAIN)


def test_a_template_that_refuses_a_system_prompt_is_named(tokenizer: Any) -> None:
    # Gemma 2's template does this.
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    assert render_question(tokenizer, "Hi", PLAIN).text.startswith("<|im_start|>user")
    with pytest.raises(ModelError, match="System role not supported"):
        render_question(tokenizer, "Hi", PromptFormat(system_prompt="You are terse."))


def test_prompt_ids_come_back_from_a_table() -> None:
    table = pd.DataFrame({"question_id": ["a", "b"], "token_ids": [[1, 2], [3]]})
    assert prompt_ids_by_question(table) == {"a": (1, 2), "b": (3,)}


@pytest.mark.parametrize(("setting", "others"), [(None, set()), (7, {7}), ([7, 8], {7, 8})])
def test_an_answer_ends_at_the_models_and_the_tokenizers_marks(tokenizer: Any, setting: Any, others: set[int]) -> None:
    assert end_token_ids(tokenizer, setting) == others | {tokenizer.eos_token_id}


def test_a_tokenizer_without_end_mark_adds_none(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    assert end_token_ids(tokenizer, None) == frozenset()
    assert end_token_ids(tokenizer, 7) == {7}


def test_the_end_mark_is_the_one_of_the_template(tokenizer: Any) -> None:
    assert end_mark(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end_of_turn>\n{% endfor %}"
    turn_end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end_mark(tokenizer) == turn_end != tokenizer.eos_token_id
    assert end_token_ids(tokenizer, None) == {turn_end, tokenizer.eos_token_id}
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert end_mark(tokenizer) == tokenizer.eos_token_id


def test_a_template_that_writes_the_date_writes_the_same_on_all_days(tokenizer: Any) -> None:
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    assert render_question(tokenizer, "Hi", PromptFormat()).text == "Today: 26 Jul 2024 Hi"
