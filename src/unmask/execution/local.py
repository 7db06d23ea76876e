"""Run one stage in this process: cached by its key, resumed from its batches, sealed by one rename."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unmask.artifact import link_or_copy, listing, write_text
from unmask.errors import StudyError, UnmaskError
from unmask.progress import Progress
from unmask.records import ModelSource, PromptFormat
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import StageRecord, Study, Workspace, adopt, commit, drop_scratch

_PACKAGES = ("unmask", "torch", "transformers", "peft", "trl", "numpy", "scikit-learn")
FULL_BYTES = 1_000_000
SPARE_BYTES = 200_000_000
"""Free space below which a stage is not started."""


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

        found["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
        found["threads"] = str(torch.get_num_threads())
    return found


def run_stage(
    stage: Stage,
    config: StageConfig,
    *,
    study: Study,
    key: str,
    input_digests: Mapping[str, str],
    base: ModelSource,
    prompt_format: PromptFormat,
    progress: Progress,
) -> StageRecord:
    """Run `stage` and put its sealed outputs into the study. Raises StudyError when the disk is nearly full."""
    workspace = Workspace(study.scratch / f"{stage.name}-{key[:12]}")
    if not adopt(study, workspace, stage=stage.name, key=key):
        free = shutil.disk_usage(study.folder).free
        if free < SPARE_BYTES:
            raise StudyError(
                f"the disk that holds {study.folder} has {free / 1e6:.0f} MB left, a stage wants {SPARE_BYTES / 1e6:.0f}",
                mend="Free some space and run the same command again",
            )
        workspace.prepare()
        if stage.needs_base:
            keep_to_one_device(workspace)
        started, clock = datetime.now(UTC), time.perf_counter()
        inputs = Inputs(
            base=base,
            prompt_format=prompt_format,
            folders={name: study.stage_folder(name) for name in stage.needs},
            study_folder=study.folder,
            progress=progress,
        )
        result = _run(stage, config, inputs, workspace)
        record = StageRecord(
            stage=stage.name,
            key=key,
            version=stage.version,
            config=_plain(config),
            inputs=dict(input_digests),
            files=listing(workspace.out),
            summary=result.summary,
            environment=environment(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - clock, 2),
        )
        commit(study, workspace, record)
    drop_scratch(study, stage.name)
    finished = study.record(stage.name)
    assert finished is not None
    return finished


def keep_shards(study: Study, stage: Stage, record: StageRecord, *, damaged: frozenset[Path]) -> None:
    """Put the sound shards of a finished stage where its next run with the same key finds them as batches."""
    assert stage.shards is not None
    workspace = Workspace(study.scratch / f"{stage.name}-{record.key[:12]}")
    workspace.prepare()
    if stage.needs_base:
        keep_to_one_device(workspace)
    for path in sorted(study.stage_folder(stage.name).glob(stage.shards)):
        kept = workspace.batches / path.name  # there already where an earlier run was killed
        if path not in damaged and path.name in record.files and not kept.exists():
            link_or_copy(path, kept)


def keep_to_one_device(workspace: Workspace) -> None:
    """Drop the batches of an earlier run on another kind of device: its numbers would stand beside those of this one."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    mark = workspace.folder / "device"
    if mark.is_file() and mark.read_text(encoding="utf-8") != kind:
        shutil.rmtree(workspace.batches)
        workspace.batches.mkdir()
    write_text(mark, kind)


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
