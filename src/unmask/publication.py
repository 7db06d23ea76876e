"""What leaves the stages' folders: the report on top of the study, and exports in other programs' formats."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from unmask.artifact import atomic_path, digest_file
from unmask.records import ModelSource
from unmask.study import StageRecord, Study


def publish(study: Study, stage: str, *, before: StageRecord | None) -> None:
    """Copy the report and its figures, which that stage made, to where people look first: the top of the study.

    Of what an earlier report (`before`) put there, what the new one lacks is removed; nothing else is.
    """
    record = study.record(stage)
    assert record is not None
    for name, digest in record.files.items():
        target = study.folder / name
        if not target.is_file() or digest_file(target) != digest:
            with atomic_path(target) as temporary:
                shutil.copyfile(study.stage_folder(stage) / name, temporary)
    for name in (before.files if before is not None else {}).keys() - record.files.keys():
        (study.folder / name).unlink(missing_ok=True)


def export(
    study: Study, base: ModelSource, out: Path, *, legacy: bool, directions: bool, only: Sequence[str] | None = None
) -> list[Path]:
    """Write the reference study's pickles, or directions (those of `only`), into `out`. Returns what was written.

    Raises UnmaskError where the stages behind them are not done, or hold no such direction.
    """
    paths: list[Path] = []
    if legacy:
        from unmask.legacy import export_legacy

        paths += export_legacy(study, out=out)
    if directions:
        from unmask.control_vectors import export_directions
        from unmask.models.loading import load_config

        model_type = str(load_config(base).model_type)
        paths += export_directions(study, out=out, model_type=model_type, ids=only)
    return paths
