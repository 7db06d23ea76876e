"""Which figures of the verdict a study has data for, with their names and what they show in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from unmask.report import planted, site_figures, verdict_figures
from unmask.report.site_tables import figure_name
from unmask.report.verdict_evidence import VerdictEvidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINER = "facet"


def verdict_figures_of(verdict: VerdictEvidence) -> Iterator[tuple[str, str, Figure]]:
    """(name, what it shows, figure), those of the verdict's own site and then those of all sites."""
    if verdict.tested:
        yield "verdict-spectrum", "Eigenvalues; rho and eta against their limits.", verdict_figures.spectrum(verdict)
        yield "verdict-nulls", "Every statistic against its null distribution.", verdict_figures.nulls(verdict)
    maps = {"verdict-cosines": verdict.grouping, "verdict-cosines-finer": FINER}
    if verdict.grouping == FINER:
        del maps["verdict-cosines-finer"]
    for name, grouping in maps.items():
        if len(verdict_figures.group_names(verdict, grouping)) > 1:
            alt = f"Cosines between the mean shifts of every pair of {grouping}s, with intervals."
            yield name, alt, verdict_figures.cosine_map(verdict, grouping=grouping)
    if planted.planted_rows(verdict):
        yield "verdict-power", "Share of planted data sets that are found, by effect.", planted.power_curve(verdict)
    yield "sites", "The verdict at every site.", site_figures.verdict_strip(verdict.sites)
    limits = {f"{name}_star": verdict.number(f"{name}_star") for name in ("rho", "eta")}
    for grouping, correction in site_figures.combinations(verdict.sites):
        rows = verdict.here(verdict.sites, site=None, grouping=grouping, correction=correction)
        figure = site_figures.site_map(rows, alpha=verdict.number("alpha"), **limits)
        alt = f"rho, eta, p of T2 and k_adj at every site, {site_figures.combination_name(grouping, correction)}."
        yield figure_name(grouping, correction), alt, figure
