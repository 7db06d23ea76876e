"""Asking many requests of one model at once: bounded, patient, paid for within a limit, and never twice.

One request is tried again on 408, 409, 429 and 5xx, dropped connections, slow and unreadable replies, after the time that the
provider names (`rate_limits`) or an exponential back-off with full jitter. A time named holds all requests, and so does a reply
that says that nothing is left for now. Every final reply is in the store before it is counted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import ConfigError, ModelError, StudyError
from unmask.llm.rate_limits import seconds_to_wait, seconds_until_reset
from unmask.llm.replies import Reply, ReplyStore, Request
from unmask.llm.wire import failed_reply, is_moderated, read_reply

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

    from unmask.llm.addresses import ModelAddress

_HOPELESS = {
    401: ("refuses the key", "Check the key's variable in the environment or in .env"),
    402: ("wants payment", "Add credit at the provider"),
    403: ("forbids that model to this key", "Choose another model, or allow it at the provider"),
    404: ("has no such model or path", "Check the model's name and the URL"),
}
"""Statuses that concern every request alike."""
_INVALID_KEY = "API_KEY_INVALID"
"""What Google's APIs say, in a 400, of a key that they do not know (google.rpc.ErrorInfo)."""


_WAITING = 4
"""Requests begun for each one that may be under way: those beyond are backing off, or next."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of asking. Times in seconds; `seconds_a_request` spans all tries of one request, waits for the provider included.

    `tries` counts those after which no time to wait was named. After `seconds_of_silence` without a usable reply to any request
    all is given up.
    """

    concurrency: int = 8
    tries: int = 8
    seconds_a_try: float = 120.0
    seconds_a_request: float = 900.0
    seconds_of_silence: float = 300.0
    first_wait: float = 0.5
    longest_wait: float = 30.0


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens, for providers that do not say what a reply cost."""

    prompt: float
    completion: float

    def cost(self, reply: Reply) -> float:
        return (reply.prompt_tokens * self.prompt + reply.completion_tokens * self.completion) / 1e6


@dataclass(slots=True)
class Meter:
    """What asking came to, tries that failed included. Replies out of the store cost nothing."""

    asked: int = 0
    tries: int = 0
    from_store: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    usd_unknown: int = 0


class Client:
    """Asks one model. `ask` blocks; a second call goes on counting with the same meter."""

    def __init__(
        self,
        address: ModelAddress,
        store: ReplyStore,
        *,
        patience: Patience | None = None,
        prices: Prices | None = None,
        max_usd: float | None = None,
    ) -> None:
        """Raises ConfigError for a limit on costs that could not be kept, since nobody says what the model costs."""
        if max_usd is not None and prices is None and not (address.is_local or address.name.startswith("openrouter/")):
            raise ConfigError(
                f"max_usd is set, and what {address.name} costs is not known",
                mend="Give its prices in USD per million prompt and completion tokens",
            )
        self.address = address
        self.meter = Meter()
        self._store = store
        self._patience = patience or Patience()
        self._prices = Prices(0.0, 0.0) if prices is None and address.is_local else prices
        self._max_usd = max_usd
        self._held_until = 0.0
        self._answered = self._hopeless = False
        self._heard = 0.0

    def ask(self, requests: Sequence[Request], *, on_reply: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """One reply per request, in their order; `on_reply` hears of each as it comes. Equal requests are asked once.

        Raises ModelError where the provider refuses every request (key, credit, model), and StudyError once `max_usd` is spent
        (by at most the requests then under way more). All replies that had come are in the store.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._ask(requests, on_reply))
        with ThreadPoolExecutor(1) as beside:  # in a notebook a loop runs already
            return beside.submit(lambda: asyncio.run(self._ask(requests, on_reply))).result()

    async def _ask(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None] | None) -> list[Reply]:
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.key(self.address.base_url, self.address.model), []).append(place)
        replies: dict[int, Reply] = {}

        def take(key: str, reply: Reply) -> None:
            for place in places[key]:
                replies[place] = reply
                if on_reply is not None:
                    on_reply(place, reply)

        open_keys = []
        for key in places:
            if (kept := self._store.get(key)) is None:
                open_keys.append(key)
            else:
                self.meter.from_store += 1
                take(key, kept)
        if open_keys:
            await self._ask_open(open_keys, {key: requests[places[key][0]] for key in open_keys}, take)
        return [replies[place] for place in range(len(requests))]

    async def _ask_open(
        self, keys: Sequence[str], requests: Mapping[str, Request], take: Callable[[str, Reply], None]
    ) -> None:
        from openai import AsyncOpenAI, Timeout

        self._hopeless, self._heard = False, time.monotonic()
        left = iter(keys)
        places = asyncio.Semaphore(self._patience.concurrency)
        spent = False

        async def work(api: AsyncOpenAI) -> None:
            nonlocal spent
            for key in left:  # one iterator, shared by all workers
                reply = await self._patiently(api, requests[key], places)
                if reply is None:
                    spent = True
                    return
                if reply.failure == "unreachable" and not self._answered:
                    raise ModelError(
                        f"nothing answers at {self.address.base_url}",
                        mend="Check the URL and that the server runs, then go on",
                    )
                if reply.final:
                    self._store.put(key, reply)
                self.meter.asked += 1
                take(key, reply)

        async with AsyncOpenAI(
            base_url=self.address.base_url,
            api_key=self.address.key or "none",
            max_retries=0,
            timeout=Timeout(self._patience.seconds_a_try, connect=min(10.0, self._patience.seconds_a_try)),
        ) as api:
            if not self.address.name.startswith("openai/"):  # taken from the environment, and nobody else's business
                api.organization = api.project = None
            # more than places: while some back off, others are asked
            count = min(_WAITING * self._patience.concurrency, len(keys))
            workers = [asyncio.create_task(work(api)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if spent:
            raise StudyError(
                f"{self.meter.usd:.4f} USD are spent, and max_usd is {self._max_usd}",
                mend="Every reply so far is kept: raise max_usd and run again to go on",
            )

    def _charge(self, reply: Reply) -> None:
        """Add what one try came to: a reply that has to be asked for again is paid for too."""
        meter = self.meter
        meter.prompt_tokens += reply.prompt_tokens
        meter.completion_tokens += reply.completion_tokens
        cost = reply.usd
        if cost is None and self._prices is not None:
            cost = self._prices.cost(reply)
        if cost is not None:
            meter.usd += cost
        elif reply.final:
            meter.usd_unknown += 1

    async def _patiently(self, api: AsyncOpenAI, request: Request, places: asyncio.Semaphore) -> Reply | None:
        """A final reply, or the last failure; None where there is to be no further try. Each takes one of `places`."""
        limits = self._patience
        ends = time.monotonic() + limits.seconds_a_request
        reply = Reply(None, "overloaded", "the provider asks to wait longer than a request may take")
        tried = 0
        while tried < limits.tries:
            async with places:
                while (held := self._held_until - time.monotonic()) > 0 and self._held_until < ends:
                    await asyncio.sleep(held)
                if max(self._held_until, time.monotonic()) >= ends:
                    break
                if self._hopeless or (self._max_usd is not None and self.meter.usd >= self._max_usd):
                    return None
                reply, wait = await self._try(api, request, seconds=min(limits.seconds_a_try, ends - time.monotonic()))
                self._charge(reply)
                if wait is not None:
                    self._held_until = max(self._held_until, time.monotonic() + wait)
            if reply.final or reply.failure == "rejected":
                self._heard = time.monotonic()
                break
            self._end_silence(reply)
            if wait is None:  # a time that is named costs no try
                tried += 1
                if tried < limits.tries:
                    await asyncio.sleep(
                        random.uniform(0, min(limits.longest_wait, limits.first_wait * 2 ** (tried - 1)))
                    )
        return reply

    def _end_silence(self, reply: Reply) -> None:
        """Raise ModelError where nothing usable has come for so long that asking on would be of no use."""
        longest = self._patience.seconds_of_silence
        if time.monotonic() - max(self._heard, self._held_until) > longest:
            self._hopeless = True
            raise ModelError(
                f"{self.address.base_url} has given no usable reply for {longest:.0f} s (the last: {reply.failure})",
                mend="Every reply that came is kept: run again once it answers",
            )

    async def _try(self, api: AsyncOpenAI, request: Request, *, seconds: float) -> tuple[Reply, float | None]:
        """One try: the reply, and how long the provider says to wait."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        self.meter.tries += 1
        body = request.body(self.address.model, is_openai=self.address.name.startswith("openai/"))
        try:
            async with asyncio.timeout(seconds):  # of the whole reply: httpx's own limit starts anew with every byte
                # as `extra_body` it is sent as it is, without a walk through messages and schema
                raw = await api.chat.completions.with_raw_response.create(model="", messages=(), extra_body=body)
                self._answered = True
                return read_reply(raw.http_response.content), seconds_until_reset(raw.http_response.headers) or None
        except (TimeoutError, APITimeoutError):
            return Reply(None, "timeout", f"no whole reply within {seconds:.0f} s"), None
        except APIStatusError as error:
            self._answered = True
            headers = error.response.headers
            return self._failed(error), seconds_to_wait(headers) or seconds_until_reset(headers) or None
        except APIConnectionError as error:
            self._answered |= (
                type(error.__cause__).__name__ != "ConnectError"
            )  # where one was dropped, somebody was there
            return Reply(None, "unreachable", f"no connection to {self.address.base_url}, or it was dropped"), None

    def _failed(self, error: APIStatusError) -> Reply:
        """What a status means for the request. Raises ModelError for those of _HOPELESS."""
        status = error.status_code
        if status == 400 and _INVALID_KEY in error.response.text:
            status = 401
        if status == 403 and is_moderated(error.body):
            return Reply(None, "content_filter", "the provider flagged the question")
        if status in _HOPELESS:
            what, mend = _HOPELESS[status]
            self._hopeless = True
            raise ModelError(f"{self.address.base_url} {what} (status {status}, {self.address.name})", mend=mend)
        if getattr(error, "code", None) == "content_filter":
            return Reply(None, "content_filter", "the provider filtered the question")
        return failed_reply(status)
