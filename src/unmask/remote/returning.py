"""What comes back from another machine: data of an untrusted place, put where this study would have made it itself.

A name is taken only if it is one that a stage may have; sizes are bounded; links are refused on both sides; every file is
compared with its SHA-256 before it gets its name, and a stage appears by one rename. Nothing that could be unpickled is taken.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from unmask.artifact import digest_bytes, digest_file, digest_json, link_or_copy, read_json, sync
from unmask.collection import Recorded
from unmask.devices import KINDS, device_of, note_devices
from unmask.errors import ArtifactError, StudyError
from unmask.execution.hearsay import number_from_host, printable, steers_terminal
from unmask.execution.host import Host, HostError
from unmask.execution.on_host.listing import LINK
from unmask.pipeline import STAGE_NAMES, StudyPipeline
from unmask.publication import publish
from unmask.remote.needs import BATCH_SUFFIXES
from unmask.study import StageRecord, Study, Workspace, adopt, drop_scratch

MANIFEST_LIMIT = 16 << 20
NOT_TAKEN = "Nothing of it was taken"
SPARE_BYTES = 500_000_000
"""Free space that is left on the disk here."""
FILE_SUFFIXES = (
    *(".parquet", ".safetensors", ".json", ".jsonl", ".html", ".png", ".svg", ".md", ".txt", ".jinja", ".model"),
)
"""Kinds of files that a stage makes."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}")
_PUBLISHED = re.compile(r"report\.html|figures/[^/]+")
_MARKS = frozenset(digest_bytes(kind.encode()) for kind in KINDS)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BATCH = re.compile(
    r"\.scratch/(?P<folder>(?P<stage>[a-z_]+?)(?:-recorded)?-(?P<key>[0-9a-f]{12}))/(?:batches/)?(?P<name>[^/]+)"
)


class Untrusted(HostError):
    """A machine offered what no study makes."""


