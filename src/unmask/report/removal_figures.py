"""One dose of every direction, as dots with intervals: for where a curve against the coefficient would be two points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unmask.report.dose_tables import direction_name
from unmask.report.drawing import styled
from unmask.report.formats import is_present, label
from unmask.report.palette import INK, MUTED, PAPER, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 40
Row = Mapping[str, Any]


@styled
def effect_dots(rows: Sequence[Row], *, random: Row | None, colours: Mapping[str, str]) -> Figure:
    """Effect of each direction on its own answers (dot) and the others' (ring), 90 % intervals; grey: random directions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 1.3 + 0.44 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=0.9)
    if random is not None:
        axes.axvspan(float(random["least"]), float(random["most"]), color=MUTED, alpha=0.2, linewidth=0)
    for place, row in enumerate(rows):
        colour = _colour(row, colours)
        _dot(axes, row, "others", at=place + 0.16, colour=colour, hollow=True)
        _dot(axes, row, "own", at=place - 0.16, colour=colour, hollow=False)
    _names(axes, rows)
    axes.set_xlabel("effect, nats per token")
    return figure


@styled
def judged_dots(rows: Sequence[Row], *, unsteered: Row, colours: Mapping[str, str]) -> Figure:
    """Misalignment and coherence of answers at one dose of every direction, 95 % intervals; dotted line and band: unsteered."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 1.3 + 0.34 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, field in zip(panels, ("misalignment", "coherence"), strict=True):
        if is_present(unsteered.get(field)):
            axes.axvline(float(unsteered[field]), color=INK, linewidth=1, linestyle=(0, (1, 2)))
        low, high = unsteered.get(f"{field}_low"), unsteered.get(f"{field}_high")
        if is_present(low) and is_present(high):
            axes.axvspan(float(low), float(high), color=MUTED, alpha=0.13, linewidth=0)
        for place, row in enumerate(rows):
            _dot(axes, row, field, at=place, colour=_colour(row, colours), hollow=False)
        axes.set(xlabel=f"{field}, 0-100", xlim=(-2, 102))
    _names(panels[0], rows)
    panels[1].tick_params(axis="y", length=0)
    panels[1].grid(axis="y", visible=False)
    return figure


def _dot(axes: Axes, row: Row, field: str, *, at: float, colour: str, hollow: bool) -> None:
    value, low, high = (row.get(f"{field}{end}") for end in ("", "_low", "_high"))
    if not is_present(value):
        axes.annotate("missing", (axes.get_xlim()[0], at), color=MUTED, va="center", fontsize=7.5, style="italic")
        return
    if is_present(low) and is_present(high):
        axes.plot([float(low), float(high)], [at, at], color=colour, linewidth=2, alpha=0.6)
    fill = PAPER if hollow else colour
    axes.plot([float(value)], [at], "o", color=colour, markerfacecolor=fill, markersize=6, markeredgewidth=1.5)


def _names(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [_cut(direction_name(row)) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)


def _colour(row: Row, colours: Mapping[str, str]) -> str:
    if str(row["kind"]).startswith("random"):
        return MUTED
    return colours.get(str(row["group"]).split("/", maxsplit=1)[0], THEME["shift"][0])


def _cut(name: str) -> str:
    text = label(name)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
