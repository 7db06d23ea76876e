"""Planted controls in the report: the rows in both units, the smallest effect of interest, and the power curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.report.drawing import styled
from unmask.report.formats import fine
from unmask.report.palette import INK, MUTED, THEME
from unmask.report.verdict_evidence import VerdictEvidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "isotropic": ("any direction (isotropic)", "blue", "o"),
    "hard": ("directions of the noise (hard)", "brown", "s"),
}
TARGET = 0.8
UNITS = ("rho", "eta")


@dataclass(frozen=True, slots=True)
class Interest:
    """The smallest effect of interest, on the scale whose limit it is."""

    scale: str
    effect: float


def planted_rows(verdict: VerdictEvidence) -> list[dict[str, Any]]:
    """Planted points at the verdict's site, weakest first, each with its effect in `rho`, `eta` and as a `multiple`.

    The multiple is of the smallest effect of interest; NaN where it is not known.
    """
    found = verdict.here(verdict.power)
    key = ["offsets", "runs", "detected", "share", "low", "high"]
    units = {scale: found[found["scale"] == scale].sort_values(["offsets", "effect"]) for scale in UNITS}
    units = {scale: rows for scale, rows in units.items() if len(rows)}
    if not units:
        return []
    rows: list[dict[str, Any]] = [
        {str(n): v for n, v in row.items()} for row in next(iter(units.values()))[key].to_dict("records")
    ]
    for scale in UNITS:
        effects = units[scale]["effect"].tolist() if scale in units else [float("nan")] * len(rows)
        for row, effect in zip(rows, effects, strict=True):
            row[scale] = float(effect)
    least = _interest(verdict, rows)
    for row in rows:
        row["multiple"] = row[least.scale] / least.effect if least is not None else float("nan")
    order = {"none": 0, "isotropic": 1, "hard": 2}
    return sorted(rows, key=lambda row: (order.get(row["offsets"], 3), row["rho"], row["eta"]))


def interest(verdict: VerdictEvidence) -> Interest | None:
    """The lesser of rho* and eta* in energy; None where nothing was planted."""
    return _interest(verdict, planted_rows(verdict))


def _interest(verdict: VerdictEvidence, rows: list[dict[str, Any]]) -> Interest | None:
    limits = {scale: verdict.number(f"{scale}_star") for scale in UNITS}
    one = next((row for row in rows if row["rho"] > 0 or row["eta"] > 0), None)
    known = [] if one is None else [(limit, scale) for scale, limit in limits.items() if limit and one[scale] > 0]
    if one is None or not known:
        return None
    limit, scale = min(known, key=lambda pair: pair[0] / one[pair[1]])
    return Interest(scale, limit)


@styled
def power_curve(verdict: VerdictEvidence) -> Figure:
    """Share of planted data sets in which k* was found, against the effect, with Wilson's intervals; 0: false positives."""
    from matplotlib.figure import Figure

    rows, least = planted_rows(verdict), interest(verdict)
    scale = least.scale if least is not None else "rho"
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots()
    none = [row for row in rows if row["offsets"] == "none"]
    for place, (kind, (name, role, marker)) in enumerate(KINDS.items()):
        points = sorted([*none, *(row for row in rows if row["offsets"] == kind)], key=lambda row: row[scale])
        _curve(axes, points, scale=scale, colour=THEME[role][0], marker=marker, name=name, shift=0.004 * (place - 0.5))
    for row in none:
        axes.plot([0], [row["share"]], "D", color=INK, markersize=6, zorder=4, label="nothing planted: false positives")
    axes.axhline(TARGET, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    alpha = verdict.number("alpha")
    if alpha is not None:
        axes.axhline(alpha, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
    top = max((row[scale] for row in rows), default=1.0) * 1.06
    axes.set(
        ylim=(-0.03, 1.3),
        xlim=(-0.03 * top, top),
        xlabel=f"planted effect, {scale}",
        ylabel="share in which k* is found",
    )
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    _marks(axes, verdict, least, scale=scale, top=top)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _curve(
    axes: Axes, points: list[dict[str, Any]], *, scale: str, colour: str, marker: str, name: str, shift: float
) -> None:
    if len(points) < 2:
        return
    places = np.array([row[scale] for row in points])
    places = places + shift * places.max() * (places > 0)  # so that whiskers of equal effects lie beside each other
    axes.plot(places, [row["share"] for row in points], marker=marker, color=colour, markersize=5, label=name)
    for place, row in zip(places, points, strict=True):
        axes.plot([place, place], [row["low"], row["high"]], color=colour, linewidth=1.6, alpha=0.55)


def _marks(axes: Axes, verdict: VerdictEvidence, least: Interest | None, *, scale: str, top: float) -> None:
    """Upright lines at the smallest effect of interest and at MDE80, their names above each other."""
    marks = [] if least is None else [(least.effect, f"smallest of interest: {least.effect:g}", INK)]
    found = verdict.number(f"mde80_{scale}")
    if found is not None:
        marks.append((found, f"MDE80: {fine(found)}", THEME["shift"][0]))
    for (x, text, colour), height in zip(marks, (1.1, 1.22), strict=False):
        axes.plot([x, x], [-0.03, height], color=colour, linewidth=1.1)
        left = x > 0.6 * top
        place: dict[str, Any] = {"xytext": (-4 if left else 4, 0), "ha": "right" if left else "left", "va": "center"}
        axes.annotate(text, (x, height), textcoords="offset points", color=colour, **place)
