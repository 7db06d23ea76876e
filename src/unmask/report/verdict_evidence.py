"""The verdict and its tables as the stage wrote them, and the rows that the verdict itself rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import listed
from unmask.report.formats import is_present

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("no-shift", "monolithic", "entangled", "separable", "inconclusive")
NOT_TESTABLE = "not testable"
"""The qualifier of a verdict that no test was made for."""

PLACE = ("site", "grouping", "correction")
"""Columns that say where a row of the verdict's tables belongs."""


@dataclass(frozen=True, slots=True)
class VerdictEvidence:
    """`verdict.json` with the tables behind it."""

    record: Mapping[str, Any]
    sites: pd.DataFrame
    geometry: pd.DataFrame
    tests: pd.DataFrame
    power: pd.DataFrame
    sensitivity: pd.DataFrame

    @property
    def word(self) -> str:
        return str(self.record["verdict"])

    @property
    def qualifier(self) -> str | None:
        """What qualifies the verdict, less 'provisional', which is said by itself."""
        text = str(self.record["qualifier"] or "").replace("provisional", "").strip(" ,;")
        return text or None

    @property
    def provisional(self) -> bool:
        return bool(self.record["provisional"])

    @property
    def causal(self) -> Mapping[str, Any] | None:
        """The matrix of the causal test (T5); None where it was not measured."""
        return self.record["causal"]

    @property
    def site(self) -> str:
        return str(self.record["site"])

    @property
    def grouping(self) -> str:
        return str(self.record["grouping"])

    @property
    def corrected(self) -> bool:
        """Whether the control organism's shift was taken out of what the verdict is on."""
        return str(self.record["correction"]) == "control"

    @property
    def tested(self) -> bool:
        """Whether any test could be made."""
        return "p_shift" in self.record["numbers"]

    def number(self, name: str) -> float | None:
        """A number of the verdict; None where it was not measured."""
        value = self.record["numbers"].get(name)
        return float(value) if is_present(value) else None

    def enough_beyond_topic(self, name: str) -> float | None:
        """What rho or eta beyond topic must reach: half of the limit, all of it where one dimension alone was found."""
        limit = self.number(f"{name}_star")
        return None if limit is None else limit / (1 if self.number("k_adj") == 1 else 2)

    def here(self, table: pd.DataFrame, **chosen: Any) -> pd.DataFrame:
        """The rows at the verdict's site, grouping and correction; `chosen` names other values, None for any."""
        for column in PLACE:
            value = chosen.get(column, self.record[column])
            if column in table.columns and value is not None:
                table = table[table[column] == value]
        return table

    @property
    def row(self) -> dict[str, Any]:
        """The verdict's own row of `sites.parquet`."""
        return {str(name): value for name, value in self.here(self.sites).iloc[0].items()}

    def fault(self) -> str | None:
        """Why the record and its tables cannot be shown together; None where they can."""
        if self.word not in VERDICTS:
            return f"holds the verdict {self.word!r}, which is none of {listed(VERDICTS)}"
        if len(self.here(self.sites)) != 1:
            return "names a site, grouping and correction that verdict/sites.parquet does not hold once"
        row = self.row
        both = [name for name in self.record["numbers"] if name in row]
        other = [name for name in both if not _same(self.number(name), row[name])]
        return f"and verdict/sites.parquet differ on {listed(other)}" if other else None


def _same(one: float | None, other: Any) -> bool:
    """Both missing, or equal but for rounding."""
    if one is None or not is_present(other):
        return one is None and not is_present(other)
    return math.isclose(one, float(other), rel_tol=1e-9, abs_tol=1e-12)
