"""Cross-talk matrices as heat maps, as a pure function: rows in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.report.drawing import styled
from unmask.report.formats import is_present, label, number
from unmask.report.palette import INK, MUTED, RULE, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_INTERVALS = 6
"""Groups up to which each cell has room for its interval."""

DARKEST = 0.62
"""Opacity of the largest effect: ink is legible on it in both themes."""

LONGEST_NAME = 26
STEPS = 41
Row = Mapping[str, Any]


def colour_limit(rows: Sequence[Row]) -> float:
    """The effect that has the full colour: the largest, whatever its sign."""
    return max((abs(float(row["effect"])) for row in rows if is_present(row["effect"])), default=0.0)


@styled
def cross_talk_map(
    rows: Sequence[Row], *, names: Sequence[str], titles: Sequence[str], limit: float, grouping: str
) -> Figure:
    """Mean effect of each group's direction (row) on each group's answers (column), nats per token, with 90 % intervals.

    Red: as the persona would have it, blue: the other way, `limit` with the full colour. Cells whose interval leaves out 0 are
    framed; a direction's own answers are bold.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(names)
    wide = min(9.6, 3.9 + 1.25 * count)
    tall = 2.0 + min(0.85, 6.5 / count) * count
    figure = Figure(figsize=(wide, tall), layout="constrained")
    axes, key = figure.subplots(2, 1, height_ratios=(tall - 0.75, 0.22))
    held = {(row["row"], row["column"]): row for row in rows}
    digits = 2 if colour_limit(rows) >= 0.1 else 3
    for y, direction in enumerate(names):
        for x, column in enumerate(names):
            row = held.get((direction, column))
            axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, linewidth=0, **_fill(row, limit)))
            if row is not None and excludes_zero(row):
                axes.add_patch(Rectangle((x - 0.475, y - 0.475), 0.95, 0.95, fill=False, edgecolor=INK, linewidth=1.2))
            _cell(axes, row, x=x, y=y, count=count, digits=digits)
    _name_axes(axes, titles, grouping)
    _key(key, limit)
    return figure


def excludes_zero(row: Row) -> bool:
    """Whether an effect's 90 % interval lies on one side of 0."""
    return is_present(row["low"]) and is_present(row["high"]) and (row["low"] > 0 or row["high"] < 0)


def _name_axes(axes: Axes, titles: Sequence[str], grouping: str) -> None:
    count = len(titles)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    flat = count <= 5
    axes.set_xticks(
        range(count),
        [broken(name) for name in titles],
        rotation=0 if flat else 40,
        ha="center" if flat else "left",
    )
    axes.set_yticks(range(count), [broken(name) for name in titles])
    axes.tick_params(length=0, labelcolor=INK, labeltop=True, labelbottom=False)
    axes.set_xlabel(f"answers of the {label(grouping)}")
    axes.xaxis.set_label_position("top")
    axes.set_ylabel(f"direction of the {label(grouping)}")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _fill(row: Row | None, limit: float) -> dict[str, Any]:
    if row is None or not is_present(row["effect"]):
        return {"facecolor": "none", "edgecolor": RULE, "hatch": "////"}
    return _tone(float(row["effect"]), limit)


def _tone(effect: float, limit: float) -> dict[str, Any]:
    share = min(abs(effect) / limit, 1.0) if limit > 0 else 0.0
    return {"facecolor": THEME["organism" if effect >= 0 else "blue"][0], "alpha": max(0.03, DARKEST * share)}


def _cell(axes: Axes, row: Row | None, *, x: int, y: int, count: int, digits: int) -> None:
    centred: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    size = 9.5 if count <= MOST_WITH_INTERVALS else max(5.0, 80 / count)
    if row is None or not is_present(row["effect"]):
        axes.text(x, y, "missing", ha="center", va="center", color=MUTED, fontsize=min(size, 7.5), style="italic")
        return
    room = count <= MOST_WITH_INTERVALS
    weight = "bold" if x == y else "normal"
    axes.text(x, y - (0.12 if room else 0), number(row["effect"], digits), **centred, fontsize=size, fontweight=weight)
    if room:
        known = is_present(row["low"]) and is_present(row["high"])
        text = f"[{number(row['low'], digits)}, {number(row['high'], digits)}]" if known else "no interval"
        axes.text(x, y + 0.2, text, **centred, fontsize=7.2)


def _key(axes: Axes, limit: float) -> None:
    """The colours from -limit to limit, with three numbers."""
    from matplotlib.patches import Rectangle

    places = np.linspace(-1, 1, STEPS)
    width = 2 / (STEPS - 1)
    for place in places:
        axes.add_patch(Rectangle((place - width / 2, 0), width, 1, linewidth=0, **_tone(float(place), 1.0)))
    axes.set(xlim=(-1 - width / 2, 1 + width / 2), ylim=(0, 1))
    axes.set_yticks([])
    axes.set_xticks([-1, 0, 1], [number(-limit, 2), "0", number(limit, 2)])
    axes.set_xlabel("effect on log-odds, nats per token, random directions taken off")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def broken(name: str) -> str:
    """A group's name over two lines, a facet's own part only, and no longer than there is room for."""
    text = label(str(name).rpartition("/")[2])
    return (text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…").replace(" ", "\n", 1)
