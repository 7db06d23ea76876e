"""What a stage is: a config, declared inputs, one function, and outputs in its own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from unmask.records import ModelSource, PromptFormat

if TYPE_CHECKING:
    from unmask.progress import Progress
    from unmask.study import Workspace


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a stage may read: the base model, how prompts are made, and the folders of the stages it declared."""

    base: ModelSource
    prompt_format: PromptFormat
    folders: Mapping[str, Path]
    study_folder: Path
    progress: Progress

    @property
    def rebuild(self) -> str:
        """The command that an artifact error should name."""
        return f"unmask run {self.study_folder} --force"


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage says of itself, in the order in which it should be printed."""

    summary: dict[str, Any] = field(default_factory=dict)


def no_external_inputs(config: Any, study_folder: Path) -> dict[str, str]:
    """For stages that read nothing but earlier stages."""
    return {}


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a study.

    `needs` are earlier stages, `needs_base` says that the base model's content is an input too, `external` names further inputs
    (files, models) with their digests, `version` changes whenever the same inputs would give other bytes. `section` is the part
    of the study file that configures it, where that does not bear the stage's name. `shards` is the pattern of files that the
    stage takes as done where it finds them among its batches: where one is damaged, the others are kept.
    """

    name: str
    title: str
    version: int
    config: type[StageConfig]
    needs: tuple[str, ...]
    needs_base: bool
    run: Callable[[Any, Inputs, Workspace], Result]
    external: Callable[[Any, Path], dict[str, str]] = no_external_inputs
    section: str | None = None
    shards: str | None = None

    @property
    def called(self) -> str:
        """The name of its section of the study file."""
        return self.section or self.name
