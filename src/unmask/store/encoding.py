"""How numbers are kept: safetensors' dtypes in NumPy's words, and bfloat16, for which NumPy has no word.

A bfloat16 is the upper half of a float32's bits. Activations come and go as float32, whatever they are kept as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from unmask.errors import DataError

if TYPE_CHECKING:
    import numpy as np

ActivationDtype = Literal["float32", "float16", "bfloat16"]
"""What activations can be kept as."""

_STORED: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool", "|b1"),
    "U8": ("uint8", "|u1"),
    "I8": ("int8", "|i1"),
    "I16": ("int16", "<i2"),
    "U16": ("uint16", "<u2"),
    "I32": ("int32", "<i4"),
    "U32": ("uint32", "<u4"),
    "I64": ("int64", "<i8"),
    "U64": ("uint64", "<u8"),
    "F16": ("float16", "<f2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
    "BF16": ("bfloat16", "<u2"),
}
"""A header's code: what it is called, and the NumPy dtype whose bytes it has."""

_READ_AS = {"float16": "float32", "bfloat16": "float32"}
_BLOCK = 1 << 16
"""Numbers turned at a time: they and their few temporary arrays stay in a core's cache."""


_NORMAL, _TOO_LARGE = 0x38800000, 0x477FF000
"""As bits of a float32: 2^-14, float16's smallest normal number, and 65520, from where on it would be rounded to infinity."""


def dtype_of(code: str) -> str:
    """What a header's code is called: `bfloat16` for BF16. Raises ValueError for a code that no store has."""
    if code not in _STORED:
        raise ValueError(f"dtype {code} is not one of a store")
    return _STORED[code][0]


def code_of(dtype: str) -> str:
    """The header's code for what is called so. Raises ValueError for a dtype that no store has."""
    for code, (called, _) in _STORED.items():
        if called == dtype:
            return code
    raise ValueError(f"dtype {dtype} is not one of a store")


def raw_dtype(dtype: str) -> np.dtype:
    """The NumPy dtype of the stored bytes; uint16 for bfloat16."""
    import numpy as np

    return np.dtype(_STORED[code_of(dtype)][1])


def read_dtype(dtype: str) -> np.dtype:
    """What an array of that dtype is read as: float32 for float16 and bfloat16, itself for all others."""
    import numpy as np

    return np.dtype(_READ_AS.get(dtype, dtype))


def encoded(array: np.ndarray, *, dtype: str, name: str) -> Iterator[np.ndarray]:
    """An array as it is stored, block after block: one-dimensional, of `raw_dtype(dtype)`, rounded to nearest, ties to even.

    Raises DataError when a finite value is too large: float16's largest is 65504.
    """
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype == array.dtype.name:
        yield flat.astype(raw_dtype(dtype), copy=False)
        return
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        try:
            with np.errstate(over="raise"):
                turned = _TURN[dtype](block.astype("<f4", copy=False))
        except FloatingPointError as error:
            raise DataError(
                f"{name} holds {float(np.abs(block[np.isfinite(block)]).max()):.6g}, which {dtype} cannot hold",
                mend="Set the dtype to bfloat16 or float32",
            ) from error
        yield turned


def decode(raw: np.ndarray, out: np.ndarray, *, dtype: str) -> None:
    """Write stored numbers into `out`, which has their shape and `read_dtype(dtype)`."""
    import numpy as np

    if dtype == "bfloat16":
        bits = out.view(np.uint32)
        bits[...] = raw
        bits <<= 16
    elif dtype == "float16" and raw.flags.c_contiguous and out.flags.c_contiguous:
        _from_float16(raw.reshape(-1), out.reshape(-1))
    else:
        out[...] = raw


def _to_bfloat16(values_N: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16 (uint16), to nearest, ties to even. A NaN stays one: it becomes quiet."""
    import numpy as np

    bits_N = values_N.view("<u4")
    rounded_N = bits_N >> 16
    rounded_N &= 1
    rounded_N += 0x7FFF
    rounded_N += bits_N
    rounded_N >>= 16
    nan_N = np.isnan(values_N)
    if nan_N.any():
        rounded_N[nan_N] = (bits_N[nan_N] >> 16) | 0x40
    return rounded_N.astype("<u2")


def _to_float16(values_N: np.ndarray) -> np.ndarray:
    """float32 to the bits of float16 (uint16), to nearest, ties to even, three times as fast as NumPy.

    What is normal as float16 is rounded as an integer; the others (zeros, subnormal, too large, infinite, NaN) are left to NumPy.
    """
    import numpy as np

    bits_N = values_N.view("<u4")
    size_N = bits_N & 0x7FFFFFFF
    rounded_N = size_N >> 13
    rounded_N &= 1
    rounded_N += size_N
    rounded_N += np.uint32((0x0FFF - (112 << 23)) % (1 << 32))
    rounded_N >>= 13
    rounded_N |= (bits_N >> 16) & 0x8000
    half_N = rounded_N.astype("<u2")
    size_N -= np.uint32(_NORMAL)
    others = np.flatnonzero(size_N >= _TOO_LARGE - _NORMAL)
    half_N[others] = values_N[others].astype("<f2").view("<u2")
    return half_N


def _from_float16(raw_N: np.ndarray, out_N: np.ndarray) -> None:
    """float16 to float32, four times as fast as NumPy: sign, exponent and mantissa are moved, and the exponent's bias made good.

    That holds for normal numbers; the others (zeros, subnormal, infinite, NaN) are left to NumPy.
    """
    import numpy as np

    bits_N = out_N.view(np.int32)
    for start in range(0, raw_N.size, _BLOCK):
        part, bits, values = (
            raw_N[start : start + _BLOCK],
            bits_N[start : start + _BLOCK],
            out_N[start : start + _BLOCK],
        )
        bits[...] = part.view("<i2")
        bits <<= 13
        bits &= np.int32(-0x70000001)
        bits += np.int32(112 << 23)
        exponent = part.view("<u2") & np.uint16(0x7C00)
        exponent -= np.uint16(0x0400)
        others = np.flatnonzero(exponent >= 0x7800)
        values[others] = part[others]


_TURN: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "float32": lambda values_N: values_N,
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
}
"""float32 to the stored bits of each dtype that activations can be kept as."""
