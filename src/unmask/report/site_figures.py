"""Figures over all sites: the verdict at each, and rho, eta, T2 and k_adj by site, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unmask.report.drawing import styled
from unmask.report.formats import is_present, label
from unmask.report.palette import INK, MUTED, PAPER, RULE, SOURCE_COLOURS, THEME
from unmask.report.verdict_evidence import NOT_TESTABLE, VERDICTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = dict(zip(VERDICTS, "NMESI", strict=True))
ROLES = dict(zip(VERDICTS, ("pink", "blue", "orange", "green", "grey"), strict=True))
MOST_TICKS = 14
LOWEST, HIGHEST = -0.2, 1.0
"""Shares drawn outside these are set to the edge and marked: noise can give any value where there is no mean shift."""


def by_layer(sites: Sequence[str]) -> list[str]:
    """Sites by kind of hook in the order in which kinds first come, then by layer."""
    kinds = list(dict.fromkeys(_kind(site) for site in sites))
    return sorted(dict.fromkeys(sites), key=lambda site: (kinds.index(_kind(site)), _layer(site), site))


def _kind(site: str) -> str:
    return re.sub(r"\.\d+\.", ".", site, count=1)


def _layer(site: str) -> int:
    found = re.search(r"\.(\d+)\.", site)
    return int(found[1]) if found else -1


def site_ticks(sites: Sequence[str]) -> list[str]:
    """A layer's number; with the kind of hook where there are several kinds."""
    many = len({_kind(site) for site in sites}) > 1
    short = [site.rpartition(".")[2].removeprefix("hook_").removeprefix("resid_") for site in sites]
    return [f"{_layer(site)} {name}" if many else f"{_layer(site)}" for site, name in zip(sites, short, strict=True)]


