"""Dose and effect, as pure functions: log-odds against the coefficient, and judged answers against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.report.dose_tables import direction_name
from unmask.report.drawing import styled
from unmask.report.formats import is_present, label
from unmask.report.palette import INK, MUTED, RULE, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 4
LONGEST_NAME = 28
Row = Mapping[str, Any]
Curve = Sequence[Row]


@dataclass(frozen=True, slots=True)
class Allowed:
    """The coefficients at which answers stay coherent, and the one at which the matrices were read."""

    coefficients: tuple[float, ...]
    coherent: tuple[bool, ...]
    chosen: float | None

    @classmethod
    def of(cls, window: Mapping[str, Any] | None) -> Allowed:
        """From a summary's `window` of one target; nothing is allowed where there is none."""
        found = window or {}
        chosen = found.get("chosen")
        return cls(
            tuple(float(value) for value in found.get("coefficients", ())),
            tuple(bool(value) for value in found.get("coherent", ())),
            float(chosen) if is_present(chosen) else None,
        )

    @property
    def span(self) -> tuple[float, float] | None:
        """Smallest and largest coherent coefficient, 0 among them; None where no other is."""
        inside = [one for one, kept in zip(self.coefficients, self.coherent, strict=True) if kept]
        return (min(0.0, *inside), max(0.0, *inside)) if inside else None


def curves(rows: Sequence[Row], *, by: str) -> list[list[Row]]:
    """Rows by direction, in the order they come, each by coefficient."""
    held: dict[str, list[Row]] = {}
    for row in rows:
        held.setdefault(f"{row['kind']} {row[by]}", []).append(row)
    return [sorted(own, key=lambda row: float(row["coefficient"])) for own in held.values()]


@styled
def effect_doses(
    groups: Sequence[Curve], *, random: Sequence[Row], allowed: Allowed, colours: Mapping[str, str], what: str
) -> Figure:
    """Effect on own answers (solid) and on the others' (dashed) against the coefficient, 90 % intervals; a panel per direction.

    `random` rows hold coefficient, mean, least and most: of the mean effects of single random directions on all answers.
    """
    from matplotlib.figure import Figure

    figure, panels = _panels(Figure, len(groups), height=2.9)
    for axes, group in zip(panels, groups, strict=False):
        colour = colours.get(str(group[0]["group"]).split("/", maxsplit=1)[0], THEME["shift"][0])
        _window(axes, allowed)
        _chance(axes, random)
        _effect(axes, group, "others", colour=INK, own=False)
        _effect(axes, group, "own", colour=colour, own=True)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_title(_cut(direction_name(group[0])), color=colour)
    panels[0].set_ylabel("effect, nats per token")
    figure.supxlabel(f"coefficient, {what}", fontsize=9, color=MUTED)
    _legend(figure, groups, random)
    return figure


