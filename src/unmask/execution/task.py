"""One stage of one study, with all that decides its outcome: what an engine is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from unmask.progress import Progress
from unmask.records import ModelSource, PromptFormat
from unmask.stage import Inputs, Stage, StageConfig, Work
from unmask.study import Study, Workspace


@dataclass(frozen=True, slots=True)
class Task:
    """A stage to be run: its config, its key and what the key was made from, in a study's directory."""

    stage: Stage
    config: StageConfig
    study: Study
    key: str
    input_digests: Mapping[str, str]
    base: ModelSource
    prompt_format: PromptFormat

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.study.scratch / f"{self.stage.name}-{self.key[:12]}")

    def inputs(self, progress: Progress) -> Inputs:
        """What the stage may read."""
        return Inputs(
            base=self.base,
            prompt_format=self.prompt_format,
            folders={name: self.study.stage_folder(name) for name in self.stage.needs},
            study_folder=self.study.folder,
            progress=progress,
        )

    def work(self, progress: Progress) -> Work | None:
        """What can be made in shards; None where there is nothing of that kind."""
        if self.stage.work is None:
            return None
        return self.stage.work(self.config, self.inputs(progress), self.workspace)


class Engine(Protocol):
    """Makes waiting shards of a task elsewhere than in this process, before the stage takes them; entered for a whole run."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exception: object) -> None: ...

    def make(self, task: Task, *, progress: Progress) -> None:
        """Make the shards that wait. Raises UnmaskError, naming those that could not be made; the others are kept."""
        ...
