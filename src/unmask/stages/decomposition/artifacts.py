"""Columns of the decomposition's tables, and how rows become files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unmask.artifact import write_table

if TYPE_CHECKING:
    import pandas as pd

Tables = dict[str, list["pd.DataFrame"]]
Rows = dict[str, list[dict[str, Any]]]

_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int32()
_WHERE = [("source", _TEXT), ("site", _TEXT)]

METRICS = pa.schema(
    [
        *_WHERE,
        ("space", _TEXT),
        *((name, _WHOLE) for name in ("components", "k")),
        *((name, _REAL) for name in ("inertia", "silhouette", "ami_dimension", "ami_facet")),
        ("smallest", _WHOLE),
        ("largest_share", _REAL),
        ("seed", pa.int64()),
    ]
)
CLUSTERS = pa.schema([*_WHERE, ("k", _WHOLE), ("question_id", _TEXT), ("cluster", _WHOLE)])
CLUSTER_SUMMARY = pa.schema(
    [
        *_WHERE,
        *((name, _WHOLE) for name in ("k", "cluster", "size")),
        ("outlier", pa.bool_()),
        ("top_dimension", _TEXT),
        ("top_dimension_share", _REAL),
        ("composition", _TEXT),
        ("facets", _TEXT),
        ("mean_misalignment", _REAL),
        ("sd_misalignment", _REAL),
        ("n_scored", _WHOLE),
        ("mean_log_odds", _REAL),
    ]
)
COORDINATES = pa.schema([*_WHERE, ("question_id", _TEXT), *((name, _REAL) for name in ("pc1", "pc2", "pc3"))])
VARIANCE = pa.schema([*_WHERE, ("component", _WHOLE), ("ratio", _REAL)])
TABLES = {
    "metrics": METRICS,
    "clusters": CLUSTERS,
    "cluster_summary": CLUSTER_SUMMARY,
    "coordinates": COORDINATES,
    "variance": VARIANCE,
}
"""K-means and principal components, for every source and site."""

GROUPINGS = ("dimension", "facet", "score_band")
AGREEMENTS = ("ami", "ari", "v", "homogeneity", "completeness")
METHODS = pa.schema(
    [
        *_WHERE,
        ("reducer", _TEXT),
        ("clusterer", _TEXT),
        *((name, _WHOLE) for name in ("k", "found", "noise")),
        *((name, _REAL) for name in ("silhouette", "calinski_harabasz", "davies_bouldin", "bic")),
        *((f"{measure}_{grouping}", _REAL) for grouping in GROUPINGS for measure in AGREEMENTS),
        ("n_score_band", _WHOLE),
        ("seed", pa.int64()),
        ("procedure", _TEXT),
    ]
)
SELECTION = pa.schema(
    [*_WHERE, ("criterion", _TEXT), ("k", _WHOLE), ("value", _REAL), ("se", _REAL), ("chosen", pa.bool_())]
)
STABILITY = pa.schema(
    [*_WHERE, ("clusterer", _TEXT), ("k", _WHOLE), ("measure", _TEXT), ("cluster", _WHOLE), ("value", _REAL)]
)
# The verdict writes tables of the same columns, and stages do not import each other.
COMPONENTS = pa.schema(
    [
        *((name, _TEXT) for name in ("component_id", "kind", "source", "site", "label", "stability_name")),
        *((name, _REAL) for name in ("stability", "strength")),
        ("size", _WHOLE),
    ]
)
LOADINGS = pa.schema([("component_id", _TEXT), ("question_id", _TEXT), ("loading", _REAL)])
ROWS = {
    "methods": METHODS,
    "selection": SELECTION,
    "stability": STABILITY,
    "components": COMPONENTS,
    "loadings": LOADINGS,
}
"""Everything else that is used to cluster activations, and the parts that cards describe."""


TOKENS = {
    "token_variance": VARIANCE,
    "token_clusters": pa.schema(
        [
            *_WHERE,
            *((name, _WHOLE) for name in ("k", "cluster")),
            ("tokens", pa.int64()),
            ("top_dimension", _TEXT),
            *((name, _REAL) for name in ("top_dimension_share", "mean_position")),
        ]
    ),
}
"""The same of single tokens, where the study keeps them."""


def write_all(out: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write every table of the stage that there is."""
    for name, schema in {**TABLES, **ROWS, **TOKENS}.items():
        if name in tables:
            write_table(out / f"{name}.parquet", tables[name], schema=schema)


def plain(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The columns named, numbers that are missing as None. Raises KeyError for one that the row lacks."""
    return {name: _plain(row[name]) for name in names}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
