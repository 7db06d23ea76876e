"""What a study needs on another machine: its file, what the file refers to, and what of it is done.

The local tree of folders is mirrored below one folder of the host, so that relative paths in `study.yaml` mean the same there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unmask.artifact import digest_file
from unmask.battery import BATTERIES
from unmask.devices import devices_note
from unmask.errors import ConfigError
from unmask.models.embedded import EMBEDDED
from unmask.pipeline import STAGE_NAMES, StudyPipeline
from unmask.study import Workspace
from unmask.study_file import StudyConfig
from unmask.training_set import TRAINING_SETS

BATCH_SUFFIXES = (".parquet", ".safetensors", ".json")
"""Kinds of batches that travel. Checkpoints of training do not: they are torch's own files, and stay where they were written."""


@dataclass(frozen=True, slots=True)
class Need:
    """A file to be there: where it lies here, its path below the mirrored tree, its size and SHA-256."""

    source: Path
    target: PurePosixPath
    size: int
    digest: str


def mirrored(path: Path) -> PurePosixPath:
    """Where a local path lies below the mirrored tree."""
    return PurePosixPath(*Path(os.path.normpath(path.absolute())).parts[1:])


def need(source: Path, target: PurePosixPath) -> Need:
    return Need(source, target, source.stat().st_size, digest_file(source))


def references(config: StudyConfig) -> Iterator[tuple[str, str]]:
    """Fields of the study file that may name files or folders, with what they name."""
    yield "base.model", config.base.model
    yield "questions.battery", config.questions.battery
    yield "questions.neutral_battery", config.questions.neutral_battery or ""
    for section, tuned in (("organism", config.organism), ("control", config.control)):
        yield f"{section}.existing", tuned.existing or ""
        yield f"{section}.training_set", tuned.training_set or ""
    yield "activations.mask", config.activations.mask or ""
    for name in config.directions.files:
        yield "directions.files", name
    yield "scores.human_labels", config.scores.human_labels or ""
    for name in config.scores.rubrics:
        yield "scores.rubrics", name
    for name in (config.scores.judge, *config.scores.other_judges):
        yield "scores.judge", name.removeprefix("hf/") if name.startswith("hf/") else ""


def referred(opened: StudyPipeline) -> list[Need]:
    """The study file and every local file that it refers to.

    Raises ConfigError for an absolute path, which would not be there.
    """
    folder = opened.study.folder
    found = [need(opened.study.config_path, mirrored(opened.study.config_path))]
    marker = folder / ".unmask.json"
    if marker.is_file():
        found.append(need(marker, mirrored(marker)))
    taken: set[Path] = set()
    for field, name in references(opened.config):
        if not name or name in EMBEDDED:
            continue
        if name.startswith(("/", "~")):
            raise ConfigError(
                f"{field} is {name}, which is a place on this machine alone",
                mend="Write it relative to the study's folder or to the working directory: those are mirrored on the host",
            )
        for base in (folder, Path()):
            place = Path(os.path.normpath((base / name).absolute()))
            if (place.is_file() or _is_model(place)) and place not in taken:
                taken.add(place)
                found += _files(place)
                break
            if place in taken or name in BATTERIES or name in TRAINING_SETS:
                break
    return found


def _is_model(place: Path) -> bool:
    return (place / "config.json").is_file() or (place / "adapter_config.json").is_file()


def _files(place: Path) -> list[Need]:
    if place.is_file():
        return [need(place, mirrored(place))]
    return [need(path, mirrored(path)) for path in sorted(place.rglob("*")) if path.is_file()]


def finished(opened: StudyPipeline, *, there: dict[str, tuple[str, str]]) -> list[Need]:
    """Files of stages that are done here and not there (`there`: stage to key and digest of its files), each manifest last.

    They go where a stage that was cut off in its last step leaves them: the run on the host adopts them if it wants the same key.
    Raises ArtifactError for a damaged file.
    """
    found = []
    for status in opened.status():
        record = status.record
        if record is None or not (status.state == "done" or status.reason.startswith("waits for")):
            continue
        if there.get(status.stage) == (record.key, record.digest):
            continue
        opened.study.verify(status.stage)
        out = mirrored(opened.study.scratch) / f"{status.stage}-{record.key[:12]}" / "out"
        folder = opened.study.stage_folder(status.stage)
        found += [
            Need(folder / name, out / name, (folder / name).stat().st_size, digest)
            for name, digest in record.files.items()
        ]
        found.append(need(folder / "manifest.json", out / "manifest.json"))
    return found


def batches(opened: StudyPipeline, *, devices: dict[str, str]) -> list[Need]:
    """Batches of stages at work here. `devices` has, by scratch folder, the digest of the device mark that is there already.

    Batches of another kind of device are left: numbers of two kinds would stand beside each other. The names of those that took
    part are sent where there is no mark yet: elsewhere there are names, which may be more than are known here.
    """
    found = []
    scratch = opened.study.scratch
    done = {status.stage for status in opened.status() if status.state == "done"}
    for folder in sorted(scratch.iterdir()) if scratch.is_dir() else ():
        stage = folder.name.removesuffix(folder.name.rpartition("-")[2]).rstrip("-").removesuffix("-recorded")
        if stage not in STAGE_NAMES or stage in done:
            continue
        mark = folder / "device"
        if mark.is_file() and devices.get(folder.name, digest_file(mark)) != digest_file(mark):
            continue
        names = None if folder.name in devices else devices_note(Workspace(folder))
        paths = [
            path for path in (names, mark) if path is not None and path.is_file()
        ]  # the mark last: both are there then
        for place in (folder, folder / "batches"):
            paths += sorted(path for path in place.glob("*") if path.suffix in BATCH_SUFFIXES and path.is_file())
        found += [need(path, mirrored(path)) for path in paths if not path.name.startswith(".")]
    return found
