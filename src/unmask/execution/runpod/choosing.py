"""Which pod to work on: one named by its id, one that is there and fits, or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from unmask.errors import ConfigError, UnmaskError
from unmask.execution.runpod import wire
from unmask.execution.runpod.asking import NoReply, OutOfStock
from unmask.execution.runpod.client import RunPod
from unmask.execution.runpod.creating import PREFIX, create_pod, describe, is_of_study, plain, why_not_at_that_price
from unmask.execution.runpod.settings import RentSettings
from unmask.progress import Progress

Origin = Literal["named", "found", "restarted", "created"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A pod to work on, and how it came to be chosen: what may be done to it afterwards depends on that."""

    pod: wire.Pod
    origin: Origin

    @property
    def may_stop(self) -> bool:
        """A running pod that was merely found may be somebody's work of another kind."""
        return self.origin != "found" or self.pod.name.startswith(PREFIX)

    @property
    def may_terminate(self) -> bool:
        """Only what this call made, or what was named by its id."""
        return self.origin in ("created", "named")


@dataclass(slots=True)
class Claims:
    """What was asked of RunPod, known before the asking: whatever happens then, it is ours to end."""

    names: list[str] = field(default_factory=list)
    """Of pods that are made."""
    starting: Chosen | None = None
    """A stopped pod that is started."""


def choose_pod(client: RunPod, settings: RentSettings, *, pod_id: str, progress: Progress, claims: Claims) -> Chosen:
    """The pod of that id; without one, a running or stopped pod that fits, or a new one.

    Raises NoReply where a pod may have been started, and nobody says so: another beside it would be paid for as well.
    """
    if pod_id:
        return _named(client, pod_id, progress, claims)
    pods = client.pods()
    for pod in _running(pods, settings):
        progress.note(f"uses pod {describe(pod)}, which runs already")
        return Chosen(pod, "found")
    for pod in _stopped(pods, settings):
        chosen = Chosen(pod, "restarted")
        try:
            _start(client, chosen, claims)
        except NoReply:
            raise
        except UnmaskError as problem:
            progress.note(f"pod {pod.id} ({pod.name}) cannot be started: {problem.what}")
            continue
        progress.note(f"starts pod {describe(pod)} again")
        return chosen
    return Chosen(create_pod(client, settings, progress=progress, on_created=claims.names.append), "created")


def _start(client: RunPod, chosen: Chosen, claims: Claims) -> None:
    claims.starting = chosen
    try:
        client.start(chosen.pod.id)
    except NoReply:
        raise
    except UnmaskError:  # refused, and it does not run
        claims.starting = None
        raise


def _named(client: RunPod, pod_id: str, progress: Progress, claims: Claims) -> Chosen:
    pod = client.pod(pod_id)
    if pod is None:
        raise ConfigError(
            f"RunPod has no pod {pod_id}", mend="List the pods: unmask remote check STUDY --on runpod --pods"
        )
    chosen = Chosen(pod, "named")
    if pod.status != wire.RUNNING:
        try:
            _start(client, chosen, claims)
        except OutOfStock as problem:
            raise UnmaskError(
                f"pod {pod.id} cannot be started: {problem.what}", mend="Try later, or --on runpod for another pod"
            ) from None
    progress.note(f"uses pod {describe(pod)}")
    return chosen


def _running(pods: list[wire.Pod], settings: RentSettings) -> Iterator[wire.Pod]:
    """This study's own first. Others made here are at work for other studies; foreign ones cannot be held to a limit."""
    running = [pod for pod in pods if pod.status == wire.RUNNING]
    own = [pod for pod in running if is_of_study(pod, settings)]
    foreign = [pod for pod in running if not pod.name.startswith(PREFIX) and not settings.limited]
    yield from (pod for pod in own if pod.address is not None and _fits(pod, settings))
    # One that is still starting is paid for already: it is waited for, and what it costs is looked at once it answers.
    yield from (pod for pod in own if pod.address is None and (not pod.gpu or _is_wanted(pod, settings)))
    yield from (pod for pod in foreign if pod.address is not None and _fits(pod, settings))


def _stopped(pods: list[wire.Pod], settings: RentSettings) -> Iterator[wire.Pod]:
    """This study's own. Another study's would be taken for its own by that study, and stopped when that is done."""
    for pod in pods:
        if (
            pod.status == wire.EXITED
            and is_of_study(pod, settings)
            and _fits(pod, settings)
            and pod.spot <= settings.spot
        ):
            yield pod


def _fits(pod: wire.Pod, settings: RentSettings) -> bool:
    return _is_wanted(pod, settings) and why_not_at_that_price(pod, settings) is None


def _is_wanted(pod: wire.Pod, settings: RentSettings) -> bool:
    return any(plain(pod.gpu).endswith(plain(name)) for name in settings.gpu)
