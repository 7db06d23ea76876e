"""The order of the stages: the table of contents of the project."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from unmask import preflight
from unmask.errors import ConfigError, StudyError, listed
from unmask.execution.local import run_stage
from unmask.execution.ray import RayConfig, RayEngine
from unmask.execution.sharing import Made, Share, make_share
from unmask.execution.task import Engine, Task
from unmask.mending import must_run
from unmask.opened_study import OpenedStudy
from unmask.progress import Progress, Silent
from unmask.publication import export, publish
from unmask.stage import Stage
from unmask.stages import (
    activations,
    cards,
    decomposition,
    directions,
    effects,
    organism,
    questions,
    report,
    responses,
    scores,
    steering,
    verdict,
)
from unmask.standing import StageStatus, status_rows, why_stale
from unmask.study import StageRecord, StageState, Study, drop_scratch
from unmask.study_design import design_of
from unmask.study_file import preset_text, read_config

if TYPE_CHECKING:
    import pandas as pd

    from unmask.analysis.design import Design
    from unmask.models.planning import CollectionPlan

__all__ = [
    "STAGES",
    "STAGE_NAMES",
    "StageStatus",
    "StudyPipeline",
    "init_study",
    "open_study",
    "status_rows",
    "why_stale",
]

STAGES: tuple[Stage, ...] = (
    questions.STAGE,
    organism.STAGE,
    organism.CONTROL,
    responses.STAGE,
    activations.STAGE,
    activations.CONTROL,
    scores.STAGE,
    decomposition.STAGE,
    directions.STAGE,
    effects.STAGE,
    verdict.STAGE,
    cards.STAGE,
    steering.STAGE,
    report.STAGE,
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
SHARDED = tuple(stage.name for stage in STAGES if stage.work is not None)
"""Stages that can be made in shards."""


@dataclass(frozen=True, slots=True)
class StudyPipeline(OpenedStudy):
    """An opened study: its directory, its config, and the stages that make it."""

    def status(self) -> list[StageStatus]:
        """Every stage's state, in order, with the reason why it would run again. Loads no model."""
        found: list[StageStatus] = []
        fresh: dict[str, str] = {}
        for stage in STAGES:
            record = self.study.record(stage.name)
            state, reason = self._state(stage, record, fresh)
            if state == "done" and record is not None:
                fresh[stage.name] = record.digest
            found.append(StageStatus(stage.name, state, reason, self.study.stage_folder(stage.name), record))
        return found

    def run(
        self,
        *,
        until: str | None = None,
        force: Sequence[str] = (),
        progress: Progress | None = None,
        on_stage: Callable[[Stage, StageRecord, bool], None] | None = None,
        engine: Engine | None = None,
    ) -> list[StageRecord]:
        """Run everything that is not done yet, up to stage `until`. Returns the records of all stages reached.

        A stage in `force` runs anew although it is done. `on_stage(stage, record, ran)` is told after each. An `engine` makes
        shards elsewhere. Raises UnmaskError for anything the user can mend, before the first stage where that can be known.
        """
        from unmask.models.loading import locate

        progress = progress or Silent()
        for name in (until, *force):
            if name is not None:
                stage_called(name)
        with self.study.lock(), engine or nullcontext():
            self.study.refuse_foreign(STAGE_NAMES)
            preflight.check_installed(self.config)
            locate(self.base.name, progress=progress)  # an embedded model is fetched here, in sight
            self.check()
            before = self.study.record(STAGES[-1].name)
            records: list[StageRecord] = []
            digests: dict[str, str] = {}
            for stage in STAGES:
                task = self._task(stage, digests)
                mend = _section_of(until) == stage.called
                ran = must_run(task, forced=stage.name in force, mend=mend, progress=progress)
                if ran:
                    record = run_stage(task, progress=progress, engine=engine)
                else:
                    drop_scratch(self.study, stage.name)
                    record = self.study.record(stage.name)
                assert record is not None
                records.append(record)
                digests[stage.name] = record.digest
                if on_stage is not None:
                    on_stage(stage, record, ran)
                if stage.name == until:
                    break
            if STAGES[-1].name in digests:
                publish(self.study, STAGES[-1].name, before=before)
        return records

    def make_share(self, name: str, share: Share, *, progress: Progress | None = None) -> Made:
        """Make the waiting shards of one share of a stage, beside other processes that make others; `run` gathers them.

        Raises StudyError where an earlier stage is not done, or shards could not be made; ConfigError for a stage without shards.
        """
        from unmask.models.loading import locate

        progress = progress or Silent()
        stage = stage_called(name)
        if stage.work is None:
            raise ConfigError(f"stage {name} has no shards", mend=f"Stages with shards: {listed(SHARDED)}")
        with self.study.lock(shared=True):
            states = {status.stage: status for status in self.status()}
            if states[name].state == "done":
                return Made(0, 0, {})
            waits = [needed for needed in stage.needs if states[needed].state != "done"]
            if waits:
                raise StudyError(
                    f"stage {name} cannot start: {listed(waits)} of {self.study.folder} are not done",
                    mend=f"Run `unmask run {self.study.folder} --until {waits[-1]}` first",
                )
            locate(self.base.name, progress=progress)
            return make_share(self.task(stage), share, progress=progress)

    def task(self, stage: Stage) -> Task:
        """A stage with its key, from the earlier stages as they lie in the study. Raises StudyError where one is missing."""
        digests: dict[str, str] = {}
        for name in stage.needs:
            record = self.study.record(name)
            if record is None:
                raise StudyError(
                    f"stage {name} of {self.study.folder} is not done", mend=f"Run `unmask run {self.study.folder}`"
                )
            digests[name] = record.digest
        return self._task(stage, digests)

    def design(self) -> tuple[Design, str]:
        """See `study_design.design_of`."""
        decided = next(status for status in self.status() if status.stage == "verdict").state == "done"
        return design_of(self.config, self.study, decided=decided)

    def collection_plan(self, *, seconds: float | None = 2.0) -> CollectionPlan | None:
        """What is left of collecting costs: tokens, FLOPs, bytes, memory, disk and, from `seconds` of measuring, time.

        Nothing is written. None where all is collected. Raises UnmaskError for what a run would refuse.
        """
        from unmask.collection_plan import plan_collection

        preflight.check_installed(self.config)
        self.check()
        done = {status.stage for status in self.status() if status.state == "done"}
        return plan_collection(self.config, self.study, self.base, done=done, seconds=seconds)

    def check(self) -> None:
        """Find out what is wrong with the config before anything is written. Raises UnmaskError."""
        judging = {scores.STAGE.name, steering.STAGE.name}
        wanted = any(status.stage in judging and status.state != "done" for status in self.status())
        preflight.check(self.config, self.base, self.study.folder, judging=wanted)

    def _state(self, stage: Stage, record: StageRecord | None, fresh: Mapping[str, str]) -> tuple[StageState, str]:
        if record is None:
            return "missing", "not run yet"
        waiting = [name for name in stage.needs if name not in fresh]
        if waiting:
            return "stale", f"waits for {listed(waiting)}"
        inputs = self._inputs(stage, fresh)
        if record.key == self._key(stage, inputs):
            return "done", ""
        config = self._section(stage).model_dump(mode="json")
        return "stale", why_stale(record, config, inputs, stage.version, section=stage.called)


