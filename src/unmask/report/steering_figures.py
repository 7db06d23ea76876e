"""The dose figure of the steering, as a pure function: rows in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unmask.report.drawing import styled
from unmask.report.formats import is_present, label
from unmask.report.palette import INK, MUTED, SOURCE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 4
_ENDS = ("misalignment", "misalignment_low", "misalignment_high")


def dose_groups(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of the steering summary by direction, in the order they come; random directions are left out."""
    names = list(dict.fromkeys(row["direction_id"] for row in rows if row["kind"] not in {"random", "none"}))
    return [[row for row in rows if row["direction_id"] == name] for name in names]


@styled
def steering_dose(
    rows: Sequence[Mapping[str, Any]], *, unsteered: Mapping[str, Any], colours: Mapping[str, str], norm_unit: str
) -> Figure:
    """Misalignment and coherence by the signed norm that was added: each direction, random ones, and no steering.

    Each row holds `added` (signed norm) beside the summary's fields. Whiskers are 95 % intervals. Every line goes
    through the unsteered answers at norm zero.
    """
    from matplotlib.figure import Figure

    groups = dose_groups(rows)
    bands = max(1, -(-len(groups) // MOST_COLUMNS))
    columns = max(1, -(-len(groups) // bands))
    figure = Figure(figsize=(9.6, 3.5 * bands + 0.4), layout="constrained")
    grid = figure.subplots(2 * bands, columns, squeeze=False, sharex=True, sharey="row", height_ratios=(1.8, 1) * bands)
    controls = dose_controls(rows)
    for number in range(bands * columns):
        band, column = divmod(number, columns)
        upper, lower = grid[2 * band, column], grid[2 * band + 1, column]
        if number >= len(groups):
            upper.set_visible(False)
            lower.set_visible(False)
            continue
        group = groups[number]
        colour = colours.get(group[0]["label"], SOURCE_COLOURS["shift"])
        for axes, field in ((upper, "misalignment"), (lower, "coherence")):
            _unsteered(axes, unsteered, field)
            for control in controls:
                _dose(axes, control, unsteered, field, colour=MUTED, dashed=True)
            _dose(axes, group, unsteered, field, colour=colour, dashed=False)
        upper.set_title(label(group[0]["label"]), color=colour)
        upper.set_ylim(*_range([*rows, unsteered]))
        lower.set_ylim(0, 100)
        lower.tick_params(labelbottom=number + columns >= len(groups))
        if column == 0:
            upper.set_ylabel("misalignment, 0-100")
            lower.set_ylabel("coherence, 0-100")
    figure.supxlabel(f"added norm, {norm_unit}", fontsize=9, color=MUTED)
    return figure


def dose_controls(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of the random directions, by direction."""
    names = dict.fromkeys(row["direction_id"] for row in rows if row["kind"] == "random")
    return [[row for row in rows if row["direction_id"] == name] for name in names]


def _range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Limits that hold every mean and interval, within 0 to 100."""
    values = [float(row[field]) for row in rows for field in _ENDS if is_present(row.get(field))]
    return (max(0.0, min(values) - 3), min(100.0, max(values) + 3)) if values else (0.0, 100.0)


def _unsteered(axes: Axes, row: Mapping[str, Any], field: str) -> None:
    if is_present(row.get(field)):
        axes.axhline(float(row[field]), color=INK, linewidth=1, linestyle=(0, (1, 2)))
    low, high = row.get(f"{field}_low"), row.get(f"{field}_high")
    if is_present(low) and is_present(high):
        axes.axhspan(low, high, color=MUTED, alpha=0.13, linewidth=0)


def _dose(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    unsteered: Mapping[str, Any],
    field: str,
    *,
    colour: str,
    dashed: bool,
) -> None:
    start: dict[str, Any] = {**unsteered, "added": 0.0, f"{field}_low": None}  # the band shows its interval
    present = [row for row in (start, *rows) if is_present(row.get(field))]
    present.sort(key=lambda row: float(row["added"]))
    axes.plot(
        [float(row["added"]) for row in present],
        [float(row[field]) for row in present],
        marker="o",
        color=colour,
        linestyle=(0, (4, 2)) if dashed else "-",
        linewidth=1 if dashed else 1.8,
        markersize=3 if dashed else 5,
    )
    for row in present:
        low, high = row.get(f"{field}_low"), row.get(f"{field}_high")
        if is_present(low) and is_present(high):
            place = float(row["added"])
            axes.plot([place, place], [low, high], color=colour, linewidth=0.8 if dashed else 1.6, alpha=0.5)
