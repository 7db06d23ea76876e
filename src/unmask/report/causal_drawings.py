"""Which figures of the causal tests a study has data for, with their names and what they show in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unmask.report import causal_figures, dose_figures, removal_figures
from unmask.report.causal_evidence import RANDOM, UNSTEERED, CausalEvidence
from unmask.report.causal_wording import group_name, title
from unmask.report.dose_figures import Allowed, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawing = tuple[str, str, "Figure"]
WHAT = {
    "base": "times the typical residual norm",
    "organism": "share of the direction's component taken out",
}


def causal_figures_of(causal: CausalEvidence, colours: Mapping[str, str]) -> Iterator[Drawing]:
    """(name, what it shows, figure): matrices, then doses read from log-odds, then doses of judged answers."""
    for record in causal.measured:
        yield matrix_name(record), f"Cross-talk matrix. {title(record)}.", _matrix(causal, record)
    for target in dict.fromkeys(causal.doses["target"]):
        yield from _effects(causal, str(target), colours)
    for target in causal.steering["targets"]:
        yield from _judged(causal, str(target), colours)


def matrix_name(record: Mapping[str, Any]) -> str:
    """`causal-base-dimension`: safe as a file's name and an element's id, whatever the artifact holds."""
    return safe(f"causal-{record['target']}-{record['kind']}")


def safe(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", name.lower())


def _matrix(causal: CausalEvidence, record: Mapping[str, Any]) -> Figure:
    """Both targets of one kind have one scale of colours."""
    alike = [one for one in causal.measured if one["kind"] == record["kind"]]
    limit = causal_figures.colour_limit([row for one in alike for row in causal.of(causal.matrix, one)])
    rows = causal.of(causal.matrix, record)
    names = list(dict.fromkeys(str(row["row"]) for row in rows))
    titles = [str(name) if record["grouping"] != "cluster" else group_name(name, record) for name in names]
    return causal_figures.cross_talk_map(
        rows, names=names, titles=titles, limit=limit, grouping=str(record["grouping"])
    )


def _effects(causal: CausalEvidence, target: str, colours: Mapping[str, str]) -> Iterator[Drawing]:
    table = causal.doses[(causal.doses["target"] == target) & (causal.doses["kind"] == "dimension")]
    rows = table.to_dict("records")
    if not rows:
        return
    random = random_doses(causal, target)
    alt = f"Effect of every dimension's direction on its own and on the other dimensions' answers, {target}."
    if table["coefficient"].nunique() > 1:
        figure = dose_figures.effect_doses(
            curves(rows, by="label"),
            random=random,
            allowed=Allowed.of(causal.summary["window"].get(target)),
            colours=colours,
            what=WHAT.get(target, ""),
        )
    else:
        figure = removal_figures.effect_dots(rows, random=random[0] if random else None, colours=colours)
    yield safe(f"doses-{target}"), alt, figure


def random_doses(causal: CausalEvidence, target: str) -> list[dict[str, Any]]:
    """At each coefficient the mean, the least and the most of the random directions' mean effects on all answers."""
    held = causal.effects[(causal.effects["target"] == target) & causal.effects["kind"].isin(RANDOM)]
    each = held.groupby(["coefficient", "direction_id"])["effect"].mean().groupby("coefficient")
    found = each.agg(["mean", "min", "max"])
    return [
        {"coefficient": float(place), "mean": float(row["mean"]), "least": float(row["min"]), "most": float(row["max"])}
        for place, row in zip(found.index.tolist(), found.to_dict("records"), strict=True)
    ]


def _judged(causal: CausalEvidence, target: str, colours: Mapping[str, str]) -> Iterator[Drawing]:
    rows: list[dict[Any, Any]] = causal.steered[causal.steered["target"] == target].to_dict("records")
    plain: Sequence[dict[Any, Any]] = [row for row in rows if row["kind"] == UNSTEERED]
    steered = [row for row in rows if row["kind"] != UNSTEERED]
    own = [row for row in steered if row["kind"] not in RANDOM]
    if not own:
        return
    unsteered = plain[0] if plain else {}
    alt = f"Misalignment and coherence of answers of the {target}: every direction, random directions, unsteered."
    if len({row["coefficient"] for row in steered}) > 1:
        chance = [row for row in steered if row["kind"] in RANDOM]
        figure = dose_figures.judged_doses(
            curves(own, by="direction_id"),
            random=curves(chance, by="direction_id"),
            unsteered=unsteered,
            allowed=Allowed.of(causal.steering["window"].get(target)),
            colours=colours,
            what=WHAT.get(target, "") if causal.steering["units"] != "raw" else "times the direction as it is",
        )
    else:
        figure = removal_figures.judged_dots(steered, unsteered=unsteered, colours=colours)
    yield safe(f"steering-{target}"), alt, figure
