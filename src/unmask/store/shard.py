"""A shard: the tensors of a run of responses in one safetensors file, written once and whole.

Shapes: R responses, T token rows of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unmask.store.folder import open_folder
from unmask.store.serialization import Kept, serialize
from unmask.store.tensor_name import TOKEN_OFFSETS, is_token_level

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from unmask.store.encoding import ActivationDtype


def shard_name(number: int) -> str:
    """File names sort as their numbers do, up to 99999."""
    return f"shard-{number:05d}.safetensors"


def write_shard(
    folder: Path | str,
    number: int,
    tensors: Mapping[str, np.ndarray],
    response_ids: Sequence[str],
    *,
    token_offsets: Sequence[int] | np.ndarray | None = None,
    dtype: ActivationDtype | None = None,
) -> str:
    """Write one shard, whole or not at all, to a path or URL; returns where. Its response ids travel in the file's own header.

    Tensors have a row per response (R), those named `...@tokens` one per token (T): `token_offsets` (R + 1) says where the
    rows of each response begin and end. Floating arrays of two dimensions are kept as `dtype`, rounded to nearest; all else as
    it is.

    Raises ValueError when rows, offsets and ids do not fit each other or an id stands there twice; DataError when a value is too
    large for the dtype; ArtifactError when a URL cannot be written; StudyError when the disk is full.
    """
    import numpy as np

    if len(set(response_ids)) != len(response_ids):
        twice = next(identity for place, identity in enumerate(response_ids) if identity in response_ids[:place])
        raise ValueError(f"response {twice!r} stands twice in shard {number}")
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    token_rows = None
    if token_offsets is not None:
        offsets = np.asarray(token_offsets, dtype=np.int64)
        check_offsets(offsets, responses=len(response_ids))
        arrays[TOKEN_OFFSETS], token_rows = offsets, int(offsets[-1])
    _check_rows(arrays, responses=len(response_ids), token_rows=token_rows)
    kept = {
        name: Kept(array, dtype if dtype and array.ndim == 2 and array.dtype.kind == "f" else array.dtype.name)
        for name, array in arrays.items()
    }
    place, file = open_folder(folder), shard_name(number)
    place.write(file, serialize(kept, metadata={"response_ids": json.dumps(list(response_ids))}))
    return place.place(file)


def check_offsets(offsets: np.ndarray, *, responses: int) -> None:
    """Raises ValueError when the offsets are not `responses` + 1 numbers that start at 0 and never fall."""
    if offsets.shape != (responses + 1,) or offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"the token offsets are not {responses + 1} numbers from 0 that never fall")


def _check_rows(arrays: Mapping[str, np.ndarray], *, responses: int, token_rows: int | None) -> None:
    for name, array in arrays.items():
        if name == TOKEN_OFFSETS:
            if token_rows is None:
                raise ValueError(f"{name} is no tensor to be given: use the option `token_offsets`")
        elif is_token_level(name):
            if token_rows is None:
                raise ValueError(f"{name} has a row per token, and no token offsets say whose")
            if array.shape[:1] != (token_rows,):
                raise ValueError(f"{name} has {len(array)} rows for {token_rows} tokens")
        elif array.shape[:1] != (responses,):
            raise ValueError(f"{name} has {len(array)} rows for {responses} responses")
