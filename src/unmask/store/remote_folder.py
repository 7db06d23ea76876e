"""A store behind a URL that fsspec knows: `s3://`, `gs://`, `https://`, `memory://`, read by ranges.

Credentials are found as the protocol's own tools find them: in the environment or their config, never in a URL. A file is put in
one piece; object stores show it only when it is complete. Where a protocol shows half a file (sftp), `verify` finds it.

Shapes: R wanted rows, B bytes of a row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from unmask.errors import ArtifactError
from unmask.store.folder import REBUILD, SHARDS, Span, unreadable

if TYPE_CHECKING:
    import numpy as np
    from fsspec import AbstractFileSystem

_GAP = 1 << 16
"""Bytes between two rows that are fetched along with them: less than a request of their own would cost."""

_TOGETHER = 1 << 26
"""Bytes asked for at once, where the protocol can ask for several ranges at a time."""


def without_secrets(url: str) -> str:
    """The URL without user, password and query: fit for messages."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0]).rstrip("/")


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder of an fsspec file system; `url` is what messages call it."""

    system: AbstractFileSystem
    path: str
    url: str

    def place(self, file: str) -> str:
        return f"{self.url}/{file}"

    def shards(self) -> list[str]:
        self.system.invalidate_cache(self.path)
        try:
            names = [str(path).rsplit("/", 1)[-1] for path in self.system.ls(self.path, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if fnmatch(name, SHARDS))

    def sizes(self, files: Sequence[str], *, what: str) -> list[int]:
        found = []
        for file in files:
            try:
                found.append(int(self.system.size(self._at(file)) or 0))
            except Exception as error:
                raise self._unreadable(file, what, error) from error
        return found

    def digest(self, file: str) -> str | None:
        try:
            with self.system.open(self._at(file), "rb") as handle:
                content: Any = handle
                found = hashlib.sha256()
                while block := content.read(_TOGETHER):
                    found.update(block)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unreadable(file, "its checksum", error) from error
        return found.hexdigest()

    def read(self, file: str) -> bytes:
        try:
            return self.system.cat_file(self._at(file))
        except Exception as error:
            reason = "it is not there" if isinstance(error, FileNotFoundError) else type(error).__name__
            raise ArtifactError(
                f"{self.place(file)} cannot be read ({reason})", mend=f"Rebuild it with `{REBUILD}`"
            ) from error

    def write(self, file: str, parts: Iterable[bytes | memoryview]) -> None:
        content = b"".join(parts)
        try:
            self.system.makedirs(self.path, exist_ok=True)
            self.system.pipe_file(self._at(file), content)
        except Exception as error:
            raise ArtifactError(
                f"{self.place(file)} cannot be written ({type(error).__name__})",
                mend="Check that the place exists and that you may write there",
            ) from error

    def spans(self, spans: Sequence[Span], *, what: str) -> Iterator[np.ndarray]:
        import numpy as np

        for part in _batches(spans):
            paths = [self._at(span.file) for span in part]
            try:
                found: list[Any] = self.system.cat_ranges(
                    paths, [span.start for span in part], [span.stop for span in part], on_error="return"
                )
            except Exception as error:
                raise self._unreadable(part[0].file, what, error) from error
            for span, content in zip(part, found, strict=True):
                if isinstance(content, Exception):
                    raise self._unreadable(span.file, what, content) from content
                if len(content) != span.stop - span.start:
                    reason = f"{len(content)} bytes came for {span.start} to {span.stop}"
                    raise unreadable(self.place(span.file), what, reason)
                yield np.frombuffer(content, np.uint8)

    def rows(self, span: Span, rows_R: np.ndarray, *, row_bytes: int, what: str) -> Iterator[tuple[slice, np.ndarray]]:
        import numpy as np

        cuts = np.flatnonzero(np.diff(rows_R) * row_bytes > row_bytes + _GAP) + 1
        starts, stops = [0, *cuts.tolist()], [*cuts.tolist(), len(rows_R)]
        runs = [
            span._replace(
                start=span.start + int(rows_R[first]) * row_bytes,
                stop=span.start + (int(rows_R[end - 1]) + 1) * row_bytes,
            )
            for first, end in zip(starts, stops, strict=True)
        ]
        for first, end, content in zip(starts, stops, self.spans(runs, what=what), strict=True):
            yield slice(first, end), content.reshape(-1, row_bytes)[rows_R[first:end] - rows_R[first]]

    def _at(self, file: str) -> str:
        return f"{self.path}/{file}"

    def _unreadable(self, file: str, what: str, error: Exception) -> ArtifactError:
        """Only the error's kind: a protocol's own words may hold a URL with a key in it."""
        if isinstance(error, FileNotFoundError):
            return unreadable(self.place(file), what, "it is not there")
        return unreadable(self.place(file), what, type(error).__name__)


def _batches(spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Runs of spans of at most `_TOGETHER` bytes, at least one span each."""
    first, total = 0, 0
    for number, span in enumerate(spans):
        total += span.stop - span.start
        if total > _TOGETHER and number > first:
            yield spans[first:number]
            first, total = number, span.stop - span.start
    if first < len(spans):
        yield spans[first:]
