"""Making a stage's shards beside other processes that do the same: on one machine, or on many that see one path."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from unmask.artifact import write_text
from unmask.devices import device_of, note_devices
from unmask.errors import ConfigError, StudyError, UnmaskError
from unmask.execution.task import Task
from unmask.progress import Progress
from unmask.stage import Work
from unmask.study import Workspace

_SHARED = "shared"


class Share(NamedTuple):
    """One of several equal parts of the shards, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read `i/n`. Raises ConfigError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        share = cls(int(found[1]), int(found[2])) if found else None
        if share is None or not 1 <= share.number <= share.of:
            raise ConfigError(
                f"--shard {text!r} is not a part of the work",
                mend="Write i/n with i from 1 to n: the second of eight workers is given --shard 2/8",
            )
        return share

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Made(NamedTuple):
    """What came of a share: shards made now, those that were there, and those that could not be made, with the reason."""

    made: int
    there: int
    failed: dict[str, str]


def make_share(task: Task, share: Share, *, progress: Progress) -> Made:
    """Make the waiting shards of one share. A shard that cannot be made is named in the outcome, the others are made.

    Raises StudyError where shards were made on another kind of device, UnmaskError for what no shard can be made without.
    """
    work = join(task, progress=progress)
    if work is None:
        raise ConfigError(
            f"stage {task.stage.name} of this study has no shards", mend=f"Run it: `unmask run {task.study.folder}`"
        )
    own = work.shards[share.number - 1 :: share.of]
    waiting = [shard for shard in own if not shard.made]
    if waiting and task.stage.on_device:
        claim_device(task.workspace, device_kind(), name=device_name())
    total = sum(shard.units for shard in own)
    progress.begin(f"{work.title}, {share}", total=total, done=total - sum(shard.units for shard in waiting))
    failed: dict[str, str] = {}
    with work:
        if waiting:
            work.open()  # models that cannot be loaded are no shard's fault
        for shard in waiting:
            try:
                work.make(shard, progress.advance)
            except StudyError:  # the disk, or the directory: no other shard would fare better
                raise
            except Exception as error:
                failed[shard.name] = in_words(error)
                progress.note(f"shard {shard.name} failed: {failed[shard.name]}")
    progress.end()
    return Made(len(waiting) - len(failed), len(own) - len(waiting), failed)


def in_words(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UnmaskError) else f"{type(error).__name__}: {text}"


def refuse_failed(task: Task, failed: dict[str, str]) -> None:
    """Raise StudyError naming the shards that could not be made, if there are any."""
    if not failed:
        return
    names = list(failed)
    shown = "; ".join(f"{name} ({failed[name]})" for name in names[:5])
    more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
    raise StudyError(
        f"{len(names)} shards of stage {task.stage.name} could not be made: {shown}{more}",
        mend="All others are kept: the same command makes these alone",
    )


def join(task: Task, *, progress: Progress) -> Work | None:
    """The task's shards, for a process that makes some of them beside others: the first to join plans, the others read that."""
    workspace = task.workspace
    workspace.join()
    with _one_at_a_time(workspace):
        work = task.work(progress)
        if work is not None and not is_shared(workspace):
            note_shared(workspace)
        return work


def claim_device(workspace: Workspace, kind: str, *, name: str | None = None) -> None:
    """Note that shards are made on that kind of device. Raises StudyError where others were made on another kind.

    `name` is that of a device that is about to make some; None where the kind alone is asked about.
    """
    with _one_at_a_time(workspace):
        made_on = device_of(workspace)
        if made_on in (None, kind):
            note_devices(workspace, kind, [] if name is None else [name])
    if made_on not in (None, kind):
        raise StudyError(
            f"the shards in {workspace.folder} were made on {made_on}, this process would use {kind}",
            mend=f"Numbers of both would stand side by side: make the rest on {made_on} too, or all anew with `unmask run STUDY "
            "--force STAGE`",
        )


def is_shared(workspace: Workspace) -> bool:
    """Whether others than the one process of a local run made shards there."""
    return (workspace.folder / _SHARED).is_file()


def note_shared(workspace: Workspace) -> None:
    """Note that others made shards there."""
    write_text(workspace.folder / _SHARED, "shards were made by several processes\n")


def device_kind() -> str:
    """The kind of device that models of this process run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def device_name() -> str:
    """What that device is called; of a CPU, just that."""
    import torch

    kind = device_kind()
    return torch.cuda.get_device_name(0) if kind == "cuda" else kind


@contextmanager
def _one_at_a_time(workspace: Workspace) -> Generator[None]:
    """Held by one process while it plans: what is written once must not be written by two."""
    with (workspace.folder / "planning").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
