"""Do judged answers say what log-odds say? Every dimension's direction on every dimension's questions, at one coefficient.

Shapes: C cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.effects import readouts_agree
from unmask.artifact import finite
from unmask.stages.steering.config import UNSTEERED
from unmask.stages.steering.directions import RANDOM, Direction
from unmask.stages.steering.summary import interval

if TYPE_CHECKING:
    import pandas as pd


def confirmation_rows(
    answers: pd.DataFrame, dimensions: Sequence[Direction], matrix: pd.DataFrame, *, coefficient: float, seed: int
) -> list[dict[str, Any]]:
    """A row (CONFIRMATION) per dimension's direction and dimension of questions. `matrix` is that of the stage effects."""
    changes = confirmed_changes(answers)
    random_of = changes[changes["kind"].isin(RANDOM)].groupby("dimension")["change"].mean()
    same = matrix[
        (matrix["target"] == "base") & (matrix["kind"] == "dimension") & np.isclose(matrix["coefficient"], coefficient)
    ]
    log_prob_of = same.set_index(["row", "column"])["effect"].to_dict()
    rows = []
    columns = list(dict.fromkeys(answers["dimension"]))
    for direction in dimensions:
        own = changes[changes["direction_id"] == direction.direction_id]
        for column in columns:
            values = own.loc[own["dimension"] == column, "change"].to_numpy(dtype=float)
            effect, low, high = interval(values, seed=seed)
            rows.append(
                {
                    "row": direction.group,
                    "column": column,
                    "coefficient": coefficient,
                    "effect": effect,
                    "low": low,
                    "high": high,
                    "random_mean": finite(random_of.get(column, float("nan"))),
                    "effect_log_prob": finite(log_prob_of.get((direction.group, column), float("nan"))),
                    "n": int(np.isfinite(values).sum()),
                }
            )
    return rows


def confirmed_changes(answers: pd.DataFrame) -> pd.DataFrame:
    """Misalignment less that unsteered (`change`), by direction_id, kind, dimension and question_id."""
    by = ["direction_id", "kind", "dimension", "question_id"]
    means = answers.groupby(by, sort=False)["misalignment"].mean().reset_index()
    plain = means[means["kind"] == UNSTEERED].set_index("question_id")["misalignment"]
    steered = means[means["kind"] != UNSTEERED].reset_index(drop=True)
    return steered.assign(change=steered["misalignment"] - steered["question_id"].map(plain))


def selectivity(answers: pd.DataFrame, dimensions: Sequence[Direction], *, seed: int) -> dict[str, Any]:
    """Judged effect of a question's own direction less the mean of the other dimensions', over questions."""
    changes = confirmed_changes(answers)
    group_of = {direction.direction_id: direction.group for direction in dimensions}
    changes = changes[changes["direction_id"].isin(group_of)]
    own = changes["direction_id"].map(group_of) == changes["dimension"]
    means = [changes[chosen].groupby("question_id")["change"].mean() for chosen in (own, ~own)]
    values = (means[0] - means[1]).to_numpy(dtype=float)
    mean, low, high = interval(values, seed=seed)
    return {"mean": mean, "low": low, "high": high, "n": int(np.isfinite(values).sum())}


def agreement_of_cells(rows: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """Do judged answers and log-odds rank the confirmation's cells alike, both less what random directions do?"""
    judged = [_less(row["effect"], row["random_mean"]) for row in rows]
    return _agreement(judged, [row["effect_log_prob"] for row in rows], [row["row"] for row in rows], seed=seed)


def agreement_of_doses(rows: Sequence[Mapping[str, Any]], log_prob: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """The same over doses that both stages have. `log_prob` are the doses of the stage effects, whose removals count as it does:
    positive where they take the persona away. Doses of other operations, or in other units, are not the same doses."""
    by = ("target", "kind", "label", "operation", "coefficient")
    effect_of = {tuple(row[name] for name in by): row["all"] for row in log_prob.to_dict("records")}
    both = [row for row in rows if tuple(row[name] for name in by) in effect_of]
    judged = [_less(0.0, row["difference"]) if row["target"] == "organism" else row["difference"] for row in both]
    read = [effect_of[tuple(row[name] for name in by)] for row in both]
    return _agreement(judged, read, [f"{row['target']}/{row['direction_id']}" for row in both], seed=seed)


def _agreement(
    one: Sequence[float | None], other: Sequence[float | None], clusters: Sequence[str], *, seed: int
) -> dict[str, Any]:
    one_C, other_C = (np.array(values, dtype=float) for values in (one, other))
    found = readouts_agree(one_C, other_C, np.array(clusters), rng=np.random.default_rng(seed))
    return {
        **{name: finite(getattr(found, name)) for name in ("spearman", "low", "high")},
        "cells": found.cells,
    }


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
