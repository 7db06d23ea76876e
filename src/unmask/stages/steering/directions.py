"""Directions to steer with, and their controls, as the stage `directions` made them.

A direction that comes in halves is that of half a of the first replicate; questions of the battery are then of half b.

Shapes: D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from unmask.analysis.extraction import unit
from unmask.artifact import read_table, read_tensors
from unmask.errors import DataError, listed
from unmask.stage import Inputs
from unmask.stages.steering.config import SteeringConfig

if TYPE_CHECKING:
    import pandas as pd

RANDOM = ("random-isotropic", "random-span")
CONTROLS = (*RANDOM, "control")


@dataclass(frozen=True, slots=True)
class Direction:
    """A vector at the primary site with where it comes from. `vector_D` is in the site's units."""

    direction_id: str
    kind: str
    label: str
    grouping: str | None
    group: str | None
    vector_D: np.ndarray

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vector_D))

    @property
    def unit_D(self) -> np.ndarray:
        """The vector at length 1, float32; zeros stay zeros."""
        return unit(self.vector_D).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Directions at every dose, those of dimensions and random ones for the confirmation, and what was left out and why.

    `askable` are the questions of the battery that no direction was made from.
    """

    directions: tuple[Direction, ...]
    dimensions: tuple[Direction, ...]
    random: tuple[Direction, ...]
    askable: frozenset[str]
    notes: tuple[str, ...]


def choose_directions(config: SteeringConfig, inputs: Inputs) -> Chosen:
    """Directions of the wanted kinds with the controls beside them. Raises DataError where there is none of these kinds.

    In raw units a random direction gets the norm of one of the others, and every other one has its random one while they last.
    """
    folder, rebuild = inputs.folders["directions"], f"{inputs.rebuild} directions"
    table = read_table(folder / "directions.parquet", rebuild=rebuild)
    tensors = read_tensors(folder / "directions.safetensors", rebuild=rebuild)
    halves = read_table(folder / "halves.parquet", rebuild=rebuild)
    found = {kind: _of_kind(table, tensors, kind) for kind in dict.fromkeys((*config.kinds, "shared", "control"))}
    real = list(chain.from_iterable(found.values()))
    absent = [kind for kind in config.kinds if not found[kind]]
    if len(absent) == len(config.kinds):
        raise DataError(
            f"there is no direction of kind {listed(absent)} to steer with",
            mend="Add the kind to directions.kinds, or change steering.kinds",
        )
    pairs = zip_longest(*(_of_kind(table, tensors, kind) for kind in RANDOM))
    random = [direction for direction in chain.from_iterable(pairs) if direction is not None]
    if config.units == "raw":
        random = random[: max(config.random_directions, len(real))]
        random = [_rescaled(one, real[number % len(real)].norm) for number, one in enumerate(random)]
    else:
        random = random[: config.random_directions]
    first = halves[halves["replicate"] == 0]
    return Chosen(
        (*real, *random),
        _of_kind(table, tensors, "dimension"),
        tuple(random[: config.random_directions]),
        frozenset(first.loc[first["half"] == "b", "question_id"].astype(str)),
        tuple(f"{kind}: the stage directions made none" for kind in absent),
    )


def _of_kind(table: pd.DataFrame, tensors: Mapping[str, np.ndarray], kind: str) -> tuple[Direction, ...]:
    """Those of half a of the first replicate, or, where the kind has no halves, all."""
    part = table[(table["kind"] == kind) & (table["form"] == "direction")]
    halved = part[(part["replicate"] == 0) & (part["half"] == "a")]
    part = halved if len(halved) else part[part["replicate"].isna()]
    return tuple(
        Direction(
            str(row["direction_id"]),
            kind,
            str(row["label"]),
            *(value if isinstance(value := row[name], str) else None for name in ("grouping", "group")),
            np.asarray(tensors[row["direction_id"]], dtype=np.float64),
        )
        for _, row in part.iterrows()
    )


def _rescaled(direction: Direction, norm: float) -> Direction:
    return replace(direction, vector_D=direction.vector_D * (norm / (direction.norm or 1.0)))
