"""From a matplotlib figure to bytes: PNG for the folder, inline SVG with CSS colours for the page. Deterministic."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from unmask.report.palette import INK, MUTED, RULE, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlecolor": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.6,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.06,
    "svg.fonttype": "none",
    "svg.hashsalt": "unmask",
}
DPI = 150
PLACES = 6
"""Decimals of an axes' place in its figure."""
LineEnd = tuple[float, float, str, str]
"""Where a line ends and what to write there: x, y, text, colour."""

P = ParamSpec("P")
R = TypeVar("R")
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw under the report's own style, whatever the user's matplotlibrc says."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import style

        with style.context(STYLE, after_reset=True):
            return draw(*args, **kwargs)

    return drawn


@styled
def settle(figure: Figure) -> Figure:
    """Lay the figure out once, so that each way of saving it takes the same places and none computes them again.

    Places are rounded: the layout's solver leaves the last digits to chance, and ids in an SVG are made from them.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, PLACES) for value in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))
    return figure


@styled
def png(figure: Figure) -> bytes:
    """The figure as PNG on white, with no metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@styled
def svg(figure: Figure, *, name: str) -> str:
    """The figure as an `<svg>` element for inlining: ids prefixed by `name`, the theme's tones as CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(style=\"[^\"]*\bfont: [^\"]*?px) [^;\"]*", r"\1 var(--sans)", text)
    text = re.sub(r'style="[^"]*"', _with_variables, text)
    return text.strip()


def _with_variables(attribute: re.Match[str]) -> str:
    text = attribute[0]
    for role, (light, _) in THEME.items():
        text = text.replace(light, f"var(--c-{role})")
    return text


def spread_apart(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions near `values`, in the same order, at least `gap` apart and within `low`..`high` where they fit."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(values[index], placed[-1] + gap) if placed else max(values[index], low))
    for back in range(len(placed) - 1, -1, -1):
        ceiling = high if back == len(placed) - 1 else placed[back + 1] - gap
        placed[back] = min(placed[back], ceiling)
    result = [0.0] * len(values)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def label_ends(axes: Axes, ends: Sequence[LineEnd], *, gap: float = 0.085) -> None:
    """Write each line's name at its right end: (x, y, text, colour), moved apart so that no two overlap."""
    if not ends:
        return
    bottom, top = axes.get_ylim()
    places = spread_apart([y for _, y, _, _ in ends], gap=gap * (top - bottom), low=bottom, high=top)
    x_end = max(x for x, _, _, _ in ends)
    for (_, _, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (x_end, place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
