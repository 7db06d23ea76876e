"""Files of a study: hashing, atomic writing, typed loading.

A file appears under its name only when it is complete: it is written beside, fsynced and renamed. Tables are Parquet,
tensors safetensors, records JSON; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import ArtifactError, StudyError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_NO_SPACE = 28  # errno.ENOSPC


def finite(value: float | None) -> float | None:
    """The number as records and tables hold it: a finite float, or None for what is missing."""
    return None if value is None or not math.isfinite(value) else float(value)


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_json(value: object) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())


def digest_tree(files: Mapping[str, str]) -> str:
    """SHA-256 over a listing of relative path to file digest."""
    return digest_json(dict(sorted(files.items())))


def listing(folder: Path) -> dict[str, str]:
    """Relative POSIX path to digest, for every file below `folder` except its manifest."""
    return {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / "manifest.json"
    }


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    Raises StudyError when the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno == _NO_SPACE:
            raise StudyError(
                f"no disk space left while writing {path}", mend="Free some space and run the same command again"
            ) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with sorted keys atomically. NaN is refused: missing is null."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, rebuild: str) -> Any:
    """Read JSON. Raises ArtifactError, naming `rebuild`, when the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", mend=f"Rebuild it with `{rebuild}`") from error


def write_table(path: Path, rows: Sequence[Mapping[str, object]] | pd.DataFrame, *, schema: pa.Schema) -> None:
    """Write rows as Parquet under an explicit schema, with no timestamp or library metadata of pandas in it."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(rows, pd.DataFrame):
        table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
    else:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd")


def read_table(path: Path, *, rebuild: str) -> pd.DataFrame:
    """Read Parquet as a data frame. Raises ArtifactError, naming `rebuild`, when the file is missing or broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", mend=f"Rebuild it with `{rebuild}`") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Put a finished file in a second place: as a hard link, or as a copy on a file system without them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_tensors(path: Path, tensors: Mapping[str, Any], *, provenance: Mapping[str, object] | None = None) -> None:
    """Write NumPy arrays as safetensors atomically, with `provenance` as one JSON text in the header.

    One, because safetensors writes several entries of its header's metadata in an order that changes from run to run.
    """
    import numpy as np
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            temporary,
            metadata={"provenance": json.dumps(dict(provenance or {}), sort_keys=True)},
        )


def read_tensors(path: Path, *, rebuild: str) -> dict[str, Any]:
    """Read safetensors as NumPy arrays. Raises ArtifactError, naming `rebuild`, when the file is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", mend=f"Rebuild it with `{rebuild}`") from error
