"""Figures on the decomposition, as pure functions: tables in, matplotlib Figure out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.report.drawing import LineEnd, label_ends, styled
from unmask.report.formats import label, short_site
from unmask.report.palette import INK, MUTED, PAPER, SOURCE_COLOURS, SOURCE_MARKERS, SOURCES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TICKS = 12
SPACES = {"pca": "reduced (PCA)", "full": "full width"}
MEASURES = {
    "silhouette": "silhouette",
    "ami_dimension": "AMI with dimension",
    "ami_facet": "AMI with facet",
}
"""Column to its name for people. AMI: adjusted mutual information, 0 = chance, 1 = the same partition."""


@styled
def k_overview(metrics: pd.DataFrame, *, sites: Sequence[str], primary_k: int) -> Figure:
    """Silhouette and agreement with the labels against k, a row per site; shift, organism and base share a panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.5 * len(sites) + 0.2), layout="constrained")
    grid = figure.subplots(len(sites), len(MEASURES), squeeze=False, sharey="col", sharex=True)
    reduced = metrics[metrics["space"] == "pca"]
    ks = sorted(int(k) for k in reduced["k"].unique())
    ends: list[tuple[Axes, list[LineEnd]]] = []
    for row, site in enumerate(sites):
        here = reduced[reduced["site"] == site]
        for column, (measure, name) in enumerate(MEASURES.items()):
            axes = grid[row, column]
            ends.append((axes, _lines(axes, here, measure, ks=ks)))
            _mark_k(axes, ks, primary_k)
            axes.set_title(name if column else f"{short_site(site)}: {name}")
            if row == len(sites) - 1:
                axes.set_xlabel("clusters k")
    for axes, places in ends:  # limits are shared by column: names can be placed only when all is drawn
        label_ends(axes, places, gap=0.1)
    return figure


def _lines(
    axes: Axes, metrics: pd.DataFrame, measure: str, *, ks: Sequence[int], dashed: bool = False
) -> list[LineEnd]:
    """Draw one line per source over the places of `ks`; returns where each ends."""
    ends = []
    for source in SOURCES:
        curve = metrics[metrics["source"] == source].groupby("k")[measure].mean().dropna()
        if curve.empty:
            continue
        colour = SOURCE_COLOURS[source]
        places = [ks.index(int(k)) for k in curve.index]
        axes.plot(
            places,
            curve.to_numpy(),
            color=colour,
            marker=SOURCE_MARKERS[source],
            markersize=3.5 if dashed else 4.5,
            markerfacecolor=PAPER if dashed else colour,
            linestyle=(0, (4, 2)) if dashed else "-",
            linewidth=1.2 if dashed else 1.6,
        )
        ends.append((float(places[-1]), float(curve.iloc[-1]), source, colour))
    return ends


