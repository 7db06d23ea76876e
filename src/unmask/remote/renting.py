"""A machine rented for as long as a run takes: acquired, watched over by a limit, and given back by policy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from unmask.errors import ConfigError, UnmaskError
from unmask.execution.address import Address
from unmask.execution.runpod.choosing import Chosen, Claims, choose_pod
from unmask.execution.runpod.client import RunPod
from unmask.execution.runpod.creating import PREFIX, describe, why_not_at_that_price
from unmask.execution.runpod.ending import Limit, billed_usd, end_pod
from unmask.execution.runpod.reaching import wait_for_ssh
from unmask.execution.runpod.settings import VOLUME_PATH, RentSettings
from unmask.execution.runpod.timer import timer_command
from unmask.execution.runpod.wire import CONSOLE_URL, RUNNING, Pod
from unmask.progress import Progress

__all__ = ["RentSettings", "Rented", "is_rented", "list_pods", "rent"]

SCHEME = "runpod"


def is_rented(on: str) -> bool:
    """Whether `--on` names a machine that is rented: `runpod` or `runpod:POD_ID`."""
    return on == SCHEME or on.startswith(f"{SCHEME}:")


def list_pods() -> list[dict[str, Any]]:
    """The account's pods, for a table or JSON: id, name, status, GPU, USD per hour, hours up, address, whether made here.

    Raises ConfigError without a key that RunPod takes.
    """
    with RunPod.from_environment() as client:
        pods = client.pods()
    return [
        {
            "id": pod.id,
            "name": pod.name,
            "status": pod.status.lower(),
            "gpu": pod.gpu,
            "gpu_count": pod.gpu_count,
            "usd_per_hour": pod.usd_per_hour,
            "uptime_hours": None if pod.uptime_hours is None else round(pod.uptime_hours, 2),
            "spot": pod.spot,
            "address": None if pod.address is None else str(pod.address),
            "made_here": pod.name.startswith(PREFIX),
        }
        for pod in sorted(pods, key=lambda pod: (pod.status != RUNNING, pod.name, pod.id))
    ]


@dataclass
class Rented:
    """A pod while it is rented. `address` is where it is reached; `why_ended` says if a limit or RunPod has ended it."""

    client: RunPod = field(repr=False)
    chosen: Chosen
    settings: RentSettings
    progress: Progress = field(repr=False)
    since: datetime
    ran_before: bool = False
    _clock: float = field(default_factory=time.monotonic, repr=False)
    _hours: float | None = None
    _left: str | None = None
    _billed_usd: float | None = None
    why_ended: str | None = None

    @property
    def pod(self) -> Pod:
        return self.chosen.pod

    @property
    def address(self) -> Address:
        """Where its SSH server is reached."""
        assert self.pod.address is not None  # nothing is handed out before it answers
        return replace(self.pod.address, user=self.settings.user)

    @property
    def root(self) -> str | None:
        """A folder on the pod that survives a stop; None where it has no volume."""
        return f"{self.pod.volume_path or VOLUME_PATH}/.unmask-remote" if self.pod.volume_gb else None

    @property
    def hours(self) -> float:
        """Hours rented so far, or in all once it is given back."""
        return (time.monotonic() - self._clock) / 3600 if self._hours is None else self._hours

    @property
    def seconds_left(self) -> float | None:
        """Seconds until a limit is reached; None without one."""
        allowed = self.settings.seconds_allowed(self.pod.usd_per_hour)
        return None if allowed is None else max(0.0, allowed - self.hours * 3600)

    @property
    def timer_command(self) -> str | None:
        """What to run once in the pod's shell when the work starts: the dead-man's timer for the limit that is left."""
        seconds = self.seconds_left
        if seconds is None or not self.chosen.may_stop:
            return None
        return timer_command(self.pod.id, seconds=seconds, action=self._ending)

    def status(self) -> str:
        """`running`, `exited` or `gone`, as RunPod says now. A spot pod that was taken away is one of the latter."""
        pod = self.client.pod(self.pod.id)
        return "gone" if pod is None else pod.status.lower()

    def why_it_failed(self) -> str | None:
        """Why work on the pod could not go on, where that was the pod's end: a limit, or RunPod took it away. None otherwise."""
        if self.why_ended is None:
            try:
                pod = self.client.pod(self.pod.id)
            except UnmaskError:
                return None
            if pod is None or pod.status != RUNNING:
                said = "it is gone" if pod is None else str(pod.raw.get("lastStatusChange") or pod.status.lower())
                self.why_ended = f"RunPod has ended {'the spot' if self.pod.spot else 'the'} pod {self.pod.id}: {said}"
        return self.why_ended

    def leave_running(self, why: str) -> None:
        """Do not give the pod back at the end, since work goes on there. The timer, if armed, still stops it."""
        self._left = why

    def leave_what_ran(self) -> None:
        """Nothing was begun here: do not give back a pod that ran before this call, where other work may go on."""
        if self.ran_before:
            self.leave_running("it ran before, and this call began nothing there")

    def record(self) -> dict[str, Any]:
        """What it was and cost: price times time, and what RunPod has billed, where it has already."""
        price = self.pod.usd_per_hour
        return {
            "provider": SCHEME,
            "pod": self.pod.id,
            "name": self.pod.name,
            "gpu": self.pod.gpu,
            "gpu_count": self.pod.gpu_count,
            "spot": self.pod.spot,
            "image": self.pod.image,
            "how": self.chosen.origin,
            "since": self.since.isoformat(timespec="seconds"),
            "usd_per_hour": price,
            "hours": round(self.hours, 4),
            "usd": None if price is None else round(price * self.hours, 4),
            "billed_usd": self._billed_usd,
            "ended": self.why_ended,
        }

    @property
    def _ending(self) -> Literal["stop", "terminate"]:
        """What a limit does: the policy, except that a limit also ends what was to be kept."""
        return "terminate" if self.settings.after == "terminate" and self.chosen.may_terminate else "stop"

    def end_now(self, why: str) -> None:
        """Stop or remove the pod, whatever goes on there."""
        self.why_ended = why
        _say(self.progress, why)
        _end(self.client, self.pod, self.progress, terminate=self._ending == "terminate")

    def end_for_limit(self) -> bool:
        """`end_now`, as a limit does it. Whether it is ended: what fails is tried again, and raised when it is given back."""
        price = self.pod.usd_per_hour
        cost = "" if price is None else f", {price * self.hours:.2f} USD"
        try:
            self.end_now(f"the limit is reached after {self.hours:.2f} h{cost}: pod {self.pod.id} is ended")
        except Exception as problem:  # nothing may end the watch but the pod's end
            _say(self.progress, str(problem))
            return False
        return True

    def give_back(self) -> None:
        """End the rental by policy. Raises UnmaskError where the pod may still cost money."""
        if self._hours is not None:
            return
        self._hours = self.hours
        if self._left is not None and self.why_ended is None:
            self.progress.note(
                f"pod {describe(self.pod)} goes on: {self._left}. It costs money until it is stopped: {CONSOLE_URL}"
            )
            return
        if self.settings.after == "keep" or not self.chosen.may_stop:
            why = "--after keep" if self.settings.after == "keep" else "it ran before, and was not made here"
            self.progress.note(
                f"pod {describe(self.pod)} is left running ({why}); it costs money until it is stopped: {CONSOLE_URL}"
            )
            return
        terminate = self._ending == "terminate"
        _end(self.client, self.pod, self.progress, terminate=terminate)
        if self.chosen.origin == "created":
            self.client.remove_others(self.pod)
            self._billed_usd = billed_usd(self.client, self.pod, self.since)
        price = self.pod.usd_per_hour
        cost = "" if price is None else f"; {self._hours:.2f} h at {price:.2f} USD/h: {price * self._hours:.2f} USD"
        kept = (
            f", its volume of {self.pod.volume_gb} GB stays and is paid for"
            if not terminate and self.pod.volume_gb
            else ""
        )
        self.progress.note(f"pod {self.pod.id} is {'removed' if terminate else 'stopped'}{kept}{cost}")


