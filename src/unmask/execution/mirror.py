"""A folder on a worker's own disk with what it needs of a study that it does not see.

A worker that is killed leaves its mirror behind, which may be large: the next one there removes it. It is known by its lock,
which goes with the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PREFIX = "unmask-mirror-"
_LOCK = "lock"


@dataclass(slots=True)
class Mirror:
    """`study` is the folder to be filled; all of it goes with `drop`."""

    folder: Path
    _held: IO[str]

    @property
    def study(self) -> Path:
        return self.folder / "study"

    @classmethod
    def made(cls) -> Mirror:
        """An empty one, after those of dead workers were removed."""
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
        held = (new / _LOCK).open("x")
        fcntl.flock(held, fcntl.LOCK_EX)
        folder = new.with_name(new.name.removeprefix("."))  # seen by others only once it is locked
        new.rename(folder)
        (folder / "study").mkdir()
        return cls(folder, held)

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()


def _remove_if_left(folder: Path) -> None:
    """Remove a mirror of ours whose worker is gone."""
    try:
        if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
            return
        with (folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its worker lives, or another has just removed it
        return
