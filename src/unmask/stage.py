"""What a stage is: a config, declared inputs, one function, and outputs in its own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
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


Told = Callable[[int], None]
"""Is told how many units were just finished."""


def nobody(units: int) -> None:
    """Told by a shard that nobody waits for."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a stage's work: it is made once all its `files` are there.

    `units` is its size in what progress counts. `beside` are by-products that may be missing, put away before `files`.
    """

    name: str
    units: int
    files: tuple[Path, ...]
    beside: tuple[Path, ...] = ()

    @property
    def made(self) -> bool:
        return all(path.is_file() for path in self.files)


Make = Callable[[Shard, Told], None]


@dataclass(slots=True)
class Work:
    """What a stage lets others make for it: shards, in any order, by any number of processes and machines.

    Names and files of the shards depend on the stage's key alone, never on which of them are made already. `opened` loads the
    models and gives the function that makes one shard, each file atomically; it is entered with the first shard and left with the
    work. `given` are files under the workspace that whoever makes shards must have; `unread` are stages that the stage needs,
    of which no shard reads more than the manifest.
    """

    title: str
    shards: tuple[Shard, ...]
    opened: Callable[[], AbstractContextManager[Make]]
    given: tuple[Path, ...] = ()
    unread: tuple[str, ...] = ()
    _stack: ExitStack = field(default_factory=ExitStack)
    _make: Make | None = None

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *exception: object) -> None:
        self._make = None
        self._stack.close()

    def waiting(self) -> list[Shard]:
        """The shards that are not made."""
        return [shard for shard in self.shards if not shard.made]

    def open(self) -> Make:
        """Load the models, once. Returns what makes a shard."""
        if self._make is None:
            self._make = self._stack.enter_context(self.opened())
        return self._make

    def make(self, shard: Shard, told: Told = nobody) -> None:
        """Make one shard, loading the models with the first."""
        self.open()(shard, told)

    def finish(self, progress: Progress) -> None:
        """Make all that waits, here, and let the models go."""
        waiting = self.waiting()
        total = sum(shard.units for shard in self.shards)
        progress.begin(self.title, total=total, done=total - sum(shard.units for shard in waiting))
        with self:
            for shard in waiting:
                self.make(shard, progress.advance)
        progress.end()


def no_external_inputs(config: Any, study_folder: Path) -> dict[str, str]:
    """For stages that read nothing but earlier stages."""
    return {}


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a study.

    `needs` are earlier stages, `needs_base` says that the base model's content is an input too, `external` names further inputs
    (files, models) with their digests, `version` changes whenever the same inputs would give other bytes. `section` is the part
    of the study file that configures it, where that does not bear the stage's name. `shards` is the pattern of files that the
    stage takes as done where it finds them among its batches: where one is damaged, the others are kept. `work` gives what
    others may make for it, None where this config leaves nothing to share; `run` takes what is made and makes the rest.
    `runs_models` says that models other than the base compute what it keeps.
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
    work: Callable[[Any, Inputs, Workspace], Work | None] | None = None
    runs_models: bool = False

    @property
    def on_device(self) -> bool:
        """Whether its batches are numbers of models, which differ between kinds of device."""
        return self.needs_base or self.runs_models

    @property
    def called(self) -> str:
        """The name of its section of the study file."""
        return self.section or self.name
