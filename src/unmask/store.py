"""Activation shards: append-only safetensors files, checksummed in an index, read by (reader, site).

A shard holds, for a run of responses, one array per tensor name, rows aligned with `response_ids`. Tensor names are
`{reader}/{site}` for activations (rows x d_model) and `{reader}/{site}/norm` for mean token norms (rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import atomic_path, digest_file, read_json, write_json
from unmask.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd

REBUILD = "unmask collect STUDY --force"
_INDEX = "index.json"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, tensors: Mapping[str, np.ndarray], response_ids: Sequence[str]) -> Path:
    """Write one shard atomically; its response ids travel in the file's own header.

    Raises ValueError when an array's rows are not one per response.
    """
    import json

    import numpy as np
    from safetensors.numpy import save_file

    for name, array in tensors.items():
        if array.shape[0] != len(response_ids):
            raise ValueError(f"{name} has {array.shape[0]} rows for {len(response_ids)} responses")
    path = folder / shard_name(number)
    with atomic_path(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            temporary,
            metadata={"response_ids": json.dumps(list(response_ids))},
        )
    return path


def write_index(folder: Path, *, sites: Sequence[str], width: int, dtype: str) -> None:
    """Seal the store: list its shards with their SHA-256. Written last, after every shard."""
    shards = [{"file": path.name, "sha256": digest_file(path)} for path in sorted(folder.glob("shard-*.safetensors"))]
    write_json(folder / _INDEX, {"version": 1, "sites": list(sites), "width": width, "dtype": dtype, "shards": shards})


def question_means(
    values_RD: np.ndarray, response_ids: Sequence[str], responses: pd.DataFrame, *, writer: str
) -> dict[str, np.ndarray]:
    """Question id to the mean (D) of the rows of that writer's non-empty responses; else as `question_rows`."""
    rows = question_rows(values_RD, response_ids, responses, writer=writer)
    return {question_id: rows_SD.mean(axis=0) for question_id, rows_SD in rows.items()}


def question_rows(
    values_RD: np.ndarray, response_ids: Sequence[str], responses: pd.DataFrame, *, writer: str
) -> dict[str, np.ndarray]:
    """Question id to the rows (S x D) of that writer's non-empty responses, in the order of their samples.

    `values_RD` has a row per entry of `response_ids`, in whatever order the shards gave; `responses` is the table that says
    which response answers which question. Raises KeyError when a response has no row.
    """
    row_of = {identity: row for row, identity in enumerate(response_ids)}
    own = responses[(responses["writer"] == writer) & (responses["tokens"] > 0)]
    if "sample" in own:
        own = own.sort_values("sample", kind="stable")
    return {
        str(question_id): values_RD[[row_of[identity] for identity in part]]
        for question_id, part in own.groupby("question_id")["response_id"]
    }


@dataclass(frozen=True, slots=True)
class ActivationStore:
    """A sealed store, opened for reading."""

    folder: Path
    sites: tuple[str, ...]
    width: int
    shards: tuple[tuple[str, str], ...]

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        """Open a sealed store. Raises ArtifactError when the index is missing or of another version."""
        index: dict[str, Any] = read_json(folder / _INDEX, rebuild=REBUILD)
        if index.get("version") != 1:
            raise ArtifactError(
                f"{folder / _INDEX} has version {index.get('version')!r}, this program reads 1",
                mend=f"Rebuild it with `{REBUILD}`",
            )
        shards = tuple((entry["file"], entry["sha256"]) for entry in index["shards"])
        return cls(folder=folder, sites=tuple(index["sites"]), width=index["width"], shards=shards)

    def response_ids(self) -> list[str]:
        """Ids of the rows, in the order in which `read` returns them.

        Raises ArtifactError when a shard is missing, broken or without ids.
        """
        import json

        from safetensors import SafetensorError, safe_open

        found: list[str] = []
        for file, _ in self.shards:
            try:
                with safe_open(self.folder / file, framework="numpy") as shard:
                    found += json.loads((shard.metadata() or {})["response_ids"])
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise ArtifactError(
                    f"{self.folder / file} cannot give its response ids ({error})", mend=f"Rebuild it with `{REBUILD}`"
                ) from error
        return found

    def read(self, name: str) -> np.ndarray:
        """One tensor over all rows, e.g. `organism/blocks.20.hook_resid_pre`; only its bytes are read.

        Raises ArtifactError when a shard is missing, broken, or lacks the tensor; only `verify` compares checksums.
        """
        import numpy as np
        from safetensors import SafetensorError, safe_open

        parts = []
        for file, _ in self.shards:
            try:
                with safe_open(self.folder / file, framework="numpy") as shard:
                    parts.append(shard.get_tensor(name))
            except (OSError, SafetensorError) as error:
                raise ArtifactError(
                    f"{self.folder / file} cannot give {name} ({error})", mend=f"Rebuild it with `{REBUILD}`"
                ) from error
        return np.concatenate(parts)

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises ArtifactError naming the first that differs."""
        for file, expected in self.shards:
            path = self.folder / file
            if not path.is_file() or digest_file(path) != expected:
                raise ArtifactError(
                    f"{path} is missing or does not match its checksum", mend=f"Rebuild it with `{REBUILD}`"
                )
