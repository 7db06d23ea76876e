"""What a person sees: bars with an ETA on a terminal, plain lines elsewhere, tables, and one-sentence errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

EVERY_SECONDS = 15.0
"""How often a plain log says how far a step is."""


def console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def fail(message: str) -> None:
    """Print an error on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/bold red] {_plain(message)}")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class Bars:
    """A live bar with rate and ETA per long step."""

    def __init__(self, screen: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._screen = screen
        self._bars = Progress(
            TextColumn("  {task.description:<24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=screen,
        )
        self._task: Any = None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        self._task = self._bars.add_task(label, total=total, completed=done)

    def advance(self, units: int = 1) -> None:
        self._bars.advance(self._task, units)

    def end(self) -> None:
        self._bars.stop_task(self._task)

    def note(self, text: str) -> None:
        self._bars.console.print(f"  {_plain(text)}")


class Lines:
    """A line at each step's start and end, and every few seconds between, with the ETA: for logs and pipes."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._label, self._total, self._done, self._first = "", 0, 0, 0
        self._began = self._said = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._began = self._said = time.monotonic()
        resumed = f" ({done} already done)" if done else ""
        self._screen.print(f"  {label}: {total}{resumed}")

    def advance(self, units: int = 1) -> None:
        self._done += units
        now = time.monotonic()
        if now - self._said < EVERY_SECONDS or self._done >= self._total:
            return
        self._said = now
        left = (now - self._began) / max(1, self._done - self._first) * (self._total - self._done)
        self._screen.print(f"  {self._label}: {self._done}/{self._total}, ETA {left:.0f} s")

    def end(self) -> None:
        self._screen.print(f"  {self._label}: done in {time.monotonic() - self._began:.0f} s")

    def note(self, text: str) -> None:
        self._screen.print(f"  {_plain(text)}")


@contextmanager
def reporter(screen: Console) -> Generator[Bars | Lines]:
    """Bars on a terminal, lines elsewhere."""
    with Bars(screen) if screen.is_terminal else Lines(screen) as progress:
        yield progress


def words(value: Any) -> str:
    """A summary's value for people: `a 1, b 2` for a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(words(part) for part in value)
    return "-" if value is None else str(value)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int | None = None,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Print rows of plain text. All columns but the first `left` are figures; cells that are words of `colours` have theirs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if left is None or place < left else "right", overflow="fold")
    styles = colours or {}
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console().print(table)


def print_json(value: object) -> None:
    """One JSON document on stdout, for programs."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
