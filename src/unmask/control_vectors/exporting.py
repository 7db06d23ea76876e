"""A study's directions for other programs.

Shapes: D width of the residual stream.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from unmask.artifact import atomic_path, read_json, read_table, read_tensors, write_tensors, write_text
from unmask.control_vectors.formats import ARCHITECTURE, block_behind, header, load_gguf
from unmask.control_vectors.texts import README, SCRIPT
from unmask.errors import ConfigError, listed
from unmask.records import Site
from unmask.study import Study

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

STAGE = "directions"
_PARTS = ("", ".left", ".right", ".centre")
"""What a direction's tensors are called behind its id: the vector, or an eraser's three."""


def export_directions(study: Study, *, out: Path, model_type: str, ids: Iterable[str] | None = None) -> list[Path]:
    """Write a study's directions, or those of `ids`, for other programs. Returns what was written.

    `directions.safetensors` with its provenance, one control vector for each direction from all questions (with `ids`, for each
    named) where there is a block that it can stand behind, `use_directions.py` and `README.md`, which says what was left out and
    why. `model_type` is the base's, as its Hugging Face configuration has it.
    Raises ArtifactError when the stage has not been run or a file is damaged, ConfigError for an id that the study lacks, or
    where the package gguf is missing.
    """
    study.verify(STAGE)
    folder, rebuild = study.stage_folder(STAGE), f"unmask run {study.folder} --force {STAGE}"
    tensors = read_tensors(folder / "directions.safetensors", rebuild=rebuild)
    summary = read_json(folder / "summary.json", rebuild=rebuild)
    table = _chosen(read_table(folder / "directions.parquet", rebuild=rebuild), ids)
    base = header(folder / "directions.safetensors").get("base")
    about = _provenance(table, summary, base=base, model_type=model_type)
    wanted = table[(table["form"] == "direction") & ((table["half"] == "all") | (ids is not None))]
    vectors, notes = _control_vectors(wanted["direction_id"], tensors, about)
    gguf = load_gguf(out) if vectors else None
    kept = {f"{name}{part}" for name in table["direction_id"] for part in _PARTS} & set(tensors)
    paths = [out / "directions.safetensors", out / "use_directions.py", out / "README.md"]
    write_tensors(paths[0], {name: tensors[name] for name in sorted(kept)}, provenance=about)
    write_text(paths[1], SCRIPT)
    write_text(
        paths[2], README.format(study=study.folder.resolve().name, **about) + "".join(f"\n{note}\n" for note in notes)
    )
    for name, vector_D in vectors.items():
        paths.append(out / f"{quote(name, safe='')}.gguf")
        _write_control_vector(gguf, paths[-1], name, vector_D, about)
    return paths


def _provenance(table: pd.DataFrame, summary: dict[str, Any], *, base: object, model_type: str) -> dict[str, Any]:
    """What the header of the exported file says."""
    about = ("kind", "label", "form", "half", "replicate", "norm")
    return {
        "tool": f"unmask {version('unmask')}",
        "base": base,
        "model_type": model_type,
        "site": summary["site"],
        "typical_norm": float(summary["typical_norm"]),
        "directions": {
            str(row["direction_id"]): {name: _plain(row[name]) for name in about} for row in table.to_dict("records")
        },
    }


def _control_vectors(
    names: Iterable[str], tensors: dict[str, np.ndarray], about: dict[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The control vectors (D, float32, as long as the typical norm) by direction, and what is said of those there are not."""
    site = Site.parse(about["site"])
    if not block_behind(site):
        where = "inside a block" if site.point == "resid_mid" else "before block 1 is done"
        return {}, [f"No control vectors: {site.name} lies {where}, where llama.cpp adds nothing."]
    vectors, notes = {}, []
    for name in names:
        norm = float(np.linalg.norm(tensors[name].astype(np.float64)))
        if norm > 0:
            vectors[name] = (tensors[name] * (about["typical_norm"] / norm)).astype(np.float32)
        else:
            notes.append(f"No control vector of {name}: it is zero.")
    return vectors, notes


def _chosen(table: pd.DataFrame, ids: Iterable[str] | None) -> pd.DataFrame:
    if ids is None:
        return table
    wanted, known = list(dict.fromkeys(ids)), set(table["direction_id"])
    for name in wanted:
        if name not in known:
            some = listed(table["direction_id"][:8]) + (", ..." if len(table) > 8 else "")
            raise ConfigError(f"the study has no direction {name!r}", mend=f"Choose from: {some}")
    return table[table["direction_id"].isin(wanted)]


def _plain(value: Any) -> Any:
    """A table's cell as JSON has it: whole numbers stay whole, missing is null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _write_control_vector(gguf: Any, path: Path, name: str, vector_D: np.ndarray, about: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_name(name)
        writer.add_string(f"{ARCHITECTURE}.model_hint", about["model_type"])
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", 1)
        writer.add_tensor(f"direction.{block_behind(Site.parse(about['site']))}", vector_D)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
