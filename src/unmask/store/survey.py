"""A survey of shards, made when a store is sealed: what each holds, and that all hold the same of different responses."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from unmask.store.folder import Span, unreadable
from unmask.store.header import read_headers
from unmask.store.shard import check_offsets
from unmask.store.tensor_name import TOKEN_OFFSETS, is_token_level

if TYPE_CHECKING:
    import numpy as np

    from unmask.store.folder import Folder
    from unmask.store.header import Header

_HASHED_AT_ONCE = 4


class ShardEntry(NamedTuple):
    """One shard: its file and checksum, and how many bytes, responses and token rows it has."""

    file: str
    sha256: str
    bytes: int
    responses: int
    tokens: int


class StoredTensor(NamedTuple):
    """A tensor over all shards: its dtype, and its shape less the rows: (D,) for activations, () for one number a row."""

    dtype: str
    columns: tuple[int, ...]


def digests(folder: Folder, files: Sequence[str]) -> list[str | None]:
    """SHA-256 of each file, None for one that is missing; several are read at once."""
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return list(pool.map(folder.digest, files))


def survey(
    folder: Folder, files: Sequence[str], sha256: Sequence[str | None]
) -> tuple[tuple[ShardEntry, ...], dict[str, StoredTensor]]:
    """An entry for each shard, and the tensors that all of them have.

    Raises ArtifactError, naming the shard, when one is broken, has other tensors than the first, or a response that stands twice.
    """
    what = "a list of what it holds"
    sizes = folder.sizes(files, what=what)
    headers = read_headers(folder, list(zip(files, sizes, strict=True)), what=what)
    ragged = [shard for shard in zip(files, sizes, headers, strict=True) if TOKEN_OFFSETS in shard[2].tensors]
    last = {
        file: int(offsets[-1]) for (file, *_), offsets in zip(ragged, read_token_offsets(folder, ragged), strict=True)
    }
    tensors: dict[str, StoredTensor] = {}
    entries: list[ShardEntry] = []
    owners: dict[str, str] = {}
    for file, size, digest, header in zip(files, sizes, sha256, headers, strict=True):
        try:
            ids = header.response_ids()
            for identity in ids:
                if identity in owners:
                    raise ValueError(f"response {identity!r} stands twice, here and in {owners[identity]}")
                owners[identity] = file
            found = _tensors_of(header, responses=len(ids), tokens=last.get(file, 0))
            differing = sorted(name for name in {*found, *tensors} if found.get(name) != tensors.get(name))
            if entries and differing:
                raise ValueError(f"{differing[0]} is not the same there as in {files[0]}")
        except ValueError as error:
            raise unreadable(folder.place(file), what, str(error)) from error
        tensors = found
        entries.append(ShardEntry(file, digest or "", size, len(ids), last.get(file, 0)))
    return tuple(entries), tensors


def read_token_offsets(folder: Folder, shards: Sequence[tuple[str, int, Header]]) -> list[np.ndarray]:
    """The token offsets, int64 (its responses + 1), of each shard, given by its file, size in bytes and header.

    Raises ArtifactError, naming the shard, when one has none that make sense.
    """
    import numpy as np

    spans = []
    for file, size, header in shards:
        place = header.tensors.get(TOKEN_OFFSETS)
        if place is None or place.dtype != "int64":
            raise unreadable(folder.place(file), TOKEN_OFFSETS, "it has none")
        spans.append(Span(file, size, place.start, place.stop))
    found = []
    for (file, _, header), content in zip(shards, folder.spans(spans, what=TOKEN_OFFSETS), strict=True):
        offsets = np.array(content.view("<i8"))
        try:
            check_offsets(offsets, responses=len(header.response_ids()))
        except ValueError as error:
            raise unreadable(folder.place(file), TOKEN_OFFSETS, str(error)) from error
        found.append(offsets)
    return found


def _tensors_of(header: Header, *, responses: int, tokens: int) -> dict[str, StoredTensor]:
    found = {}
    for name, place in sorted(header.tensors.items()):
        rows = tokens if is_token_level(name) else responses
        if name != TOKEN_OFFSETS and place.shape[:1] != (rows,):
            raise ValueError(f"{name} has shape {place.shape} for {rows} rows")
        if 0 in place.shape[1:]:
            raise ValueError(f"{name} has no columns")
        found[name] = StoredTensor(place.dtype, place.shape[1:])
    return found
