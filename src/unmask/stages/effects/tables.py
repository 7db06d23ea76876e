"""From effects by item to dose curves and controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.analysis.effects import beaten_by, dose_curve
from unmask.artifact import finite
from unmask.stages.effects.config import EffectsConfig
from unmask.stages.effects.wide import DESCRIBED, RANDOM, by_items, floats

if TYPE_CHECKING:
    import pandas as pd

DOSES = pa.schema(
    [
        *((name, pa.string()) for name in DESCRIBED),
        *floats("coefficient", "own", "own_low", "own_high", "others", "others_low", "others_high"),
        *floats("all", "all_low", "all_high", "loss"),
        ("coherent", pa.bool_()),
        ("items", pa.int32()),
    ]
)
CONTROL_ROWS = pa.schema(
    [
        *((name, pa.string()) for name in ("target", "kind", "label")),
        *floats("coefficient", "effect", "low", "high", "loss", "random_as_large"),
        ("directions", pa.int32()),
    ]
)


def dose_rows(
    config: EffectsConfig, effects: pd.DataFrame, losses: pd.DataFrame, items: pd.DataFrame, window: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of DOSES: every direction but the random and the shuffled ones, whose doses `control_rows` sums up."""
    wide = by_items(
        effects[~effects["kind"].isin((*RANDOM, "shuffled"))], column="effect", items=items["question_id"].tolist()
    )
    groups: Any = wide.groupby(level=list(DESCRIBED), sort=False)
    for described, part in groups:
        row = dict(zip(DESCRIBED, described, strict=True))
        coefficients = [float(value) for value in part.index.get_level_values("coefficient")]
        grouping, group = str(row["grouping"]), str(row["group"]) or None
        groups_N = items[grouping].to_numpy(dtype=str) if grouping else np.full(len(items), "")
        curve = dose_curve(
            part.to_numpy().T, groups_N, group, coefficients,
            rng=np.random.default_rng([config.seed, 12]), resamples=config.resamples,
        )  # fmt: skip
        own = window[row["target"]]["kinds"].get(row["kind"], window[row["target"]])
        allowed = dict(zip(own["coefficients"], own["coherent"], strict=True))
        for dose, loss in zip(curve, losses.loc[part.index].mean(axis=1), strict=True):
            ends = {"own": dose.own, "others": dose.others, "all": dose.every}
            yield {
                **row,
                "grouping": row["grouping"] or None,
                "group": group,
                "coefficient": dose.coefficient,
                **{name: finite(each[0]) for name, each in ends.items()},
                **{f"{name}_low": finite(each[1]) for name, each in ends.items()},
                **{f"{name}_high": finite(each[2]) for name, each in ends.items()},
                "loss": finite(loss),
                "coherent": allowed.get(dose.coefficient),
                "items": dose.items,
            }


def control_rows(
    config: EffectsConfig, effects: pd.DataFrame, losses: pd.DataFrame, items: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Rows of CONTROL_ROWS: mean effect on all items of each direction that belongs to no group, and of the controls by kind.

    `random_as_large` is the share of random directions, the direction itself counted in, with at least as large a mean effect.
    """
    names = items["question_id"].tolist()
    wide, cost = by_items(effects, column="effect", items=names), losses.mean(axis=1)
    level = wide.index.get_level_values
    groups: Any = wide.groupby([level("target"), level("coefficient")], sort=False)
    for (target, coefficient), at in groups:
        kinds = at.index.get_level_values("kind")
        random_R = at[kinds.isin(RANDOM)].mean(axis=1).to_numpy()
        for kind in dict.fromkeys(kinds):
            part = at[kinds == kind]
            pooled = kind in (*RANDOM, "shuffled")
            for label, rows in [(kind, part)] if pooled else part.groupby(level="label", sort=False):
                curve = dose_curve(
                    rows.mean(axis=0).to_numpy()[:, None], np.full(len(names), ""), None, [float(coefficient)],
                    rng=np.random.default_rng([config.seed, 13]), resamples=config.resamples,
                )[0]  # fmt: skip
                yield {
                    "target": target,
                    "kind": kind,
                    "label": label,
                    "coefficient": float(coefficient),
                    "effect": finite(curve.every[0]),
                    "low": finite(curve.every[1]),
                    "high": finite(curve.every[2]),
                    "loss": finite(cost.loc[rows.index].mean()),
                    "random_as_large": None if pooled else finite(beaten_by(curve.every[0], random_R)),
                    "directions": len(rows),
                }
