"""Finished stages that must run all the same: forced, stale, or damaged, with the sound shards kept for the mend."""

from __future__ import annotations

from unmask.errors import ArtifactError
from unmask.execution.local import keep_shards
from unmask.execution.task import Task
from unmask.progress import Progress
from unmask.study import drop_scratch


def must_run(task: Task, *, forced: bool, mend: bool, progress: Progress) -> bool:
    """Whether a stage is to run: forced, never done, stale, or damaged and to be mended by this command."""
    study = task.study
    if forced:
        drop_scratch(study, task.stage.name)
        return True
    record = study.record(task.stage.name)
    if record is None or record.key != task.key:
        return True
    return _is_damaged(task, mend=mend, progress=progress)


def _is_damaged(task: Task, *, mend: bool, progress: Progress) -> bool:
    """Compare a finished stage's files with their checksums. Whether the stage must run to make damaged shards anew.

    Only the stage's own command mends (`mend`), which is `collect` for activations; the sound shards are then kept for that
    run. Raises ArtifactError, naming the file and that command, for any other, and for a file that no stage made.
    """
    stage, study = task.stage, task.study
    try:
        study.verify(stage.name)
    except ArtifactError as error:
        record = study.record(stage.name)
        damaged = {} if record is None or stage.shards is None else dict(study.broken(record))
        if record is None or not damaged:
            raise
        if not mend:
            command = f"unmask collect {study.folder}"
            raise ArtifactError(error.what, mend=f"Rebuild that file alone with `{command}`") from error
        for path, problem in damaged.items():
            progress.note(f"{path} {problem}: it is made anew")
        keep_shards(task, record, damaged=frozenset(damaged))
        return True
    return False
