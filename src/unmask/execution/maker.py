"""What runs on a worker: it opens a stage of a study, loads the models once, and makes shards one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from unmask.errors import StudyError
from unmask.execution.depot import Depot
from unmask.execution.mirror import Mirror
from unmask.execution.sharing import device_kind, device_name, in_words, join
from unmask.execution.shipping import bring_needs, send_shard
from unmask.execution.task import Task
from unmask.progress import Silent
from unmask.stage import Work

Opener = Callable[[str, str], Task]
"""Opens a stage of the study in a folder."""


@dataclass(frozen=True, slots=True)
class Errand:
    """Which shards are wanted: plain words that any machine understands.

    `study` is the folder on the path that all see; with `store`, the URL of a depot, it is not looked at. `opener`
    names an `Opener` as `module:function`. `key` and `inputs` are what the worker has to find, too.
    """

    study: str
    stage: str
    key: str
    inputs: Mapping[str, str]
    opener: str
    store: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's answer: where it is, what it computes on, and why it cannot work (None: it can)."""

    node: str
    device: str
    refusal: str | None
    device_name: str = "unknown"


class Maker:
    """Lives in a worker's process. Its methods return what happened as plain values: what they raise is a worker's death."""

    def __init__(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TQDM_DISABLE", "1")
        self._errand: Errand | None = None
        self._task: Task | None = None
        self._work: Work | None = None
        self._mirror: Mirror | None = None

    def here(self) -> str:
        """Where the worker is, said before it loads anything."""
        return _node()

    def ready(self, errand: Errand) -> Ready:
        """Open the errand and load its models."""
        try:
            self._open(errand)
            return Ready(_node(), device_kind(), None, device_name())
        except Exception as error:
            self.close()
            return Ready(_node(), "unknown", in_words(error))

    def make(self, errand: Errand, name: str) -> str | None:
        """Make one shard. None when it is made; else in words why it could not be."""
        try:
            task, work = self._open(errand)
            shard = next((shard for shard in work.shards if shard.name == name), None)
            if shard is None:
                raise StudyError(
                    f"the work is cut otherwise there and has no shard {name}: is a model of another content?"
                )
            work.make(shard)
            if errand.store is not None:
                send_shard(task.study, errand.stage, errand.key, shard, Depot.at(errand.store))
                for path in (*shard.beside, *shard.files):
                    path.unlink(missing_ok=True)  # it is where it is wanted; a node's disk may be small
        except Exception as error:
            return f"{in_words(error)} On {_node()}"
        return None

    def close(self) -> None:
        """Let the models go, and what was mirrored."""
        if self._work is not None:
            self._work.__exit__(None, None, None)
        if self._mirror is not None:
            self._mirror.drop()
        self._errand = self._task = self._work = self._mirror = None

    def _open(self, errand: Errand) -> tuple[Task, Work]:
        if self._errand == errand and self._task is not None and self._work is not None:
            return self._task, self._work
        self.close()
        folder = Path(errand.study)
        if errand.store is not None:
            self._mirror = Mirror.made()
            folder = self._mirror.study
            bring_needs(errand.stage, errand.key, Depot.at(errand.store), folder)
        elif not (folder / "study.yaml").is_file():
            raise StudyError(
                f"{folder} is not seen there",
                mend="Put the study on a path that every node sees, or add --store URL, such as s3://BUCKET/FOLDER",
            )
        module, _, function = errand.opener.partition(":")
        task: Task = getattr(import_module(module), function)(str(folder), errand.stage)
        if task.key != errand.key:
            raise StudyError(f"it would make something else: {_differences(task, errand)}")
        work = join(task, progress=Silent())
        if work is None:
            raise StudyError(f"stage {errand.stage} has no shards there")
        self._errand, self._task, self._work = errand, task, work
        work.open()
        return task, work


def _differences(task: Task, errand: Errand) -> str:
    """In words, which inputs are not what the driver has."""
    found = [
        f"its {'base model' if name == 'base' else name.removeprefix('stage:')} is not the driver's"
        for name, digest in errand.inputs.items()
        if task.input_digests.get(name) != digest
    ]
    return "; ".join(found) or "its unmask is of another version, or the study file was changed"


def _node() -> str:
    return f"node {os.uname().nodename}"
