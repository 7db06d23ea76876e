"""Static maps of the questions at their first two principal components, coloured by dimension, cluster or score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from unmask.report.cluster_figures import axis_name, explained
from unmask.report.drawing import styled
from unmask.report.formats import label
from unmask.report.palette import CATEGORICAL, MUTED, SOURCE_COLOURS, SOURCES, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Paint = Callable[["Axes", pd.DataFrame, str], dict[str, Any]]
"""Draws the rows of one source and returns the handles of its legend by name."""

DOT: dict[str, Any] = {"s": 12, "alpha": 0.75, "linewidths": 0}


@styled
def by_dimension(
    coordinates: pd.DataFrame,
    *,
    dimension_of: Mapping[str, str],
    colours: Mapping[str, str],
    variance: pd.DataFrame,
    site: str,
) -> Figure:
    """Every question at one site, for shift, organism and base, coloured by its dimension."""

    def paint(axes: Axes, rows: pd.DataFrame, source: str) -> dict[str, Any]:
        dimension = rows["question_id"].map(dimension_of)
        return {
            label(name): axes.scatter(*_at(rows[dimension == name]), color=colours[name], **DOT)
            for name in colours
            if (dimension == name).any()
        }

    return _maps(coordinates, variance, site, paint)


@styled
def by_cluster(
    coordinates: pd.DataFrame, *, clusters: pd.DataFrame, k: int, variance: pd.DataFrame, site: str
) -> Figure:
    """Every question at one site, coloured by its cluster; cluster numbers of different sources are unrelated."""
    here = clusters[(clusters["site"] == site) & (clusters["k"] == k)]

    def paint(axes: Axes, rows: pd.DataFrame, source: str) -> dict[str, Any]:
        own = here[here["source"] == source]
        cluster = rows["question_id"].map(dict(zip(own["question_id"], own["cluster"], strict=True)))
        return {
            f"cluster {number}": axes.scatter(
                *_at(rows[cluster == number]), color=THEME[CATEGORICAL[number % len(CATEGORICAL)]][0], **DOT
            )
            for number in range(k)
        }

    return _maps(coordinates, variance, site, paint)


@styled
def by_score(coordinates: pd.DataFrame, *, scores: pd.DataFrame, variance: pd.DataFrame, site: str) -> Figure:
    """Every question at one site, coloured by the mean misalignment of its answers; missing scores are grey rings.

    Shift and organism take the organism's score, base the base model's.
    """
    means = scores.groupby(["writer", "question_id"])["misalignment"].mean()
    drawn: list[Any] = []

    def paint(axes: Axes, rows: pd.DataFrame, source: str) -> dict[str, Any]:
        writer = "base" if source == "base" else "organism"
        own = means.loc[writer].to_dict() if writer in means.index.get_level_values("writer") else {}
        score = rows["question_id"].map(own)
        known = score.notna()
        handles = {}
        if not known.all():
            handles["score missing"] = axes.scatter(
                *_at(rows[~known]), s=12, facecolors="none", edgecolors=MUTED, linewidths=0.8
            )
        if known.any():
            drawn.append(
                axes.scatter(*_at(rows[known]), c=score[known].astype(float), cmap="cividis", vmin=0, vmax=100, **DOT)
            )
        return handles

    figure = _maps(coordinates, variance, site, paint)
    if drawn:
        bar = figure.colorbar(drawn[-1], ax=figure.axes, shrink=0.8, pad=0.01)
        bar.set_label("misalignment, 0-100")
    return figure


def _at(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return rows["pc1"], rows["pc2"]


def _maps(coordinates: pd.DataFrame, variance: pd.DataFrame, site: str, paint: Paint) -> Figure:
    from matplotlib.figure import Figure

    here = coordinates[coordinates["site"] == site]
    sources = [source for source in SOURCES if (here["source"] == source).any()]
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    grid = figure.subplots(1, max(1, len(sources)), squeeze=False)
    handles: dict[str, Any] = {}
    for axes, source in zip(grid[0], sources, strict=False):
        handles |= paint(axes, here[here["source"] == source], source)
        axes.set_title(source, color=SOURCE_COLOURS[source])
        shares = explained(variance, source=source, site=site)
        axes.set(xlabel=axis_name(1, shares), ylabel=axis_name(2, shares))
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=6)
    return figure
