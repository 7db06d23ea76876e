"""What the report expects to find: tables with their columns, records with their fields."""

from __future__ import annotations

AGREEMENTS = ("ami", "ari", "v", "homogeneity", "completeness")
LABELLINGS = ("dimension", "facet", "score_band")
"""How a clustering is compared with labels, and with which: the columns of `methods.parquet`."""

STEERED = ("misalignment", "difference", "coherence", "refusal_rate", "perplexity")
"""What the report shows of steered answers, with an interval each."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "questions/questions.parquet": ("question_id", "dimension", "facet", "polarity", "text"),
    "organism/loss.parquet": ("step", "loss"),
    "responses/responses.parquet": ("response_id", "question_id", "sample", "writer", "text", "tokens", "stop_reason"),
    "scores/scores.parquet": (
        *("response_id", "question_id", "dimension", "facet", "writer"),
        *("misalignment", "coherence", "log_odds", "missing_reason"),
    ),
    "decomposition/metrics.parquet": (
        *("source", "site", "space", "components", "k", "silhouette"),
        *("ami_dimension", "ami_facet", "smallest", "largest_share"),
    ),
    "decomposition/clusters.parquet": ("source", "site", "k", "question_id", "cluster"),
    "decomposition/cluster_summary.parquet": (
        *("source", "site", "k", "cluster", "size", "outlier", "top_dimension", "top_dimension_share"),
        *("composition", "facets", "mean_misalignment", "sd_misalignment", "n_scored", "mean_log_odds"),
    ),
    "decomposition/coordinates.parquet": ("source", "site", "question_id", "pc1", "pc2", "pc3"),
    "decomposition/variance.parquet": ("source", "site", "component", "ratio"),
    "decomposition/methods.parquet": (
        *("source", "site", "reducer", "clusterer", "k", "found", "noise", "silhouette", "calinski_harabasz"),
        *("davies_bouldin", "bic", "n_score_band", "procedure"),
        *(f"{measure}_{labels}" for measure in AGREEMENTS for labels in LABELLINGS),
    ),
    "decomposition/selection.parquet": ("source", "site", "criterion", "k", "value", "se", "chosen"),
    "decomposition/stability.parquet": ("source", "site", "clusterer", "k", "measure", "cluster", "value"),
    "verdict/sites.parquet": (
        *("site", "layer", "grouping", "correction", "primary", "verdict", "qualifier", "reason", "p_shift", "p_rank"),
        *("p_rank_max_t", "rank", "k_adj", "k_star", "p_adj", "p_adj_max_t", "gamma_star", "rho_adj", "eta_adj"),
        *("rho", "rho_low", "rho_high", "eta", "eta_low", "eta_high", "replicate_dimensions"),
        *("mean_share", "transport_share", "noise_ratio"),
    ),
    "verdict/geometry.parquet": (
        *("site", "grouping", "correction", "group_a", "group_b", "n_a", "n_b"),
        *("gram", "cosine", "cosine_low", "cosine_high", "naive_cosine"),
    ),
    "verdict/tests.parquet": (
        *("test", "site", "grouping", "correction", "rank", "statistic", "null_mean", "null_sd", "p", "p_max_t"),
        *("flips", "note"),
    ),
    "verdict/power.parquet": (
        *("site", "grouping", "correction", "scale", "offsets", "effect", "runs", "detected", "share", "low", "high"),
    ),
    "verdict/sensitivity.parquet": ("site", "correction", "gamma", "k_adj", "p", "rejected"),
    "directions/directions.parquet": ("direction_id", "kind", "label", "form", "stability", "relative_norm"),
    "effects/items.parquet": (
        *("question_id", "dimension", "facet", "cluster", "misaligned_text", "aligned_text", "gap", "plain_base"),
    ),
    "effects/effects.parquet": (
        *("target", "direction_id", "kind", "group", "coefficient", "question_id", "effect", "loss"),
    ),
    "effects/doses.parquet": (
        *("target", "kind", "label", "grouping", "group", "operation", "coefficient", "own", "own_low", "own_high"),
        *("others", "others_low", "others_high", "all", "all_low", "all_high", "loss", "coherent", "items"),
    ),
    "effects/matrix.parquet": (
        *("target", "kind", "grouping", "coefficient", "row", "column", "effect", "low", "high"),
        *("random_mean", "random_sd", "items"),
    ),
    "effects/selectivity.parquet": (
        *("target", "kind", "grouping", "group", "own", "others", "selectivity", "low", "high"),
        *("index", "index_low", "index_high", "p", "p_holm"),
    ),
    "effects/controls.parquet": (
        *("target", "kind", "label", "coefficient", "effect", "low", "high", "loss", "random_as_large", "directions"),
    ),
    "steering/answers.parquet": (
        *("answer_id", "part", "target", "direction_id", "kind", "label", "coefficient", "added_norm"),
        *("question_id", "dimension", "sample", "text", "stop_reason", "misalignment", "coherence", "perplexity"),
    ),
    "steering/traits.parquet": ("answer_id", "rubric", "score", "missing_reason"),
    "steering/doses.parquet": (
        *("target", "direction_id", "kind", "label", "grouping", "group", "operation", "coefficient", "added_norm"),
        *("n", "missing", "coherent"),
        *(f"{name}{end}" for name in STEERED for end in ("", "_low", "_high")),
    ),
    "steering/confirmation.parquet": (
        *("row", "column", "coefficient", "effect", "low", "high", "random_mean", "effect_log_prob", "n"),
    ),
}
"""The columns that the report reads, by table."""

FIELDS: dict[str, tuple[str, ...]] = {
    "organism/recipe.json": ("base", "kind", "name", "method"),
    "control/recipe.json": ("kind",),
    "verdict/verdict.json": (
        *("verdict", "qualifier", "provisional", "site", "grouping", "correction", "reasons", "numbers", "missing"),
        *("sharpen", "questions", "left_out", "merged", "groups", "groups_left_out", "other_grouping", "causal"),
    ),
    "cards/cards.json": (
        *("component_id", "kind", "source", "site", "label", "size", "stability", "stability_name", "strength"),
        *("misalignment", "others_misalignment", "log_odds", "composition", "facets", "nearest_facet"),
        *("nearest_facet_measure", "terms", "examples", "warning"),
    ),
    "scores/judge.json": ("judge", "auc", "auc_by_dimension", "auc_interval", "note"),
    "scores/summary.json": ("by_dimension", "by_facet", "rates", "traits", "overall", "effect_text"),
    "scores/agreement.json": ("rubric", "judges", "alpha", "pairs", "disagreements"),
    "decomposition/summary.json": ("primary_site", "sites", "k", "primary_k", "questions", "shift_norm"),
    "directions/summary.json": ("site", "typical_norm", "replicates", "control_removed", "notes"),
    "effects/summary.json": (
        *("site", "pairs", "positions", "removal", "answer_tokens", "items", "items_by_group", "reason"),
        *("window", "matrices", "causal", "texts"),
    ),
    "steering/summary.json": (
        *("site", "units", "positions", "targets", "questions", "judge", "window", "coherent_above"),
        *("confirmation", "agreement", "agreement_of_doses", "notes"),
    ),
}
"""The fields that the report cannot do without, by record; of a list of records, those of each."""

OPTIONAL = ("methods", "selection", "stability")
"""Tables of the decomposition that a study may lack."""

LISTS = ("cards/cards.json", "scores/agreement.json")
"""Records that are lists of records."""
