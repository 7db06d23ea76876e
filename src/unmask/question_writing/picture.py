"""A battery at a glance: its questions in the plane by meaning, and its balance.

Shapes: N questions, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unmask.analysis.reduction import pca
from unmask.errors import DataError
from unmask.question_writing.quality import Balance, Quality
from unmask.records import Question
from unmask.report.drawing import png, styled
from unmask.report.formats import label
from unmask.report.palette import INK, MUTED, dimension_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {1: ("^", "+1: agreeing is misaligned"), -1: ("v", "-1: disagreeing is misaligned"), 0: ("o", "0: neither")}
LEAST = 3
"""Questions without which there is no plane to draw."""


@styled
def picture(questions: Sequence[Question], unit_ND: np.ndarray, quality: Quality) -> bytes:
    """PNG: the embeddings' first two principal components, coloured by dimension and marked by polarity; the balance.

    Raises DataError for fewer than three questions, which span no plane.
    """
    from matplotlib.figure import Figure

    if len(questions) < LEAST:
        raise DataError(f"{len(questions)} questions span no plane to draw", mend="Leave --picture out")
    height = max(5.2, 1.6 + 0.36 * len(quality.balance))
    figure = Figure(figsize=(12.4, height), layout="constrained")
    plane, bars = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_plane(plane, questions, unit_ND)
    _draw_balance(bars, quality.balance)
    return png(figure)


def _draw_plane(axes: Axes, questions: Sequence[Question], unit_ND: np.ndarray) -> None:
    from matplotlib.lines import Line2D

    found = pca(unit_ND, components=2)
    points_N2 = np.zeros((len(questions), 2))
    points_N2[:, : found.scores_NC.shape[1]] = found.scores_NC
    dimensions = list(dict.fromkeys(question.dimension for question in questions))
    colours = dimension_colours(dimensions)
    present = [polarity for polarity in MARKERS if any(question.polarity == polarity for question in questions)]
    for polarity in present:
        places = [place for place, question in enumerate(questions) if question.polarity == polarity]
        axes.scatter(
            *points_N2[places].T,
            s=22,
            marker=MARKERS[polarity][0],
            c=[colours[questions[place].dimension] for place in places],
            alpha=0.7,
            linewidths=0,
        )
    shares = [f"{share:.1%}" for share in found.variance_ratio_C] + ["0%"]
    axes.set(
        xlabel=f"component 1 ({shares[0]} of variance)",
        ylabel=f"component 2 ({shares[1]})",
        title=f"{len(questions)} questions by meaning",
    )
    named = [Line2D([], [], ls="", marker="s", color=colours[name], label=label(name)) for name in dimensions]
    marks = [Line2D([], [], ls="", marker=MARKERS[each][0], color=MUTED, label=MARKERS[each][1]) for each in present]
    axes.legend(handles=[*named, *marks], loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _draw_balance(axes: Axes, balance: Sequence[Balance]) -> None:
    colours = dimension_colours(list(dict.fromkeys(row.dimension for row in balance)))
    for place, row in enumerate(balance):
        colour, start = colours[row.dimension], 0
        for count, alpha, name in ((row.agree, 0.6, "+1"), (row.disagree, 0.35, "-1"), (row.neither, 0.15, "0")):
            if count:
                axes.barh(place, count, left=start, height=0.66, color=colour, alpha=alpha, edgecolor="white")
                axes.text(start + count / 2, place, f"{name}: {count}", ha="center", va="center", color=INK, fontsize=8)
                start += count
    axes.set_yticks(range(len(balance)), [f"{label(row.dimension)}: {label(row.facet)}" for row in balance])
    axes.set(ylim=(len(balance) - 0.4, -0.6), xlabel="questions", title="Balance of facets and polarities")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelcolor=INK)
