"""The header of a safetensors file: where each tensor's bytes are, and the ids of the responses in the file.

https://huggingface.co/docs/safetensors: 8 bytes, the length n of the header (little-endian); n bytes of JSON; then the tensors,
one after the other, without a gap, to the end of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from unmask.store.encoding import dtype_of, raw_dtype
from unmask.store.folder import Span, unreadable

if TYPE_CHECKING:
    from unmask.store.folder import Folder

_GUESS = 1 << 16
"""Bytes fetched of a file at first; most headers are shorter."""

_LENGTH = 8


class TensorPlace(NamedTuple):
    """A tensor's dtype and shape, and its bytes in the file: start to stop, counted from the file's first."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a shard holds."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]

    def response_ids(self) -> list[str]:
        """Raises ValueError when there are none, or something else stands in their place."""
        found = json.loads(self.metadata.get("response_ids", "null"))
        if not isinstance(found, list) or not all(isinstance(identity, str) for identity in found):
            raise ValueError("its header names no response ids")
        return found


def read_headers(folder: Folder, files: Sequence[tuple[str, int]], *, what: str) -> list[Header]:
    """The headers of files, given with their sizes in bytes; `what` is what they are read for.

    Raises ArtifactError, naming the file, when one is missing, of another size, or no sound safetensors file.
    """
    starts = folder.spans([Span(file, size, 0, min(size, _GUESS)) for file, size in files], what=what)
    texts: list[bytes] = []
    longer: list[int] = []
    for number, ((file, size), array) in enumerate(zip(files, starts, strict=True)):
        texts.append(array.tobytes())
        stop = _LENGTH + int.from_bytes(texts[-1][:_LENGTH], "little")
        if not _LENGTH <= stop <= size:
            raise unreadable(folder.place(file), what, "its header does not fit into the file")
        if stop > _GUESS:
            longer.append(number)
    spans = [Span(*files[number], 0, _LENGTH + int.from_bytes(texts[number][:_LENGTH], "little")) for number in longer]
    for number, array in zip(longer, folder.spans(spans, what=what), strict=True):
        texts[number] = array.tobytes()
    headers = []
    for (file, size), text in zip(files, texts, strict=True):
        try:
            headers.append(parse_header(text, size=size))
        except (ValueError, RecursionError) as error:
            raise unreadable(folder.place(file), what, str(error)) from error
    return headers


def parse_header(text: bytes, *, size: int) -> Header:
    """Read the first bytes of a file of `size` bytes. Raises ValueError when the tensors do not fill it exactly."""
    length = int.from_bytes(text[:_LENGTH], "little")
    first = _LENGTH + length
    if size < first:
        raise ValueError("its header does not fit into the file")
    content: Any = json.loads(text[_LENGTH:first])
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    metadata: Any = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header's metadata are not text")
    tensors = {name: _tensor_place(name, entry, first=first) for name, entry in content.items()}
    stop = first
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != stop:
            raise ValueError(f"{name} does not follow on the tensor before it")
        stop = place.stop
    if stop != size:
        raise ValueError(f"its tensors end at byte {stop} of {size}")
    return Header(tensors, metadata)


def _tensor_place(name: str, entry: Any, *, first: int) -> TensorPlace:
    try:
        code, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the header's entry for {name} is not one") from error
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"the header's entry for {name} holds something else than counts")
    dtype = dtype_of(str(code))
    if stop - start != prod(shape) * raw_dtype(dtype).itemsize:
        raise ValueError(f"{name} has {stop - start} bytes for {dtype} of shape {shape}")
    return TensorPlace(dtype, tuple(shape), first + start, first + stop)
