"""An opened study: its directory and config, and each stage with what its key is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unmask.artifact import digest_json
from unmask.execution.task import Task
from unmask.records import ModelSource
from unmask.stage import Stage, StageConfig
from unmask.stages.organism import ControlConfig
from unmask.stages.responses import ResponsesConfig
from unmask.stages.scores import ScoresConfig
from unmask.stages.steering import SteeringConfig
from unmask.study import Study, stage_key
from unmask.study_file import StudyConfig


@dataclass(frozen=True, slots=True)
class OpenedStudy:
    """A study's directory and its config. A stage's section, inputs and key follow from these alone."""

    study: Study
    config: StudyConfig

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

    def _task(self, stage: Stage, digests: Mapping[str, str]) -> Task:
        inputs = self._inputs(stage, digests)
        return Task(
            stage=stage,
            config=self._section(stage),
            study=self.study,
            key=self._key(stage, inputs),
            input_digests=inputs,
            base=self.base,
            prompt_format=self.config.base.prompt_format,
        )
