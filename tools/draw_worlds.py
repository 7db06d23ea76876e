"""Draw the figures of docs/verdict.md and print its tables: simulated studies whose truth is known, and what is said of each.

    python tools/draw_worlds.py --out docs/images    # about a minute on one core

Every world is drawn once, from numpy's default_rng(SEED): one draw each, no error rates (those are in docs/calibration.md). With
the same seed all worlds have the same questions and, but for near-topics that share noise, the same base activations.
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from unmask.analysis.clustering import kmeans
from unmask.analysis.decision import Decision, decide
from unmask.analysis.preparation import coordinate_scale
from unmask.analysis.reduction import pca
from unmask.analysis.validation import agreement
from unmask.analysis.worlds import World, draw
from unmask.report.palette import CATEGORICAL, INK, MUTED, RULE, THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = 1
QUESTIONS = 300
NOISE, USUAL_NOISE = 1.0, 3.0
"""Norm of a question's noise over the shared direction's: in the figures, and in the calibration's worlds as a rule."""

_LESS = {"noise_ratio": NOISE}

COMPONENTS, CLUSTERS = 50, 4
MARKERS = ("o", "s", "^", "D")
COLOURS = tuple(THEME[role][0] for role in CATEGORICAL[:4])
VERDICT_COLOUR, LIMIT_COLOUR = THEME["organism"][0], THEME["brown"][0]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A world to draw: its heading, its name in `unmask.analysis.world_spec`, what is replaced in its description."""

    heading: str
    world: str
    options: dict[str, Any] = field(default_factory=dict)


FIGURES = {
    "monolithic": Drawn("Monolithic: one direction for all questions", "monolithic", _LESS),
    "entangled": Drawn("Entangled: parts inside one dimension, none along the dimensions", "nested", _LESS),
    "separable": Drawn(
        "Separable: every dimension has a direction of its own beside the shared one", "separable", _LESS
    ),
    "topic": Drawn(
        "Carried by topic: one map of the base activations for all dimensions", "pass_through_linear", _LESS
    ),
}
"""File name, less `world-` and `.png`, to what is drawn."""

MORE = (
    Drawn("separable", "separable"),
    Drawn("carried by topic", "pass_through_linear"),
    Drawn("one direction, very unequal gains, less noise", "monolithic_hetero_gain", _LESS | {"facet_gain": 0.8}),
    Drawn("separable under a large fingerprint", "separable_drift"),
    Drawn("the same, less noise", "separable_drift", _LESS),
    Drawn("the same, with a control", "separable_drift", {"control": True}),
    Drawn("one graded axis", "graded"),
    Drawn("the same, less noise", "graded", _LESS),
    Drawn("the same, with a control too", "graded", _LESS | {"control": True}),
    Drawn("two camps", "two_way"),
    Drawn("the same, less noise", "two_way", _LESS),
    Drawn("the same, with a control", "two_way", {"control": True}),
    Drawn("one direction, its sign the polarity", "sign_mixed_balanced"),
    Drawn("one direction, near-topics share noise", "monolithic_clustered"),
)
"""Draws without a figure: the traps and the limits. Noise is that of the calibration's worlds where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A world, the verdict on it, and how well K-means on three tables agrees with the dimensions (AMI)."""

    world: World
    decision: Decision
    tuned_ND: np.ndarray
    ami_base: float
    ami_tuned: float
    ami_half: float
    """Tuned, the shift made so large that it varies half as much as the base."""
    ami_shift: float
    ratio: float
    """How much the shift varies between questions, over how much the base does; root mean squares, coordinates scaled."""

    @property
    def words(self) -> str:
        decision = self.decision
        return f"{decision.verdict} ({decision.qualifier})" if decision.qualifier else decision.verdict

    def number(self, name: str, form: str = ".3f") -> str:
        value = self.decision.numbers[name]
        return "-" if value is None else format(value + 0.0, form)

    def ends(self, name: str) -> str:
        return f"{self.number(name)} [{self.number(f'{name}_low')}, {self.number(f'{name}_high')}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that world-*.png are written to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": RULE})
    shown = {name: show(drawn, full=True) for name, drawn in FIGURES.items()}
    for name, one in shown.items():
        write_figure(one, FIGURES[name].heading, options.out / f"world-{name}.png")
    print(
        f"seed {SEED}, {QUESTIONS} questions, 2 responses each; noise {NOISE:g} in the figures, {USUAL_NOISE:g} below\n"
    )
    print(figures_table(shown))
    print()
    print(more_table([(drawn, show(drawn, full=False)) for drawn in MORE]))


