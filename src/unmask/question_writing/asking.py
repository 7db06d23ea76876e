"""The models that write and check, asked within one limit on costs; an outage ends the run and loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from unmask.errors import ConfigError, ModelError, StudyError
from unmask.llm.addresses import ModelAddress
from unmask.llm.client import Client, Meter, Patience
from unmask.llm.replies import Reply, ReplyStore, Request
from unmask.question_writing.hearing import Hearing

OUTAGES = ("timeout", "unreachable", "overloaded", "unreadable")
"""Failures of the provider rather than of one request: after all tries of the client, the run ends, and can go on."""


class Heard(NamedTuple):
    """A reply and when it was first heard."""

    reply: Reply
    at: str


def label(address: ModelAddress) -> str:
    """A model's name as questions record it: without the host of a server named by its URL."""
    return address.model if address.name.startswith(("http://", "https://")) else address.name


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests at once, and USD that one run may cost (None for no limit)."""

    concurrency: int = 8
    max_usd: float | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1 or not (self.max_usd is None or self.max_usd > 0):
            raise ConfigError(
                f"concurrency is {self.concurrency} and max_usd is {self.max_usd}",
                mend="concurrency is 1 or more, max_usd above 0",
            )


class Asking:
    """Asks a model for many replies; counts by model what all asking came to."""

    def __init__(self, store: ReplyStore, hearing: Hearing, limits: Limits) -> None:
        self._store, self._hearing, self._limits = store, hearing, limits
        self._meters: dict[str, Meter] = {}
        self._answering: set[str] = set()
        """Models that gave a text: one that never did is no use, one that did may fail on a request."""

    @property
    def usd(self) -> float:
        return sum(meter.usd for meter in self._meters.values())

    def usage(self) -> dict[str, dict[str, Any]]:
        """The meter of each model by its label."""
        return {name: asdict(meter) for name, meter in self._meters.items()}

    def ask(
        self, address: ModelAddress, requests: Sequence[Request], *, on_reply: Callable[[], None] | None = None
    ) -> list[Heard]:
        """One reply per request, in their order.

        Raises ConfigError where max_usd cannot be kept since nobody says what the model costs, StudyError once it is
        spent, and ModelError where the provider refuses all, cannot be reached, or gives no text to any request.
        """
        client = self._client(address)
        heard: dict[int, str] = {}

        def note(place: int, reply: Reply) -> None:
            if reply.final:
                heard[place] = self._hearing.at(requests[place].key(address.base_url, address.model))
                if on_reply is not None:
                    on_reply()

        try:
            replies = client.ask(requests, on_reply=note)
        except StudyError as error:
            raise StudyError(
                f"{self.usd + client.meter.usd:.4f} USD are spent, and max_usd is {self._limits.max_usd}",
                mend="Every reply so far is kept: run the same command with a higher --max-usd to go on",
            ) from error
        finally:
            self._count(label(address), client.meter)
        self._stop_at_outage(address, replies)
        return [Heard(reply, heard.get(place, "")) for place, reply in enumerate(replies)]

    def _client(self, address: ModelAddress) -> Client:
        most = self._limits.max_usd
        left = None if most is None else max(0.0, most - self.usd)
        try:
            return Client(address, self._store, patience=Patience(concurrency=self._limits.concurrency), max_usd=left)
        except ConfigError as error:
            raise ConfigError(
                f"max_usd cannot be kept: the provider of {address.name} does not say what a reply costs",
                mend="Ask the model through openrouter/, or leave --max-usd out and set a limit at the provider",
            ) from error

    def check(self, address: ModelAddress) -> None:
        """Raise now what asking this model would raise before it asks."""
        self._client(address)

    def _count(self, name: str, meter: Meter) -> None:
        total = self._meters.setdefault(name, Meter())
        for each in fields(Meter):
            setattr(total, each.name, getattr(total, each.name) + getattr(meter, each.name))

    def _stop_at_outage(self, address: ModelAddress, replies: Sequence[Reply]) -> None:
        failures = Counter(reply.failure for reply in replies if not reply.final)
        told = ", ".join(f"{reason} {count}" for reason, count in failures.items())
        if any(reason in OUTAGES for reason in failures):
            raise ModelError(
                f"{address.name} left {failures.total()} of {len(replies)} requests without a reply ({told})",
                mend="Every reply so far is kept: run the same command again to go on",
            )
        if any(reply.final for reply in replies):
            self._answering.add(address.name)
        elif address.name not in self._answering:
            raise ModelError(
                f"{address.name} gave no text to any of {len(replies)} requests ({told})",
                mend="It may not know JSON by schema, or have too short a context: choose another model",
            )
