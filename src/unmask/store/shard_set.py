"""All shards of a sealed store as one table per tensor: which file has a row, and where.

Shapes: R responses, T token rows, D columns, N wanted rows, F shards. Rows are counted through all shards, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from unmask.store.encoding import decode, raw_dtype, read_dtype
from unmask.store.folder import Span, unreadable
from unmask.store.header import read_headers
from unmask.store.index import INDEX
from unmask.store.survey import read_token_offsets
from unmask.store.tensor_name import is_token_level
from unmask.store.token_index import TokenIndex

if TYPE_CHECKING:
    import numpy as np

    from unmask.store.folder import Folder
    from unmask.store.header import Header, TensorPlace
    from unmask.store.index import Index
    from unmask.store.survey import StoredTensor


@dataclass(frozen=True, eq=False)
class ShardSet:
    """The shards that an index names. A shard's header is read when the shard is first needed, and kept.

    Whatever reads raises ArtifactError when a shard is missing, of another size, or not what the index says.
    """

    folder: Folder
    index: Index
    _headers: dict[int, Header] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Response id to its row, in the rows' order."""
        found: dict[str, int] = {}
        for number, header in enumerate(self._read_headers(range(len(self.index.shards)), what="its response ids")):
            entry = self.index.shards[number]
            try:
                ids = header.response_ids()
            except ValueError as error:
                raise unreadable(self.folder.place(entry.file), "its response ids", str(error)) from error
            before = len(found)
            found |= {identity: before + row for row, identity in enumerate(ids)}
            if not len(ids) == entry.responses == len(found) - before:
                reason = f"{len(found) - before} new ones stand there for {entry.responses} responses"
                raise unreadable(self.folder.place(entry.file), "its response ids", reason)
        return found

    @cached_property
    def token_index(self) -> TokenIndex:
        import numpy as np

        headers = self._read_headers(range(len(self.index.shards)), what="its token offsets")
        shards = [(entry.file, entry.bytes, header) for entry, header in zip(self.index.shards, headers, strict=True)]
        found = read_token_offsets(self.folder, shards)
        before = np.cumsum([0, *(int(offsets[-1]) for offsets in found)])
        parts = [start + offsets[1:] for start, offsets in zip(before, found, strict=False)]
        return TokenIndex(np.concatenate([np.zeros(1, dtype=np.int64), *parts]))

    def stored(self, name: str) -> StoredTensor:
        """Dtype and columns of a tensor. Raises ArtifactError when there is none of that name."""
        if name not in self.index.tensors:
            raise unreadable(self.folder.place(INDEX), name, "it was not collected")
        return self.index.tensors[name]

    def count(self, name: str) -> int:
        """Rows of a tensor over all shards: R, or T at the token level."""
        return int(self._starts(name)[-1])

    def span(self, name: str, start: int, stop: int, *, columns: slice | None) -> np.ndarray:
        """Rows start to stop, of the columns that the slice takes (None: of all), as they are read (`encoding.read_dtype`)."""
        import numpy as np

        stored, starts = self.stored(name), self._starts(name)
        out, row_bytes = _empty(stored, stop - start, columns), _row_bytes(stored)
        numbers = np.flatnonzero((starts[:-1] < stop) & (starts[1:] > start)).tolist()
        spans = []
        for number, place in zip(numbers, self._places(numbers, name), strict=True):
            first, last = (min(max(row - int(starts[number]), 0), place.shape[0]) for row in (start, stop))
            spans.append(self._span(number, place.start + first * row_bytes, place.start + last * row_bytes))
        done = 0
        for content in self.folder.spans(spans, what=name):
            kept = _table(content, stored, columns)
            decode(kept, out[done : done + len(kept)], dtype=stored.dtype)
            done += len(kept)
        return out

    def rows(self, name: str, wanted_N: np.ndarray, *, columns: slice | None) -> np.ndarray:
        """Those rows in that order, of the columns that the slice takes. Raises IndexError when one is not there."""
        import numpy as np

        stored, starts = self.stored(name), self._starts(name)
        if wanted_N.size and (wanted_N.min() < 0 or wanted_N.max() >= starts[-1]):
            raise IndexError(f"a row is not among the {starts[-1]} of {name}")
        order_N = np.argsort(wanted_N, kind="stable")
        sorted_N = wanted_N[order_N].astype(np.int64)
        cuts_F = np.searchsorted(sorted_N, starts)
        numbers = np.flatnonzero(np.diff(cuts_F)).tolist()
        out, row_bytes = _empty(stored, len(wanted_N), columns), _row_bytes(stored)
        for number, place in zip(numbers, self._places(numbers, name), strict=True):
            part = slice(cuts_F[number], cuts_F[number + 1])
            rows_R, order_R = sorted_N[part] - starts[number], order_N[part]
            span = self._span(number, place.start, place.stop)
            for block, content in self.folder.rows(span, rows_R, row_bytes=row_bytes, what=name):
                kept = _table(content, stored, columns)
                if kept.dtype != out.dtype:
                    kept, raw = np.empty(kept.shape, out.dtype), kept
                    decode(raw, kept, dtype=stored.dtype)
                out[order_R[block]] = kept
        return out

    def _span(self, number: int, start: int, stop: int) -> Span:
        entry = self.index.shards[number]
        return Span(entry.file, entry.bytes, start, stop)

    @cached_property
    def _response_starts(self) -> np.ndarray:
        import numpy as np

        return np.cumsum([0, *(entry.responses for entry in self.index.shards)])

    @cached_property
    def _token_starts(self) -> np.ndarray:
        import numpy as np

        return np.cumsum([0, *(entry.tokens for entry in self.index.shards)])

    def _starts(self, name: str) -> np.ndarray:
        """The first row of each shard, and behind them the number of rows (F + 1)."""
        self.stored(name)
        return self._token_starts if is_token_level(name) else self._response_starts

    def _read_headers(self, numbers: Sequence[int], *, what: str) -> list[Header]:
        new = [number for number in numbers if number not in self._headers]
        files = [(self.index.shards[number].file, self.index.shards[number].bytes) for number in new]
        self._headers.update(zip(new, read_headers(self.folder, files, what=what), strict=True))
        return [self._headers[number] for number in numbers]

    def _places(self, numbers: Sequence[int], name: str) -> list[TensorPlace]:
        """Where those shards have a tensor. Raises ArtifactError when one has not what the index says."""
        stored, starts = self.stored(name), self._starts(name)
        found = []
        for number, header in zip(numbers, self._read_headers(numbers, what=name), strict=True):
            place, rows = header.tensors.get(name), int(starts[number + 1] - starts[number])
            if place is None or (place.dtype, place.shape) != (stored.dtype, (rows, *stored.columns)):
                held = "no such tensor" if place is None else f"{place.dtype} of shape {place.shape}"
                wanted = f"{stored.dtype} of shape {(rows, *stored.columns)}"
                file = self.folder.place(self.index.shards[number].file)
                raise unreadable(file, name, f"it holds {held}, the index says {wanted}")
            found.append(place)
        return found


def _row_bytes(stored: StoredTensor) -> int:
    return prod(stored.columns) * raw_dtype(stored.dtype).itemsize


def _empty(stored: StoredTensor, rows: int, columns: slice | None) -> np.ndarray:
    import numpy as np

    shape = stored.columns if columns is None else (columns.stop - columns.start,)
    return np.empty((rows, *shape), dtype=read_dtype(stored.dtype))


def _table(content: np.ndarray, stored: StoredTensor, columns: slice | None) -> np.ndarray:
    """Stored rows from their bytes: a view."""
    table = content.view(raw_dtype(stored.dtype)).reshape(-1, *stored.columns)
    return table if columns is None else table[:, columns]
