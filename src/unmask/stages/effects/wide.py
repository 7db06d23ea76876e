"""Effects with a column per item, and the coherent window that their losses leave.

Shapes: D directions, K coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.analysis.effects import Window, coherent_window
from unmask.stages.effects.config import EffectsConfig
from unmask.stages.effects.plan import CONTROLS

if TYPE_CHECKING:
    import pandas as pd

RANDOM = ("random-isotropic", "random-span")
DESCRIBED = ("target", "kind", "label", "grouping", "group", "operation")


def floats(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.float64()) for name in names]


def by_items(effects: pd.DataFrame, *, column: str, items: Sequence[str]) -> pd.DataFrame:
    """A row per direction (over halves and replicates, by its label), operation and coefficient; a column per item.

    A value is the mean over replicates; NaN where the item was not tested with that direction.
    """
    table = effects.assign(**{name: effects[name].fillna("") for name in ("grouping", "group")})
    wide = table.pivot_table(
        index=[*DESCRIBED, "coefficient"], columns="question_id", values=column, aggfunc="mean", sort=False
    )
    return wide.reindex(columns=list(items))


def windows(config: EffectsConfig, losses: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """For each target its coherent window: of all tested directions, and of the random ones' median at each coefficient."""
    found: dict[str, dict[str, Any]] = {}
    mean = losses.mean(axis=1)
    kind = mean.index.get_level_values("kind")
    for target in dict.fromkeys(mean.index.get_level_values("target")):
        here = mean[(mean.index.get_level_values("target") == target) & ~kind.isin(("leace", "inlp"))]
        tested = here[~here.index.get_level_values("kind").isin(CONTROLS)].unstack("coefficient")
        chance = here[here.index.get_level_values("kind").isin(RANDOM)].unstack("coefficient").median(axis=0)
        coefficients = [float(value) for value in tested.columns]
        loss_DK = np.vstack([tested.to_numpy(), chance[tested.columns].to_numpy()[None]])
        window: Window = coherent_window(loss_DK, coefficients, most_loss=config.most_loss)
        found[str(target)] = {
            "coefficients": coefficients,
            "coherent": [bool(value) for value in window.coherent_K],
            "largest_loss": [float(value) for value in loss_DK.max(axis=0)],
            "chosen": window.chosen,
            "most_loss": config.most_loss,
        }
    return found


def plain(value: float | None) -> float | None:
    """A finite float, or None."""
    return None if value is None or not math.isfinite(value) else float(value)
