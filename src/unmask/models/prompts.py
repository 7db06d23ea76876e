"""One rendered prompt per question, given to both models as the same token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import ModelError, listed
from unmask.records import PromptFormat

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A question behind the chat template, up to where the answer begins."""

    text: str
    token_ids: tuple[int, ...]


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], prompt_format: PromptFormat
) -> RenderedPrompt:
    """Render turns with the model's own chat template and open the assistant's turn.

    `thinking` reaches templates that have the switch as `enable_thinking`; others ignore it.
    Raises ModelError when the tokenizer has no chat template, or its template refuses the turns.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "the base model's tokenizer has no chat template", mend="Use a chat or instruct model as base.model"
        )
    if prompt_format.system_prompt is not None and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": prompt_format.system_prompt}, *turns]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=prompt_format.thinking,
            chat_template=undated(tokenizer.chat_template),
        )
    except TemplateError as error:
        raise ModelError(
            f"the base model's chat template refuses {listed(turn['role'] for turn in turns)} turns ({error})",
            mend="Where it has no system role, set base.system_prompt to null and leave it out of the training set",
        ) from error
    assert isinstance(text, str)
    return RenderedPrompt(text=text, token_ids=tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))


def undated(template: Any) -> Any:
    """The template, with one date for all days where it would write today's: a study that goes on tomorrow asks the same."""
    if isinstance(template, str) and "strftime_now" in template:
        return "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}" + template
    return template


def render_question(tokenizer: PreTrainedTokenizerBase, question: str, prompt_format: PromptFormat) -> RenderedPrompt:
    """Render one user question."""
    return render_prompt(tokenizer, [{"role": "user", "content": question}], prompt_format)


def prompt_ids_by_question(prompts: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Question id to the token ids of its rendered prompt, from the `prompts` table of the responses stage."""
    return {
        str(question_id): tuple(int(token) for token in token_ids)
        for question_id, token_ids in zip(prompts["question_id"], prompts["token_ids"], strict=True)
    }


def end_mark(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes the assistant's turn in the chat template, which need not be the tokenizer's end mark.

    Raises ModelError when there is neither.
    """
    probe = "probe"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": probe}]
    tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(probe)[2]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special:
            return int(token)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the base model's tokenizer has no end mark", mend="Use a chat or instruct model as base.model"
        )
    return int(tokenizer.eos_token_id)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_end: int | list[int] | None) -> frozenset[int]:
    """Tokens that end an answer: the model's generation setting, the tokenizer's end mark, and the template's end of turn."""
    ends = [generation_end] if isinstance(generation_end, int) else list(generation_end or [])
    if tokenizer.eos_token_id is not None:
        ends.append(int(tokenizer.eos_token_id))
    if tokenizer.chat_template:
        ends.append(end_mark(tokenizer))
    return frozenset(ends)
