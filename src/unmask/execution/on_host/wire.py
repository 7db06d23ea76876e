"""How requests and answers travel: JSON, compressed, behind a mark that no login shell prints."""

from __future__ import annotations

import json
import sys
import zlib
from typing import Any

MARK = b"\n--unmask-answer--\n"
"""Stands before an answer: what a login script writes to the same stream comes before it and is dropped."""


def packed(value: object) -> bytes:
    """JSON, compressed."""
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)


def unpacked(data: bytes, *, limit: int) -> Any:
    """The value behind `packed`. Raises ValueError for what is no such thing, or is longer than `limit` bytes."""
    expander = zlib.decompressobj()
    try:
        text = expander.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if expander.unconsumed_tail or not expander.eof:
        raise ValueError("it is cut short or too long")
    return json.loads(text)


def line(value: object) -> bytes:
    """One line of a stream of answers."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def send(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
