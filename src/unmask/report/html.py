"""The page: evidence in, one self-contained HTML string out. Nothing in it is fetched, and nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import atomic_path, write_text
from unmask.records import NEUTRAL
from unmask.report import (
    cards_section,
    causal_drawings,
    causal_section,
    cluster_figures,
    examples,
    facts,
    figures,
    judging_tables,
    map_figures,
    method_tables,
    scatter,
    site_tables,
    tables,
    traced,
    verdict_drawings,
    verdict_tables,
    verdict_wording,
    wording,
)
from unmask.report.drawing import png, settle, svg
from unmask.report.evidence import Evidence
from unmask.report.formats import counted, ends, fine, interval, is_present, label, number, short_site, whole
from unmask.report.palette import SOURCES, THEME, dimension_colours, dimension_roles

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

MOST_SITES = 6
"""Sites that the overview over k shows; of more, these are spread evenly, the primary one always among them."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished figure: its picture for the page, its file for the folder."""

    name: str
    alt: str
    width: float
    svg: str
    png: bytes


def write_report(evidence: Evidence, out: Path, *, shown: int = 6, title: str | None = None) -> list[Path]:
    """Write `report.html` and `figures/*.png` into `out`; the same evidence gives the same bytes. Returns the paths.

    `shown` is the number of answer pairs per dimension.
    """
    drawn = draw(evidence)
    page = out / "report.html"
    write_text(page, render(evidence, drawn, shown=shown, title=title))
    paths = [page]
    for figure in drawn.values():
        path = out / "figures" / f"{figure.name}.png"
        with atomic_path(path) as temporary:
            temporary.write_bytes(figure.png)
        paths.append(path)
    return paths


def draw(evidence: Evidence) -> dict[str, Drawn]:
    """Every figure for which the study holds data, by name."""
    return finished(_figures(evidence))


def finished(figures: Iterable[tuple[str, str, Figure]]) -> dict[str, Drawn]:
    """Figures with their names and what they show, laid out and saved."""
    drawn = {}
    for name, alt, figure in figures:
        settle(figure)
        drawn[name] = Drawn(name, alt, float(figure.get_size_inches()[0]), svg(figure, name=name), png(figure))
    return drawn


def _figures(evidence: Evidence) -> Iterator[tuple[str, str, Figure]]:
    dimensions = evidence.dimensions
    colours = dimension_colours(dimensions)
    rows = figures.rows_in_order(evidence.score_summary["by_dimension"])
    yield from verdict_drawings.verdict_figures_of(evidence.verdict)
    if evidence.loss is not None and len(evidence.loss):
        yield "loss", "Training loss by optimiser step.", figures.loss_curve(evidence.loss)
    alt = "Mean misalignment of base and organism by dimension; difference and persona log-odds with intervals."
    yield "tuning", alt, figures.tuning_effect(rows, colours=colours)
    alt = "Misalignment and coherence of every answer, by dimension and model."
    yield "scores", alt, figures.score_strips(evidence.scores, dimensions=dimensions)
    yield from _cluster_figures(evidence, colours)
    yield from causal_drawings.causal_figures_of(evidence.causal, colours)


def _cluster_figures(evidence: Evidence, colours: Mapping[str, str]) -> Iterator[tuple[str, str, Figure]]:
    site, k, metrics = evidence.site, evidence.k, evidence.metrics
    asked = {name: colour for name, colour in colours.items() if name != NEUTRAL}
    dimension_of = dict(zip(evidence.questions["question_id"], evidence.questions["dimension"], strict=True))
    alt = "Every question at its first two principal components, coloured by dimension, for shift, organism and base."
    where: dict[str, Any] = {"variance": evidence.variance, "site": site}
    figure = map_figures.by_dimension(evidence.coordinates, dimension_of=dimension_of, colours=asked, **where)
    yield "scatter", alt, figure
    alt = "The same questions, coloured by cluster."
    yield "scatter-cluster", alt, map_figures.by_cluster(evidence.coordinates, clusters=evidence.clusters, k=k, **where)
    alt = "The same questions, coloured by misalignment score."
    yield "scatter-score", alt, map_figures.by_score(evidence.coordinates, scores=evidence.scores, **where)
    alt = "Silhouette and agreement with dimension and facet against the number of clusters, by site."
    yield "k-overview", alt, cluster_figures.k_overview(metrics, sites=sites_shown(evidence), primary_k=k)
    if metrics.loc[metrics["site"] == site, "space"].nunique() > 1:
        alt = "Silhouette and agreement with dimension in the reduced and in the full space."
        yield "spaces", alt, cluster_figures.space_comparison(metrics, site=site, primary_k=k)
    alt = "Questions in each cluster by dimension, for shift, organism and base."
    yield "composition", alt, cluster_figures.composition(evidence.cluster_summary, site=site, k=k, colours=asked)
    sites = [name for name in evidence.decomposition["sites"] if name in evidence.decomposition["shift_norm"]]
    alt = "Size of the shift and share of the common move by layer; cumulative variance by component."
    figure = cluster_figures.geometry(
        evidence.decomposition["shift_norm"], sites=sites, variance=evidence.variance, site=site
    )
    yield "geometry", alt, figure


