"""What steered answers come to: each dose with its intervals, and where answers stay coherent.

A missing score is in no mean; an interval is over questions, each counted once however often it was answered.

Shapes: Q questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.intervals import mean_interval
from unmask.artifact import finite
from unmask.stages.steering.config import DOSES, UNSTEERED
from unmask.stages.steering.directions import CONTROLS, Direction

if TYPE_CHECKING:
    import pandas as pd

_ENDS = ("", "_low", "_high")
_SCALES = {"misalignment": (0, 100), "coherence": (0, 100), "leakage": (0, 100), "refusal_rate": (0, 1)}
"""What a measure cannot pass; nor do the ends of its interval."""
LEAST_FOR_INTERVAL = 3
"""Questions below which a mean has no interval: Student's t of two is wider than any scale."""


def dose_rows(
    answers: pd.DataFrame, directions: Sequence[Direction], *, coherent_above: float, seed: int
) -> list[dict[str, Any]]:
    """One row (DOSES) per target, direction and coefficient, in the answers' order; unsteered answers among them.

    Of perplexity, mean and interval are geometric. A dose is coherent when its mean coherence is at least `coherent_above` and
    that of every smaller dose of its sign is.
    """
    direction_of = {direction.direction_id: direction for direction in directions}
    answers = answers.assign(
        refusal_rate=answers["refusal"].astype(float), log_perplexity=np.log(answers["perplexity"])
    )
    plain_of = {
        target: part.groupby("question_id")["misalignment"].mean()
        for target, part in answers[answers["kind"] == UNSTEERED].groupby("target")
    }
    rows = []
    for _, part in answers.groupby(["target", "direction_id", "coefficient"], sort=False):
        first = part.iloc[0]
        direction = direction_of.get(str(first["direction_id"]))
        by_question = part.groupby("question_id")
        means = {
            name: by_question[name].mean()
            for name in ("misalignment", "coherence", "refusal_rate", "leakage", "log_perplexity")
        }
        means["perplexity"] = means.pop("log_perplexity")
        steered = first["kind"] != UNSTEERED
        if steered:
            means["difference"] = means["misalignment"] - plain_of[first["target"]]
        row: dict[str, Any] = dict.fromkeys(DOSES.names) | {
            **{name: str(first[name]) for name in ("target", "direction_id", "kind", "label")},
            "operation": str(first["operation"]) if steered else None,
            "grouping": None if direction is None else direction.grouping,
            "group": None if direction is None else direction.group,
            "coefficient": float(first["coefficient"]),
            "added_norm": finite(first["added_norm"]),
            "n": int(part["misalignment"].notna().sum()),
            "missing": int(part["misalignment"].isna().sum()),
        }
        for name, values in means.items():
            found = interval(values.to_numpy(dtype=float), seed=seed)
            if name in _SCALES:
                found = tuple(None if v is None else float(np.clip(v, *_SCALES[name])) for v in found)
            ends = zip(_ENDS, found, strict=True)
            geometric = name == "perplexity"
            row |= {f"{name}{end}": float(np.exp(v)) if geometric and v is not None else v for end, v in ends}
        rows.append(row)
    for row in rows:
        row["coherent"] = _coherent(row, rows, coherent_above)
    return rows


def interval(values_Q: np.ndarray, *, seed: int) -> tuple[float | None, float | None, float | None]:
    """A mean over questions with its 95 % interval; None where there is no value, or too few for an interval."""
    there = int(np.isfinite(values_Q).sum())
    if not there:
        return None, None, None
    if there < LEAST_FOR_INTERVAL:
        return finite(np.nanmean(values_Q)), None, None
    # One seed for every interval: none depends on which others were taken.
    mean, low, high = mean_interval(values_Q, rng=np.random.default_rng(seed))
    return finite(mean), finite(low), finite(high)


def _coherent(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], least: float) -> bool:
    dose = row["coefficient"]
    smaller = [
        other["coherence"]
        for other in rows
        if (other["target"], other["direction_id"]) == (row["target"], row["direction_id"])
        and np.sign(other["coefficient"]) == np.sign(dose)
        and abs(other["coefficient"]) <= abs(dose)
    ]
    return all(value is not None and value >= least for value in smaller)


def coherent_window(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each target: its coefficients, which leave answers coherent under every direction that is no control, and the largest
    positive one of these."""
    found = {}
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target and row["kind"] not in (UNSTEERED, *CONTROLS)]
        coefficients = list(dict.fromkeys(row["coefficient"] for row in own))
        coherent = [all(row["coherent"] for row in own if row["coefficient"] == one) for one in coefficients]
        inside = [one for one, kept in zip(coefficients, coherent, strict=True) if kept and one > 0]
        found[target] = {
            "coefficients": coefficients,
            "coherent": coherent,
            "chosen": max(inside) if inside else None,
        }
    return found
