"""A model in this process as judge: it chooses among the numbers of the scale, by their probabilities.

Nothing is sampled and nothing parsed: behind the reply's opening, `{"score":`, the model's probability of each number that it may
choose is taken and made to sum to 1. Any chat model can so be read out, also one that would not keep to a form by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.llm.addresses import ModelAddress
from unmask.llm.client import Meter
from unmask.llm.replies import Reply, ReplyStore, Request, TokenChoice
from unmask.records import ModelSource, PromptFormat

if TYPE_CHECKING:
    from unmask.models.choosing import Chooser

PREFIX = "hf/"
"""`hf/Qwen/Qwen3-4B`: a Hugging Face id, a local folder (`hf/./folder`) or an embedded model (`hf/smollm2`)."""
OPENING = '{"score":'


class LocalJudge:
    """Asks a model in this process, as `Client` asks one behind an API. Loading waits until something is not known yet."""

    def __init__(self, name: str, store: ReplyStore) -> None:
        from unmask.models.loading import fingerprint, locate

        self._source = ModelSource(locate(name.removeprefix(PREFIX)))
        self.address = ModelAddress(name, f"hf:{fingerprint(self._source.name)}", name.removeprefix(PREFIX))
        self.meter = Meter()
        self._store = store
        self._chooser: Chooser | None = None
        self._tokenizer: Any = None

    def ask(self, requests: Sequence[Request], *, on_reply: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """One reply per request. A request's `choices` are the numbers to choose from; `repeat` changes nothing."""
        replies: dict[int, Reply] = {}
        for place in sorted(range(len(requests)), key=lambda place: requests[place].messages[0]):  # rubric by rubric
            request = requests[place]
            key = _key(request, self.address)
            reply = self._store.get(key)
            if reply is None:
                reply = self._choose(request)
                self._store.put(key, reply)
                self.meter.asked += 1
                self.meter.tries += 1
                self.meter.prompt_tokens += reply.prompt_tokens
            else:
                self.meter.from_store += 1
            replies[place] = reply
            if on_reply is not None:
                on_reply(place, reply)
        return [replies[place] for place in range(len(requests))]

    def _choose(self, request: Request) -> Reply:
        from unmask.models.choosing import Chooser
        from unmask.models.loading import load_base
        from unmask.models.prompts import render_prompt

        if self._chooser is None:
            self._tokenizer = (loaded := load_base(self._source)).tokenizer
            self._chooser = Chooser(loaded)
        tokenizer = self._tokenizer
        prompt = render_prompt(tokenizer, _one_turn(request), PromptFormat(None, thinking=False)).token_ids
        prompt = (*prompt, *tokenizer(OPENING, add_special_tokens=False)["input_ids"])
        numbers = [tokenizer(f" {number}}}", add_special_tokens=False)["input_ids"] for number in request.choices]
        found = self._chooser.log_probs(prompt, numbers)
        found = found - np.logaddexp.reduce(found)
        shares = {str(number): float(value) for number, value in zip(request.choices, found, strict=True)}
        best = max(shares, key=lambda number: shares[number])
        return Reply(best, tokens=(TokenChoice(best, shares),), prompt_tokens=len(prompt))


def _one_turn(request: Request) -> list[dict[str, str]]:
    """System and user's words in one turn: not every chat template has a system role."""
    return [{"role": "user", "content": "\n\n".join(text for _, text in request.messages)}]


def _key(request: Request, address: ModelAddress) -> str:
    from unmask.artifact import digest_json

    return digest_json(
        {"url": address.base_url, "messages": request.messages, "choices": request.choices, "as": OPENING}
    )
