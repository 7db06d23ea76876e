"""What a person sees of a remote run: what both sides say, an interruption, and tables of machines."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unmask.cli.screen import INTERRUPTED, console, print_json, print_table

if TYPE_CHECKING:
    from unmask.remote.checking import Finding


class SpokenAloud:
    """Prints notes of our own, and what the host's run says as it comes."""

    def __init__(self) -> None:
        self._screen = console()

    def note(self, text: str) -> None:
        self._screen.out(f"[remote] {text}", highlight=False)

    def log(self, text: str) -> None:
        self._screen.file.write(text)
        self._screen.file.flush()


@contextmanager
def interruptible(study: Path, *, goes_on: bool) -> Generator[None]:
    """Ctrl-C ends this side alone, and says what becomes of the other."""
    try:
        yield
    except KeyboardInterrupt:
        name = shlex.quote(str(study))
        words = (
            "If a run was started there, it goes on. Follow it with"
            if goes_on
            else "What came back is kept. Go on with"
        )
        follow = (
            f"unmask remote logs {name} -f; end it with: unmask remote stop {name}" if goes_on else "the same command"
        )
        console().out(f"\nInterrupted. {words}: {follow}")
        raise typer.Exit(INTERRUPTED) from None


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Print what a host was found to be, and whether that does."""
    if as_json:
        print_json([{"what": one.what, "judgement": one.judgement, "detail": one.detail} for one in findings])
        return
    rows = [(one.what, one.judgement, one.detail) for one in findings]
    print_table(("what", "", "found"), rows, colours={"ok": "green", "no": "bold red", "note": "yellow"})


def print_pods(pods: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the pods of an account."""
    if as_json:
        print_json(pods)
        return
    columns = ("id", "name", "status", "gpu", "usd_per_hour", "uptime_hours", "address")
    rows = [["-" if pod[name] is None else str(pod[name]) for name in columns] for pod in pods]
    print_table([name.replace("_", " ") for name in columns], rows)
