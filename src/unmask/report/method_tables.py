"""Tables of every clustering that was tried, where the study holds them: shift, organism and base beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unmask.report.evidence import Evidence
from unmask.report.formats import fine, is_present, label, short_site, whole
from unmask.report.palette import SOURCES
from unmask.report.schemas import AGREEMENTS, LABELLINGS
from unmask.report.tables import Row, Table

if TYPE_CHECKING:
    import pandas as pd

MAIN = ("silhouette", *(f"ami_{labels}" for labels in LABELLINGS))
REST = (
    *("calinski_harabasz", "davies_bouldin", "bic", "found", "noise"),
    *(f"{measure}_{labels}" for measure in AGREEMENTS if measure != "ami" for labels in LABELLINGS),
)
REFERENCE = "reference"
NAMES = {"ami": "AMI", "ari": "ARI", "v": "V", "bic": "BIC"}


def method_tables(evidence: Evidence) -> list[tuple[str, Table]]:
    """(summary, table) for the primary site, none where the study holds no such tables."""
    found: list[tuple[str, Table]] = []
    described = evidence.described
    if "methods" in described:
        found += _methods(evidence, described["methods"])
    if "selection" in described:
        found += _selection(evidence, described["selection"])
    if "stability" in described:
        found += _stability(evidence, described["stability"])
    return found


def _sources(table: pd.DataFrame) -> list[str]:
    """Sources of a table: the shift, then the two that it is to be read against, then any other."""
    held = list(dict.fromkeys(table["source"].astype(str)))
    return [name for name in SOURCES if name in held] + [name for name in held if name not in SOURCES]


def _here(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    return table[table["site"] == evidence.site]


def _methods(evidence: Evidence, table: pd.DataFrame) -> list[tuple[str, Table]]:
    table = _here(evidence, table)
    found = []
    for procedure, reducer in dict.fromkeys(
        zip(table["procedure"].astype(str), table["reducer"].astype(str), strict=True)
    ):
        rows = table[(table["procedure"].astype(str) == procedure) & (table["reducer"].astype(str) == reducer)]
        start = "the reference study's own procedure" if procedure == REFERENCE else "every clustering"
        sources = " / ".join(_sources(rows))
        caption = f"decomposition/methods.parquet at {short_site(evidence.site)}. Each cell: {sources}."
        if "base" in sources and sources != "base":
            caption += " Read the others against the base, which holds no tuned persona."
        for measures, which in ((MAIN, "silhouette and AMI"), (REST, "other measures")):
            name = f"{start} in the space {label(reducer)}: {which}"
            found.append((name, _beside(rows, ("clusterer", "k"), measures, caption)))
    return found


def _beside(rows: pd.DataFrame, keys: Sequence[str], measures: Sequence[str], caption: str) -> Table:
    """One line for each combination of `keys`; a cell holds a measure of every source, in their order."""
    sources = _sources(rows)
    held: dict[tuple[Any, ...], dict[str, dict[Any, Any]]] = {}
    for row in rows.to_dict("records"):
        held.setdefault(tuple(_key(row[key]) for key in keys), {})[str(row["source"])] = row
    lines = [
        Row(
            (
                *key,
                *(
                    " / ".join(fine(by.get(source, {}).get(name), absent="-") for source in sources)
                    for name in measures
                ),
            )
        )
        for key, by in held.items()
    ]
    return Table(caption, (*keys, *(_name(measure) for measure in measures)), tuple(lines), words=len(keys))


def _key(value: Any) -> str:
    """A method's name, or k; - where a method takes no k."""
    if value is None or isinstance(value, str):
        return label(value or "-")
    return whole(value, absent="-")


def _name(measure: str) -> str:
    start, _, labels = measure.partition("_")
    known = NAMES.get(start) or (start if start in AGREEMENTS else None)
    return f"{known} {label(labels)}".strip() if known else label(measure)


def _selection(evidence: Evidence, table: pd.DataFrame) -> list[tuple[str, Table]]:
    table = _here(evidence, table)
    sources = _sources(table)
    held: dict[tuple[str, str], dict[str, dict[Any, Any]]] = {}
    for row in table.to_dict("records"):
        held.setdefault((label(row["criterion"]), _key(row["k"])), {})[str(row["source"])] = row
    lines = [Row((*key, *(_chosen(by.get(source)) for source in sources))) for key, by in held.items()]
    caption = (
        f"decomposition/selection.parquet at {short_site(evidence.site)}: value ± standard error; * marks the k that "
        "a criterion takes. A criterion that takes k = 1, or none, says nothing against sub-personas."
    )
    return [("how many clusters: every criterion", Table(caption, ("criterion", "k", *sources), tuple(lines), words=2))]


def _chosen(row: dict[Any, Any] | None) -> str:
    if row is None:
        return "-"
    error = f" ± {fine(row['se'])}" if is_present(row["se"]) else ""
    return f"{fine(row['value'], absent='-')}{error}{' *' if row['chosen'] is True or row['chosen'] == 1 else ''}"


def _stability(evidence: Evidence, table: pd.DataFrame) -> list[tuple[str, Table]]:
    table = _here(evidence, table)
    sources = _sources(table)
    keys = ["clusterer", "k", "measure"]
    lines = []
    for key in dict.fromkeys(tuple(_key(row[name]) for name in keys) for row in table.to_dict("records")):
        cells = []
        for source in sources:
            rows = [
                row
                for row in table.to_dict("records")
                if row["source"] == source and tuple(_key(row[n]) for n in keys) == key
            ]
            values = sorted(float(row["value"]) for row in rows if is_present(row["value"]))
            span = (
                f"{fine(values[0])} to {fine(values[-1])}"
                if len(values) > 1
                else fine(values[0] if values else None, absent="-")
            )
            cells.append(span)
        lines.append(Row((*key, *cells)))
    caption = (
        f"decomposition/stability.parquet at {short_site(evidence.site)}: the least and the most stable cluster. Base "
        "activations are stable too: that shows topic, not personas."
    )
    return [("how stable clusters are", Table(caption, (*keys, *sources), tuple(lines), words=3))]