@dataclass(slots=True)
class Incoming:
    """Takes what `host` has of a study into its folder here. `place` is that folder there; `most_bytes` bounds all that comes.

    What is good here is never replaced, but in the stages of `forced`, which were to be run anew there: to the same key.
    """

    opened: StudyPipeline
    host: Host
    place: PurePosixPath
    most_bytes: int
    forced: frozenset[str] = frozenset()
    came: int = 0
    files: int = 0

    @property
    def study(self) -> Study:
        return self.opened.study

    async def stage(self, name: object, told: dict[str, Any]) -> bool:
        """Take a finished stage, unless the same is here, or what the study file wants now. Whether it was taken.

        Raises Untrusted for anything that a stage would not have made; FileNotFoundError or ArtifactError where it changed under
        our hands, so that it should be looked at again.
        """
        if name not in STAGE_NAMES:
            raise Untrusted(f"{self.host.address} offers a stage called {_shown(name)}", mend=NOT_TAKEN)
        stage = str(name)
        here = self._record(stage)
        key, digest, size, sha256 = (told.get(field) for field in ("key", "files", "size", "sha256"))
        if here is not None and (here.key, digest_json(here.files)) == (key, digest):
            return False
        if here is not None and (here.key != key or stage not in self.forced) and self._done(stage):
            return False
        if not (isinstance(size, int) and _is_digest(sha256) and _is_digest(key)) or not 0 < size <= MANIFEST_LIMIT:
            raise Untrusted(f"{self.host.address} offers a stage {stage} without a proper manifest", mend=NOT_TAKEN)
        manifest = await self._fetched(f"{stage}/manifest.json", size=size, digest=str(sha256))
        record = self._read_manifest(manifest, stage)
        workspace = Workspace(self._plain(f".scratch/{stage}-{record.key[:12]}"))
        parts = {file: await self._stage_file(workspace, stage, file, digest) for file, digest in record.files.items()}
        self._assemble(workspace, parts, manifest)
        before = self._record(STAGE_NAMES[-1])
        if not adopt(self.study, workspace, stage=stage, key=record.key):
            raise ArtifactError(f"stage {stage} from {self.host.address} is not whole", mend="Fetch it again")
        drop_scratch(self.study, stage)
        if stage == STAGE_NAMES[-1]:
            for file in record.files:
                self._plain(file)
            publish(self.study, STAGE_NAMES[-1], before=before)
        return True

    def _done(self, stage: str) -> bool:
        return any(status.stage == stage and status.state == "done" for status in self.opened.status())

    def _record(self, stage: str) -> StageRecord | None:
        """The local record; None also where the manifest here is broken, and what comes replaces it."""
        try:
            return self.study.record(stage)
        except ArtifactError:
            return None

    def _read_manifest(self, path: Path, stage: str) -> StageRecord:
        try:
            raw = read_json(path, rebuild="unmask remote fetch")
        except RecursionError:
            raw = None
        names = {field.name for field in fields(StageRecord)}
        if not isinstance(raw, dict) or set(raw) != names or raw["stage"] != stage or not _is_digest(raw["key"]):
            raise Untrusted(f"the manifest of stage {stage} from {self.host.address} is none", mend=NOT_TAKEN)
        tables = (isinstance(raw[name], dict) for name in ("files", "summary", "config", "inputs"))
        if not all(tables) or not _is_dated(raw):
            raise Untrusted(f"the manifest of stage {stage} from {self.host.address} is none", mend=NOT_TAKEN)
        if steers_terminal(raw):
            raise Untrusted(
                f"the manifest of stage {stage} from {self.host.address} has control characters in it", mend=NOT_TAKEN
            )
        for name, digest in raw["files"].items():
            parts = name.split("/")
            named = len(parts) <= 4 and all(_NAME.fullmatch(part) for part in parts)
            if (
                stage == STAGE_NAMES[-1]
            ):  # its files are copied to the top of the study, where nothing else may be replaced
                named = named and _PUBLISHED.fullmatch(name) is not None
            if not named or not name.endswith(FILE_SUFFIXES) or name == "manifest.json" or not _is_digest(digest):
                raise Untrusted(
                    f"stage {stage} from {self.host.address} lists a file {_shown(name)}",
                    mend=NOT_TAKEN,
                )
        return StageRecord(**raw)

    async def _stage_file(self, workspace: Workspace, stage: str, name: str, digest: str) -> Path:
        """A file of a stage as a part here: fetched, or taken from the batches that came before where it is one of them."""
        part = self._part(digest)
        batch = workspace.batches / name
        if (
            "/" not in name
            and not part.exists()
            and batch.is_file()
            and not batch.is_symlink()
            and digest_file(batch) == digest
        ):
            link_or_copy(batch, part)
        if part.exists() and digest_file(part) == digest:
            return part
        source = f"{stage}/{name}"
        return await self._fetched(source, size=await self.host.size(self.place / source), digest=digest)

    def _assemble(self, workspace: Workspace, parts: dict[str, Path], manifest: Path) -> None:
        """Put a stage together where `adopt` looks for it, its manifest last."""
        self._plain(workspace.out.relative_to(self.study.folder).as_posix())
        shutil.rmtree(workspace.out, ignore_errors=True)
        for name, part in parts.items():
            target = workspace.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(part, target)  # two files may have the same content
        for path in sorted(workspace.out.rglob("*")):
            sync(path)
        workspace.out.mkdir(parents=True, exist_ok=True)
        manifest.replace(workspace.out / "manifest.json")
        for part in parts.values():
            part.unlink(missing_ok=True)

    async def batches(self, entries: object) -> int:
        """Take finished batches of stages at work. Returns how many were taken; one that has gone meanwhile is not missed."""
        if not isinstance(entries, list):
            raise Untrusted(f"{self.host.address} offers batches without names", mend=NOT_TAKEN)
        taken = 0
        checked = [self._check_batch(entry) for entry in entries]
        for found, size, digest in sorted(checked, key=lambda entry: entry[0]["name"] != "device"):
            with contextlib.suppress(FileNotFoundError, ArtifactError):
                taken += await self._batch(found, size, digest)
        return taken

    def _check_batch(self, entry: object) -> tuple[re.Match[str], int, str]:
        path, size, digest = entry if isinstance(entry, Sequence) and len(entry) == 3 else (None, None, None)
        found = _BATCH.fullmatch(path) if isinstance(path, str) else None
        named = found is not None and found["stage"] in STAGE_NAMES and bool(_NAME.fullmatch(found["name"]))
        if not named or not (found["name"] == "device" or found["name"].endswith(BATCH_SUFFIXES)):
            raise Untrusted(f"{self.host.address} offers a file called {_shown(path)}", mend=NOT_TAKEN)
        if digest == LINK:
            raise Untrusted(f"{_shown(path)} on {self.host.address} is a link", mend=NOT_TAKEN)
        if not isinstance(size, int) or size < 0 or not _is_digest(digest):
            raise Untrusted(f"{self.host.address} offers {_shown(path)} without size and checksum", mend=NOT_TAKEN)
        assert found is not None
        return found, size, str(digest)

    async def _batch(self, found: re.Match[str], size: int, digest: str) -> bool:
        here = self._record(found["stage"])
        if here is not None and here.key.startswith(found["key"]):
            return False  # the stage is done here
        target = self._plain(found[0])
        if target.is_file() and (digest_file(target) == digest or self._keeps(found)):
            return False
        if found["name"] == "device" and digest not in _MARKS:
            raise Untrusted(f"{self.host.address} names a device that there is not", mend=NOT_TAKEN)
        part = await self._fetched(found[0], size=size, digest=digest)
        if found["name"] == "device" and target.exists():  # of another kind of device: what was made on that one goes
            shutil.rmtree(target.parent / "batches", ignore_errors=True)
            Recorded.drop(self.study.scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        workspace = Workspace(self.study.scratch / found["folder"])
        if (kind := device_of(workspace)) is not None:
            note_devices(workspace, kind, [kind])  # its name is not known here
        return True

    def _keeps(self, found: re.Match[str]) -> bool:
        """Whether a batch that is here stays, whatever the host has of that name. The mark of a device follows the host."""
        return found["name"] != "device" and found["stage"] not in self.forced

    async def _fetched(self, name: str, *, size: int, digest: str) -> Path:
        """Fetch a file into a part named by its digest, and compare it. One that was cut and misfits is fetched anew."""
        if self.came + size > self.most_bytes:
            raise Untrusted(
                f"{self.host.address} offers more than {self.most_bytes / 1e9:g} GB",
                mend="If the study really makes so much, allow it with --max-gb",
            )
        part = self._part(digest)
        for _ in range(2):
            self._room(size)
            resumed = part.exists()
            self.came += await self.host.fetch(self.place / name, part, size=size)
            if digest_file(part) == digest:
                sync(part)
                self.files += 1
                return part
            part.unlink()
            if not resumed:
                break
        raise ArtifactError(f"{name} from {self.host.address} does not match its checksum", mend="Fetch it again")

    def _room(self, size: int) -> None:
        free = shutil.disk_usage(self.study.folder).free
        if size > free - SPARE_BYTES:
            raise StudyError(
                f"{size / 1e9:.2f} GB are to come back, and the disk of {self.study.folder} has {free / 1e9:.2f} GB left",
                mend="Free some space and run it again: it goes on",
            )

    def _part(self, digest: str) -> Path:
        path = self._plain(f".remote/{digest}.part")
        path.parent.mkdir(exist_ok=True)
        return path

    def _plain(self, name: str) -> Path:
        """A path in the study, no part of which is a link."""
        path = self.study.folder
        for part in PurePosixPath(name).parts:
            path = path / part
            if path.is_symlink():
                raise StudyError(f"{path} is a link, and nothing is written through links", mend="Remove it")
        return path

    def tidy(self) -> None:
        """Remove what was left of files that came in parts, once all is here."""
        shutil.rmtree(self._plain(".remote"), ignore_errors=True)


def forced_from(stages: Sequence[str]) -> frozenset[str]:
    """Stages that `--force` of these may make anew to the same key: they, and all that come after."""
    places = [STAGE_NAMES.index(stage) for stage in stages if stage in STAGE_NAMES]
    return frozenset(STAGE_NAMES[min(places) :]) if places else frozenset()


def _is_dated(raw: dict[str, Any]) -> bool:
    """Whether version, time and place of a manifest are of the kinds that a stage writes."""
    place, inputs = raw["environment"], raw["inputs"].values()
    texts = isinstance(place, dict) and all(
        isinstance(text, str) for text in (*place.values(), *inputs, raw["started"])
    )
    counted = type(raw["version"]) is int and all(
        number_from_host(raw[name]) is not None for name in ("version", "seconds")
    )
    return texts and counted


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _shown(value: object) -> str:
    return repr(printable(str(value)[:200]))
