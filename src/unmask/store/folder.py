"""Where a store's files are: what is asked of a disk (`local_folder`) and of a URL (`remote_folder`) alike.

Shapes: R wanted rows, N rows there are, B bytes of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from unmask.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

REBUILD = "unmask collect STUDY --force"
"""The command that makes a store anew."""

SHARDS = "shard-*.safetensors"


class Span(NamedTuple):
    """Bytes start to stop of a file that should have `size` bytes."""

    file: str
    size: int
    start: int
    stop: int


class Folder(Protocol):
    """What a store asks of the place where its files are. What reads raises ArtifactError, naming file and purpose (`what`)."""

    def place(self, file: str) -> str:
        """The file's path or URL, for messages."""
        ...

    def shards(self) -> list[str]:
        """Names of the shards that are there, in order."""
        ...

    def sizes(self, files: Sequence[str], *, what: str) -> list[int]:
        """Their sizes in bytes."""
        ...

    def digest(self, file: str) -> str | None:
        """SHA-256 of a file's content, in hex; None when it is not there, or is and cannot be read from a disk."""
        ...

    def read(self, file: str) -> bytes:
        """A whole file."""
        ...

    def write(self, file: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file that appears whole or not at all."""
        ...

    def spans(self, spans: Sequence[Span], *, what: str) -> Iterator[np.ndarray]:
        """The bytes (uint8) of each span in turn, read-only."""
        ...

    def rows(self, span: Span, rows_R: np.ndarray, *, row_bytes: int, what: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows, ascending, of the table (N x B) that the span holds: in turn which of `rows_R`, and their bytes (uint8)."""
        ...


def unreadable(place: str, what: str, reason: str) -> ArtifactError:
    """The error for a file that cannot give what is wanted of it."""
    return ArtifactError(f"{place} cannot give {what} ({reason})", mend=f"Rebuild it with `{REBUILD}`")


def open_folder(place: Path | str) -> Folder:
    """The folder at a path or a URL; `file://` URLs are paths. Raises ArtifactError for a protocol that fsspec cannot speak."""
    from unmask.store.local_folder import LocalFolder

    if isinstance(place, Path) or not ("://" in place or "::" in place):
        return LocalFolder(Path(place))
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    from unmask.store.remote_folder import RemoteFolder, without_secrets

    try:
        system, path = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise ArtifactError(
            f"{without_secrets(place)} cannot be opened ({error})",
            mend="Check its protocol, and install the package that fsspec needs for it, such as s3fs for s3://",
        ) from error
    if isinstance(system, LocalFileSystem):
        return LocalFolder(Path(path))
    return RemoteFolder(system, path.rstrip("/"), without_secrets(place))
