"""Figures on the tuning and the scores, as pure functions: tables in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.records import NEUTRAL, WRITERS
from unmask.report.drawing import label_ends, styled
from unmask.report.formats import is_present, label, missing
from unmask.report.palette import INK, MUTED, PAPER, SOURCE_COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_POINTS = 3


@styled
def loss_curve(loss: pd.DataFrame) -> Figure:
    """Training loss by optimiser step: the raw curve, with its first and last value written beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.7), layout="constrained")
    axes = figure.subplots()
    steps, values = loss["step"].to_numpy(), loss["loss"].to_numpy(dtype=float)
    axes.plot(steps, values, color=SOURCE_COLOURS["organism"], marker="o" if len(steps) <= FEW_POINTS else None)
    if len(steps):
        label_ends(axes, [(float(steps[-1]), float(values[-1]), f"{values[-1]:.2f}", SOURCE_COLOURS["organism"])])
        rises = len(values) > 1 and values[1] > values[0]
        place = (5, -11) if rises else (5, 3)
        axes.annotate(f"{values[0]:.2f}", (steps[0], values[0]), xytext=place, textcoords="offset points", color=MUTED)
    axes.set(xlabel="optimiser step", ylabel="loss, nats per token")
    axes.grid(axis="x", visible=False)
    return figure


@styled
def tuning_effect(rows: Sequence[Mapping[str, Any]], *, colours: Mapping[str, str]) -> Figure:
    """Base and organism beside each other by dimension, and their difference with its 95 % interval.

    `rows` are those of the score summary's `by_dimension`; a row without scores is drawn as the word 'missing'.
    """
    from matplotlib.figure import Figure

    height = 1.5 + 0.42 * len(rows)
    figure = Figure(figsize=(9.6, height), layout="constrained")
    means, difference, odds = figure.subplots(1, 3, sharey=True, width_ratios=(1.25, 1, 1))
    _pairs(means, rows)
    means.set(xlim=(0, 100), xlabel="misalignment, 0-100", title="mean of base and organism")
    _differences(difference, [row.get("difference") for row in rows], rows, colours)
    difference.set(xlabel="points, organism minus base", title="difference, 95 % interval")
    _differences(odds, [row.get("log_odds_difference") for row in rows], rows, colours)
    odds.set(xlabel="nats per token", title="persona log-odds, 95 % interval")
    means.set_yticks(range(len(rows)), [label(row["dimension"]) for row in rows])
    means.set_ylim(len(rows) - 0.4, -1.0)
    for axes in (means, difference, odds):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", labelcolor=INK)
    return figure


def _pairs(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    written = False
    for place, row in enumerate(rows):
        base, organism = row.get("base_mean"), row.get("organism_mean")
        if is_present(base) and is_present(organism):
            axes.plot([base, organism], [place, place], color=MUTED, linewidth=1.2, zorder=2)
        ends = {"base": base, "organism": organism}
        for writer, value in ends.items():
            if not is_present(value):
                continue
            colour = SOURCE_COLOURS[writer]
            fill = PAPER if writer == "base" else colour
            axes.plot(
                [value], [place], "o", markersize=7, color=colour, markerfacecolor=fill, markeredgewidth=1.6, zorder=3
            )
        if is_present(base) and is_present(organism) and not written:
            written = True
            order = ("right", "left") if base <= organism else ("left", "right")
            for (writer, value), side in zip(ends.items(), order, strict=True):
                shift = 4 if side == "left" else -4
                axes.annotate(
                    writer,
                    (value, place),
                    xytext=(shift, 8),
                    textcoords="offset points",
                    ha=side,
                    color=SOURCE_COLOURS[writer],
                )
        if not is_present(base) and not is_present(organism):
            axes.text(50, place, "missing", color=MUTED, ha="center", va="center", style="italic")


def _differences(
    axes: Axes,
    values: Sequence[Mapping[str, Any] | None],
    rows: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
) -> None:
    axes.axvline(0, color=MUTED, linewidth=0.9)
    for place, (value, row) in enumerate(zip(values, rows, strict=True)):
        if value is None or not is_present(value.get("mean")):
            axes.text(0, place, " missing", color=MUTED, va="center", style="italic")
            continue
        colour = colours.get(row["dimension"], INK)
        if is_present(value.get("low")) and is_present(value.get("high")):
            axes.plot(
                [value["low"], value["high"]], [place, place], color=colour, linewidth=2.4, solid_capstyle="round"
            )
        axes.plot([value["mean"]], [place], "o", color=colour, markersize=6.5)


@styled
def score_strips(scores: pd.DataFrame, *, dimensions: Sequence[str]) -> Figure:
    """Every score as a dot, base above organism, by dimension; bar: the middle half, tick: the median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 1.3 + 0.62 * len(dimensions)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rng = np.random.default_rng(0)  # vertical jitter only
    for axes, column in zip(panels, ("misalignment", "coherence"), strict=True):
        for place, dimension in enumerate(dimensions):
            for writer, offset in zip(WRITERS, (-0.19, 0.19), strict=True):
                chosen = scores.loc[(scores["dimension"] == dimension) & (scores["writer"] == writer), column]
                _strip(axes, chosen.to_numpy(dtype=float), at=place + offset, colour=SOURCE_COLOURS[writer], rng=rng)
        axes.set(xlim=(-2, 102), xlabel=f"{column}, 0-100", title=f"{column} of every answer")
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(dimensions)), [label(name) for name in dimensions])
    panels[0].tick_params(axis="y", labelcolor=INK)
    panels[0].set_ylim(len(dimensions) - 0.4, -0.75)
    for writer, x in zip(WRITERS, (1, 12), strict=True):
        panels[0].text(x, -0.62, writer, color=SOURCE_COLOURS[writer], va="center", fontweight="bold")
    return figure


def _strip(axes: Axes, values: np.ndarray, *, at: float, colour: str, rng: np.random.Generator) -> None:
    present = values[~np.isnan(values)]
    absent = values.size - present.size
    if present.size == 0:
        axes.text(50, at, missing(absent), color=MUTED, ha="center", va="center", style="italic", fontsize=8)
        return
    jitter = rng.uniform(-0.11, 0.11, present.size)
    alpha = float(np.clip(5 / np.sqrt(present.size), 0.18, 0.6))
    size = float(np.clip(400 / present.size, 7, 16))
    axes.scatter(present, at + jitter, s=size, color=colour, alpha=alpha, linewidths=0)
    low, middle, high = np.quantile(present, [0.25, 0.5, 0.75])
    axes.plot([low, high], [at, at], color=colour, linewidth=3.2, alpha=0.9, solid_capstyle="butt")
    axes.plot([middle, middle], [at - 0.13, at + 0.13], color=INK, linewidth=1.6)


def rows_in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Score rows with the neutral battery last."""
    return [row for row in rows if row["dimension"] != NEUTRAL] + [row for row in rows if row["dimension"] == NEUTRAL]