def _mark_k(axes: Axes, ks: Sequence[int], primary_k: int) -> None:
    """Even places for the ks that were tried, as they are rarely even numbers; the primary one is marked."""
    axes.axhline(0, color=MUTED, linewidth=0.8)
    if primary_k in ks:
        axes.axvline(ks.index(primary_k), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    stride = -(-len(ks) // MOST_TICKS)
    axes.set_xticks(range(0, len(ks), stride), [str(k) for k in ks[::stride]])
    axes.set_xlim(-0.5, max(len(ks) - 0.75, 0.5))


@styled
def space_comparison(metrics: pd.DataFrame, *, site: str, primary_k: int) -> Figure:
    """The same measures in the reduced space (solid) and in the full one (dashed), a column per source."""
    from matplotlib.figure import Figure

    measures = ("silhouette", "ami_dimension")
    here = metrics[metrics["site"] == site]
    sources = [source for source in SOURCES if (here["source"] == source).any()]
    ks = sorted(int(k) for k in here["k"].unique())
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    grid = figure.subplots(len(measures), max(1, len(sources)), squeeze=False, sharey="row", sharex=True)
    ends: list[tuple[Axes, list[LineEnd]]] = []
    for column, source in enumerate(sources):
        for row, measure in enumerate(measures):
            axes = grid[row, column]
            own = here[here["source"] == source]
            drawn: list[LineEnd] = []
            for space, name in SPACES.items():
                lines = _lines(axes, own[own["space"] == space], measure, ks=ks, dashed=space == "full")
                drawn += [(x, y, name.split()[0], colour) for x, y, _, colour in lines]
            ends.append((axes, drawn))
            _mark_k(axes, ks, primary_k)
            if row == 0:
                axes.set_title(source, color=SOURCE_COLOURS[source])
            if row == len(measures) - 1:
                axes.set_xlabel("clusters k")
            if column == 0:
                axes.set_ylabel(MEASURES[measure])
    for axes, places in ends:
        label_ends(axes, places, gap=0.1)
    return figure


@styled
def composition(cluster_summary: pd.DataFrame, *, site: str, k: int, colours: Mapping[str, str]) -> Figure:
    """Questions in each cluster, stacked by dimension: shift, organism and base beside each other."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    here = cluster_summary[(cluster_summary["site"] == site) & (cluster_summary["k"] == k)]
    sources = [source for source in SOURCES if (here["source"] == source).any()]
    figure = Figure(figsize=(9.6, 1.5 + 0.34 * k), layout="constrained")
    grid = figure.subplots(1, max(1, len(sources)), squeeze=False, sharex=True)
    handles: dict[str, Any] = {}
    for axes, source in zip(grid[0], sources, strict=False):
        rows = here[here["source"] == source].sort_values(["size", "cluster"], ascending=[False, True])
        handles |= _stack(axes, rows, colours)
        axes.set_title(source, color=SOURCE_COLOURS[source])
        axes.set_xlabel("questions")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if handles:
        names = [name for name in colours if name in handles]
        figure.legend([handles[name] for name in names], [label(n) for n in names], loc="outside upper left", ncols=5)
    return figure


def _stack(axes: Axes, rows: pd.DataFrame, colours: Mapping[str, str]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    names = []
    for place, row in enumerate(rows.to_dict("records")):
        left = 0
        counts = json.loads(row["composition"])
        for dimension in [name for name in colours if counts.get(name)]:
            bar = axes.barh(place, counts[dimension], left=left, height=0.68, color=colours[dimension], linewidth=0)
            left += counts[dimension]
            handles[dimension] = bar
        axes.annotate(
            f"{row['size']}", (left, place), xytext=(4, 0), textcoords="offset points", va="center", color=MUTED
        )
        names.append("outliers" if row["outlier"] else f"cluster {row['cluster']}")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    return handles


def explained(variance: pd.DataFrame, *, source: str, site: str) -> list[float]:
    """Share of variance of each component, first to last."""
    rows = variance[(variance["source"] == source) & (variance["site"] == site)].sort_values("component")
    return [float(ratio) for ratio in rows["ratio"]]


def axis_name(component: int, shares: Sequence[float]) -> str:
    """`PC1 (12 % of variance)`."""
    share = f" ({100 * shares[component - 1]:.0f} % of variance)" if component <= len(shares) else ""
    return f"PC{component}{share}"


@styled
def geometry(
    shift_norm: Mapping[str, Mapping[str, float]], *, sites: Sequence[str], variance: pd.DataFrame, site: str
) -> Figure:
    """Size of the shift and share of its common move, by site; and how many components hold the variance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"relative_norm": "size of the shift", "mean_shift_share": "share of the common move"}
    units = {
        "relative_norm": "mean |shift| / typical residual norm",
        "mean_shift_share": "|mean shift|² / mean |shift|²",
    }
    for axes, (field, title) in zip(panels, titles.items(), strict=False):
        values = [shift_norm[name].get(field) for name in sites]
        heights = [np.nan if value is None else float(value) for value in values]
        axes.plot(range(len(sites)), heights, "o-", color=SOURCE_COLOURS["shift"])
        axes.set_xticks(range(len(sites)), [short_site(name).split(" (")[0].removeprefix("layer ") for name in sites])
        axes.set(title=title, ylabel=units[field], xlabel="layer")
        axes.set_xlim(-0.5, len(sites) - 0.5)
        axes.set_ylim(0, 1 if field == "mean_shift_share" else None)
    axes = panels[2]
    ends = []
    for source in SOURCES:
        shares = np.cumsum(explained(variance, source=source, site=site))
        if shares.size:
            axes.plot(np.arange(1, shares.size + 1), shares, color=SOURCE_COLOURS[source])
            ends.append((float(shares.size), float(shares[-1]), source, SOURCE_COLOURS[source]))
    axes.set(ylim=(0, 1.02), title=f"variance held, {short_site(site)}", xlabel="components", ylabel="cumulative share")
    label_ends(axes, ends, gap=0.09)
    return figure
