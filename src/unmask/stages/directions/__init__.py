"""Stage `directions`: what is added, or taken away, to test the parts; each from one half of the questions, for the other half.

No model is run. Directions are in the units of the site's residual stream; `relative_norm` is in units of its typical norm, the
median over answers of the mean norm over response tokens in the base model.

Shapes: N questions, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unmask.analysis.threads import one_thread
from unmask.artifact import digest_file, write_json, write_table, write_tensors
from unmask.errors import ConfigError, DataError
from unmask.records import Site
from unmask.stage import Inputs, Result, Stage
from unmask.stages.directions.config import KINDS, DirectionsConfig
from unmask.stages.directions.making import Made, halved, like_whole, make_controls, make_directions, with_half
from unmask.stages.directions.material import Material, load_material
from unmask.study import Workspace

__all__ = ["KINDS", "STAGE", "DirectionsConfig", "external", "run"]

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("direction_id", "kind", "label", "grouping", "group")),
        ("replicate", pa.int32()),
        ("half", pa.string()),
        ("site", pa.string()),
        ("norm", pa.float64()),
        ("relative_norm", pa.float64()),
        ("questions", pa.int32()),
        ("stability", pa.float64()),
        ("form", pa.string()),
    ]
)
HALVES = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "dimension", "facet", "cluster", "unit")),
        ("replicate", pa.int32()),
        ("half", pa.string()),
    ]
)
"""A row per question and replicate; `unit` is the question that it says the same as, mostly itself."""


LEAST_IN_HALF = 2
"""Questions of a half."""


def check(config: DirectionsConfig, study_folder: Path, *, site: Site, width: int) -> None:
    """Raise ConfigError for a direction file that is not there or does not fit, or two that would bear one name."""
    _own(config, study_folder, site=site, width=width)


def external(config: DirectionsConfig, study_folder: Path) -> dict[str, str]:
    return {f"directions:{name}": digest_file(_file(name, study_folder)) for name in config.files}


def run(config: DirectionsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    material = load_material(inputs)
    halves = halved(material, config.replicates, seed=config.seed)
    if min(min(inside_N.sum(), (~inside_N).sum()) for inside_N in halves) < LEAST_IN_HALF:
        raise DataError(
            f"{len(material.questions)} questions do not make two halves that say something of their own",
            mend="Raise questions.per_dimension",
        )
    inputs.progress.begin("directions", total=1 + 2 * len(halves))
    everyone_N = np.ones(len(material.questions), dtype=bool)
    notes: dict[str, None] = {}
    with one_thread():  # sums must not depend on how many there are
        found = _own(config, inputs.study_folder, site=material.site, width=material.base_ND.shape[1])
        found += make_controls(config, material, rng=np.random.default_rng([config.seed, 1]))
        whole, problems = make_directions(config, material, everyone_N, rng=np.random.default_rng([config.seed, 2]))
        found += [one for one in whole if one.kind != "shuffled"]
        notes |= dict.fromkeys(problems)
        inputs.progress.advance()
        for replicate, inside_N in enumerate(halves):
            for half, chosen_N in (("a", inside_N), ("b", ~inside_N)):
                rng = np.random.default_rng([config.seed, 3, replicate, int(half == "b")])
                made, problems = make_directions(config, material, chosen_N, rng=rng)
                found += with_half(like_whole(made, whole), replicate, half)
                notes |= dict.fromkeys(problems)
                inputs.progress.advance()
    inputs.progress.end()
    rows = describe(found, material)
    write_table(workspace.out / "directions.parquet", rows, schema=SCHEMA)
    write_tensors(
        workspace.out / "directions.safetensors",
        tensors(found),
        provenance={"site": material.site.name, "base": inputs.base.called},
    )
    write_table(workspace.out / "halves.parquet", _half_rows(material, halves), schema=HALVES)
    kinds = sorted({one.kind for one in found})
    removed = config.remove_control and any(one.kind == "control" for one in found)
    summary = {
        "site": material.site.name,
        "typical_norm": material.typical_norm,
        "replicates": len(halves),
        "control_removed": removed,
        "kinds": kinds,
        "notes": list(notes),
    }
    write_json(workspace.out / "summary.json", summary)
    return Result(_summary(rows, summary))


def describe(found: list[Made], material: Material) -> list[dict[str, Any]]:
    """A row (SCHEMA) per direction; `stability` is the cosine of those that two halves of one replicate gave."""
    vector_of = {(one.name, one.replicate, one.half): one.vector_D for one in found}
    rows = []
    for one in found:
        stability = None
        if one.half is not None and one.vector_D is not None:
            stability = _cosine(one.vector_D, vector_of.get((one.name, one.replicate, "b" if one.half == "a" else "a")))
        norm = None if one.vector_D is None else float(np.linalg.norm(one.vector_D))
        rows.append(
            {
                **{name: getattr(one, name) for name in ("direction_id", "kind", "label", "grouping", "group")},
                "replicate": one.replicate,
                "half": one.half if one.half is not None else "all" if one.questions else None,
                "site": material.site.name,
                "norm": norm,
                "relative_norm": None if norm is None else norm / material.typical_norm,
                "questions": one.questions,
                "stability": stability if one.kind != "shuffled" else None,
                "form": "direction" if one.eraser is None else "eraser",
            }
        )
    return rows


def tensors(found: list[Made]) -> dict[str, np.ndarray]:
    """Every direction under its id; an eraser as `ID.left` (D x K), `ID.right` (K x D) and `ID.centre` (D). float32."""
    named: dict[str, np.ndarray] = {}
    for one in found:
        if one.vector_D is not None:
            named[one.direction_id] = one.vector_D.astype(np.float32)
        if one.eraser is not None:
            parts = (one.eraser.left_DK, one.eraser.right_KD, one.eraser.centre_D)
            for name, part in zip(("left", "right", "centre"), parts, strict=True):
                named[f"{one.direction_id}.{name}"] = np.ascontiguousarray(part, dtype=np.float32)
    return named


def _own(config: DirectionsConfig, study_folder: Path, *, site: Site, width: int) -> list[Made]:
    """The user's own directions."""
    if not config.files:
        return []
    from unmask.control_vectors import read_direction_file

    found = []
    for name in config.files:
        path = _file(name, study_folder)
        for tensor, vector_D in read_direction_file(path, site=site, width=width).items():
            text = f"{tensor} of {path.name}"
            found.append(Made("file", f"file-{path.stem}-{tensor}", text, np.asarray(vector_D, dtype=np.float64), 0))
    names = [one.name for one in found]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(
            f"two of directions.files give a direction {twice[0]!r}", mend="Rename one of the files or its tensor"
        )
    return found


