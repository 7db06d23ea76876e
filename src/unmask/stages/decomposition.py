"""Stage `decomposition`: PCA and K-means of the shift and of raw activations, described beside each other.

Descriptive only: clusters of activations follow the topic of the questions, in the base model as much as in the organism.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from unmask.analysis.clustering import adjusted_mutual_information, is_outlier_group, kmeans
from unmask.analysis.reduction import Pca, pca
from unmask.artifact import read_table, write_json, write_table
from unmask.errors import ConfigError, DataError, listed
from unmask.records import NEUTRAL, Site
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.store import ActivationStore, question_means
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

Source = Literal["shift", "organism", "base"]
Tables = dict[str, list["pd.DataFrame"]]
SOURCES: tuple[Source, ...] = ("shift", "organism", "base")
DEFAULT_K = (3, 4, 5, 7, 15, 50)

METRICS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("site", pa.string()),
        ("space", pa.string()),
        ("components", pa.int32()),
        ("k", pa.int32()),
        ("inertia", pa.float64()),
        ("silhouette", pa.float64()),
        ("ami_dimension", pa.float64()),
        ("ami_facet", pa.float64()),
        ("smallest", pa.int32()),
        ("largest_share", pa.float64()),
        ("seed", pa.int64()),
    ]
)
CLUSTERS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("site", pa.string()),
        ("k", pa.int32()),
        ("question_id", pa.string()),
        ("cluster", pa.int32()),
    ]
)
SUMMARY_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("site", pa.string()),
        ("k", pa.int32()),
        ("cluster", pa.int32()),
        ("size", pa.int32()),
        ("outlier", pa.bool_()),
        ("top_dimension", pa.string()),
        ("top_dimension_share", pa.float64()),
        ("composition", pa.string()),
        ("facets", pa.string()),
        ("mean_misalignment", pa.float64()),
        ("sd_misalignment", pa.float64()),
        ("n_scored", pa.int32()),
        ("mean_log_odds", pa.float64()),
    ]
)
COORDINATES_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("site", pa.string()),
        ("question_id", pa.string()),
        ("pc1", pa.float64()),
        ("pc2", pa.float64()),
        ("pc3", pa.float64()),
    ]
)
VARIANCE_SCHEMA = pa.schema(
    [("source", pa.string()), ("site", pa.string()), ("component", pa.int32()), ("ratio", pa.float64())]
)


class DecompositionConfig(StageConfig):
    """How shifts and activations are described."""

    k: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="numbers of clusters; null for 3, 4, 5, 7, 15, 50 where at least 2 questions each",
    )
    components: int = Field(50, ge=1, description="principal components kept (fewer where the data has fewer)")
    primary_layer: int | None = Field(None, description="layer named before looking; null for the middle one")
    primary_k: int = Field(4, ge=2, description="the clustering that steering and the report dwell on")
    seed: int = 42
    restarts: int = Field(10, ge=1)


def choose_k(config: DecompositionConfig, questions: int) -> tuple[int, ...]:
    """The numbers of clusters to try. Raises ConfigError when one needs more clusters than there are questions."""
    if config.k is None:
        fitting = tuple(k for k in DEFAULT_K if 2 * k <= questions)
        if not fitting:
            raise ConfigError(
                f"{questions} questions are too few for the smallest default number of clusters, {DEFAULT_K[0]}",
                mend=f"Ask at least {2 * DEFAULT_K[0]} questions or set decomposition.k",
            )
        return fitting
    for k in config.k:
        if not 2 <= k < questions:
            raise ConfigError(
                f"decomposition.k asks for {k} clusters of {questions} questions",
                mend=f"Choose numbers from 2 to {questions - 1}, or ask more questions",
            )
    return tuple(sorted(set(config.k)))


def choose_primary_k(config: DecompositionConfig, ks: tuple[int, ...]) -> int:
    """The clustering named before looking; the nearest one where few questions ruled its default out.

    Raises ConfigError when the study names one that is not in its own list.
    """
    if config.primary_k in ks:
        return config.primary_k
    if config.k is None and "primary_k" not in config.model_fields_set:
        return min(ks, key=lambda k: (abs(k - config.primary_k), k))
    raise ConfigError(
        f"decomposition.primary_k is {config.primary_k}, clusterings are made with k = {listed(ks)}",
        mend="Choose one of those, or add it to decomposition.k",
    )


def primary_site(config: DecompositionConfig, sites: list[Site]) -> Site:
    """The site that was named before looking. Raises ConfigError when it was not collected."""
    if config.primary_layer is None:
        return sites[(len(sites) - 1) // 2]
    for site in sites:
        if site.layer == config.primary_layer:
            return site
    raise ConfigError(
        f"decomposition.primary_layer is {config.primary_layer}, activations were collected at layers "
        f"{listed(site.layer for site in sites)}",
        mend="Choose one of those or add it to activations.layers",
    )


def run(config: DecompositionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    import pandas as pd

    questions, rows = _load(inputs)
    store = ActivationStore.open(inputs.folders["activations"])
    sites = [Site.parse(name) for name in store.sites]
    primary = primary_site(config, sites)
    ks = choose_k(config, len(questions))
    primary_k = choose_primary_k(config, ks)
    tables: Tables = {name: [] for name in ("metrics", "clusters", "summary", "coordinates", "variance")}
    geometry: dict[str, dict[str, float]] = {}
    inputs.progress.begin("decomposing", total=len(sites) * len(SOURCES) * len(ks))
    for site in sites:
        matrices = _matrices(store, site, rows, questions)
        geometry[site.name] = _shift_size(store, site, rows, matrices["shift"])
        for source in SOURCES:
            reduced = pca(matrices[source], components=config.components)
            where = {"source": source, "site": site.name}
            tables["coordinates"].append(_coordinates(reduced, questions).assign(**where))
            tables["variance"].append(_variance(reduced).assign(**where))
            for k in ks:
                spaces = {"pca": reduced.scores_NC, "full": matrices[source]}
                _cluster(config, spaces, questions, k=k, where=where, tables=tables)
                inputs.progress.advance()
    inputs.progress.end()
    _write(workspace, tables)
    write_json(
        workspace.out / "summary.json",
        {
            "questions": len(questions),
            "left_out": int(rows["question_id"].nunique() - len(questions)),
            "sites": [site.name for site in sites],
            "primary_site": primary.name,
            "k": list(ks),
            "primary_k": primary_k,
            "components": min(config.components, len(questions) - 1, store.width),
            "shift_norm": geometry,
        },
    )
    metrics = pd.concat(tables["metrics"])
    chosen = metrics[(metrics["site"] == primary.name) & (metrics["k"] == primary_k) & (metrics["space"] == "pca")]
    return Result(
        {
            "questions": len(questions),
            "site": primary.name,
            "k": primary_k,
            "silhouette": {row.source: round(float(row.silhouette), 3) for row in chosen.itertuples()},
            "ami_with_dimension": {row.source: round(float(row.ami_dimension), 3) for row in chosen.itertuples()},
        }
    )


def _cluster(
    config: DecompositionConfig,
    spaces: dict[str, np.ndarray],
    questions: pd.DataFrame,
    *,
    k: int,
    where: dict[str, str],
    tables: Tables,
) -> None:
    """Cluster one matrix in its reduced and its full space; add the figures of both and the clusters of the reduced one."""
    import pandas as pd

    for space, points in spaces.items():
        clustering = kmeans(points, k=k, seed=config.seed, restarts=config.restarts)
        labels_N, sizes = clustering.labels_N, clustering.sizes
        metrics = {
            **where,
            "space": space,
            "components": points.shape[1],
            "k": k,
            "inertia": clustering.inertia,
            "silhouette": clustering.silhouette,
            "ami_dimension": adjusted_mutual_information(labels_N, questions["dimension"].to_numpy()),
            "ami_facet": adjusted_mutual_information(labels_N, questions["facet"].to_numpy()),
            "smallest": int(sizes.min()),
            "largest_share": float(sizes.max() / sizes.sum()),
            "seed": config.seed,
        }
        tables["metrics"].append(pd.DataFrame([metrics]))
        if space == "pca":
            assigned = questions.assign(cluster=labels_N, k=k, **where)
            tables["clusters"].append(assigned[CLUSTERS_SCHEMA.names])
            tables["summary"].append(_cluster_summary(assigned))


def _load(inputs: Inputs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Questions that can be decomposed, with their mean organism scores; and one row per response with its store row.

    Raises DataError when fewer than 3 questions have a readable answer of both models.
    """
    folders, rebuild = inputs.folders, inputs.rebuild
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    scores = read_table(folders["scores"] / "scores.parquet", rebuild=f"{rebuild} scores")
    questions = questions[questions["dimension"] != NEUTRAL]
    rows = responses[responses["question_id"].isin(questions["question_id"])][
        ["response_id", "question_id", "writer", "tokens"]
    ]
    readable = rows[rows["tokens"] > 0].groupby("question_id")["writer"].nunique()
    questions = questions[questions["question_id"].isin(readable[readable == 2].index)]
    if len(questions) < 3:
        raise DataError(
            f"only {len(questions)} questions have a non-empty answer of both models",
            mend="Look at the responses; raise responses.max_new_tokens or train the organism more gently",
        )
    own = scores[scores["writer"] == "organism"].groupby("question_id")[["misalignment", "log_odds"]].mean()
    return questions.join(own, on="question_id").reset_index(drop=True), rows


