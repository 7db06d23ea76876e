"""A shard's bytes: what safetensors would write, made block by block, so that no second copy of the tensors is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from unmask.store.encoding import code_of, encoded, raw_dtype

if TYPE_CHECKING:
    import numpy as np

_ALIGNED = 8
"""The header is filled up to a multiple of so many bytes, and the widest dtypes come first: every tensor is aligned."""


class Kept(NamedTuple):
    """An array and the dtype that it is kept as."""

    array: np.ndarray
    dtype: str

    @property
    def size(self) -> int:
        """Bytes when kept."""
        return self.array.size * raw_dtype(self.dtype).itemsize


def serialize(tensors: Mapping[str, Kept], *, metadata: Mapping[str, str]) -> Iterator[memoryview | bytes]:
    """The parts of a safetensors file, in order; `unmask.store.header` has the format.

    Raises ValueError for a dtype that no store has, DataError for a value that is too large for its dtype.
    """
    order = sorted(tensors, key=lambda name: (-raw_dtype(tensors[name].dtype).itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    stop = 0
    for name in order:
        start, stop = stop, stop + tensors[name].size
        shape = list(tensors[name].array.shape)
        header[name] = {"dtype": code_of(tensors[name].dtype), "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        for block in encoded(tensors[name].array, dtype=tensors[name].dtype, name=name):
            yield block.view("u1").data
