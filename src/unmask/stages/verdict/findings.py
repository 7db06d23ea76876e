"""A finding as a file: every number to the last bit, every array with its type and shape.

Arrays and NumPy's scalars are tensors, all else is JSON in the header. What a field may hold is read from the annotations of the
finding's classes, never from the file: a file that was not written here can make nothing but a SiteFinding.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from unmask.analysis.site_map import SiteFinding
from unmask.artifact import digest_bytes, digest_json, write_tensors
from unmask.errors import ArtifactError

_SCALARS: dict[type, tuple[type, ...]] = {
    float: (float, int, np.floating, np.integer),
    int: (int, np.integer),
    bool: (bool, np.bool_),
    str: (str,),
}
"""What a field of a type may hold: statistics are often NumPy's own numbers."""

Tensors = dict[str, np.ndarray]


def write_finding(path: Path, finding: SiteFinding) -> None:
    """Write a finding atomically. Raises TypeError for a value that its annotation does not allow."""
    tensors: Tensors = {}
    packed = _pack(finding, SiteFinding, tensors)
    write_tensors(path, tensors, provenance={"finding": packed, "digest": _digest(packed, tensors)})


def read_finding(path: Path, *, rebuild: str) -> SiteFinding:
    """Read what `write_finding` wrote. Raises ArtifactError, naming `rebuild`, for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            provenance = json.loads((file.metadata() or {})["provenance"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if provenance["digest"] != _digest(provenance["finding"], tensors):
            raise ValueError("its content does not have the checksum that it names")
        return _unpack(provenance["finding"], SiteFinding, tensors)
    except (OSError, SafetensorError, LookupError, RecursionError, TypeError, ValueError, struct.error) as error:
        raise ArtifactError(
            f"{path} is no finding of the verdict, or a damaged one ({error})",
            mend=f"Delete it and run the same command again, which makes it anew; or make all of them with `{rebuild}`",
        ) from error


def _digest(packed: Any, tensors: Mapping[str, np.ndarray]) -> str:
    held = {name: [str(a.dtype), list(a.shape), digest_bytes(a.tobytes())] for name, a in tensors.items()}
    return digest_json({"finding": packed, "tensors": held})


def _pack(value: Any, hint: Any, tensors: Tensors) -> Any:
    """JSON of a value of the annotated type; what JSON cannot hold exactly goes into `tensors`."""
    hint = _one_of(hint, value is None)
    if is_dataclass(hint):
        _expect(type(value) is hint, value, hint)
        return {name: _pack(getattr(value, name), each, tensors) for name, each in _fields(hint).items()}
    if hint is np.ndarray:
        _expect(isinstance(value, np.ndarray) and value.ndim > 0, value, hint)
        return _put(value, tensors)
    origin = get_origin(hint) or hint
    if origin is dict:
        _expect(type(value) is dict, value, hint)
        key_hint, value_hint = get_args(hint)
        return [[_pack(key, key_hint, tensors), _pack(each, value_hint, tensors)] for key, each in value.items()]
    if isinstance(origin, type) and issubclass(origin, (tuple, list)):
        _expect(type(value) is origin, value, hint)
        return [_pack(each, of, tensors) for each, of in zip(value, _members(hint, len(value)), strict=True)]
    _expect(_fits(value, hint), value, hint)
    return _pack_scalar(value, tensors)


def _pack_scalar(value: Any, tensors: Tensors) -> Any:
    if isinstance(value, np.generic):
        return {"scalar": _put(np.asarray(value).reshape(1), tensors)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": struct.pack(">d", value).hex()}
    return value


def _unpack(packed: Any, hint: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The value that `_pack` made `packed` of. Raises LookupError, TypeError or ValueError where it made nothing like it."""
    hint = _one_of(hint, packed is None)
    if is_dataclass(hint):
        _expect(type(packed) is dict and packed.keys() == _fields(hint).keys(), packed, hint)
        return hint(**{name: _unpack(packed[name], each, tensors) for name, each in _fields(hint).items()})
    if hint is np.ndarray:
        return tensors[packed]
    origin = get_origin(hint) or hint
    if origin is dict:
        key_hint, value_hint = get_args(hint)
        return {_unpack(key, key_hint, tensors): _unpack(each, value_hint, tensors) for key, each in packed}
    if isinstance(origin, type) and issubclass(origin, (tuple, list)):
        _expect(type(packed) is list, packed, hint)
        found = [_unpack(each, of, tensors) for each, of in zip(packed, _members(hint, len(packed)), strict=True)]
        return origin(*found) if hasattr(origin, "_fields") else origin(found)
    value = _unpack_scalar(packed, tensors)
    _expect(_fits(value, hint), value, hint)
    return value


def _unpack_scalar(packed: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(packed, dict):
        return packed
    if "scalar" in packed:
        return tensors[packed["scalar"]][0]
    return struct.unpack(">d", bytes.fromhex(packed["float"]))[0]


def _put(array: np.ndarray, tensors: Tensors) -> str:
    name = str(len(tensors))
    tensors[name] = array
    return name


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """A dataclass's fields with what they may hold."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _one_of(hint: Any, nothing: bool) -> Any:
    """The part of `X | None` that is meant."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    if nothing:
        return NoneType
    (meant,) = (arm for arm in get_args(hint) if arm is not NoneType)
    return meant


def _members(hint: Any, count: int) -> list[Any]:
    """What each of `count` members of a tuple or list may be."""
    named = getattr(hint, "_fields", None)
    if named is not None:
        hints = get_type_hints(hint)
        return [hints[name] for name in named]
    arguments = get_args(hint)
    if get_origin(hint) is list or arguments[-1:] == (...,):
        return [arguments[0]] * count
    return list(arguments)


def _fits(value: Any, hint: Any) -> bool:
    if hint is NoneType:
        return value is None
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return isinstance(value, _SCALARS[hint]) and (hint is bool or not isinstance(value, bool))


def _expect(fits: bool, value: Any, hint: Any) -> None:
    if not fits:
        raise TypeError(f"a {type(value).__name__} stands where a {getattr(hint, '__name__', hint)} belongs")