def _file(name: str, study_folder: Path) -> Path:
    path = Path(name).expanduser()
    path = path if path.is_absolute() else study_folder / path
    if not path.is_file():
        raise ConfigError(
            f"directions.files names {name}, and {path} is no file",
            mend="Name a safetensors file or a GGUF control vector",
        )
    return path


def _half_rows(material: Material, halves: list[np.ndarray]) -> list[dict[str, Any]]:
    questions = material.questions
    named = questions[["question_id", "dimension", "facet"]].assign(
        cluster=questions["cluster"].astype(str), unit=questions["question_id"].to_numpy()[questions["unit"]]
    )
    return [
        {**row, "replicate": replicate, "half": "a" if inside else "b"}
        for replicate, inside_N in enumerate(halves)
        for row, inside in zip(named.to_dict("records"), inside_N, strict=True)
    ]


def _cosine(one_D: np.ndarray, other_D: np.ndarray | None) -> float | None:
    if other_D is None:
        return None
    length = float(np.linalg.norm(one_D) * np.linalg.norm(other_D))
    return float(one_D @ other_D) / length if length > 0 else None


def _summary(rows: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    shared = next((row for row in rows if row["direction_id"] == "shared"), None)
    stable = [row["stability"] for row in rows if row["kind"] == "dimension" and row["stability"] is not None]
    return {
        "site": summary["site"],
        "directions": len(rows),
        "control removed": summary["control_removed"],
        "norm of the shared shift, in typical norms": None if shared is None else round(shared["relative_norm"], 3),
        "cosine of a dimension's direction between halves": round(float(np.mean(stable)), 3) if stable else None,
        **({"left out": "; ".join(summary["notes"])} if summary["notes"] else {}),
    }


STAGE = Stage(
    "directions",
    "extract directions",
    1,
    DirectionsConfig,
    ("questions", "responses", "activations", "control_activations", "scores", "decomposition"),
    False,
    run,
    external,
)