@contextmanager
def rent(on: str, settings: RentSettings, *, progress: Progress) -> Generator[Rented]:
    """A pod whose SSH server answers, for `runpod` or `runpod:POD_ID`; given back at the end, whatever happens inside.

    Raises ConfigError for a key or pod that does not do, UnmaskError where none can be rented or reached: then what was made is
    ended too, by the same policy.
    """
    if not is_rented(on):
        raise ConfigError(f"--on {on!r} names nothing to rent", mend=f"Write {SCHEME} or {SCHEME}:POD_ID")
    with RunPod.from_environment() as client:
        rented = _acquire(client, on.partition(":")[2], settings, progress)
        try:
            with Limit(rented.seconds_left, rented.end_for_limit):
                yield rented
        except UnmaskError as problem:
            if (why := rented.why_it_failed()) is not None:
                raise UnmaskError(
                    why, mend="What came back is kept: run again to go on, on another if need be"
                ) from problem
            raise
        finally:
            rented.give_back()


def _acquire(client: RunPod, pod_id: str, settings: RentSettings, progress: Progress) -> Rented:
    claims = Claims()
    chosen: Chosen | None = None
    since = datetime.now(UTC)
    try:
        chosen = choose_pod(client, settings, pod_id=pod_id, progress=progress, claims=claims)
        rented = Rented(client, chosen, settings, progress, since, ran_before=not _was_started(chosen))
        pod = wait_for_ssh(client, chosen.pod.id, seconds=settings.wait_seconds, progress=progress)
        if problem := why_not_at_that_price(pod, settings):
            raise UnmaskError(f"pod {pod.id}: {problem}", mend="Raise the limit, or take another pod")
        rented.chosen = Chosen(pod, chosen.origin)
        _say_limit(rented)
    except BaseException as problem:  # Ctrl-C too: what was made costs money
        ours = _ours(client, progress, chosen, claims, patient=not isinstance(problem, UnmaskError))
        _undo((client, settings, progress), ours, problem)
        if chosen is not None and not ours:
            ran = f"pod {describe(chosen.pod)} ran before, is left running, and costs money until it is stopped: {CONSOLE_URL}"
            _say(progress, ran)
        raise
    return rented


