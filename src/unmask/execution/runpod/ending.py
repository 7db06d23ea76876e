"""Ending a pod with insistence, when its limit is reached, and what RunPod has billed for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime

from unmask.errors import UnmaskError
from unmask.execution.runpod.client import RunPod
from unmask.execution.runpod.creating import describe
from unmask.execution.runpod.wire import CONSOLE_URL, Pod

WAITS = (0.0, 2.0, 8.0)
"""Seconds before each try to end a pod: it costs money until one succeeds."""


def end_pod(client: RunPod, pod: Pod, *, terminate: bool) -> None:
    """Stop or remove a pod. Raises UnmaskError that names it where all was in vain."""
    problem: UnmaskError | None = None
    for wait in WAITS:
        time.sleep(wait)
        try:
            (client.terminate if terminate else client.stop)(pod.id)
        except UnmaskError as error:
            problem = error
        else:
            return
    assert problem is not None
    raise UnmaskError(
        f"pod {describe(pod)} could not be ended and MAY STILL COST MONEY: {problem.what}",
        mend=f"End it at {CONSOLE_URL}",
    ) from problem


def billed_usd(client: RunPod, pod: Pod, since: datetime) -> float | None:
    """USD billed since then; None where nothing is known: a figure beside another, which must not keep a pod from its end."""
    try:
        return client.billed_usd(pod.id, since=since)
    except UnmaskError:
        return None


AGAIN = 30.0
"""Seconds between two tries of a limit to end its pod, for as long as the work goes on."""


class Limit:
    """Calls `act` once `seconds` are over, and again until it says that it is done, while the `with` block lasts.

    For None it is never called.
    """

    def __init__(self, seconds: float | None, act: Callable[[], bool]) -> None:
        self._seconds, self._act = seconds, act
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="limit of a rented pod", daemon=True)

    def __enter__(self) -> None:
        if self._seconds is not None:
            self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        wait = self._seconds
        while not self._over.wait(wait):
            if self._act():
                return
            wait = AGAIN
