"""K-means and principal components of one source at one site: the tables that figures and directions are made from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from unmask.analysis.clustering import Clustering, adjusted_mutual_information, is_outlier_group
from unmask.analysis.reduction import Pca
from unmask.stages.decomposition.artifacts import CLUSTERS, Tables

if TYPE_CHECKING:
    import pandas as pd


def add_components(tables: Tables, reduced: Pca, questions: pd.DataFrame, where: dict[str, str]) -> None:
    """Coordinates on the first three components, and the share of variance of each."""
    import pandas as pd

    scores = np.zeros((len(questions), 3))
    kept = min(3, reduced.scores_NC.shape[1])
    scores[:, :kept] = reduced.scores_NC[:, :kept]
    places = {f"pc{number}": scores[:, number - 1] for number in (1, 2, 3)}
    tables["coordinates"].append(pd.DataFrame({"question_id": questions["question_id"], **places}).assign(**where))
    ratio = reduced.variance_ratio_C
    tables["variance"].append(pd.DataFrame({"component": np.arange(1, len(ratio) + 1), "ratio": ratio}).assign(**where))


def add_clusterings(
    tables: Tables,
    clusterings: dict[int, Clustering],
    questions: pd.DataFrame,
    *,
    space: str,
    width: int,
    seed: int,
    where: dict[str, str],
) -> None:
    """Figures of K-means for each k; of the reduced space the clusters too."""
    import pandas as pd

    for k, clustering in clusterings.items():
        labels_N, sizes = clustering.labels_N, clustering.sizes
        metrics = {
            **where,
            "space": space,
            "components": width,
            "k": k,
            "inertia": clustering.inertia,
            "silhouette": clustering.silhouette,
            "ami_dimension": adjusted_mutual_information(labels_N, questions["dimension"].to_numpy()),
            "ami_facet": adjusted_mutual_information(labels_N, questions["facet"].to_numpy()),
            "smallest": int(sizes.min()),
            "largest_share": float(sizes.max() / sizes.sum()),
            "seed": seed,
        }
        tables["metrics"].append(pd.DataFrame([metrics]))
        if space == "pca":
            assigned = questions.assign(cluster=labels_N, k=k, **where)
            tables["clusters"].append(assigned[CLUSTERS.names])
            tables["cluster_summary"].append(_cluster_summary(assigned))


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
