"""Tables of every dose: effects on log-odds, and steered answers as they were judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.report.causal_evidence import CONTROLS, UNSTEERED, CausalEvidence
from unmask.report.causal_tables import signed_ends
from unmask.report.formats import is_present, label, number, percent, signed
from unmask.report.tables import Row, Table

SHORT_NAMES = {"control": "control organism's shift", "shared": "shared shift"}
"""Names of directions where a kind has but one."""


def effect_doses(causal: CausalEvidence) -> Table:
    """Every direction and coefficient: effect on own, other and all answers."""
    rows = tuple(
        Row(
            (
                direction_name(row),
                f"{row['target']}, {row['kind']}",
                f"{row['coefficient']:g}",
                *(_effect(row, name) for name in ("own", "others", "all")),
                signed(row["loss"], 3),
                "yes" if row["coherent"] is True or row["coherent"] == 1 else "no",
            )
        )
        for row in causal.doses.to_dict("records")
    )
    columns = ("direction", "kind", "coefficient", "own [90 %]", "others [90 %]", "all", "loss", "coherent")
    caption = (
        "effects/doses.parquet, nats per token, random directions not taken off. Added to the base: how far answers move as "
        "the persona would have it; taken from the organism: how much of that goes away. -: the direction belongs to no group."
    )
    return Table(caption, columns, rows, words=2)


def judged_doses(causal: CausalEvidence) -> Table:
    """Every dose of steered answers."""
    rows = []
    for row in causal.steered.to_dict("records"):
        absent = int(row["missing"])
        plain = row["kind"] == UNSTEERED
        cells = (
            "none" if plain else direction_name(row),
            f"{row['target']}, unsteered" if plain else f"{row['target']}, {row['kind']}",
            "" if plain else f"{row['coefficient']:g}",
            f"{int(row['n'])} ({absent} missing)" if absent else f"{int(row['n'])}",
            _scored(row, "misalignment", absent=absent),
            "" if plain else _scored(row, "difference", absent=absent, sign=True),
            number(row["coherence"], 0, absent=absent),
            percent(row["refusal_rate"]),
            number(row["perplexity"]),
            "yes" if row["coherent"] is True or row["coherent"] == 1 else "no",
        )
        rows.append(Row(cells, "total" if plain else "control" if row["kind"] in CONTROLS else ""))
    columns = ("direction", "model, kind", "coefficient", "scored", "misalignment [95 %]", "change [95 %]")
    columns += ("coherence", "refusals", "perplexity", "coherent")
    caption = (
        f"steering/doses.parquet; scores by {causal.steering['judge']}, perplexity by the base model. Intervals over questions "
        "(Student's t below 20, bootstrap from there); the change is from the unsteered answers to the same questions. "
        f"Coherent: mean coherence of at least {causal.steering['coherent_above']:g} here and at every smaller dose of the sign."
    )
    return Table(caption, columns, tuple(rows), words=2)


def direction_name(row: Mapping[str, Any]) -> str:
    """A direction for people, as short as its kind allows."""
    if isinstance(row["group"], str) and row["kind"] != "cluster":
        return label(row["group"].replace("/", ", "))
    return SHORT_NAMES.get(str(row["kind"]), label(row["label"]))


def _effect(row: Mapping[str, Any], name: str) -> str:
    """An effect with its interval; of all answers only the mean, whose interval stands among the controls."""
    if not is_present(row[name]):
        return "-"
    middle = signed(row[name], 3)
    return middle if name == "all" else f"{middle} {signed_ends(row[f'{name}_low'], row[f'{name}_high'])}"


def _scored(row: Mapping[str, Any], field: str, *, absent: int, sign: bool = False) -> str:
    """`mean [low, high]`, without the ends where there are none."""
    middle, low, high = (row[f"{field}{end}"] for end in ("", "_low", "_high"))
    form = signed if sign else number
    if not is_present(middle):
        return number(None, absent=absent)
    known = is_present(low) and is_present(high)
    return form(middle) + (f" [{form(low)}, {form(high)}]" if known else "")