def _matrices(
    store: ActivationStore, site: Site, rows: pd.DataFrame, questions: pd.DataFrame
) -> dict[Source, np.ndarray]:
    """Question means (N x D): the shift on the organism's own text, and each model's activations on its own text."""
    organism = store.read(f"organism/{site.name}").astype(np.float64)
    base = store.read(f"base/{site.name}").astype(np.float64)
    ids = store.response_ids()

    def stacked(values_RD: np.ndarray, writer: str) -> np.ndarray:
        means = question_means(values_RD, ids, rows, writer=writer)
        return np.stack([means[name] for name in questions["question_id"]])

    return {
        "shift": stacked(organism - base, "organism"),
        "organism": stacked(organism, "organism"),
        "base": stacked(base, "base"),
    }


def _shift_size(store: ActivationStore, site: Site, rows: pd.DataFrame, shift_ND: np.ndarray) -> dict[str, float]:
    energy = float((shift_ND**2).sum(axis=1).mean())
    typical = typical_norm(store, site)
    return {
        "mean_shift_share": float((shift_ND.mean(axis=0) ** 2).sum() / energy) if energy > 0 else 0.0,
        "relative_norm": float(np.linalg.norm(shift_ND, axis=1).mean() / typical),
        "typical_norm": typical,
    }


