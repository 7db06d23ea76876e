"""A sealed store, opened for reading: any rows of any tensor, as if all shards were one file.

Shapes: R responses, T token rows, D columns of a tensor, N wanted rows. Rows are counted through all shards, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unmask.errors import ArtifactError, DataError, listed
from unmask.store.folder import REBUILD, open_folder, unreadable
from unmask.store.header import read_headers
from unmask.store.index import INDEX, read_index
from unmask.store.local_folder import LocalFolder
from unmask.store.shard_set import ShardSet
from unmask.store.survey import digests
from unmask.store.tensor_name import activation_name, site_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from unmask.store.folder import Folder
    from unmask.store.index import Index, StoredSite
    from unmask.store.survey import ShardEntry
    from unmask.store.token_index import TokenIndex


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """A sealed store. Only `verify` and `broken_shards` compare checksums; reading a shard checks its size and its header.

    float16, bfloat16 and float32 are read as float32, all else as what it is kept as. Excluded coordinates read as 0. `head`
    reads the columns of one head, at a site that has heads, and raises DataError at one that has not.
    """

    folder: Folder
    index: Index

    @classmethod
    def open(cls, folder: Path | str) -> ActivationStore:
        """Open the store at a path or URL; only its index is read.

        Raises ArtifactError when that is missing, broken or of another version.
        """
        place = open_folder(folder)
        return cls(place, read_index(place))

    @staticmethod
    def shard_response_ids(path: Path) -> list[str]:
        """Ids of the responses in one shard, whether a store has been sealed around it or not.

        Raises ArtifactError when the shard is missing, broken or without ids.
        """
        folder, what = LocalFolder(path.parent), "its response ids"
        (size,) = folder.sizes([path.name], what=what)
        (header,) = read_headers(folder, [(path.name, size)], what=what)
        try:
            return header.response_ids()
        except ValueError as error:
            raise unreadable(str(path), what, str(error)) from error

    @property
    def width(self) -> int:
        """The model's width; `site(name).width` is a site's own."""
        return self.index.width

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(site.name for site in self.index.sites)

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        return self.index.shards

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that can be read."""
        return tuple(self.index.tensors)

    @property
    def excluded(self) -> Mapping[str, tuple[int, ...]]:
        """Site to the coordinates that read as 0. Norms are as they were recorded, with those coordinates in."""
        return self.index.excluded

    @property
    def report(self) -> Mapping[str, Any]:
        """What the stage that collected the store has to say of it."""
        return self.index.report

    def site(self, name: str) -> StoredSite:
        """A site's width, dtype and heads. Raises DataError when the store has no such site."""
        for site in self.index.sites:
            if site.name == name:
                return site
        raise DataError(f"{name} is not a site of {self.folder.place(INDEX)}", mend=f"Name one of {listed(self.sites)}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor over all shards. Raises ArtifactError when the store has none of that name."""
        return (self._shard_set.count(name), *self._shard_set.stored(name).columns)

    def response_ids(self) -> list[str]:
        """Ids of the response-level rows (R), in order.

        Raises ArtifactError when a shard is missing, broken or without ids.
        """
        return list(self._shard_set.row_of)

    def token_index(self) -> TokenIndex:
        """Which response each token row belongs to. Raises ArtifactError when a shard is broken or has no token level."""
        return self._shard_set.token_index

    def read(self, name: str, *, head: int | None = None) -> np.ndarray:
        """One tensor over all rows (R or T x D), e.g. `organism/blocks.20.hook_resid_pre`; only its bytes are read.

        Raises ArtifactError when the store has no such tensor, or a shard is missing or broken.
        """
        return self._span(name, 0, self._shard_set.count(name), head=head)

    def tokens(self, reader: str, site: str, response_id: str, *, head: int | None = None) -> np.ndarray:
        """The token rows (T x D) of one response, one after the other; none for an empty response.

        Raises DataError when the store has no such response; else as `read`.
        """
        row = self._shard_set.row_of.get(response_id)
        if row is None:
            raise DataError(
                f"{self.folder.place(INDEX)} has no response {response_id!r}", mend="Take one of `response_ids()`"
            )
        rows = self._shard_set.token_index.rows(row)
        return self._span(activation_name(reader, site, "tokens"), rows.start, rows.stop, head=head)

    def blocks(self, name: str, rows: int = 65_536, *, head: int | None = None) -> Iterator[np.ndarray]:
        """All rows of a tensor in turn, `rows` at a time (the last block may be shorter): no more are held in memory.

        Raises ValueError when `rows` is none; else as `read`.
        """
        if rows < 1:
            raise ValueError(f"blocks of {rows} rows never end")
        total = self._shard_set.count(name)
        return (self._span(name, start, min(start + rows, total), head=head) for start in range(0, total, rows))

    def rows(self, name: str, indices: Sequence[int] | np.ndarray, *, head: int | None = None) -> np.ndarray:
        """Any rows (N x D) of a tensor, in the order of `indices`, which may hold one several times.

        Raises IndexError when one is not there (none is counted from the end); else as `read`.
        """
        import numpy as np

        wanted_N = np.asarray(indices, dtype=None if len(indices) else np.int64)
        if wanted_N.ndim != 1 or wanted_N.dtype.kind not in "iu":
            raise IndexError("rows are wanted by a list of whole numbers")
        columns = self._columns(name, head)
        return self._blanked(self._shard_set.rows(name, wanted_N, columns=columns), name, columns)

    def broken_shards(self) -> list[str]:
        """Files of the shards that are missing or do not match their checksum, in order; every byte is read."""
        found = digests(self.folder, [entry.file for entry in self.shards])
        return [entry.file for entry, digest in zip(self.shards, found, strict=True) if digest != entry.sha256]

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises ArtifactError naming those that differ."""
        broken = self.broken_shards()
        if broken:
            more = f" (likewise {listed(broken[1:])})" if broken[1:] else ""
            raise ArtifactError(
                f"{self.folder.place(broken[0])} is missing or does not match its checksum{more}",
                mend=f"Rebuild it with `{REBUILD}`",
            )

    @cached_property
    def _shard_set(self) -> ShardSet:
        return ShardSet(self.folder, self.index)

    def _span(self, name: str, start: int, stop: int, *, head: int | None) -> np.ndarray:
        """Rows start to stop of a tensor."""
        columns = self._columns(name, head)
        return self._blanked(self._shard_set.span(name, start, stop, columns=columns), name, columns)

    def _columns(self, name: str, head: int | None) -> slice | None:
        """The columns of one head; None for all. Raises DataError when the site has no such head."""
        if head is None:
            return None
        site = self.site(site_of(name) or name)
        if site.heads is None or not 0 <= head < site.heads:
            raise DataError(
                f"{site.name} has no head {head}",
                mend="Read it whole: it has no heads" if site.heads is None else f"Name one of 0 to {site.heads - 1}",
            )
        width = site.width // site.heads
        return slice(head * width, (head + 1) * width)

    def _blanked(self, values: np.ndarray, name: str, columns: slice | None) -> np.ndarray:
        """`values` (N x D), its excluded coordinates put to 0 in place."""
        first, stop = (0, values.shape[-1]) if columns is None else (columns.start, columns.stop)
        for coordinate in self.excluded.get(site_of(name) or "", ()):
            if first <= coordinate < stop:
                values[..., coordinate - first] = 0
        return values
