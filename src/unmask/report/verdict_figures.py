"""Figures of the verdict at its own site, as pure functions: the verdict's tables in, matplotlib Figure out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.report.drawing import styled
from unmask.report.formats import fine, is_present, label
from unmask.report.palette import INK, MUTED, PAPER, RULE, SOURCE_COLOURS, THEME
from unmask.report.verdict_evidence import VerdictEvidence
from unmask.report.verdict_tables import tests_here

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_INTERVALS = 9
"""Groups up to which each cell of the cosine map has room for an interval."""

DARKEST = 0.5
"""Opacity of a cosine of 1: ink is legible on it in both themes."""

LONGEST_NAME = 26
LIMITED = ("rho", "eta")


def group_names(verdict: VerdictEvidence, grouping: str) -> list[str]:
    """Groups of a grouping at the verdict's site, in the table's order."""
    rows = verdict.here(verdict.geometry, grouping=grouping)
    return list(dict.fromkeys([*rows["group_a"], *rows["group_b"]]))


@styled
def cosine_map(verdict: VerdictEvidence, *, grouping: str) -> Figure:
    """Disattenuated cosines between the groups' mean shifts, their 90 % intervals below; the diagonal holds counts."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = group_names(verdict, grouping)
    count = len(names)
    wide = min(9.6, 3.6 + 1.15 * count)
    figure = Figure(figsize=(wide, 1.3 + min(0.85, 6.5 / count) * count), layout="constrained")
    axes = figure.subplots()
    for row in verdict.here(verdict.geometry, grouping=grouping).to_dict("records"):
        a, b = names.index(row["group_a"]), names.index(row["group_b"])
        for x, y in {(a, b), (b, a)}:
            axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, linewidth=0, **_fill(row, diagonal=a == b)))
            _cell(axes, row, x=x, y=y, count=count)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    axes.set_xticks(
        range(count),
        [_broken(name) for name in names],
        rotation=0 if count <= 5 else 40,
        ha="center" if count <= 5 else "right",
    )
    axes.set_yticks(range(count), [_broken(name) for name in names])
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def _fill(row: dict[Any, Any], *, diagonal: bool) -> dict[str, Any]:
    if diagonal or not is_present(row["cosine"]):
        return {"facecolor": "none", "edgecolor": RULE, "hatch": "" if diagonal else "////"}
    colour = THEME["shift" if row["cosine"] >= 0 else "brown"][0]
    return {"facecolor": colour, "alpha": max(0.04, DARKEST * min(abs(float(row["cosine"])), 1.0))}


def _cell(axes: Axes, row: dict[Any, Any], *, x: int, y: int, count: int) -> None:
    centred: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    faint: dict[str, Any] = centred | {"color": MUTED}
    size = 9.5 if count <= MOST_WITH_INTERVALS else max(5.5, 70 / count)
    if row["group_a"] == row["group_b"]:
        energy = "" if is_present(row["gram"]) and row["gram"] > 0 else "\nno shift"
        axes.text(x, y, f"n {int(row['n_a'])}{energy}", **faint, fontsize=size - 1)
        return
    if not is_present(row["cosine"]):
        axes.text(x, y, "missing", **faint, fontsize=min(size, 7.5), style="italic")
        return
    room = count <= MOST_WITH_INTERVALS
    axes.text(x, y - (0.12 if room else 0), _short(row["cosine"]), **centred, fontsize=size)
    if room:
        known = is_present(row["cosine_low"]) and is_present(row["cosine_high"])
        text = f"[{_short(row['cosine_low'])}, {_short(row['cosine_high'])}]" if known else "no interval"
        axes.text(x, y + 0.2, text, **centred, fontsize=7.2 if count <= 6 else 6.6)


def _short(value: float) -> str:
    return f"{float(value):.2f}".replace("-", "\N{MINUS SIGN}")


