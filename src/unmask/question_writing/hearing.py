"""When each reply was first heard, kept beside the replies: what is taken out of the store has the time it came.

The times are a table of their own in the store's SQLite file, so that they go where the replies go, whichever file the
questions are written to. A reply is in its table a moment before its time is; where a run is killed within that moment,
the next run dates the reply.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from unmask.llm.replies import open_store


class Hearing:
    """Times by request, in UTC to the second. Raises ArtifactError for a file that is no store of replies."""

    def __init__(self, path: Path) -> None:
        self._database = open_store(path, table="first_heard", holds="at")

    def at(self, key: str) -> str:
        """When the reply to this request was first heard: now, where it never was before."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._database.execute("INSERT OR IGNORE INTO first_heard VALUES (?, ?)", (key, now))
        return str(self._database.execute("SELECT at FROM first_heard WHERE request = ?", (key,)).fetchone()[0])

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