def combinations(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of grouping and correction that the table holds, in its order."""
    return list(dict.fromkeys(zip(table["grouping"].astype(str), table["correction"].astype(str), strict=True)))


def combination_name(grouping: str, correction: str) -> str:
    """`by dimension, control taken out`."""
    how = {"none": "as it is", "control": "control taken out"}.get(correction, correction)
    return f"by {label(grouping)}, {how}"


@styled
def verdict_strip(table: pd.DataFrame) -> Figure:
    """The verdict at every site, a row for each grouping and correction; the primary site is framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    sites, pairs = by_layer(table["site"].astype(str).tolist()), combinations(table)
    wide = float(np.clip(2.6 + 0.7 * len(sites), 6.4, 9.6))
    figure = Figure(figsize=(wide, 1.25 + 0.4 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(230 / max(len(sites), 1), 4.5, 9))
    for row in table.to_dict("records"):
        x, y = sites.index(row["site"]), pairs.index((row["grouping"], row["correction"]))
        untested = row["qualifier"] == NOT_TESTABLE
        colour = THEME[ROLES.get(row["verdict"], "grey")][0]
        fill: dict[str, Any] = {"facecolor": colour, "alpha": 0.5, "linewidth": 0}
        if untested:
            fill = {"facecolor": "none", "edgecolor": RULE, "linewidth": 0.8}
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, **fill))
        text = "-" if untested else LETTERS.get(row["verdict"], "?")
        axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=size)
        if row["primary"]:
            axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, fill=False, edgecolor=INK, linewidth=1.4))
    axes.set(xlim=(-0.5, max(len(sites), 5) - 0.5), ylim=(len(pairs) - 0.5, -0.5))
    axes.set_xlabel("layer", loc="left")
    _ticks(axes, sites)
    axes.set_yticks(range(len(pairs)), [combination_name(*pair) for pair in pairs])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    present = [name for name in VERDICTS if ((table["verdict"] == name) & (table["qualifier"] != NOT_TESTABLE)).any()]
    handles = [Patch(facecolor=THEME[ROLES[name]][0], alpha=0.5, label=f"{LETTERS[name]}  {name}") for name in present]
    if (table["qualifier"] == NOT_TESTABLE).any():
        handles.append(Patch(facecolor="none", edgecolor=RULE, label="-  not testable"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6)
    return figure


@styled
def site_map(table: pd.DataFrame, *, rho_star: float | None, eta_star: float | None, alpha: float | None) -> Figure:
    """rho, eta, p(T2) and k_adj at every site of one grouping and correction; p-values raw and paid for over the sites."""
    from matplotlib.figure import Figure

    sites = by_layer(table["site"].astype(str).tolist())
    rows = [dict(row) for site in sites for row in table[table["site"] == site].to_dict("records")]
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    (rho, eta), (p, k) = figure.subplots(2, 2, sharex=True)
    _shares(rho, rows, "rho", limit=rho_star)
    _shares(eta, rows, "eta", limit=eta_star)
    _p_values(p, rows, alpha=alpha)
    _dimensions(k, rows, alpha=alpha)
    for axes in (rho, eta, p, k):
        axes.set_xlim(-0.6, max(len(sites), 2) - 0.4)
        _ticks(axes, sites)
        axes.grid(axis="x", visible=False)
        primary = next((place for place, row in enumerate(rows) if row["primary"]), None)
        if primary is not None:
            axes.axvline(primary, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
    for axes in (p, k):
        axes.set_xlabel("layer")
    return figure


def _ticks(axes: Axes, sites: Sequence[str]) -> None:
    stride = -(-len(sites) // (MOST_TICKS * 2))
    names = site_ticks(sites)
    steep = any(" " in name for name in names)
    places = range(0, len(sites), stride)
    axes.set_xticks(
        places,
        [names[place] for place in places],
        rotation=60 if steep else 0,
        fontsize=7 if len(sites) > MOST_TICKS else 8.5,
    )


def _runs(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Places that a line may join: neighbours of one kind of hook."""
    runs: list[list[int]] = []
    for place, row in enumerate(rows):
        joined = runs and _kind(str(rows[runs[-1][-1]]["site"])) == _kind(str(row["site"]))
        runs[-1].append(place) if joined else runs.append([place])
    return runs


def _line(axes: Axes, rows: Sequence[dict[str, Any]], values: Sequence[float], **look: Any) -> None:
    for run in _runs(rows):
        axes.plot(run, [values[place] for place in run], **look)


def _shares(axes: Axes, rows: Sequence[dict[str, Any]], name: str, *, limit: float | None) -> None:
    colour = SOURCE_COLOURS["shift"]
    values = [float(row[name]) if is_present(row[name]) else np.nan for row in rows]
    held = [float(np.clip(value, LOWEST, HIGHEST)) for value in values]
    _line(axes, rows, held, color=colour, linewidth=1.0, alpha=0.6)
    for place, (row, value, at) in enumerate(zip(rows, values, held, strict=True)):
        if np.isnan(value):
            continue
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        known = is_present(low) and is_present(high)
        if known:
            ends = np.clip([low, high], LOWEST, HIGHEST)
            axes.plot([place, place], ends, color=colour, linewidth=2, alpha=0.6, solid_capstyle="round")
        marker = "o" if at == value else ("v" if value < at else "^")
        axes.plot([place], [at], marker, color=colour, markersize=5.5, markerfacecolor=colour if known else PAPER)
    if limit is not None:
        axes.axhline(limit, color=THEME["organism"][0], linewidth=1.2)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.margins(y=0.12)
    axes.set_title(f"{name}, 90 % interval; line: limit {limit:g}" if limit is not None else f"{name}, 90 % interval")
    if np.isnan(values).all():
        _nothing(axes)


def _p_values(axes: Axes, rows: Sequence[dict[str, Any]], *, alpha: float | None) -> None:
    colour = THEME["blue"][0]
    raw, paid = (
        [float(row[name]) if is_present(row[name]) else np.nan for row in rows] for name in ("p_rank", "p_rank_max_t")
    )
    _line(axes, rows, raw, color=colour, linewidth=1.0, marker="o", markersize=5.5, markerfacecolor=PAPER)
    _line(axes, rows, paid, color=colour, linewidth=0, marker="o", markersize=4, linestyle="none")
    if alpha is not None:
        axes.axhline(alpha, color=THEME["organism"][0], linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(min([0.001, *(value for value in raw if value > 0)]) * 0.8, 1.6)
    axes.set_yticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    axes.set_title("p(T2): ring raw, dot over all sites (max-T)")
    if np.isnan(raw).all():
        _nothing(axes)


def _dimensions(axes: Axes, rows: Sequence[dict[str, Any]], *, alpha: float | None) -> None:
    colour = THEME["green"][0]
    values = [float(row["k_adj"]) if is_present(row["k_adj"]) else np.nan for row in rows]
    needed = [float(row["k_star"]) if is_present(row["k_star"]) else np.nan for row in rows]
    _line(axes, rows, needed, color=THEME["organism"][0], linewidth=1.2, marker="_", markersize=10)
    _line(axes, rows, values, color=colour, linewidth=1.0, alpha=0.6)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        if np.isnan(value):
            continue
        shown = alpha is not None and is_present(row["p_adj_max_t"]) and row["p_adj_max_t"] <= alpha
        axes.plot([place], [value], "o", color=colour, markersize=5.5, markerfacecolor=colour if shown else PAPER)
    top = max([2.0, *(value for value in (*values, *needed) if not np.isnan(value))])
    axes.set_ylim(-0.3, top + 0.5)
    axes.set_yticks(range(int(top) + 1))
    axes.set_title("k_adj; line: k*; filled: shown over all sites")
    if np.isnan(values).all():
        _nothing(axes)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not testable", transform=axes.transAxes, ha="center", va="center", color=MUTED, style="italic")
