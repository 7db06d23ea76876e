"""Cross-talk matrices from effects by item.

Shapes: F groups, N items, R random directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.analysis.crosstalk import CrossTalk, cross_talk
from unmask.artifact import finite
from unmask.stages.effects.config import EffectsConfig
from unmask.stages.effects.wide import RANDOM, by_items, floats

if TYPE_CHECKING:
    import pandas as pd

MATRIX_KINDS = ("dimension", "facet", "cluster", "specific")
"""Kinds whose directions belong to groups of questions."""

MATRIX = pa.schema(
    [
        *((name, pa.string()) for name in ("target", "kind", "grouping")),
        *floats("coefficient"),
        *((name, pa.string()) for name in ("row", "column")),
        *floats("effect", "low", "high", "random_mean", "random_sd"),
        ("items", pa.int32()),
    ]
)
SELECTIVITY = pa.schema(
    [
        *((name, pa.string()) for name in ("target", "kind", "grouping", "group")),
        *floats("own", "others", "selectivity", "low", "high", "index", "index_low", "index_high", "p", "p_holm"),
    ]
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A cross-talk matrix, or the reason why there is none. `replicate_sd` is the SD of X over halvings."""

    target: str
    kind: str
    grouping: str
    coefficient: float | None
    found: CrossTalk | None
    reason: str | None
    replicate_sd: float | None = None
    groups_left_out: tuple[str, ...] = ()


def matrices(
    config: EffectsConfig, effects: pd.DataFrame, items: pd.DataFrame, window: dict[str, Any]
) -> Iterator[Matrix]:
    """The cross-talk matrix of every target and kind of direction that belongs to groups, at the coefficient chosen."""
    names = items["question_id"].tolist()
    for target in dict.fromkeys(effects["target"]):
        own = effects[effects["target"] == target]
        for kind in MATRIX_KINDS:
            part = own[own["kind"] == kind]
            if not len(part):
                continue
            grouping = str(part["grouping"].iloc[0])
            coefficient = window[str(target)]["kinds"][kind]["chosen"]
            where = (str(target), kind, grouping, coefficient)
            if coefficient is None:
                yield Matrix(*where, None, "no coefficient is inside the coherent window")
                continue
            at = own[own["coefficient"] == coefficient]
            random_RN = by_items(at[at["kind"].isin(RANDOM)], column="effect", items=names).to_numpy()
            groups_N = items[grouping].to_numpy(dtype=str)
            part, left_out = complete(part[part["coefficient"] == coefficient])
            try:
                found = _cross_talk(config, by_items(part, column="effect", items=names), random_RN, groups_N)
            except ValueError as error:
                yield Matrix(*where, None, str(error), groups_left_out=left_out)
                continue
            each = [by_items(rows, column="effect", items=names) for _, rows in part.groupby("replicate")]
            spread = _replicate_sd(config, each, random_RN, groups_N)
            yield Matrix(*where, found, None, spread, groups_left_out=(*left_out, *absent(part, found)))


def complete(part: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The effects of groups that have a direction from every half of every replicate, and the names of the others.

    A group without one in some half would take that half's questions from all groups.
    """
    made = part.drop_duplicates(["group", "replicate", "half"]).groupby("group", sort=False).size()
    short = tuple(str(name) for name in made[made < made.max()].index)
    return part[~part["group"].isin(short)], short


def absent(part: pd.DataFrame, found: CrossTalk) -> list[str]:
    """Groups that have directions and too few questions with a pair of answers."""
    return [str(name) for name in dict.fromkeys(part["group"]) if name not in found.names]


def _cross_talk(config: EffectsConfig, rows: pd.DataFrame, random_RN: np.ndarray, groups_N: np.ndarray) -> CrossTalk:
    """T5 of one kind's directions (`rows` as `by_items` makes them); groups that have a direction and two items count."""
    known = [str(group) for group in rows.index.get_level_values("group")]
    there_N = np.isfinite(rows.to_numpy()).all(axis=0)
    counted = [group for group in known if (groups_N[there_N] == group).sum() >= 2]
    if len(counted) < 2:
        raise ValueError("fewer than two groups have a direction and two questions with a pair of answers")
    kept_N = np.isin(groups_N, counted)
    effects_FN = rows.to_numpy()[[known.index(group) for group in counted]]
    return cross_talk(
        effects_FN[:, kept_N],
        random_RN[:, kept_N],
        groups_N[kept_N],
        names=counted,
        resamples=config.resamples,
        permutations=config.permutations,
        rng=np.random.default_rng([config.seed, 11]),
    )


def _replicate_sd(
    config: EffectsConfig, each: Sequence[pd.DataFrame], random_RN: np.ndarray, groups_N: np.ndarray
) -> float | None:
    """SD over replicates of the cross-talk X; None with one replicate, or where one has no X."""
    try:
        found = [_cross_talk(config, rows, random_RN, groups_N).x for rows in each]
    except ValueError:
        return None
    return float(np.std(found, ddof=1)) if len(found) > 1 and np.isfinite(found).all() else None


def matrix_rows(found: Sequence[Matrix]) -> Iterator[dict[str, Any]]:
    """Rows of MATRIX."""
    for matrix in found:
        talk = matrix.found
        if talk is None:
            continue
        for i, row in enumerate(talk.names):
            for j, column in enumerate(talk.names):
                yield {
                    **_of(matrix),
                    "coefficient": matrix.coefficient,
                    "row": row,
                    "column": column,
                    "effect": float(talk.effects_FF[i, j]),
                    "low": float(talk.low_FF[i, j]),
                    "high": float(talk.high_FF[i, j]),
                    "random_mean": float(talk.random_mean_F[j]),
                    "random_sd": finite(talk.random_sd_F[j]),
                    "items": int(talk.items_F[j]),
                }


def selectivity_rows(found: Sequence[Matrix]) -> Iterator[dict[str, Any]]:
    """Rows of SELECTIVITY."""
    for matrix in found:
        talk = matrix.found
        if talk is None:
            continue
        columns = {
            "own": talk.own_F,
            "others": talk.others_F,
            "selectivity": talk.selectivity_F,
            "low": talk.selectivity_low_F,
            "high": talk.selectivity_high_F,
            "index": talk.index_F,
            "index_low": talk.index_low_F,
            "index_high": talk.index_high_F,
            "p": talk.p_F,
            "p_holm": talk.p_holm_F,
        }
        for place, group in enumerate(talk.names):
            yield {**_of(matrix), "group": group, **{name: finite(each[place]) for name, each in columns.items()}}


def matrix_record(matrix: Matrix) -> dict[str, Any]:
    """What `summary.json` says of a matrix."""
    talk = matrix.found
    record = {**_of(matrix), "coefficient": matrix.coefficient, "reason": matrix.reason}
    record["groups_left_out"] = list(matrix.groups_left_out)
    names = ("x", "x_low", "x_high", "p", "potent_share", "rank1", "rank1_low", "rank1_high", "split_half_rank1")
    if talk is None:
        return {**record, "outcome": None, **dict.fromkeys(names), "replicate_sd": None, "groups": [], "items": 0}
    found = {name: finite(getattr(talk, name)) for name in names}
    if found["x_low"] is None:  # no mean effect on the own group to be a ratio of
        found["x"] = None
    return {
        **record,
        "outcome": talk.outcome,
        **found,
        "replicate_sd": finite(matrix.replicate_sd),
        "groups": list(talk.names),
        "items": talk.items,
        "dropped": talk.dropped,
    }


def _of(matrix: Matrix) -> dict[str, str]:
    return {"target": matrix.target, "kind": matrix.kind, "grouping": matrix.grouping}
