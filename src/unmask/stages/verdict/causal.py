"""What the stage `effects` found, as the verdict reads it: T5 at the primary site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.analysis.crosstalk import Causal
from unmask.artifact import read_json
from unmask.stage import Inputs

NUMBERS = {
    "causal_x": "x",
    "causal_x_low": "x_low",
    "causal_x_high": "x_high",
    "causal_p": "p",
    "causal_potent": "potent_share",
    "causal_rank1": "rank1",
    "causal_coefficient": "coefficient",
    "causal_items": "items",
}
"""Numbers of the verdict and what they are called in the matrix's record."""


@dataclass(frozen=True, slots=True)
class CausalEvidence:
    """What T5 says by grouping, the record of the matrix over dimensions, and why there is none."""

    outcomes: Mapping[str, Causal]
    record: Mapping[str, Any] | None
    reason: str | None

    @property
    def settles(self) -> bool:
        """Whether T5 says that the parts act apart, or that they do not."""
        return self.record is not None and self.record["outcome"] in ("selective", "cross-talk")

    @property
    def numbers(self) -> dict[str, float | None]:
        """Numbers for verdict.json; None where T5 was not measured."""
        record = self.record or {}
        found = {name: record.get(field) for name, field in NUMBERS.items()}
        return {name: None if value is None else float(value) for name, value in found.items()}


def read_causal(inputs: Inputs) -> CausalEvidence:
    """Read the matrices of mean shifts that were added to the base, by dimension and by facet."""
    summary = read_json(inputs.folders["effects"] / "summary.json", rebuild=f"{inputs.rebuild} effects")
    added = [each for each in summary["matrices"] if each["target"] == "base" and each["kind"] == each["grouping"]]
    outcomes: dict[str, Causal] = {each["kind"]: each["outcome"] for each in added if each["outcome"] is not None}
    reasons = [summary["reason"], *(each["reason"] for each in added if each["kind"] == "dimension")]
    left_out = "directions.kinds" if "dimension" in summary["kinds_missing"] else "effects.kinds"
    reason = next((each for each in reasons if each), f"{left_out} leaves out dimension")
    record = summary["causal"]
    return CausalEvidence(outcomes, record, None if record is not None else reason)
