"""What each direction does to all answers, beside the controls: random ones, shuffled ones, another tuning's, a wrong cluster's.

Shapes: Q questions, G clusters that have a direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.effects import Interval, dose_curve
from unmask.report.causal_evidence import CONTROLS, RANDOM, CausalEvidence
from unmask.report.causal_tables import signed_ends
from unmask.report.causal_wording import VERB
from unmask.report.formats import fine, label, signed, whole
from unmask.report.tables import Row, Table

if TYPE_CHECKING:
    import pandas as pd

WRONG = "wrong cluster"
"""What the row is called that shows clusters' directions on answers of other clusters."""
NAMES = {
    "random-isotropic": "random directions, any",
    "random-span": "random directions, in the span of activations",
    "shuffled": "mean shifts of random sets of questions",
    "control": "mean shift of the control organism",
    "shared": "mean shift of all questions (shared)",
    "leace": "LEACE eraser",
    "inlp": "INLP eraser",
    WRONG: "mean shifts of clusters, on other clusters' answers",
}
FIRST = ("shared", "dimension", "facet", "cluster", "specific", "component", "score", "probe", "leace", "inlp", "file")
LAST = ("control", "shuffled", WRONG, *RANDOM)
SEED, RESAMPLES = 13, 1000


def controls_table(causal: CausalEvidence, target: str, *, coefficient: float | None) -> Table:
    """What each direction does to all answers, controls last; at one coefficient, or at all (None)."""
    table = causal.controls[causal.controls["target"] == target]
    found: list[dict[Any, Any]] = [*table.to_dict("records"), *wrong_clusters(causal, target)]
    if coefficient is not None:
        found = [row for row in found if abs(row["coefficient"] - coefficient) < 1e-9]
    order = (*FIRST, *LAST)
    found.sort(key=lambda row: (order.index(row["kind"]) if row["kind"] in order else len(FIRST), row["coefficient"]))
    rows = tuple(
        Row(
            (
                NAMES.get(row["kind"], label(row["label"])),
                label(row["kind"]),
                f"{row['coefficient']:g}",
                signed(row["effect"], 3),
                signed_ends(row["low"], row["high"]),
                signed(row["loss"], 3),
                fine(row["random_as_large"], absent="-"),
                whole(row["directions"]),
            ),
            "control" if row["kind"] in (*CONTROLS, WRONG) else "",
        )
        for row in found
    )
    columns = ("direction", "kind", "coefficient", "effect on all answers", "90 % interval", "loss", "random as large")
    caption = (
        f"effects/controls.parquet, target {target}. Effect: nats per token, random directions not taken off. Loss: nats per "
        "token that both answers lose, the price in fluency. Random as large: share of random directions, the direction "
        "itself counted in, whose mean effect is at least as large, whatever its sign. Of several directions the mean is shown."
    )
    if any(row["kind"] == WRONG for row in found):
        caption += (
            f" Kind {WRONG}: from effects.parquet, each cluster's direction on the questions of the other clusters."
        )
    return Table(caption, (*columns, "directions"), rows, words=2)


def wrong_clusters(causal: CausalEvidence, target: str) -> list[dict[str, Any]]:
    """By coefficient, as rows of `controls.parquet`: clusters' directions on other clusters' answers, and `own` on their own.

    Each question's effect is the mean over the directions of the clusters that it is not in. Empty where none was tested.
    """
    held = causal.effects[(causal.effects["target"] == target) & (causal.effects["kind"] == "cluster")]
    cluster_of = dict(zip(causal.items["question_id"], causal.items["cluster"].astype(str), strict=True))
    rows = []
    for coefficient, part in held.groupby("coefficient"):
        effect, own = (_mean(part, cluster_of, column="effect", at_home=at_home) for at_home in (False, True))
        rows.append(
            {
                "target": target,
                "kind": WRONG,
                "label": WRONG,
                "coefficient": float(coefficient),
                **dict(zip(("effect", "low", "high"), effect, strict=True)),
                **dict(zip(("own", "own_low", "own_high"), own, strict=True)),
                "loss": _mean(part, cluster_of, column="loss", at_home=False)[0],
                "random_as_large": None,
                "directions": part["group"].nunique(),
            }
        )
    return rows


def _mean(effects: pd.DataFrame, cluster_of: Mapping[str, str], *, column: str, at_home: bool) -> Interval:
    """Mean over questions with its 90 % interval, as the stage `effects` takes it of other controls."""
    by_QG = effects.groupby(["question_id", "group"], sort=False)[column].mean().unstack()
    own_Q1 = by_QG.index.map(cluster_of).to_numpy(dtype=str)[:, None]
    home_QG = own_Q1 == by_QG.columns.to_numpy(dtype=str)
    values_Q = by_QG.where(home_QG if at_home else ~home_QG).mean(axis=1).to_numpy(dtype=float)
    rng = np.random.default_rng(SEED)
    nobody_Q = np.full(len(values_Q), "")
    return dose_curve(values_Q[:, None], nobody_Q, None, [0.0], rng=rng, resamples=RESAMPLES)[0].every


def beside_wrong_clusters(causal: CausalEvidence, target: str) -> str:
    """What a wrong cluster's direction does, beside the cluster's own; empty where no cluster's was tested."""
    at = causal.shown_at(target)
    row = next(
        (one for one in wrong_clusters(causal, target) if at is not None and abs(one["coefficient"] - at) < 1e-9), None
    )
    if row is None:
        return ""
    return (
        f"A wrong cluster's direction, {VERB.get(target, 'used')} at coefficient {row['coefficient']:g}, moves a question's "
        f"answers by {signed(row['effect'], 3)} {signed_ends(row['low'], row['high'])} (the mean over the clusters that the "
        f"question is not in), its own cluster's by {signed(row['own'], 3)} {signed_ends(row['own_low'], row['own_high'])}; "
        "random directions are not taken off. Which cluster a question is in was decided with that question, so this only "
        "describes."
    )