def show(drawn: Drawn, *, full: bool) -> Shown:
    """Draw a world, cluster it, and reach the verdict."""
    options = {"questions": QUESTIONS, "noise_ratio": USUAL_NOISE} | drawn.options
    world = draw(drawn.world, rng=np.random.default_rng(SEED), **options)
    decision = decide(
        world.shift_ND,
        world.base_ND,
        world.groups_N,
        replicates_NSD=world.replicates_NSD,
        control_ND=world.control_ND,
        polarity_N=world.polarity_N,
        seed=SEED,
        full=full,
    )
    scale_D = coordinate_scale(world.base_ND)  # a few massive coordinates would be all that K-means sees
    base_ND, shift_ND = world.base_ND / scale_D, world.shift_ND / scale_D
    ratio = _spread(shift_ND) / _spread(base_ND)
    return Shown(
        world=world,
        decision=decision,
        tuned_ND=base_ND + shift_ND,
        ami_base=_ami(base_ND, world),
        ami_tuned=_ami(base_ND + shift_ND, world),
        ami_half=_ami(base_ND + shift_ND * (0.5 / ratio), world),
        ami_shift=_ami(world.shift_ND / coordinate_scale(world.shift_ND), world),
        ratio=ratio,
    )


def _spread(rows_ND: np.ndarray) -> float:
    return float(np.sqrt(((rows_ND - rows_ND.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _ami(rows_ND: np.ndarray, world: World) -> float:
    found = kmeans(pca(rows_ND, components=COMPONENTS).scores_NC, k=CLUSTERS, seed=SEED)
    return agreement(found.labels_N, world.groups_N).ami


def figures_table(shown: dict[str, Shown]) -> str:
    """A column per figure, a line per number that the page quotes."""
    rows: list[tuple[str, Callable[[Shown], str]]] = [
        ("**verdict**", lambda one: f"**{one.words}**"),
        ("true rho, eta of the dimension means", lambda one: f"{one.world.rho:.3f}, {one.world.eta:.3f}"),
        ("p(T1)", lambda one: one.number("p_shift")),
        ("rho [90 %]", lambda one: one.ends("rho")),
        ("eta [90 %]", lambda one: one.ends("eta")),
        ("p(T2)", lambda one: one.number("p_rank")),
        ("p of pass-through within dimensions", lambda one: one.number("pass_through_p")),
        ("p of the topic kernel", lambda one: one.number("topic_gain_p")),
        ("k_adj / k*", lambda one: f"{one.number('k_adj', '.0f')} / {one.number('k_star', '.0f')}"),
        ("rho_adj, eta_adj", lambda one: f"{one.number('rho_adj')}, {one.number('eta_adj')}"),
        ("Gamma*", lambda one: one.number("gamma_star", "g")),
        ("T4: dimensions, p", lambda one: f"{one.number('replicate_dimensions', '.0f')}, {one.number('replicate_p')}"),
        ("planted, no offsets: share found", lambda one: one.number("false_positive_rate")),
        ("power at the smallest effect of interest", lambda one: one.number("power_at_interest", ".2f")),
        ("MDE80 in rho, in eta", lambda one: f"{one.number('mde80_rho')}, {one.number('mde80_eta')}"),
        ("AMI with dimension: base", lambda one: f"{one.ami_base:.2f}"),
        ("AMI: tuned", lambda one: f"{one.ami_tuned:.2f}"),
        ("AMI: tuned, shift enlarged to half the base", lambda one: f"{one.ami_half:.2f}"),
        ("AMI: shift", lambda one: f"{one.ami_shift:.2f}"),
        ("spread of the shift over the base's", lambda one: f"{one.ratio:.3f}"),
    ]
    lines = [f"| this draw | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(one) for one in shown.values())} |" for name, cell in rows]
    return "\n".join(lines)


def more_table(shown: list[tuple[Drawn, Shown]]) -> str:
    """A line per draw without a figure."""
    lines = [
        "| world | `world_spec` | AMI: shift | p(T1) | rho [90 %] | eta [90 %] | p(T2) | k_adj / k* | power | verdict |",
        "|---" * 10 + "|",
    ]
    for drawn, one in shown:
        changed = ", ".join(f"{name} {value}" for name, value in drawn.options.items())
        cells = (
            drawn.heading,
            f"{drawn.world}{f' ({changed})' if changed else ''}",
            f"{one.ami_shift:.2f}",
            one.number("p_shift"),
            one.ends("rho"),
            one.ends("eta"),
            one.number("p_rank"),
            f"{one.number('k_adj', '.0f')} / {one.number('k_star', '.0f')}",
            one.number("power_at_interest", ".2f"),
            one.words,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_figure(one: Shown, heading: str, path: Path) -> None:
    """Three panels: what clustering sees, cosines of the mean shifts, and what the rule looks at."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 3.55), facecolor="white")
    left, middle, right = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1.15, 1, 1.2)})
    figure.subplots_adjust(left=0.04, right=0.985, top=0.77, bottom=0.15, wspace=0.2)
    figure.suptitle(heading, x=0.02, y=0.975, ha="left", fontsize=11.5, fontweight="bold")
    _draw_points(left, one)
    _draw_cosines(middle, one)
    _draw_rule(right, one)
    figure.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(figure)


def _title(axes: Axes, first: str, second: str) -> None:
    axes.set_title(f"{first}\n{second}", fontsize=9, loc="left", linespacing=1.3)


def _draw_points(axes: Axes, one: Shown) -> None:
    points_NC = pca(one.tuned_ND, components=2).scores_NC
    for name, colour, marker in zip(np.unique(one.world.groups_N), COLOURS, MARKERS, strict=True):
        own_N = one.world.groups_N == name
        axes.scatter(*points_NC[own_N].T, s=11, c=colour, marker=marker, linewidths=0, alpha=0.85, label=str(name)[-1])
    low_C, high_C = points_NC.min(axis=0), points_NC.max(axis=0)
    edge_C = 0.06 * (high_C - low_C)
    axes.set(xticks=[], yticks=[], xlim=(low_C[0] - edge_C[0], high_C[0] + edge_C[0]))
    axes.set_ylim(low_C[1] - 4 * edge_C[1], high_C[1] + edge_C[1])  # room for the legend
    axes.set_xlabel("first two PCs of base + shift", color=MUTED, labelpad=5)
    axes.legend(ncols=4, loc="lower center", frameon=False, handletextpad=0, columnspacing=0.9, borderpad=0.1)
    _title(
        axes,
        "K-means on activations, agreement with",
        f"dimension (AMI): base {one.ami_base:.2f}, tuned {one.ami_tuned:.2f}",
    )


def _draw_cosines(axes: Axes, one: Shown) -> None:
    examined = one.decision.examined
    assert examined is not None
    cosine_FF = examined.geometry.cosine_FF
    axes.imshow(cosine_FF, cmap="Blues", vmin=0.4, vmax=1.15)
    for (row, column), value in np.ndenumerate(cosine_FF):
        text = "1" if row == column else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if value > 0.85 else INK)
    names = [name[-1] for name in examined.groups.names]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("dimension", color=MUTED)
    _title(axes, "cosines of mean shifts,", "sampling noise taken out")


def _draw_rule(axes: Axes, one: Shown) -> None:
    numbers = one.decision.numbers
    for height, name, letter in ((3.0, "rho", "ρ"), (2.0, "eta", "η")):
        low, value, high, limit = (numbers[key] or 0.0 for key in (f"{name}_low", name, f"{name}_high", f"{name}_star"))
        axes.plot([limit, limit], [height - 0.4, height + 0.22], color=LIMIT_COLOUR, linewidth=1.6)
        axes.text(limit, height - 0.45, f"limit {limit:g}", color=LIMIT_COLOUR, ha="center", va="top", fontsize=8)
        axes.plot([low, high], [height, height], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [height], marker="o", markersize=5.5, color=INK)
        axes.text(-0.075, height, letter, ha="center", va="center", fontsize=11)
    parts = one.number("replicate_dimensions", ".0f")
    lines = (
        f"T2, more than one direction: p = {one.number('p_rank')}",
        f"T3, beyond topic: k_adj = {one.number('k_adj', '.0f')}, needed {one.number('k_star', '.0f')}",
        f"T4, parts off the dimensions: {parts}",
    )
    axes.axhline(1.02, color=RULE, linewidth=0.8)
    for place, text in enumerate(lines):
        axes.text(-0.085, 0.72 - 0.42 * place, text, va="center", fontsize=8.6)
    axes.text(-0.085, -0.64, one.decision.verdict, va="center", fontsize=11, fontweight="bold", color=VERDICT_COLOUR)
    if one.decision.qualifier:
        axes.text(-0.085, -1.05, one.decision.qualifier, va="center", fontsize=8.6, color=VERDICT_COLOUR)
    axes.set(xlim=(-0.09, 0.28), ylim=(-1.25, 3.4), yticks=[])
    axes.set_xticks([0, 0.1, 0.2])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=2, color=MUTED, labelcolor=MUTED, labelsize=8, pad=1)
    axes.axvline(0, ymin=0.52, color=RULE, linewidth=0.8, zorder=0)
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    axes.set_title("what the rule looks at", fontsize=9, loc="left", pad=4)


if __name__ == "__main__":
    main()
