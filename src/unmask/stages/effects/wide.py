"""Effects with a column per item, and the coherent window that their losses leave.

Shapes: D directions, K coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.analysis.effects import Window, coherent_window
from unmask.artifact import finite
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
    """For each target the coherent window of every kind of direction: its own, and the random ones' median at each coefficient.

    What stands on top is that of mean shifts by dimension, which the verdict reads; where these are not tested, of all kinds.
    `kinds` holds every kind's own. A coefficient at which a loss is missing is not coherent.
    """
    found: dict[str, dict[str, Any]] = {}
    mean = losses.mean(axis=1)
    target_of, kind_of = (mean.index.get_level_values(name) for name in ("target", "kind"))
    for target in dict.fromkeys(map(str, target_of)):
        coefficients = sorted(config.coefficients if target == "base" else config.removals)
        here = mean[target_of == target]
        kinds = dict.fromkeys(str(kind) for kind, own in zip(kind_of, target_of, strict=True) if own == target)
        tested = [kind for kind in kinds if kind not in CONTROLS]
        each = {kind: _window(config, here, (kind,), coefficients) for kind in tested}
        top = each["dimension"] if "dimension" in each else _window(config, here, tested, coefficients)
        found[target] = {**top, "kinds": each, "most_loss": config.most_loss}
    return found


def _window(
    config: EffectsConfig, mean: pd.Series, kinds: Sequence[str], coefficients: Sequence[float]
) -> dict[str, Any]:
    kind_of = mean.index.get_level_values("kind")
    rows = mean[kind_of.isin(list(kinds))].unstack("coefficient").reindex(columns=coefficients)
    chance = mean[kind_of.isin(RANDOM)].unstack("coefficient").reindex(columns=coefficients).median(axis=0)
    loss_DK = np.vstack([rows.to_numpy(), chance.to_numpy()[None]])
    window: Window = coherent_window(loss_DK, coefficients, most_loss=config.most_loss)
    return {
        "coefficients": [float(value) for value in coefficients],
        "coherent": [bool(value) for value in window.coherent_K],
        "largest_loss": [finite(value) for value in loss_DK.max(axis=0)],
        "chosen": window.chosen,
    }