def typical_norm(store: ActivationStore, site: Site) -> float:
    """Median over responses of the mean L2 norm of the base model's residual stream at `site`, over response tokens."""
    return float(np.nanmedian(store.read(f"base/{site.name}/norm")))


def _coordinates(reduced: Pca, questions: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    scores = np.zeros((len(questions), 3))
    kept = min(3, reduced.scores_NC.shape[1])
    scores[:, :kept] = reduced.scores_NC[:, :kept]
    return pd.DataFrame(
        {"question_id": questions["question_id"], "pc1": scores[:, 0], "pc2": scores[:, 1], "pc3": scores[:, 2]}
    )


def _variance(reduced: Pca) -> pd.DataFrame:
    import pandas as pd

    ratio = reduced.variance_ratio_C
    return pd.DataFrame({"component": np.arange(1, len(ratio) + 1), "ratio": ratio})


def _cluster_summary(assigned: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    out = []
    for cluster, part in assigned.groupby("cluster"):
        composition = part["dimension"].value_counts().sort_index()
        facets = (part["dimension"] + "/" + part["facet"]).value_counts().sort_index()
        scored = part["misalignment"].dropna()
        out.append(
            {
                **{name: part[name].iloc[0] for name in ("source", "site", "k")},
                "cluster": cluster,
                "size": len(part),
                "outlier": is_outlier_group(len(part), total=len(assigned)),
                "top_dimension": composition.idxmax(),
                "top_dimension_share": float(composition.max() / len(part)),
                "composition": _counts(composition),
                "facets": _counts(facets),
                "mean_misalignment": scored.mean() if len(scored) else None,
                "sd_misalignment": scored.std() if len(scored) > 1 else None,
                "n_scored": len(scored),
                "mean_log_odds": part["log_odds"].mean(),
            }
        )
    return pd.DataFrame(out)


def _counts(counts: pd.Series) -> str:
    return json.dumps({str(name): int(value) for name, value in counts.items()}, sort_keys=True)


def _write(workspace: Workspace, tables: Tables) -> None:
    import pandas as pd

    for name, file, schema in (
        ("metrics", "metrics", METRICS_SCHEMA),
        ("clusters", "clusters", CLUSTERS_SCHEMA),
        ("summary", "cluster_summary", SUMMARY_SCHEMA),
        ("coordinates", "coordinates", COORDINATES_SCHEMA),
        ("variance", "variance", VARIANCE_SCHEMA),
    ):
        table = pd.concat(tables[name], ignore_index=True)[schema.names]
        write_table(workspace.out / f"{file}.parquet", table, schema=schema)


STAGE = Stage(
    "decomposition",
    "decompose the shift",
    1,
    DecompositionConfig,
    ("questions", "responses", "activations", "scores"),
    False,
    run,
)
