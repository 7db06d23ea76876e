"""A store on a disk: files that appear whole, read through memory maps.

Shapes: R wanted rows, N rows there are, B bytes of a row.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unmask.artifact import atomic_path, digest_file
from unmask.errors import ArtifactError
from unmask.store.folder import REBUILD, SHARDS, Span, unreadable

if TYPE_CHECKING:
    import numpy as np

_MAPS = 64
"""Files that are kept mapped: each holds a descriptor, of which a process often has 1024."""

_BLOCK = 1 << 18
"""Bytes of rows that are given at once: they are still in a core's cache when they are put in place."""

_PAGE = 4096
_SPARSE = 16
"""Rows are asked for one by one where they are fewer than one page in 16. Measured on a disk that reads ahead 8 MiB: 64 rows of a
300 MB tensor that no cache holds take 0.9 ms so and 170 ms else, 4096 rows 50 and 260, 32768 rows 240 and 150."""

_PROBES = 8
"""Rows that are looked up in the system's cache, so that asking for each can be saved when they are there already."""

_SHORT = 1 << 20
"""Bytes up to which a span (a header, a response's tokens) is asked for by itself: else its file's next megabytes come along."""


class _Map(NamedTuple):
    """A mapped file: its identity, which a replaced file does not share, and its bytes (uint8)."""

    identity: tuple[int, int]
    content: np.ndarray


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder on a disk."""

    path: Path
    _maps: dict[str, _Map] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[LocalFolder], tuple[Path]]:
        """Pickled without its maps, which would be copied."""
        return LocalFolder, (self.path,)

    def place(self, file: str) -> str:
        return str(self.path / file)

    def shards(self) -> list[str]:
        return sorted(path.name for path in self.path.glob(SHARDS))

    def sizes(self, files: Sequence[str], *, what: str) -> list[int]:
        found = []
        for file in files:
            try:
                found.append((self.path / file).stat().st_size)
            except OSError as error:
                raise unreadable(self.place(file), what, str(error)) from error
        return found

    def digest(self, file: str) -> str | None:
        try:
            return digest_file(self.path / file)
        except OSError:
            return None

    def read(self, file: str) -> bytes:
        try:
            return (self.path / file).read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{self.place(file)} cannot be read ({error})", mend=f"Rebuild it with `{REBUILD}`"
            ) from error

    def write(self, file: str, parts: Iterable[bytes | memoryview]) -> None:
        with atomic_path(self.path / file) as temporary, temporary.open("wb") as handle:
            for part in parts:
                handle.write(part)

    def spans(self, spans: Sequence[Span], *, what: str) -> Iterator[np.ndarray]:
        import numpy as np

        for span in spans:
            content = self._mapped(span, what=what)
            length = span.stop - span.start
            if 0 < length < min(_SHORT, span.size // _SPARSE):
                _fetch(self.path / span.file, np.array([span.start]), row_bytes=length)
            yield content[span.start : span.stop]

    def rows(self, span: Span, rows_R: np.ndarray, *, row_bytes: int, what: str) -> Iterator[tuple[slice, np.ndarray]]:
        table_NB = self._mapped(span, what=what)[span.start : span.stop].reshape(-1, row_bytes)
        if len(rows_R) * _PAGE * _SPARSE < span.stop - span.start:
            _fetch(self.path / span.file, span.start + rows_R * row_bytes, row_bytes=row_bytes)
        at_once = max(1, _BLOCK // row_bytes)
        for first in range(0, len(rows_R), at_once):
            part = slice(first, min(first + at_once, len(rows_R)))
            yield part, table_NB[rows_R[part]]

    def _mapped(self, span: Span, *, what: str) -> np.ndarray:
        """The bytes of the span's file. It must have its size: to touch what a map has and the file lacks would kill us."""
        import numpy as np

        path, place = self.path / span.file, self.place(span.file)
        try:
            found = path.stat()
            if found.st_size != span.size or span.stop > span.size:
                raise unreadable(place, what, f"it has {found.st_size} bytes, not {span.size}")
            known, identity = self._maps.get(span.file), (found.st_dev, found.st_ino)
            if known is None or known.identity != identity:
                with path.open("rb") as handle:
                    mapped = mmap.mmap(handle.fileno(), span.size, access=mmap.ACCESS_READ)
                known = _Map(identity, np.frombuffer(mapped, np.uint8))
                if len(self._maps) >= _MAPS:
                    self._maps.clear()
                self._maps[span.file] = known
        except (OSError, ValueError) as error:
            raise unreadable(place, what, str(error)) from error
        return known.content


def _fetch(path: Path, starts_R: np.ndarray, *, row_bytes: int) -> None:
    """Have those rows read, all at once, and no others: else each would wait for its own read-ahead. Only Linux can."""
    if not hasattr(os, "RWF_NOWAIT"):
        return
    with suppress(OSError), path.open("rb") as handle:
        if len(starts_R) > _PROBES and _cached(handle.fileno(), starts_R[:: len(starts_R) // _PROBES]):
            return
        for start in starts_R.tolist():
            os.posix_fadvise(handle.fileno(), start, row_bytes, os.POSIX_FADV_WILLNEED)


def _cached(descriptor: int, starts_R: np.ndarray) -> bool:
    """Whether the system holds the bytes at those places in memory; True too where a file system cannot say."""
    buffer = bytearray(1)
    try:
        for start in starts_R.tolist():
            os.preadv(descriptor, [buffer], start, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