def _legend(figure: Figure, groups: Sequence[Curve], random: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=INK, linewidth=1.8, label="own answers"),
        Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label="the others' answers"),
    ]
    if random and groups:
        handles.append(Patch(facecolor=MUTED, alpha=0.2, label="random directions, least to most"))
    handles.append(Patch(facecolor="none", edgecolor=RULE, hatch="////", label="not coherent"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4)


@styled
def judged_doses(
    groups: Sequence[Curve],
    *,
    random: Sequence[Curve],
    unsteered: Row,
    allowed: Allowed,
    colours: Mapping[str, str],
    what: str,
) -> Figure:
    """Misalignment (above) and coherence (below) of steered answers against the coefficient; a panel per direction.

    Grey: random directions. Dotted line and band: unsteered answers. Whiskers are 95 % intervals; every line goes through the
    unsteered answers at 0.
    """
    from matplotlib.figure import Figure

    bands = max(1, -(-len(groups) // MOST_COLUMNS))
    columns = max(1, -(-len(groups) // bands))
    figure = Figure(figsize=(9.6, 3.4 * bands + 0.4), layout="constrained")
    grid = figure.subplots(2 * bands, columns, squeeze=False, sharex=True, sharey="row", height_ratios=(1.8, 1) * bands)
    limits = _range([unsteered, *(row for curve in (*groups, *random) for row in curve)])
    for number in range(bands * columns):
        band, column = divmod(number, columns)
        upper, lower = grid[2 * band, column], grid[2 * band + 1, column]
        if number >= len(groups):
            upper.set_visible(False)
            lower.set_visible(False)
            continue
        group = groups[number]
        colour = colours.get(str(group[0]["group"]).split("/", maxsplit=1)[0], THEME["shift"][0])
        for axes, field in ((upper, "misalignment"), (lower, "coherence")):
            _window(axes, allowed)
            _unsteered(axes, unsteered, field)
            for control in random:
                _dose(axes, control, unsteered, field, colour=MUTED, faint=True)
            _dose(axes, group, unsteered, field, colour=colour, faint=False)
        upper.set_title(_cut(direction_name(group[0])), color=colour)
        upper.set_ylim(*limits)
        lower.set_ylim(0, 106)
        lower.tick_params(labelbottom=number + columns >= len(groups))
        lower.locator_params(axis="x", nbins=4)
        if column == 0:
            upper.set_ylabel("misalignment")
            lower.set_ylabel("coherence")
    figure.supxlabel(f"coefficient, {what}", fontsize=9, color=MUTED)
    return figure


def _panels(figure_class: Any, count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    bands = max(1, -(-count // MOST_COLUMNS))
    columns = max(1, -(-count // bands))
    figure = figure_class(figsize=(9.6, height * bands + 0.5), layout="constrained")
    grid = figure.subplots(bands, columns, squeeze=False, sharex=True, sharey=True)
    panels = list(grid.ravel())
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _window(axes: Axes, allowed: Allowed) -> None:
    """Hatch what is not coherent, and mark the coefficient at which the matrices were read."""
    tried = (*allowed.coefficients, 0.0)
    low, high = min(tried), max(tried)
    inner_low, inner_high = allowed.span or (0.0, 0.0)
    for start, end in ((low, inner_low), (inner_high, high)):
        if end > start:
            axes.axvspan(start, end, facecolor="none", edgecolor=RULE, hatch="////", linewidth=0, zorder=0)
    if allowed.chosen is not None:
        axes.axvline(allowed.chosen, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))


def _chance(axes: Axes, random: Sequence[Row]) -> None:
    """From the least to the most of the random directions, and their mean."""
    start: Row = dict.fromkeys(("coefficient", "mean", "least", "most"), 0.0)
    rows = sorted((start, *random), key=lambda row: float(row["coefficient"]))
    places = [float(row["coefficient"]) for row in rows]
    least, most, middle = ([float(row[name]) for row in rows] for name in ("least", "most", "mean"))
    axes.fill_between(places, least, most, color=MUTED, alpha=0.2, linewidth=0)
    axes.plot(places, middle, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)


def _effect(axes: Axes, rows: Curve, field: str, *, colour: str, own: bool) -> None:
    present = [row for row in rows if is_present(row[field])]
    start: Row = {"coefficient": 0.0, field: 0.0}
    line = sorted((start, *present), key=lambda row: float(row["coefficient"]))
    axes.plot(
        [float(row["coefficient"]) for row in line],
        [float(row[field]) for row in line],
        color=colour,
        linestyle="-" if own else (0, (4, 2)),
        linewidth=1.8 if own else 1.2,
        marker="o" if own else None,
        markersize=4,
    )
    for row in present:
        low, high = row[f"{field}_low"], row[f"{field}_high"]
        if is_present(low) and is_present(high):
            place = float(row["coefficient"])
            ends = [float(low), float(high)]
            axes.plot([place, place], ends, color=colour, linewidth=2.4 if own else 1, alpha=0.45 if own else 0.9)


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    """Limits that hold every mean and interval, within 0 to 100."""
    fields = ("misalignment", "misalignment_low", "misalignment_high")
    values = [float(row[field]) for row in rows for field in fields if is_present(row.get(field))]
    return (max(0.0, min(values) - 3), min(100.0, max(values) + 3)) if values else (0.0, 100.0)


def _unsteered(axes: Axes, row: Row, field: str) -> None:
    if is_present(row.get(field)):
        axes.axhline(float(row[field]), color=INK, linewidth=1, linestyle=(0, (1, 2)))
    low, high = row.get(f"{field}_low"), row.get(f"{field}_high")
    if is_present(low) and is_present(high):
        axes.axhspan(float(low), float(high), color=MUTED, alpha=0.13, linewidth=0)


def _dose(axes: Axes, rows: Curve, unsteered: Row, field: str, *, colour: str, faint: bool) -> None:
    start: dict[str, Any] = {**unsteered, "coefficient": 0.0, f"{field}_low": None}  # the band shows its interval
    present = [row for row in (start, *rows) if is_present(row.get(field))]
    present.sort(key=lambda row: float(row["coefficient"]))
    axes.plot(
        [float(row["coefficient"]) for row in present],
        [float(row[field]) for row in present],
        marker="o",
        color=colour,
        linestyle=(0, (4, 2)) if faint else "-",
        linewidth=1 if faint else 1.8,
        markersize=2.5 if faint else 5,
        alpha=0.7 if faint else 1,
    )
    for row in present:
        low, high = row.get(f"{field}_low"), row.get(f"{field}_high")
        if not faint and is_present(low) and is_present(high):
            place = float(row["coefficient"])
            axes.plot([place, place], [float(low), float(high)], color=colour, linewidth=1.6, alpha=0.5)


def _cut(name: str) -> str:
    """A direction's name as a panel's title has room for."""
    text = label(name)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
