"""The study directory: one folder per stage, each sealed by its own manifest, and the cache that says what is stale.

A stage works in `.scratch/STAGE-KEY/`, where finished batches survive a kill. When it is done its files lie complete in
`.scratch/STAGE-KEY/out/`, manifest last, and one rename puts them in place. Only manifests hold times.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unmask.artifact import (
    digest_file,
    digest_json,
    digest_tree,
    listing,
    read_json,
    sync,
    write_json,
    write_text,
)
from unmask.errors import ArtifactError, StudyError

FORMAT = 1
"""Version of the directory's layout. A study made by a newer version is refused."""

StageState = Literal["done", "stale", "missing"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a stage's manifest says: what made it, from what, and what it made."""

    stage: str
    key: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    summary: dict[str, Any]
    environment: dict[str, str]
    started: str
    seconds: float

    @property
    def digest(self) -> str:
        """Digest of the outputs: what a later stage's key depends on."""
        return digest_tree(self.files)


@dataclass(frozen=True, slots=True)
class Study:
    """A study directory: `study.yaml` and all that was made from it."""

    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def scratch(self) -> Path:
        return self.folder / ".scratch"

    @classmethod
    def open(cls, folder: Path | str) -> Study:
        """Open an existing study. Raises StudyError when there is none or a newer version made it."""
        study = cls(Path(folder))
        if not study.config_path.is_file():
            raise StudyError(
                f"no study at {study.folder}: it holds no study.yaml",
                mend=f"Make one with `unmask init {study.folder}` or name a folder that holds one",
            )
        marker = study.folder / ".unmask.json"
        if marker.is_file():
            content = read_json(marker, rebuild=f"rm {marker}")
            made_by = content.get("format") if isinstance(content, dict) else None
            if not isinstance(made_by, int):
                raise ArtifactError(
                    f"{marker} does not say which format the study has", mend=f"Remove it: `rm {marker}`"
                )
            if made_by > FORMAT:
                raise StudyError(
                    f"{study.folder} was made by a newer version of unmask (format {made_by}, this one reads up to {FORMAT})",
                    mend="Upgrade with `pip install --upgrade unmask`",
                )
        return study

    @classmethod
    def create(cls, folder: Path | str, *, config_text: str) -> Study:
        """Make a study directory. Raises StudyError when `folder` already holds one or is a file."""
        study = cls(Path(folder))
        if study.folder.exists() and not study.folder.is_dir():
            raise StudyError(f"{study.folder} is a file", mend="Name a new or empty folder")
        if study.config_path.exists():
            raise StudyError(
                f"{study.config_path} exists already",
                mend=f"Edit it and `unmask run {study.folder}`, or name another folder",
            )
        study.folder.mkdir(parents=True, exist_ok=True)
        write_json(study.folder / ".unmask.json", {"format": FORMAT})
        write_text(study.config_path, config_text)
        return study

    def stage_folder(self, stage: str) -> Path:
        return self.folder / stage

    def record(self, stage: str) -> StageRecord | None:
        """The stage's manifest, or None when the stage has never been finished.

        Raises ArtifactError when the manifest is there but broken.
        """
        path = self.stage_folder(stage) / "manifest.json"
        if not path.is_file():
            return None
        rebuild = f"unmask run {self.folder} --force {stage}"
        raw = read_json(path, rebuild=rebuild)
        try:
            return StageRecord(**raw)
        except TypeError as error:
            raise ArtifactError(
                f"{path} is not a stage's manifest ({error})", mend=f"Rebuild it with `{rebuild}`"
            ) from error

    def broken(self, record: StageRecord) -> Iterator[tuple[Path, str]]:
        """Every file of a finished stage that is missing or changed, with which of the two it is."""
        for name, expected in record.files.items():
            path = self.stage_folder(record.stage) / name
            if not path.is_file():
                yield path, "is missing"
            elif digest_file(path) != expected:
                yield path, "does not match its checksum"

    def verify(self, stage: str) -> StageRecord:
        """The stage's record, after every file it lists was compared with its digest.

        Raises ArtifactError naming the first file that is missing, changed or foreign.
        """
        record = self.record(stage)
        rebuild = f"unmask run {self.folder} --force {stage}"
        folder = self.stage_folder(stage)
        if record is None:
            raise ArtifactError(
                f"stage {stage!r} of {self.folder} has not been run", mend=f"Run `unmask run {self.folder}`"
            )
        for path, problem in self.broken(record):
            raise ArtifactError(f"{path} {problem}", mend=f"Rebuild it with `{rebuild}`")
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in place.parts)  # what file browsers leave
            if path.is_file() and not hidden and place.as_posix() not in {"manifest.json", *record.files}:
                raise ArtifactError(
                    f"{path} is foreign: stage {stage} did not make it",
                    mend=f"Move it away, or rebuild with `{rebuild}`",
                )
        return record

    def refuse_foreign(self, stages: Iterable[str]) -> None:
        """Raise StudyError for a folder with a stage's name that no stage made: running would replace it."""
        for stage in stages:
            folder = self.stage_folder(stage)
            if folder.exists() and not (folder / "manifest.json").is_file():
                raise StudyError(
                    f"{folder} is in the way: it was not made by unmask, and stage {stage!r} would replace it",
                    mend="Move it away, or make the study in another folder",
                )

    @contextmanager
    def lock(self, *, shared: bool = False) -> Generator[None]:
        """Hold the study for one process; `shared`: beside others that share it, such as those that make shards.

        Raises StudyError when another holds it; a dead process holds nothing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".lock"
        handle = path.open("a+")
        try:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"another unmask process is working on {self.folder}", mend="Wait for it, or end it, and run again"
                ) from error
            yield
        finally:
            handle.close()


def stage_key(*, stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The cache key: outcome-changing config, digests of the inputs, version of the stage. Nothing else."""
    return digest_json({"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)})


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where one run of a stage may write: `out` becomes the stage's folder, `batches` survives a kill."""

    folder: Path
    out: Path = field(init=False)
    batches: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.folder / "out")
        object.__setattr__(self, "batches", self.folder / "batches")

    @property
    def key(self) -> str:
        """The first characters of the run's key, which its folder is named by."""
        return self.folder.name.rpartition("-")[2]

    def join(self) -> None:
        """Make the folder of batches and touch nothing else: other processes may be writing here."""
        self.batches.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Make the folders; what an unfinished run left in `out` goes, its batches stay."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.batches.mkdir(parents=True, exist_ok=True)
        for leftover in self.batches.glob(".*"):
            if leftover.is_file():
                leftover.unlink()


def commit(study: Study, workspace: Workspace, record: StageRecord) -> None:
    """Seal `workspace.out` with its manifest and put it in the stage's place.

    A kill before the rename leaves a sealed `out`, which `adopt` finds; a kill after it leaves the finished stage.
    """
    for path in sorted(workspace.out.rglob("*")):
        sync(path)
    write_json(workspace.out / "manifest.json", {name: getattr(record, name) for name in StageRecord.__slots__})
    _swap(study, workspace, record.stage)


def adopt(study: Study, workspace: Workspace, *, stage: str, key: str) -> bool:
    """Finish the commit that a kill interrupted. True when a sealed result with this key lay ready, whole and readable."""
    manifest = workspace.out / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        record = StageRecord(**read_json(manifest, rebuild=f"unmask run {study.folder} --force {stage}"))
    except (ArtifactError, TypeError):  # broken, or of another version: the stage runs again
        return False
    if record.key != key or listing(workspace.out) != record.files:
        return False
    _swap(study, workspace, stage)
    return True


def _swap(study: Study, workspace: Workspace, stage: str) -> None:
    target = study.stage_folder(stage)
    old = workspace.folder / "replaced"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    workspace.out.rename(target)
    sync(study.folder)
    shutil.rmtree(workspace.folder, ignore_errors=True)
    _drop_empty(study.scratch)


def drop_scratch(study: Study, stage: str) -> None:
    """Remove what unfinished runs of a stage left behind, once it is done."""
    for folder in study.scratch.glob(f"{stage}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    _drop_empty(study.scratch)


def _drop_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
