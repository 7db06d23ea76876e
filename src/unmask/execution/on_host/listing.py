"""What lies on this machine: names, sizes and SHA-256, each file hashed once while it stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LINK = "link"
"""Stands for the digest of what is no regular file."""


class Digests:
    """SHA-256 of files, remembered in `memory` by size and time of change."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            self._known: dict[str, list[Any]] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._changed = False

    def of(self, path: Path) -> tuple[int, str] | None:
        """Size and digest; `LINK` for what is no regular file; None where nothing is."""
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return 0, LINK
            stamp = [found.st_size, found.st_mtime_ns, found.st_ino]
            known = self._known.get(str(path))
            if known is None or known[:3] != stamp:
                with path.open("rb") as handle:
                    known = [*stamp, hashlib.file_digest(handle, "sha256").hexdigest()]
                self._known[str(path)] = known
                self._changed = True
        except OSError:  # gone between two looks
            return None
        return found.st_size, str(known[3])

    def save(self) -> None:
        if self._changed:
            beside = self._memory.with_name(f".{self._memory.name}.{os.getpid()}")
            try:
                beside.write_text(json.dumps(self._known), encoding="utf-8")
                beside.replace(self._memory)
            except OSError:  # a full disk: hashed anew next time
                beside.unlink(missing_ok=True)
            self._changed = False


def differing(files: Sequence[Sequence[Any]], digests: Digests) -> list[int]:
    """Places in `files` (path, size, digest) of those that are not here, or not the same."""
    return [place for place, (path, *wanted) in enumerate(files) if list(digests.of(Path(path)) or ()) != wanted]


def stages(study: Path, names: Sequence[str], digests: Digests) -> dict[str, dict[str, Any]]:
    """Of every finished stage: its manifest's size and digest, its key, and the digest over its files."""
    found = {}
    for name in names:
        path = study / name / "manifest.json"
        sized = digests.of(path)
        if sized is None:
            continue
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            files = json.dumps(manifest["files"], sort_keys=True, separators=(",", ":")).encode()
            found[name] = {
                "size": sized[0],
                "sha256": sized[1],
                "key": str(manifest["key"]),
                "files": hashlib.sha256(files).hexdigest(),
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def batches(study: Path, suffixes: Sequence[str], digests: Digests) -> list[list[Any]]:
    """Finished batches of unfinished stages, and the mark of the device: path below the study, size, digest.

    A file stands under its name only once it is complete; hidden ones are being written.
    """
    found = []
    for path in sorted(_batch_paths(study / ".scratch")):
        if path.name == "device" or path.suffix in suffixes:
            sized = digests.of(path)
            if sized is not None:
                found.append([path.relative_to(study).as_posix(), *sized])
    return found


def _batch_paths(scratch: Path) -> Iterator[Path]:
    for work in scratch.iterdir() if scratch.is_dir() else ():
        for folder in (work, work / "batches"):
            try:
                entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
            except OSError:  # gone between two looks
                continue
            for path in entries:
                if path.is_symlink() or path.is_file():
                    yield path
