"""What is asked of a model, what it replied, and the store that keeps every reply."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from unmask.artifact import digest_json
from unmask.errors import ArtifactError

Failure = Literal[
    "refused", "content_filter", "truncated", "empty", "unreadable", "rejected", "timeout", "unreachable", "overloaded"
]
"""Why there is no text. The first three are answers of a kind and are kept; after the others the request is asked again."""

_THINKING = re.compile(r"o\d|gpt-5(?!-chat)")

ANSWERS: tuple[Failure, ...] = ("refused", "content_filter", "truncated")

BUSY_SECONDS = 60.0
"""Seconds that one process waits while another writes to the store."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `schema` asks for JSON of that form, `top_logprobs` for the alternatives of each token.

    `repeat` tells apart requests that are the same on purpose (test and retest). `choices` are the numbers that a model in this
    process chooses from; an endpoint is not told of them.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    schema: dict[str, Any] | None = None
    top_logprobs: int | None = None
    repeat: int = 0
    choices: tuple[int, ...] = ()

    def body(self, model: str, *, is_openai: bool = False) -> dict[str, Any]:
        """The documented request of `POST /chat/completions`.

        OpenAI itself has renamed `max_tokens`, and its models that think first take no temperature; others know the old form.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": role, "content": text} for role, text in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        if self.schema is not None:
            form = {"name": "reply", "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if is_openai:
            body["max_completion_tokens"] = body.pop("max_tokens")
            if _THINKING.match(model):
                del body["temperature"]
        return body

    def key(self, base_url: str, model: str) -> str:
        """SHA-256 of all that is sent, where it is sent, and the repeat."""
        return digest_json({"url": base_url, "body": self.body(model), "repeat": self.repeat})


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One token of a reply and the log-probabilities (nats) of its alternatives, itself among them."""

    token: str
    alternatives: dict[str, float]


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply: its text, or the failure. `usd` is None where nobody said what it cost."""

    text: str | None
    failure: Failure | None = None
    detail: str = ""
    tokens: tuple[TokenChoice, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None

    @property
    def final(self) -> bool:
        """Whether asking again is of no use: the model answered, or its provider would not let it."""
        return self.failure is None or self.failure in ANSWERS

    @classmethod
    def from_json(cls, text: str) -> Self:
        stored = json.loads(text)
        stored["tokens"] = tuple(TokenChoice(**token) for token in stored["tokens"])
        return cls(**stored)


def open_store(path: Path, *, table: str, holds: str) -> sqlite3.Connection:
    """The store's SQLite file with that table in it: a text (the column `holds`) by request.

    Raises ArtifactError for a file that is no such store.
    """
    try:
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        _keep_a_log(database)
        database.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing, a power cut the last ones
        database.execute(f"CREATE TABLE IF NOT EXISTS {table} (request TEXT PRIMARY KEY, {holds} TEXT) WITHOUT ROWID")
    except sqlite3.DatabaseError as error:
        raise ArtifactError(f"{path} is no store of replies ({error})", mend="Move it away and run again") from error
    return database


def _keep_a_log(database: sqlite3.Connection) -> None:
    """A write-ahead log: readers and a writer at once. For another process that does this now SQLite does not wait by itself."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


class ReplyStore:
    """Replies by request in one SQLite file; each is there once `put` has returned, whatever happens to the process.

    Raises ArtifactError for a file that is no such store.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._database = open_store(path, table="replies", holds="reply")

    def get(self, key: str) -> Reply | None:
        found = self._database.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
        return None if found is None else Reply.from_json(found[0])

    def put(self, key: str, reply: Reply) -> None:
        text = json.dumps(asdict(reply))
        try:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise ArtifactError(
                f"{self.path} cannot be written ({error})", mend="Make room, and run again: what it holds is kept"
            ) from error

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
