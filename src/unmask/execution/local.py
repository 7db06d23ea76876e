"""Run one stage in this process: cached by its key, resumed from its batches, sealed by one rename."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unmask.artifact import link_or_copy, listing, write_text
from unmask.collection import Recorded
from unmask.devices import device_of, devices_of, kind_of, note_devices
from unmask.errors import StudyError, UnmaskError
from unmask.execution.sharing import claim_device, device_kind, device_name, is_shared, note_shared
from unmask.execution.task import Engine, Task
from unmask.progress import Progress
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import StageRecord, Workspace, adopt, commit, drop_scratch

_PACKAGES = ("unmask", "torch", "transformers", "peft", "trl", "numpy", "scikit-learn")
FULL_BYTES = 1_000_000
SPARE_BYTES = 200_000_000
"""Free space below which a stage is not started."""
_MENDED = "mended"
"""Mark in the scratch of a stage whose damaged shards are made anew: of which generation the others are."""


def environment() -> dict[str, str]:
    """Versions and machine, for a manifest. Paths, names and keys are left out."""
    import platform

    found = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        import torch

        found["device"] = device_name()
        found["threads"] = str(torch.get_num_threads())
    return found


def _made_in(workspace: Workspace) -> dict[str, str]:
    """`environment`, with the devices that took part in the batches; of others' batches the rest is not known here."""
    found, devices = environment(), devices_of(workspace)
    if is_shared(workspace):
        found.pop("threads", None)
        found.pop("device", None)
    return found | ({"device": ", ".join(devices)} if devices else {})


def run_stage(task: Task, *, progress: Progress, engine: Engine | None = None) -> StageRecord:
    """Run a stage and put its sealed outputs into the study. With an `engine`, that makes its shards first.

    Raises StudyError when the disk is nearly full.
    """
    stage, study, workspace = task.stage, task.study, task.workspace
    if not adopt(study, workspace, stage=stage.name, key=task.key):
        free = shutil.disk_usage(study.folder).free
        if free < SPARE_BYTES:
            raise StudyError(
                f"the disk that holds {study.folder} has {free / 1e6:.0f} MB left, a stage wants {SPARE_BYTES / 1e6:.0f}",
                mend="Free some space and run the same command again",
            )
        workspace.prepare()
        started, clock = datetime.now(UTC), time.perf_counter()
        if engine is not None and stage.work is not None:
            engine.make(task, progress=progress)
        if stage.on_device:
            keep_to_one_device(task, progress=progress)
        result = _run(stage, task.config, task.inputs(progress), workspace)
        record = StageRecord(
            stage=stage.name,
            key=task.key,
            version=stage.version,
            config=_plain(task.config),
            inputs=dict(task.input_digests),
            files=listing(workspace.out),
            summary=result.summary,
            environment=_made_in(workspace),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - clock, 2),
        )
        commit(study, workspace, record)
    drop_scratch(study, stage.name)
    finished = study.record(stage.name)
    assert finished is not None
    return finished


def keep_shards(task: Task, record: StageRecord, *, damaged: frozenset[Path]) -> None:
    """Put the sound shards of a finished stage where its next run with the same key finds them as batches.

    They count as made on the devices that the manifest names: what is missing is made on that kind, or not at all. Batches that
    are of another generation, of a forced run that was killed say, go; those of an earlier mend that was killed stay.
    """
    stage, study, workspace = task.stage, task.study, task.workspace
    assert stage.shards is not None
    mark = workspace.folder / _MENDED
    generation = f"{record.started} {record.digest}"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != generation:
        shutil.rmtree(workspace.folder, ignore_errors=True)
        workspace.prepare()
        made_on = record.environment.get("device")
        if stage.on_device and made_on is not None:
            note_devices(workspace, kind_of(made_on), made_on.split(", "))
        write_text(mark, generation)
    workspace.prepare()
    if stage.on_device and device_of(workspace) not in (None, device_kind()):
        note_shared(workspace)  # nothing of theirs may go
    for path in sorted(study.stage_folder(stage.name).glob(stage.shards)):
        kept = workspace.batches / path.name  # there already where an earlier mend was killed
        if path not in damaged and path.name in record.files and not kept.exists():
            link_or_copy(path, kept)


def keep_to_one_device(task: Task, *, progress: Progress) -> None:
    """Keep numbers of two kinds of device apart.

    Batches of an earlier run here are dropped. Shards that others made are not: they are gathered, but none is made beside them.
    Raises StudyError where one would have to be.
    """
    workspace = task.workspace
    if not is_shared(workspace):
        _drop_of_other_device(task, progress=progress)
        if device_of(workspace) in (None, device_kind()):
            claim_device(workspace, device_kind(), name=device_name())
        return
    work = task.work(progress)
    waiting = 0 if work is None else len(work.waiting())
    if not waiting:
        return
    made_on = device_of(workspace)
    if made_on in (None, device_kind()):
        claim_device(workspace, device_kind(), name=device_name())
        return
    stage, folder = task.stage.name, task.study.folder
    there = (
        "run the same command there"
        if (workspace.folder / _MENDED).is_file()
        else (f"`unmask stage {stage} {folder} --shard 1/1`")
    )
    raise StudyError(
        f"{waiting} shards of stage {stage} are still to be made, the others were made on {made_on}, and this "
        f"process would use {device_kind()}",
        mend=f"Make them there: {there}; or all of them here: `unmask run {folder} --force {stage}`",
    )


def _drop_of_other_device(task: Task, *, progress: Progress) -> None:
    """Batches that a run here left on another kind of device go, with what was read beside them: all is made on this one."""
    workspace, own = task.workspace, device_kind()
    other = device_of(workspace)
    if other in (None, own):
        return
    if any(workspace.batches.iterdir()):
        work = task.work(progress)
        if work is not None and not work.waiting():  # to be gathered, whoever made it
            return
        progress.note(f"stage {task.stage.name} was begun on {other}, and is made anew on {own}")
        Recorded.drop(task.study.scratch)
    shutil.rmtree(workspace.batches)
    workspace.join()
    note_devices(workspace, own, [])


def _run(stage: Stage, config: StageConfig, inputs: Inputs, workspace: Workspace) -> Result:
    """Run the stage; whatever a full disk made a library raise becomes one sentence."""
    try:
        return stage.run(config, inputs, workspace)
    except UnmaskError:
        raise
    except Exception as error:
        if _out_of_memory(error):
            raise StudyError(
                f"the device ran out of memory in stage {stage.name}",
                mend="Free some memory and run the same command again, which keeps what is finished; answers and readings take "
                "smaller batches by themselves, tuning and steering where their batch_size is lowered",
            ) from error
        free = shutil.disk_usage(workspace.folder).free
        if free < FULL_BYTES:
            raise StudyError(
                f"no disk space left in {workspace.folder} during stage {stage.name}",
                mend="Free some space and run the same command again",
            ) from error
        raise


def _out_of_memory(error: Exception) -> bool:
    """As `models.reading.out_of_memory`, without torch: of a GPU, or of the CPU's allocator."""
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
    )


def _plain(config: StageConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")