def _broken(name: str) -> str:
    """A group's name over two lines, a facet's own part only, and no longer than there is room for."""
    text = label(str(name).rpartition("/")[2])
    return (text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…").replace(" ", "\n", 1)


@styled
def spectrum(verdict: VerdictEvidence) -> Figure:
    """Eigenvalues of the noise-corrected Gram matrix as shares, and rho and eta with intervals against their limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.7), layout="constrained")
    left, *others = figure.subplots(1, 3, width_ratios=(1, 1.2, 1.2))
    shares = eigenvalue_shares(verdict)
    for place, share in enumerate(shares, start=1):
        colour = SOURCE_COLOURS["shift"] if place == 1 else THEME["grey"][0]
        left.bar(place, share, width=0.62, color=colour, linewidth=0)
        text = f"{share:.3f}".replace("-", "\N{MINUS SIGN}")
        place_above = (place, max(share, 0))
        left.annotate(
            text, place_above, xytext=(0, 3), textcoords="offset points", ha="center", color=MUTED, fontsize=7.5
        )
    left.axhline(0, color=MUTED, linewidth=0.8)
    left.set(
        title="eigenvalues of G / tr G",
        xlabel="direction",
        ylim=(min(0, *shares, 0) * 1.1, max(1.0, *shares, 0) * 1.14),
    )
    left.set_xticks(range(1, len(shares) + 1))
    left.grid(axis="x", visible=False)
    for axes, name in zip(others, LIMITED, strict=True):
        _against_limit(axes, verdict, name)
    return figure


def eigenvalue_shares(verdict: VerdictEvidence) -> list[float]:
    """Eigenvalues of G over its trace at the verdict's site, largest first; empty where G is not known."""
    rows = verdict.here(verdict.geometry)
    names = group_names(verdict, verdict.grouping)
    gram_FF = np.full((len(names), len(names)), np.nan)
    for row in rows.to_dict("records"):
        a, b = names.index(row["group_a"]), names.index(row["group_b"])
        gram_FF[a, b] = gram_FF[b, a] = row["gram"]
    if not names or np.isnan(gram_FF).any() or np.trace(gram_FF) <= 0:
        return []
    return [float(value) for value in np.linalg.eigvalsh(gram_FF)[::-1] / np.trace(gram_FF)]


def _against_limit(axes: Axes, verdict: VerdictEvidence, name: str) -> None:
    """The estimate with its interval, what is left beyond topic, and the limit of each."""
    limit, least = verdict.number(f"{name}_star"), verdict.enough_beyond_topic(name)
    rows = [
        (name, name, "_low", "_high", limit),
        (f"{name} beyond topic", f"{name}_adj", None, None, least),
    ]
    for place, (_, field, low, high, own) in enumerate(rows):
        if own is not None:
            axes.plot([own, own], [place - 0.42, place + 0.42], color=THEME["organism"][0], linewidth=1.4)
        value = verdict.number(field)
        if value is None:
            axes.annotate(
                "not measured",
                (0.5, place),
                xycoords=("axes fraction", "data"),
                ha="center",
                va="center",
                color=MUTED,
                style="italic",
            )
            continue
        from_, to = (verdict.number(f"{field}{end}") if end else None for end in (low, high))
        if from_ is not None and to is not None:
            axes.plot([from_, to], [place, place], color=SOURCE_COLOURS["shift"], linewidth=2.6, solid_capstyle="round")
        fill = SOURCE_COLOURS["shift"] if low else PAPER
        axes.plot(
            [value],
            [place],
            "o",
            color=SOURCE_COLOURS["shift"],
            markerfacecolor=fill,
            markersize=7,
            markeredgewidth=1.6,
        )
        axes.annotate(
            fine(value), (value, place), xytext=(0, 9), textcoords="offset points", ha="center", color=INK, fontsize=8
        )
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [text.replace(" ", "\n", 1) for text, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.margins(x=0.12)
    shown = f"limit {limit:g}, beyond topic {least:g}" if limit is not None else "no limit"
    axes.set(title=f"{name}, 90 % interval", xlabel=shown)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)


@styled
def nulls(verdict: VerdictEvidence) -> Figure:
    """Each statistic in standard deviations from its null mean, beside the null's own spread."""
    from matplotlib.figure import Figure

    rows = [row for row in tests_here(verdict) if is_present(row["null_sd"]) and row["null_sd"] > 0]
    alpha = verdict.number("alpha") or 0.0
    figure = Figure(figsize=(9.6, 1.1 + 0.3 * max(2, len(rows))), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-2, 2, color=MUTED, alpha=0.1, linewidth=0)
    axes.axvspan(-1, 1, color=MUTED, alpha=0.16, linewidth=0)
    for place, row in enumerate(rows):
        z = (row["statistic"] - row["null_mean"]) / row["null_sd"]
        shown = row["p"] <= alpha
        colour = SOURCE_COLOURS["shift"]
        axes.plot(
            [z],
            [place],
            "o",
            color=colour,
            markerfacecolor=colour if shown else PAPER,
            markersize=6.5,
            markeredgewidth=1.5,
        )
        axes.annotate(
            f"p = {fine(row['p'])}", (1.01, place), xycoords=("axes fraction", "data"), va="center", color=INK
        )
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=4, linscale=1.4)
    axes.set_xticks(
        [-4, -2, 0, 2, 4, 10, 30, 100, 300, 1000],
        ["\N{MINUS SIGN}4", "\N{MINUS SIGN}2", "0", "2", "4", "10", "30", "100", "300", "1000"],
    )
    axes.minorticks_off()
    found = [(row["statistic"] - row["null_mean"]) / row["null_sd"] for row in rows]
    axes.set_xlim(min(-4.0, *found, 0) * 1.05, max(6.0, *found, 0) * 2.2)
    axes.set_yticks(range(len(rows)), [_test_name(row) for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.set(xlabel="standard deviations from the mean of the null distribution")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    return figure


def _test_name(row: dict[Any, Any]) -> str:
    return f"{row['test']}, rank {int(row['rank'])}" if is_present(row["rank"]) else str(row["test"])
