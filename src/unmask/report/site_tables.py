"""The layer and site map as tables, one for each grouping and correction."""

from __future__ import annotations

import re
from typing import Any

from unmask.report.formats import ends, fine, is_present, short_site, whole
from unmask.report.site_figures import by_layer, combination_name, combinations
from unmask.report.tables import Row, Table
from unmask.report.verdict_evidence import VerdictEvidence

COLUMNS = (
    "site",
    "verdict",
    "rho [90 %]",
    "eta [90 %]",
    "p(T2)",
    "p(T2), max-T",
    "k_adj (k*)",
    "p(T3) at k*",
    "p(T3) first, max-T",
)


def site_tables(verdict: VerdictEvidence) -> list[tuple[str, str, Table]]:
    """(name of the figure, heading, table), the verdict's own grouping and correction first."""
    own = (verdict.grouping, str(verdict.record["correction"]))
    pairs = sorted(combinations(verdict.sites), key=lambda pair: pair != own)
    return [(figure_name(*pair), combination_name(*pair), _table(verdict, *pair)) for pair in pairs]


def figure_name(grouping: str, correction: str) -> str:
    """`sites-dimension-none`: safe as a file's name and an element's id, whatever the artifact holds."""
    return re.sub(r"[^a-z0-9-]+", "-", f"sites-{grouping}-{correction}".lower())


def _table(verdict: VerdictEvidence, grouping: str, correction: str) -> Table:
    found = verdict.here(verdict.sites, site=None, grouping=grouping, correction=correction)
    held = {str(row["site"]): row for row in found.to_dict("records")}
    rows = tuple(_row(held[site]) for site in by_layer(list(held)))
    caption = (
        "verdict/sites.parquet; the primary site, named before looking, is bold. max-T: paid for over all its sites."
    )
    return Table(caption, COLUMNS, rows, words=2)


def _row(row: dict[Any, Any]) -> Row:
    name = str(row["verdict"])
    qualifier, reason = (row[field] if isinstance(row[field], str) else "" for field in ("qualifier", "reason"))
    told = ", ".join(part for part in (qualifier, reason) if part)
    look = "total" if row["primary"] else ""
    if reason:
        return Row((short_site(str(row["site"])), f"{name} ({told})", *["not measured"] * (len(COLUMNS) - 2)), look)
    shares = [
        f"{fine(row[field])} {ends(row[f'{field}_low'], row[f'{field}_high'])}"
        if is_present(row[field])
        else fine(None)
        for field in ("rho", "eta")
    ]
    cells = (
        short_site(str(row["site"])),
        f"{name} ({told})" if told else name,
        *shares,
        fine(row["p_rank"]),
        fine(row["p_rank_max_t"]),
        f"{whole(row['k_adj'])} ({whole(row['k_star'])})",
        fine(row["p_adj"]),
        fine(row["p_adj_max_t"]),
    )
    return Row(cells, look)
