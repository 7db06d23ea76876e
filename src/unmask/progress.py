"""What a long step tells the person who waits. The CLI shows bars; the library is silent unless given a reporter."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the advance of long steps."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """A step of `total` units starts, `done` of them finished by an earlier run."""
        ...

    def advance(self, units: int = 1) -> None:
        """`units` more units of the step are finished."""
        ...

    def end(self) -> None:
        """The step is over."""
        ...

    def note(self, text: str) -> None:
        """A line worth reading that is not a step."""
        ...


class Silent:
    """Reports to nobody."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        return

    def advance(self, units: int = 1) -> None:
        return

    def end(self) -> None:
        return

    def note(self, text: str) -> None:
        return
