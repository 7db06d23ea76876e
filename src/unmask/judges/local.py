"""A model in this process as judge: it chooses among the numbers of the scale, by their probabilities.

Nothing is sampled and nothing parsed: behind the reply's opening, `{"score":`, the model's probability of each number that it may
choose is taken and made to sum to 1. Any chat model can so be read out, also one that would not keep to a form by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.errors import ModelError, StudyError, UnmaskError
from unmask.llm.addresses import ModelAddress
from unmask.llm.client import Meter
from unmask.llm.replies import Reply, ReplyStore, Request, TokenChoice
from unmask.records import ModelSource, PromptFormat

if TYPE_CHECKING:
    from unmask.models.choosing import Chooser

PREFIX = "hf/"
"""`hf/Qwen/Qwen3-4B`: a Hugging Face id, a local folder (`hf/./folder`) or an embedded model (`hf/smollm2`)."""
OPENING = '{"score":'
_FORMAT = PromptFormat(None, thinking=False)


def address_of(name: str) -> ModelAddress:
    """Name and content of a judge in this process. Raises ModelError where it is not there."""
    from unmask.models.loading import fingerprint, load_config, locate

    model = name.removeprefix(PREFIX)
    place = locate(model)
    content = fingerprint(place)
    if content.endswith(
        "@main"
    ):  # of a hub's model that was never looked up: its commit would be known after loading only
        load_config(ModelSource(place))
        content = fingerprint(place)
    return ModelAddress(name, f"hf:{content}", model)


def source_of(address: ModelAddress) -> ModelSource:
    """Where that judge is loaded from: of a hub's model the very commit that its replies are named by."""
    from unmask.models.loading import locate

    place = locate(address.model)
    return ModelSource(place, None if Path(place).is_dir() else address.base_url.rpartition("@")[2])


class LocalJudge:
    """Asks a model in this process, as `Client` asks one behind an API. Loading waits until something is not known yet."""

    def __init__(self, name: str, store: ReplyStore) -> None:
        self.address = address_of(name)
        self._source = source_of(self.address)
        self.meter = Meter()
        self._store = store
        self._reader: _Reader | None = None
        self._failure: StudyError | None = None

    def ask(self, requests: Sequence[Request], *, on_reply: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """One reply per request, each the same whatever was asked before and whatever is known already.

        A request's `choices` are the numbers to choose from; `repeat` changes nothing. Raises StudyError where the judge cannot
        be loaded, which is tried once.
        """
        replies: dict[int, Reply] = {}
        backend = _backend(self._source)
        for place in sorted(range(len(requests)), key=lambda place: requests[place].messages[0]):  # rubric by rubric
            request = requests[place]
            key = _key(request, self.address, backend)
            reply = self._store.get(key)
            if reply is None:
                reply = self._load().read(request)
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

    def _load(self) -> _Reader:
        if self._failure is not None:
            raise self._failure
        if self._reader is None:
            try:
                self._reader = _Reader(self._source)
            except (UnmaskError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: a GPU without room
                known = isinstance(error, UnmaskError)
                self._failure = StudyError(
                    f"judge {self.address.name} cannot be loaded: {error.what if known else error}",
                    mend=error.mend if known else "Make room for it, or name a smaller judge",
                )
                raise self._failure from error
        return self._reader


class _Reader:
    """A judge's model, loaded. Raises ModelError where it cannot be, or cannot be asked."""

    def __init__(self, source: ModelSource) -> None:
        from unmask.models.choosing import Chooser
        from unmask.models.loading import load_base

        loaded = load_base(source)
        if not loaded.tokenizer.chat_template:
            raise ModelError("its tokenizer has no chat template", mend="Name a chat or instruct model as judge")
        self._tokenizer: Any = loaded.tokenizer
        self._chooser: Chooser = Chooser(loaded)
        self._rubrics: dict[str, tuple[int, ...]] = {}

    def read(self, request: Request) -> Reply:
        """The number that the model finds likeliest, with the log-probabilities of all that it may choose from."""
        prompt = (*self._rendered("\n\n".join(text for _, text in request.messages)), *self._tokens(OPENING))
        numbers = [self._tokens(f" {number}}}") for number in request.choices]
        found = self._chooser.log_probs(prompt, numbers, beginning=self._beginning(request, prompt))
        found = found - np.logaddexp.reduce(found)
        shares = {str(number): float(value) for number, value in zip(request.choices, found, strict=True)}
        best = max(shares, key=lambda number: shares[number])
        return Reply(best, tokens=(TokenChoice(best, shares),), prompt_tokens=len(prompt))

    def _beginning(self, request: Request, prompt: tuple[int, ...]) -> int:
        """How many of the prompt's tokens are its rubric's, which is the system's words but for their last line.

        That line names the marks of question and answer, which are each request's own.
        """
        rubric = request.messages[0][1].rpartition("\n")[0]
        if rubric not in self._rubrics:
            self._rubrics[rubric] = self._rendered(rubric)
        pairs = zip(self._rubrics[rubric], prompt[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _rendered(self, words: str) -> tuple[int, ...]:
        """A prompt of one turn, since not every chat template has a system role."""
        from unmask.models.prompts import render_prompt

        return render_prompt(self._tokenizer, [{"role": "user", "content": words}], _FORMAT).token_ids

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _backend(source: ModelSource) -> tuple[str, str]:
    """Device and dtype that a reply is computed with: another's differs in its last digits, or its first."""
    from unmask.models.loading import pick_device, pick_dtype

    device = pick_device()
    return device.type, str(pick_dtype(source, device)).removeprefix("torch.")


def _key(request: Request, address: ModelAddress, backend: tuple[str, str]) -> str:
    from unmask.artifact import digest_json

    return digest_json(
        {
            "url": address.base_url,
            "messages": request.messages,
            "choices": request.choices,
            "as": OPENING,
            "on": backend,
        }
    )
