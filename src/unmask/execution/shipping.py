"""What a machine needs that does not see the study, and how it comes there and its shards come back: through a depot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from unmask.errors import StudyError
from unmask.execution.depot import Depot
from unmask.execution.task import Task
from unmask.stage import Shard, Work
from unmask.study import Study


def send_needs(task: Task, work: Work, depot: Depot) -> None:
    """Put into the depot what shards of the task are made from, and the list of it, where `bring_needs` looks."""
    folder = task.study.folder
    depot.note(
        _list_name(task.stage.name, task.key), depot.send({_named(path, folder): path for path in _needs(task, work)})
    )


def bring_needs(stage: str, key: str, depot: Depot, folder: Path) -> None:
    """Make in `folder` the part of a study that `send_needs` sent. Raises StudyError where nothing was sent."""
    files = depot.noted(_list_name(stage, key))
    if files is None:
        raise StudyError(f"{depot.url} holds nothing for stage {stage}", mend="Give every machine the same --store")
    for name, digest in files.items():
        depot.fetch(str(digest), inside(folder, name))


def _needs(task: Task, work: Work) -> Iterator[Path]:
    study = task.study
    yield study.config_path
    yield from (path for path in [study.folder / ".unmask.json"] if path.is_file())
    for name in task.stage.needs:
        record = study.record(name)
        assert record is not None
        yield study.stage_folder(name) / "manifest.json"
        yield from (study.stage_folder(name) / file for file in record.files if name not in work.unread)
    yield from work.given
    yield from _named_files(study)


def _named_files(study: Study) -> Iterator[Path]:
    """Files and folders of the study's own that its study.yaml names: models, adapters, masks, batteries."""
    for text in _leaves(yaml.safe_load(study.config_path.read_text(encoding="utf-8"))):
        path = study.folder / text
        parts = PurePosixPath(text).parts
        if not parts or Path(text).is_absolute() or ".." in parts or any(len(part.encode()) > 255 for part in parts):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path != study.folder:
            yield from (each for each in sorted(path.rglob("*")) if each.is_file())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)


def send_shard(study: Study, stage: str, key: str, shard: Shard, depot: Depot) -> None:
    """Put a made shard into the depot, and last the list of its files."""
    made = [path for path in (*shard.beside, *shard.files) if path.is_file()]
    depot.note(_shard_name(stage, key, shard), depot.send({_named(path, study.folder): path for path in made}))


def bring_shard(task: Task, shard: Shard, depot: Depot) -> bool:
    """Bring a shard that somebody made; True when it is there. Only the files that the shard has, by-products first."""
    if shard.made:
        return True
    place = _shard_name(task.stage.name, task.key, shard)
    listed = depot.noted(place)
    if listed is None:
        return False
    wanted = {_named(path, task.study.folder): path for path in (*shard.beside, *shard.files)}
    found = {name: str(listed[name]) for name in wanted if name in listed}
    for name, digest in found.items():
        depot.fetch(digest, wanted[name])
    depot.drop([place])  # its files may be another shard's too
    return shard.made


def _named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def inside(folder: Path, name: str) -> Path:
    """The place of a file below `folder`. Raises StudyError for a name that leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise StudyError(f"the list of files names {name!r}, which lies outside the study", mend="Empty the store")
    return folder.joinpath(*parts)


def _list_name(stage: str, key: str) -> str:
    return f"{stage}-{key[:12]}/needs.json"


def _shard_name(stage: str, key: str, shard: Shard) -> str:
    return f"{stage}-{key[:12]}/shards/{shard.name}.json"
