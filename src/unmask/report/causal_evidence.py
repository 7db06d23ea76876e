"""Directions, their teacher-forced effects and steered answers as the stages wrote them, and the rows that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.report.formats import is_present

if TYPE_CHECKING:
    import pandas as pd

RANDOM = ("random-isotropic", "random-span")
CONTROLS = ("control", "shuffled", *RANDOM)
"""Kinds of directions that are controls."""
TARGETS = ("base", "organism")
KINDS = ("dimension", "specific", "facet", "cluster")
"""Kinds of directions that belong to groups of questions, in the order in which they are shown."""

UNSTEERED = "none"
"""The kind of answers that nothing was done to."""

TABLES = {
    "directions": "directions/directions.parquet",
    "items": "effects/items.parquet",
    "effects": "effects/effects.parquet",
    "doses": "effects/doses.parquet",
    "matrix": "effects/matrix.parquet",
    "selectivity": "effects/selectivity.parquet",
    "controls": "effects/controls.parquet",
    "answers": "steering/answers.parquet",
    "traits": "steering/traits.parquet",
    "steered": "steering/doses.parquet",
    "confirmation": "steering/confirmation.parquet",
}
"""Tables of `CausalEvidence` and where they lie."""


@dataclass(frozen=True, slots=True)
class CausalEvidence:
    """What was extracted (`directed`), what it does to log-odds (`summary`) and to answers (`steering`), with the tables."""

    directions: pd.DataFrame
    items: pd.DataFrame
    effects: pd.DataFrame
    doses: pd.DataFrame
    matrix: pd.DataFrame
    selectivity: pd.DataFrame
    controls: pd.DataFrame
    answers: pd.DataFrame
    traits: pd.DataFrame
    steered: pd.DataFrame
    confirmation: pd.DataFrame
    directed: Mapping[str, Any]
    summary: Mapping[str, Any]
    steering: Mapping[str, Any]

    @property
    def record(self) -> Mapping[str, Any] | None:
        """The matrix that the verdict reads: dimensions' mean shifts, added to the base. None where it was not measured."""
        return self.summary["causal"]

    @property
    def matrices(self) -> list[Mapping[str, Any]]:
        """Records of the matrices, the base's first, by kind."""

        def place(record: Mapping[str, Any]) -> tuple[int, int, str, str]:
            target, kind = str(record["target"]), str(record["kind"])
            return (_index(TARGETS, target), _index(KINDS, kind), target, kind)

        return sorted(self.summary["matrices"], key=place)

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """Records of the matrices that there are."""
        return [record for record in self.matrices if record["outcome"] is not None]

    @property
    def reason(self) -> str:
        """Why the matrix that the verdict reads was not measured."""
        own = [each["reason"] for each in self.matrices if (each["target"], each["kind"]) == ("base", "dimension")]
        known = (str(each) for each in (self.summary["reason"], *own) if each)
        return next(known, "no direction of a dimension was among those tested")

    def chosen(self, target: str) -> float | None:
        """The coefficient at which the matrices of `target` were read; None where no answer stays coherent."""
        value = (self.summary["window"].get(target) or {}).get("chosen")
        return float(value) if is_present(value) else None

    def shown_at(self, target: str) -> float | None:
        """The coefficient that is shown where one must be picked: the chosen one, else the least positive one there is."""
        chosen = self.chosen(target)
        held = self.effects.loc[(self.effects["target"] == target) & (self.effects["coefficient"] > 0), "coefficient"]
        return chosen if chosen is not None or held.empty else float(held.min())

    def of(self, table: pd.DataFrame, record: Mapping[str, Any]) -> list[dict[Any, Any]]:
        """Rows of `matrix` or `selectivity` that belong to a matrix."""
        here = (table["target"] == record["target"]) & (table["kind"] == record["kind"])
        return table[here].to_dict("records")

    def standing_out(self, record: Mapping[str, Any]) -> list[dict[Any, Any]]:
        """Rows of a matrix that are selective by themselves, after Holm over its rows."""
        rows = self.of(self.selectivity, record)
        return [row for row in rows if is_present(row["p_holm"]) and row["p_holm"] < ALONE]


ALONE = 0.05
"""Holm's p below which a row of a matrix stands out."""


def _index(order: tuple[str, ...], name: str) -> int:
    return order.index(name) if name in order else len(order)
