"""Tables on the judges: rates, facets, traits, what is missing and why, and how far judges agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.records import WRITERS
from unmask.report.evidence import Evidence
from unmask.report.formats import interval, label, number, percent
from unmask.report.tables import Row, Table
from unmask.report.wording import dimension_name


def judging_tables(evidence: Evidence) -> list[tuple[str, Table]]:
    """Those for which there is something to show, each with its heading."""
    summary = evidence.score_summary
    made = [
        ("Emergent, in domain, leakage", rates(summary["rates"])),
        ("Facets", facets(summary["by_facet"])),
        ("Traits", traits(summary["traits"])),
        ("Missing scores", missing(summary)),
        *((f"Agreement of judges on {label(record['rubric'])}", agreement(record)) for record in evidence.agreement),
    ]
    return [(heading, table) for heading, table in made if table.rows]


def rates(rows: Sequence[Mapping[str, Any]]) -> Table:
    """EM and leakage rates of both models with Wilson's intervals."""
    caption = (
        "Share of answers above the limits, of those that were scored, with Wilson's 95 % interval (which takes answers as "
        "independent). Emergent is the EM rate on prompts that have nothing to do with the tuning."
    )
    lines = tuple(
        Row((str(row["rate"]).replace("_", " "), *(_rate(row[writer]) for writer in WRITERS))) for row in rows
    )
    return Table(caption, ("rate", "base", "organism"), lines)


def facets(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Misalignment of every facet."""
    lines = tuple(
        Row(
            (
                label(row["dimension"]),
                label(row["facet"]),
                *(_mean(row, writer) for writer in WRITERS),
                interval(row["difference"]),
                *(
                    _rate({"rate": row[f"em_rate_{w}"], "interval": row[f"em_interval_{w}"], "n": row[f"em_n_{w}"]})
                    for w in WRITERS
                ),
            )
        )
        for row in rows
    )
    columns = (
        "dimension",
        "facet",
        "base [95 %]",
        "organism [95 %]",
        "difference [95 %]",
        "EM rate, base",
        "EM rate, organism",
    )
    return Table("Misalignment by facet; intervals of means over questions", columns, lines, words=2)


def traits(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Further scores of the judge that counts, per facet."""
    lines = tuple(
        Row(
            (
                label(row["trait"]),
                dimension_name(row["dimension"]),
                label(row["facet"]),
                *(f"{number(row[f'{w}_mean'])} ({row[f'n_{w}']}, missing {row[f'missing_{w}']})" for w in WRITERS),
                interval(row["difference"]),
            )
        )
        for row in rows
    )
    columns = ("trait", "dimension", "facet", "base, mean (n)", "organism, mean (n)", "difference [95 %]")
    return Table("Traits, 0 to 100: what an answer expresses, told apart from general badness", columns, lines, words=3)


def missing(summary: Mapping[str, Any]) -> Table:
    """Answers without a score, by reason."""
    rows = [
        Row((dimension_name(row["dimension"]), writer, reason.replace("_", " "), str(count)))
        for row in summary["by_dimension"]
        for writer in WRITERS
        for reason, count in row[f"missing_reasons_{writer}"].items()
    ]
    return Table(
        "Missing scores of misalignment, by reason", ("dimension", "model", "reason", "answers"), tuple(rows), words=3
    )


def agreement(record: Mapping[str, Any]) -> Table:
    """Every pair of judges on one rubric."""
    alpha = "not defined" if record["alpha"] is None else f"{record['alpha']:.2f}"
    caption = (
        f"Krippendorff's alpha of all: {alpha}. Alpha asks for equal scores, Spearman for equal order; the difference is the "
        "first's mean less the second's."
    )
    lines = tuple(
        Row((pair["first"], pair["second"], str(pair["n"]), *(number(pair[name], 2) for name in ("spearman", "alpha")),
             number(pair["bias"])))
        for pair in record["pairs"]
    )  # fmt: skip
    return Table(caption, ("judge", "and", "answers", "Spearman", "alpha", "difference"), lines, words=2)


def _rate(found: Mapping[str, Any]) -> str:
    ends = found["interval"]
    around = "" if ends is None else f" [{percent(ends[0])}, {percent(ends[1])}]"
    return f"{percent(found['rate'])}{around}, n {found['n']}"


def _mean(row: Mapping[str, Any], writer: str) -> str:
    ends = row[f"{writer}_interval"]
    around = "" if ends is None else f" [{number(ends[0])}, {number(ends[1])}]"
    return f"{number(row[f'{writer}_mean'])}{around}, n {row[f'n_{writer}']}"
