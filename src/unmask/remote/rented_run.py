"""A remote run on a machine that is rented for it: what to rent, the run, and what it cost, noted in the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unmask.artifact import digest_json
from unmask.errors import UnmaskError
from unmask.execution.ssh import Access
from unmask.pipeline import StudyPipeline
from unmask.progress import Progress
from unmask.remote.order import RemoteOrder, Voice, from_options
from unmask.remote.renting import RentSettings, rent
from unmask.remote.running import RemoteRun, check_here, is_done


def rent_settings(values: Mapping[str, Any]) -> RentSettings:
    """What to rent, from the options by their names. Raises ConfigError, naming the option."""
    return from_options(RentSettings, values)


def label_of(folder: Path) -> str:
    """A study's name for its pods, with digits of where it lies: another study of that name has pods of its own."""
    place = folder.resolve()
    return f"{place.name[:32]}-{digest_json(str(place))[:6]}"


def run_rented(
    opened: StudyPipeline,
    on: str,
    order: RemoteOrder,
    settings: RentSettings,
    access_to: Callable[[str], Access],
    *,
    root: str | None,
    voice: Voice,
    progress: Progress,
) -> None:
    """Rent, run, give back; what it cost is noted in the study. The caller turns signals into exceptions (`interruption`).

    `access_to` is given the pod's id. Without a `root` all lies on the machine's volume, where it has one.
    Raises UnmaskError.
    """
    if is_done(opened, order):
        voice.note("All of it is done here already: nothing is rented")
        return
    check_here(opened)
    labelled = settings.model_copy(update={"label": label_of(opened.study.folder)})
    job: RemoteRun | None = None
    with opened.study.lock():  # from before the pod is there: a second call would find it, and lose it to the first one
        try:
            with rent(on, labelled, progress=progress) as rented:
                try:
                    placed = order.model_copy(update={"root": root or rented.root or order.root})
                    job = RemoteRun(opened, rented.address, access_to(rented.pod.id), placed, voice, pod=rented.pod.id)
                    job.timer, job.rented = lambda: rented.timer_command, rented
                    job.run_locked()
                except UnmaskError:
                    if job is None or not job.begun:
                        rented.leave_what_ran()
                    raise
        finally:
            if job is not None:
                job.note_cost(rented.record())  # after it is given back, with all that it cost
