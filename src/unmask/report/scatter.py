"""The data behind the interactive scatter: every question at its principal components, for each source and site.

Drawn in the browser by `templates/scatter.js`. Texts are data: they reach Plotly escaped, and JSON holds no raw `<`.
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unmask.records import NEUTRAL, WRITERS
from unmask.report.cluster_figures import axis_name, explained
from unmask.report.evidence import Evidence
from unmask.report.formats import is_present, label, short_site
from unmask.report.palette import CATEGORICAL, SOURCES, THEME, dimension_roles

if TYPE_CHECKING:
    import pandas as pd

EXCERPT = 160
"""Characters of a question or an answer shown on hover."""


def payload(evidence: Evidence) -> dict[str, Any]:
    """All that the scatter shows, as plain values that JSON can hold."""
    questions = evidence.questions[evidence.questions["dimension"] != NEUTRAL].reset_index(drop=True)
    index = {name: row for row, name in enumerate(questions["question_id"])}
    coordinates = evidence.coordinates
    sites = [site for site in evidence.decomposition["sites"] if (coordinates["site"] == site).any()]
    sources = [source for source in SOURCES if (coordinates["source"] == source).any()]
    dimensions = list(dict.fromkeys(questions["dimension"]))
    roles = dimension_roles(evidence.dimensions)
    facets = questions[["dimension", "facet"]].drop_duplicates().to_dict("records")
    names = [(facet["dimension"], facet["facet"]) for facet in facets]
    return {
        "sources": sources,
        "sites": [{"name": site, "title": short_site(site)} for site in sites],
        "site": evidence.site,
        "ks": [int(k) for k in sorted(evidence.clusters["k"].unique())],
        "k": evidence.k,
        "dimensions": [{"name": html.escape(label(name)), "colour": THEME[roles[name]]} for name in dimensions],
        "facets": [_facet(dimension, facet, names, THEME[roles[dimension]]) for dimension, facet in names],
        "palette": [THEME[role] for role in CATEGORICAL],
        "dimension": [dimensions.index(name) for name in questions["dimension"]],
        "facet": [names.index(pair) for pair in zip(questions["dimension"], questions["facet"], strict=True)],
        "score": {writer: _scores(evidence, questions, writer) for writer in WRITERS},
        "hover": {writer: _hover(evidence, questions, writer) for writer in WRITERS},
        "views": {f"{source}|{site}": _view(evidence, source, site, index) for source in sources for site in sites},
    }


def as_json(value: object) -> str:
    """Compact JSON that may stand inside a script element: `<`, `>` and `&` are written as escapes."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facet(dimension: str, facet: str, names: Sequence[tuple[str, str]], colour: tuple[str, str]) -> dict[str, Any]:
    """A facet keeps its dimension's colour and differs from its siblings by the symbol."""
    siblings = [name for name in names if name[0] == dimension]
    title = f"{label(dimension)}: {label(facet)}" if facet else label(dimension)
    return {"name": html.escape(title), "colour": colour, "symbol": siblings.index((dimension, facet))}


def _scores(evidence: Evidence, questions: pd.DataFrame, writer: str) -> list[float | None]:
    """Mean misalignment of a question's answers; None where no answer was scored."""
    own = evidence.scores[evidence.scores["writer"] == writer]
    means = own.groupby("question_id")["misalignment"].mean().to_dict()
    values = [means.get(name) for name in questions["question_id"]]
    return [round(float(value), 1) if is_present(value) else None for value in values]


def _hover(evidence: Evidence, questions: pd.DataFrame, writer: str) -> list[str]:
    own = evidence.responses[evidence.responses["writer"] == writer].sort_values("sample")
    answers = own.drop_duplicates("question_id").set_index("question_id")["text"].to_dict()
    rows = zip(questions["question_id"], questions["text"], strict=True)
    return [f"<b>{_wrapped(text)}</b><br>{writer}: {_wrapped(answers.get(name, ''))}" for name, text in rows]


def _wrapped(text: str) -> str:
    """Text for a hover box: shortened, wrapped, and free of anything that Plotly could take for markup."""
    short = text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1].rstrip()}…"
    return "<br>".join(html.escape(line) for line in textwrap.wrap(short, 58)) or "(empty)"


def _view(evidence: Evidence, source: str, site: str, index: dict[str, int]) -> dict[str, Any]:
    rows = evidence.coordinates
    rows = rows[(rows["source"] == source) & (rows["site"] == site) & rows["question_id"].isin(index)]
    shares = explained(evidence.variance, source=source, site=site)
    found = evidence.clusters
    found = found[(found["source"] == source) & (found["site"] == site)]
    clusters = {}
    for k, group in found.groupby("k"):
        assigned = dict(zip(group["question_id"], group["cluster"], strict=True))
        clusters[str(k)] = [int(assigned.get(name, -1)) for name in rows["question_id"]]
    return {
        "rows": [index[name] for name in rows["question_id"]],
        "pc": [[float(f"{value:.4g}") for value in rows[f"pc{number}"]] for number in (1, 2, 3)],
        "axes": [axis_name(number, shares) for number in (1, 2, 3)],
        "clusters": clusters,
        "outliers": _outliers(evidence, source, site),
    }


def _outliers(evidence: Evidence, source: str, site: str) -> dict[str, list[int]]:
    table = evidence.cluster_summary
    table = table[(table["source"] == source) & (table["site"] == site) & table["outlier"].astype(bool)]
    return {str(k): sorted(int(cluster) for cluster in group["cluster"]) for k, group in table.groupby("k")}
