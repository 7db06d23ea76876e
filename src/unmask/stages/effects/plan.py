"""What is done to which model: directions read back, and the interventions that they make.

An item is tested with directions from the half of the questions that it is not in; directions that saw no
question test every item.

Shapes: V interventions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.extraction import unit
from unmask.artifact import read_table, read_tensors
from unmask.records import Site
from unmask.stage import Inputs
from unmask.stages.effects.config import EffectsConfig

if TYPE_CHECKING:
    from unmask.models.interventions import Intervention

CONTROLS = ("control", "shuffled", "random-isotropic", "random-span")
"""Kinds of directions that every study tests beside its own."""
UNHALVED = ("random-isotropic", "random-span", "file")
"""Kinds that no question of the study went into: they test every item."""


@dataclass(frozen=True, slots=True)
class Tested:
    """One intervention: a row of `directions.parquet`, what is done with it, and how strongly."""

    direction: Mapping[str, Any]
    operation: str
    coefficient: float

    def may_test(self, half_of: Mapping[int, str]) -> bool:
        """Whether a question, in these halves by replicate, had no part in the direction."""
        replicate, half = self.direction["replicate"], self.direction["half"]
        return replicate is None or half_of[replicate] != half


@dataclass(frozen=True, slots=True)
class Directions:
    """The stage `directions`, read back: rows, tensors, and the half of each question by replicate."""

    rows: list[dict[str, Any]]
    tensors: Mapping[str, np.ndarray]
    half_of: Mapping[str, Mapping[int, str]]

    @classmethod
    def read(cls, inputs: Inputs) -> Directions:
        folder, rebuild = inputs.folders["directions"], f"{inputs.rebuild} directions"
        halves = read_table(folder / "halves.parquet", rebuild=rebuild)
        half_of: dict[str, dict[int, str]] = {}
        for row in halves.to_dict("records"):
            half_of.setdefault(str(row["question_id"]), {})[int(row["replicate"])] = str(row["half"])
        table = read_table(folder / "directions.parquet", rebuild=rebuild)
        rows = [{name: _present(name, value) for name, value in row.items()} for row in table.to_dict("records")]
        return cls(rows, read_tensors(folder / "directions.safetensors", rebuild=rebuild), half_of)

    def chosen(self, kinds: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of these kinds and of the controls that may test a question: halves, or what saw no question."""
        wanted = {*kinds, *CONTROLS}
        return [
            row
            for row in self.rows
            if row["kind"] in wanted and (row["replicate"] is not None or row["kind"] in UNHALVED)
        ]


def plan_added(config: EffectsConfig, rows: Sequence[Mapping[str, Any]]) -> list[Tested]:
    """What is added to the base; an eraser cannot be."""
    return [
        Tested(row, "add", coefficient)
        for row in rows
        if row["form"] == "direction"
        for coefficient in config.coefficients
    ]


def plan_removed(config: EffectsConfig, rows: Sequence[Mapping[str, Any]]) -> list[Tested]:
    """What is taken from the organism."""
    return [
        Tested(row, config.removal if row["form"] == "direction" else "erase", strength)
        for row in rows
        for strength in config.removals
    ]


@dataclass(frozen=True, slots=True)
class Group:
    """Interventions of one operation, and which of the plan they are."""

    intervention: Intervention
    places: list[int]


def interventions_of(
    plan: Sequence[Tested], directions: Directions, site: Site, typical_norm: float, *, positions: Any
) -> list[Group]:
    """The plan as interventions with a row for each part of it, one for each operation and rank."""
    from unmask.models.interventions import Ablate, Add, Erase, Replace

    by_form: dict[tuple[str, int], list[int]] = {}
    for place, tested in enumerate(plan):
        rank = 1
        if tested.operation == "erase":
            rank = directions.tensors[f"{tested.direction['direction_id']}.left"].shape[1]
        by_form.setdefault((tested.operation, rank), []).append(place)
    groups = []
    for (operation, _), places in by_form.items():
        strength_V = np.array([plan[place].coefficient for place in places])
        names = [plan[place].direction["direction_id"] for place in places]
        intervention: Intervention
        if operation == "erase":
            parts = [
                np.stack([directions.tensors[f"{n}.{part}"] for n in names]) for part in ("left", "right", "centre")
            ]
            intervention = Erase(site, *parts, strength_V, positions=positions)
        else:
            unit_VD = np.stack([unit(directions.tensors[name]) for name in names])
            if operation == "add":
                delta_VD = (strength_V[:, None] * typical_norm * unit_VD).astype(np.float32)
                intervention = Add(site, delta_VD, positions=positions)
            else:
                kind = Replace if operation == "replace" else Ablate
                intervention = kind(site, unit_VD[:, None, :], strength_V, positions=positions)
        groups.append(Group(intervention, places))
    return groups


def _present(name: str, value: Any) -> Any:
    """A table's value, None where it is missing; a replicate is a whole number."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    return int(value) if name == "replicate" else value