def study_answers(opened: StudyPipeline) -> pd.DataFrame:
    """Every response of a study with its question, as judges see them. Raises ArtifactError where there are none yet."""
    folders = {name: opened.study.stage_folder(name) for name in ("questions", "responses")}
    return scores.answers_of(folders, rebuild=f"unmask run {opened.study.folder} --force")


def stage_called(name: str) -> Stage:
    """The stage of that name. Raises ConfigError."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ConfigError(f"no stage is called {name!r}", mend=f"Choose from: {listed(STAGE_NAMES)}")


def _section_of(name: str | None) -> str | None:
    return next((stage.called for stage in STAGES if stage.name == name), None)


def open_study(folder: Path | str) -> StudyPipeline:
    """Open a study directory and read its study.yaml. Raises UnmaskError when either is not usable."""
    study = Study.open(folder)
    return StudyPipeline(study=study, config=read_config(study.config_path))


def init_study(folder: Path | str, *, preset: str) -> StudyPipeline:
    """Make a study directory from a preset."""
    text = preset_text(preset)
    Study.create(folder, config_text=text)
    return open_study(folder)


def export_study(
    opened: StudyPipeline, out: Path, *, legacy: bool, directions: bool, only: Sequence[str] | None = None
) -> list[Path]:
    """See `publication.export`."""
    return export(opened.study, opened.base, out, legacy=legacy, directions=directions, only=only)


def ray_engine(**options: Any) -> RayEngine:
    """The engine that makes shards on a Ray cluster; see `RayConfig` for the options. Raises ConfigError."""
    try:
        config = RayConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option} {first['input']!r} cannot be: {first['msg']}") from error
    return RayEngine(config, opener=f"{__name__}:open_task")


def open_task(folder: str, stage: str) -> Task:
    """A stage of a study as a worker opens it: by where the study lies, with nothing of what the driver holds in memory."""
    from unmask.models.loading import locate

    pipeline = open_study(folder)
    locate(pipeline.base.name)
    return pipeline.task(stage_called(stage))