def sites_shown(evidence: Evidence) -> list[str]:
    """At most `MOST_SITES` sites in order, spread evenly, with the primary one."""
    sites = [str(site) for site in evidence.decomposition["sites"]]
    if len(sites) <= MOST_SITES:
        return sites
    step = (len(sites) - 1) / (MOST_SITES - 1)
    chosen = {sites[round(step * place)] for place in range(MOST_SITES)}
    if evidence.site not in chosen:
        place = sites.index(evidence.site)
        chosen.remove(min(chosen - {sites[0], sites[-1]}, key=lambda name: abs(sites.index(name) - place)))
        chosen.add(evidence.site)
    return [site for site in sites if site in chosen]


def render(evidence: Evidence, drawn: Mapping[str, Drawn], *, shown: int = 6, title: str | None = None) -> str:
    """The page as a string."""
    from plotly.offline import get_plotlyjs

    roles = dimension_roles(evidence.dimensions)
    other_ks = [int(k) for k in evidence.decomposition["k"] if int(k) != evidence.k]
    sources = [source for source in SOURCES if (evidence.cluster_summary["source"] == source).any()]
    shown_pairs = [
        (wording.dimension_name(name), roles[name], examples.pairs(evidence, name, shown))
        for name in evidence.dimensions
    ]
    template = _environment().get_template("report.html.j2")
    return template.render(
        title=title or wording.title(evidence),
        evidence=evidence,
        theme=THEME,
        figures=drawn,
        wording=wording,
        tables=tables,
        facts=facts,
        traced=traced,
        verdict=evidence.verdict,
        verdict_wording=verdict_wording,
        verdict_tables=verdict_tables,
        site_tables=site_tables.site_tables(evidence.verdict),
        card_groups=cards_section.groups(evidence.cards),
        method_tables=method_tables.method_tables(evidence),
        glance=glance(evidence),
        judging_tables=judging_tables.judging_tables(evidence),
        disagreements=examples.disagreements(evidence.agreement),
        causal=causal_section.section(evidence.causal, evidence.questions, drawn),
        roles=roles,
        examples=shown_pairs,
        example_rule=examples.rule(shown),
        neutral=next((row for row in evidence.score_summary["by_dimension"] if row["dimension"] == NEUTRAL), None),
        other_ks=other_ks,
        sources=sources,
        sites_left_out=len(evidence.decomposition["sites"]) - len(sites_shown(evidence)),
        scatter_json=scatter.as_json(scatter.payload(evidence)),
        plotly=get_plotlyjs(),
    )


def glance(evidence: Evidence) -> list[tuple[str, str, str]]:
    """The few numbers to take away: (what, value, remark)."""
    overall = evidence.score_summary["overall"]
    absent = int(evidence.scores["misalignment"].isna().sum())
    odds = interval(overall.get("log_odds_difference"), 2)
    difference = interval(overall.get("difference"), absent=absent)
    auc, verdict = evidence.judge.get("auc"), evidence.verdict
    rho, limit = verdict.number("rho"), verdict.number("rho_star")
    around = ends(verdict.number("rho_low"), verdict.number("rho_high"))
    remark = f"rho; 90 %: {around}; limit {limit:g}" if limit is not None and rho is not None else "rho"
    beyond = verdict.number("k_adj")
    needed = f"k_adj; {whole(verdict.number('k_star'))} needed to be separable" if beyond is not None else "k_adj"
    return [
        ("share outside one direction", fine(rho), remark),
        ("dimensions beyond topic", whole(beyond), needed),
        ("misalignment, organism minus base", *_split(difference, "points of 100, 95 % interval")),
        (
            "persona log-odds",
            *_split(odds, "nats per token; change, not misalignment"),
        ),
        ("judge on held-out dimensions", number(auc, 2), "AUC; 0.5 is chance" if is_present(auc) else ""),
        ("cross-talk between dimensions (T5)", *_cross_talk(evidence)),
    ]


def _cross_talk(evidence: Evidence) -> tuple[str, str]:
    """X and its interval; the outcome where there is no such ratio."""
    record = evidence.causal.record
    if record is None:
        return "not measured", ""
    if not is_present(record["x"]):
        return str(record["outcome"]), "no effect on own answers to compare with"
    return fine(
        record["x"]
    ), f"{record['outcome']}; X, 90 %: {ends(record['x_low'], record['x_high'])}; 0 none, 1 all alike"


def _split(text: str, remark: str) -> tuple[str, str]:
    """Mean in large, its interval in the remark."""
    mean, bracket, rest = text.partition(" [")
    return (mean, f"[{rest} {remark}") if bracket else (text, remark)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unmask.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"label": label, "short_site": short_site, "counted": counted, "number": number}
    environment.filters["capitalise"] = lambda text: text[:1].upper() + text[1:]
    return environment
