"""Commands about the verdict: what was decided at every site, and what a design could find."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.screen import console, print_json, reporter
from unmask.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from unmask.analysis.design import Design, DesignPoint
    from unmask.analysis.examination import Settings

SHOWN_NUMBERS = (
    ("p_shift", "T1: p of a mean shift"),
    ("p_rank", "T2: p of a second direction"),
    ("k_adj", "T3: dimensions beyond topic"),
    ("k_star", "needed for separable"),
    ("gamma_star", "largest Gamma still rejected"),
    ("rho", "rho: share outside one direction"),
    ("rho_low", "... low end of the 90 % interval"),
    ("rho_high", "... high end"),
    ("eta", "eta: the same over question variance"),
    ("eta_low", "... low end of the 90 % interval"),
    ("eta_high", "... high end"),
    ("rho_adj", "rho beyond topic"),
    ("eta_adj", "eta beyond topic"),
    ("replicate_dimensions", "T4: dimensions that replicate"),
    ("power_at_interest", "planted power at the smallest effect of interest"),
    ("mde80_rho", "smallest rho found with power .8"),
    ("mde80_eta", "smallest eta found with power .8"),
    ("false_positive_rate", "planted false positives"),
    ("causal_x", "T5, cross-talk X (0: own answers only, 1: all alike)"),
    ("causal_x_low", "... low end of the 90 % interval"),
    ("causal_x_high", "... high end"),
    ("causal_p", "T5, p of the permuted rows"),
)


def print_verdict(folder: Path, *, as_json: bool) -> None:
    """Print the verdict of a study with its reasons and numbers, and the map over sites."""
    from unmask.artifact import read_json, read_table
    from unmask.pipeline import open_study

    opened = open_study(folder)
    study = opened.study
    study.verify("verdict")
    stale = next(status.reason for status in opened.status() if status.stage == "verdict")
    place, rebuild = study.stage_folder("verdict"), f"unmask run {folder} --force verdict"
    verdict = read_json(place / "verdict.json", rebuild=rebuild)
    sites = read_table(place / "sites.parquet", rebuild=rebuild)
    if as_json:
        print_json(
            {
                "stale": stale or None,
                **verdict,
                "sites": sites.astype(object).where(sites.notna(), None).to_dict("records"),
            }
        )
        return
    screen = console()
    if stale:
        screen.out(f"This verdict is stale ({stale}): unmask decompose {shlex.quote(str(folder))}", style="bold yellow")
    said = "provisional" in (verdict["qualifier"] or "")
    provisional = " (provisional)" if verdict["provisional"] and not said else ""
    screen.out(f"{verdict['headline']}{provisional}", style="bold")
    for number, reason in enumerate(verdict["reasons"], start=1):
        screen.out(f"  {number}. {reason}")
    _print_numbers(verdict["numbers"])
    _print_sites(sites)
    for missing in verdict["missing"]:
        screen.out(f"Without {missing['test']}: {missing['reason']}.")
    for advice in verdict["sharpen"]:
        screen.out(f"Would sharpen it: {advice['what']} - {advice['why']}. Cost: {advice['cost']}.")


def _print_numbers(numbers: dict[str, float | None]) -> None:
    from rich.table import Table

    table = Table(show_header=False, title="verdict.json, numbers", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, text in SHOWN_NUMBERS:
        value = numbers.get(name)
        table.add_row(text, "not measured" if value is None else f"{value:.4g}")
    console().print(table)


def _print_sites(sites: pd.DataFrame) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from unmask.records import Site

    table = Table(
        title="sites.parquet: every site, grouping and correction",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = ("site", "by", "control", "verdict", "rho", "eta", "p(T2)", "k_adj", "p(T3)")
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if place < 4 else "right")
    for row in sites.to_dict("records"):
        site = Site.parse(row["site"])
        named = f"{site.layer} {site.point.removeprefix('resid_')}{' *' if row['primary'] else ''}"
        cells = [named, row["grouping"], "removed" if row["correction"] == "control" else "-", row["verdict"]]
        numbers = (("rho", 3), ("eta", 3), ("p_rank_max_t", 3), ("k_adj", 0), ("p_adj_max_t", 3))
        cells += [_cell(row[name], digits) for name, digits in numbers]
        table.add_row(*cells)
    console().print(table)
    console().out("* the layer named before looking. p-values are paid for over all sites (max-T).")


def _cell(value: Any, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def print_power(
    folder: Path | None,
    *,
    groups: str | None,
    changes: dict[str, Any],
    runs: int,
    as_json: bool,
) -> None:
    """Simulate studies of a design and print what they would find."""
    from rich.console import Console

    from unmask.analysis.design import EFFECTS, design_power, detectable

    design, known, settings = _design(folder, groups=groups, changes=changes)
    screen = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console()
    screen.out(f"{known}: {_described(design)}")
    try:
        with reporter(screen) as progress:
            progress.begin("simulating studies", total=runs * len(EFFECTS))
            points = design_power(design, runs=runs, settings=settings, told=progress.advance)
            progress.end()
    except ValueError as error:
        raise ConfigError(
            f"this design cannot be simulated ({error})", mend="Ask at least 12 questions in every group"
        ) from error
    smallest = detectable(points)
    if as_json:
        print_json(
            {
                "design": asdict(design),
                "runs": runs,
                "seed": 0,
                "points": [asdict(p) for p in points],
                "detectable_rho": smallest,
            }
        )
        return
    _print_points(points)
    screen.out(
        "No effect that was tried is called separable in 80 % of such studies."
        if smallest is None
        else f"Smallest effect called separable in 80 % of such studies: rho {smallest:.3f} of the persona's own mean shift."
    )


def _design(folder: Path | None, *, groups: str | None, changes: dict[str, Any]) -> tuple[Design, str, Settings]:
    from dataclasses import replace

    from unmask.analysis.design import Design
    from unmask.analysis.examination import Settings
    from unmask.pipeline import open_study

    given = {name: value for name, value in changes.items() if value is not None}
    if groups is not None and folder is not None:
        raise ConfigError("a study and --groups were given", mend="Leave one of them out")
    if groups is None and folder is None:
        raise ConfigError("no design was given", mend="Name a study, or questions per group: --groups 20,20,20,20")
    try:
        if folder is not None:
            opened = open_study(folder)
            design, source = opened.design()
            return replace(design, **given), f"design of {folder}, {source}", opened.config.verdict.settings
        return Design(_sizes(str(groups)), **given), "design", Settings()
    except ValueError as error:
        raise ConfigError(str(error), mend="Correct the design") from error


def _sizes(groups: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in groups.split(","))
    except ValueError as error:
        raise ConfigError(f"--groups is {groups!r}", mend="Give whole numbers: --groups 20,20,20,20") from error


def _described(design: Design) -> str:
    sizes = ", ".join(map(str, design.sizes))
    return (
        f"{design.questions} questions in groups of {sizes}; {design.responses} response(s) each; "
        f"noise {design.noise:.2f} of the mean shift, {100 * design.question_share:.0f} % of its variance the question's own; "
        f"fingerprint {design.fingerprint:g} times the persona; {'with' if design.control else 'no'} control organism"
    )


def _print_points(points: list[DesignPoint]) -> None:
    from rich.table import Table

    table = Table(header_style="bold")
    for name in ("rho of the persona", "rho in all", "eta", "2nd direction", "beyond topic", "separable", "monolithic"):
        table.add_column(name, justify="right")
    for point in points:
        low, high = point.interval(point.separable)
        table.add_row(
            f"{point.rho:.2f}",
            f"{point.rho_seen:.3f}",
            f"{point.eta_seen:.3f}",
            *(f"{100 * hits / point.runs:.0f} %" for hits in (point.second_direction, point.beyond_topic)),
            f"{100 * point.separable / point.runs:.0f} % ({100 * low:.0f}-{100 * high:.0f})",
            f"{100 * point.monolithic / point.runs:.0f} %",
        )
    console().print(table)
    console().out(
        f"Shares of {points[0].runs} simulated studies; in brackets Wilson's 95 % interval. rho 0: false positives."
    )