def _was_started(chosen: Chosen) -> bool:
    """Whether this call has made or started the pod."""
    return chosen.origin in ("created", "restarted") or chosen.pod.status != RUNNING


def _ours(client: RunPod, progress: Progress, chosen: Chosen | None, claims: Claims, *, patient: bool) -> list[Chosen]:
    """What this call has made or started. A creation that was broken off is looked for with patience."""
    if chosen is not None:
        return [chosen] if _was_started(chosen) else []
    started = [] if claims.starting is None else [claims.starting]
    try:
        found = [pod for name in claims.names for pod in (client.appeared(name) if patient else client.pods(name=name))]
    except BaseException:
        for words in (*claims.names, *(describe(one.pod) for one in started)):
            _say(progress, f"pod {words}, if there is one, MAY STILL COST MONEY: {CONSOLE_URL}")
        raise
    return [*started, *(Chosen(pod, "created") for pod in found)]


def _undo(rental: tuple[RunPod, RentSettings, Progress], ours: list[Chosen], problem: BaseException) -> None:
    """End what was made or started here, by policy, and say what it was. Pods that ran before are left as they were."""
    client, settings, progress = rental
    for one in ours:
        terminate = settings.after == "terminate" and one.origin == "created"
        ending = "removed" if terminate else "stopped"
        said = "is left as it is (--after keep) and may cost money" if settings.after == "keep" else f"is {ending}"
        note = f"pod {describe(one.pod)} {said}. Look: unmask remote check STUDY --on {SCHEME} --pods, or {CONSOLE_URL}"
        _say(progress, note)  # first: whoever is in a hurry knows what to look for
        if settings.after != "keep":
            _end(client, one.pod, progress, terminate=terminate)
        if isinstance(problem, UnmaskError):
            problem.mend = f"{problem.mend}. {note}" if problem.mend else note
            problem.args = (f"{problem.what}. {problem.mend}.",)


def _end(client: RunPod, pod: Pod, progress: Progress, *, terminate: bool) -> None:
    """`end_pod`, which says so where it is broken off, by a second Ctrl-C say."""
    try:
        end_pod(client, pod, terminate=terminate)
    except UnmaskError:  # its own words say it
        raise
    except BaseException:
        _say(progress, f"pod {describe(pod)} MAY STILL COST MONEY: {CONSOLE_URL}")
        raise


def _say(progress: Progress, text: str) -> None:
    """A note that keeps no pod from its end: the terminal may be gone."""
    with contextlib.suppress(OSError, ValueError):
        progress.note(text)


def _say_limit(rented: Rented) -> None:
    if (seconds := rented.seconds_left) is None:
        rented.progress.note("no limit on hours or money: --max-hours, --max-usd")
        return
    if not rented.chosen.may_stop:
        raise ConfigError(
            f"pod {rented.pod.id} was not made here, and a limit would stop it",
            mend=f"Say so: --on {SCHEME}:{rented.pod.id}",
        )
    what = "removed" if rented._ending == "terminate" else "stopped"
    rented.progress.note(f"the pod is {what} after {seconds / 3600:.2f} h at the latest")
