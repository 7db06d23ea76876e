"""Requests to RunPod's API: patient with what passes, quick with what does not.

The key travels in the `Authorization` header alone, to RunPod's hosts alone: redirections are not followed.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unmask.errors import ConfigError, UnmaskError
from unmask.execution.runpod import wire
from unmask.execution.runpod.refusals import refused, seconds_to_wait

if TYPE_CHECKING:
    import ssl

    import httpx

KEY_VARIABLE = "RUNPOD_API_KEY"
URL_VARIABLE = "UNMASK_RUNPOD_URL"
"""Another place that speaks as RunPod does (`/v1/pods`, `/graphql`), for tests; https, or this machine."""


class OutOfStock(UnmaskError):
    """No machine has such a GPU free now."""


class NoReply(UnmaskError):
    """A request may have been carried out, and nobody said so."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of asking, in seconds. `longest_wait` bounds what `Retry-After` may ask for."""

    tries: int = 6
    seconds_a_try: float = 30.0
    first_wait: float = 1.0
    longest_wait: float = 60.0
    listing_lag: float = 2.0
    """Between two looks for a pod whose creation was not confirmed."""


class Api:
    """One account's way to RunPod. Threads may share it."""

    def __init__(self, key: str, *, url: str, patience: Patience) -> None:
        """`url` is that of a stand-in, or empty. Raises ImportError without httpx, ConfigError for a URL that is not safe."""
        import httpx

        _refuse_unsafe(url)
        self.patience = patience
        self.rest_url = f"{url}/v1" if url else wire.REST_URL
        self._key = key
        self._graphql = f"{url}/graphql" if url else wire.GRAPHQL_URL
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(patience.seconds_a_try, connect=10.0),
            follow_redirects=False,
            verify=_authorities(),
        )

    def __repr__(self) -> str:
        return f"Api({self.rest_url!r})"

    def close(self) -> None:
        self._http.close()

    def ask_graphql(self, query: str) -> Any:
        body = self.ask("POST", self._graphql, body={"query": query})
        if not isinstance(body, dict) or body.get("data") is None:
            raise UnmaskError(f"RunPod's GraphQL gives no data: {self._clean(str(body))}")
        return body["data"]

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        repeatable: bool = True,
        missing_is_none: bool = False,
    ) -> Any:
        """One request until it is answered. What is not repeatable raises NoReply where it may have been carried out."""
        import httpx

        url = path if path.startswith("http") else self.rest_url + path
        problem = ""
        for attempt in range(self.patience.tries):
            try:
                reply = self._http.request(method, url, params=query, json=body)
            except httpx.ConnectError as error:  # nothing was sent
                problem, wait = f"does not answer: {self._clean(str(error))}", None
            except httpx.RequestError as error:
                problem, wait = f"does not answer: {type(error).__name__}", None
                if not repeatable:
                    raise NoReply(f"RunPod {problem}") from None
            else:
                if reply.is_success:
                    return _content(reply)
                if reply.status_code == 404 and missing_is_none:
                    return None
                problem, wait = self._refusal(reply, repeatable=repeatable)
            if attempt + 1 < self.patience.tries:
                time.sleep(self._pause(attempt, wait))
        raise UnmaskError(f"RunPod {problem}", mend=f"Try again later. {wire.LOOK}")

    def _refusal(self, reply: httpx.Response, *, repeatable: bool) -> tuple[str, float | None]:
        """What is wrong and how long to wait, for what may pass; everything else is raised."""
        message = self._clean(reply.text)
        if reply.status_code == 429:
            return "asks for fewer requests", seconds_to_wait(reply.headers.get("retry-after"))
        if wire.is_out_of_stock(message):
            raise OutOfStock(f"RunPod has none free: {message}")
        if reply.status_code >= 500:
            if not repeatable:
                raise NoReply(f"RunPod fails with {reply.status_code}: {message}")
            return f"fails with {reply.status_code}: {message}", seconds_to_wait(reply.headers.get("retry-after"))
        raise refused(reply.status_code, message, key_variable=KEY_VARIABLE)

    def _pause(self, attempt: int, asked: float | None) -> float:
        limit = self.patience.longest_wait
        if asked is not None:
            return min(asked, limit)
        return random.uniform(0.5, 1.0) * min(limit, self.patience.first_wait * 2**attempt)

    def _clean(self, text: str) -> str:
        """The first words of a reply, on one line, without the key should anybody echo it."""
        return " ".join(text.replace(self._key, "***").split())[:300]


@cache
def _authorities() -> ssl.SSLContext:
    """Reading the certificates takes longer than all else that a client needs: once is enough."""
    import httpx

    return httpx.create_ssl_context()


def _content(reply: httpx.Response) -> Any:
    if not reply.content:
        return {}
    try:
        return reply.json()
    except ValueError:
        return {}


def _refuse_unsafe(url: str) -> None:
    """The key goes nowhere in the clear but to this machine."""
    parts = urlsplit(url)
    here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if url and parts.scheme != "https" and not here:
        raise ConfigError(f"{URL_VARIABLE} is neither https nor on this machine", mend=f"Unset {URL_VARIABLE}")
