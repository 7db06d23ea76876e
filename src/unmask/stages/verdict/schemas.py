"""Columns of the verdict's tables."""

from __future__ import annotations

import pyarrow as pa

_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int32()


def _schema(*, text: str = "", real: str = "", whole: str = "", flag: str = "") -> pa.Schema:
    """Columns by type; names are separated by blanks."""
    kinds = ((text, _TEXT), (real, _REAL), (whole, _WHOLE), (flag, pa.bool_()))
    return pa.schema([(name, kind) for names, kind in kinds for name in names.split()])


SITES = _schema(
    text="site grouping correction verdict qualifier reason",
    real="p_shift p_rank p_rank_max_t rank k_adj k_star p_adj p_adj_max_t gamma_star rho rho_low rho_high eta eta_low eta_high "
    "rho_adj eta_adj mean_share transport_share noise_ratio replicate_dimensions power_at_interest",
    whole="layer",
    flag="primary",
)
GEOMETRY = _schema(
    text="site grouping correction group_a group_b",
    real="gram cosine cosine_low cosine_high naive_cosine",
    whole="n_a n_b",
)
TESTS = _schema(
    text="test site grouping correction note", real="statistic null_mean null_sd p p_max_t", whole="rank flips"
)
POWER = _schema(text="site grouping correction scale offsets", real="effect share low high", whole="runs detected")
SENSITIVITY = _schema(text="site correction", real="gamma p", whole="k_adj", flag="rejected")
DIRECTIONS = _schema(text="direction_id kind label site grouping correction", real="norm", whole="questions")
COMPONENTS = _schema(text="component_id kind source site label stability_name", real="stability strength", whole="size")
LOADINGS = _schema(text="component_id question_id", real="loading")
