"""Stage `decomposition`: the shift and raw activations reduced, clustered and taken apart, described beside each other.

Descriptive only: clusters of activations follow the topic of the questions, in the base model as much as in the organism.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unmask.analysis.clusterers import Partition, cluster
from unmask.analysis.clustering import Clustering, kmeans_sweep
from unmask.analysis.reduction import Pca, coordinates, pca, scaled_gram
from unmask.analysis.threads import one_thread
from unmask.artifact import write_json
from unmask.records import Site
from unmask.stage import Inputs, Result, Stage
from unmask.stages.decomposition.artifacts import ROWS, TABLES, Rows, Tables, write_all
from unmask.stages.decomposition.clusters import add_clusterings, add_components
from unmask.stages.decomposition.config import DecompositionConfig, choose_k, choose_primary_k, primary_site
from unmask.stages.decomposition.examination import (
    curves,
    recoveries,
    selection_rows,
    stability_rows,
    strength_rows,
)
from unmask.stages.decomposition.material import SOURCES, Material, Source, load_material, typical_norm
from unmask.stages.decomposition.methods import partition_rows, reference_rows, sweep_rows
from unmask.stages.decomposition.parts import add_clusters, add_parts
from unmask.stages.decomposition.tokens import describe_tokens
from unmask.study import Workspace

__all__ = ["STAGE", "DecompositionConfig", "choose_k", "choose_primary_k", "primary_site", "run", "typical_norm"]

STACKED = "stacked"
"""The pseudo-site of all layers side by side, each divided by the RMS norm of its rows."""


@dataclass
class Work:
    """What a run gathers."""

    config: DecompositionConfig
    material: Material
    ks: tuple[int, ...]
    primary_k: int
    groups: dict[str, np.ndarray]
    tables: Tables = field(default_factory=lambda: {name: [] for name in TABLES})
    rows: Rows = field(default_factory=lambda: {name: [] for name in ROWS})
    geometry: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, dict[str, int | None]] = field(default_factory=dict)
    grams: dict[Source, np.ndarray] = field(default_factory=dict)

    @property
    def question_ids(self) -> list[str]:
        return [str(name) for name in self.material.questions["question_id"]]


def run(config: DecompositionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    material = load_material(inputs)
    sites = material.sites
    primary = primary_site(config, sites)
    ks = choose_k(config, len(material.questions))
    work = Work(config, material, ks, choose_primary_k(config, ks), material.groups)
    extra = len(SOURCES) * (len(sites) > 1)
    inputs.progress.begin("decomposing", total=len(sites) * len(SOURCES) + extra)
    with one_thread():
        for site in sites:
            matrices = material.matrices(site)
            work.geometry[site.name] = material.shift_size(site, matrices["shift"])
            for source in SOURCES:
                _describe(work, matrices[source], source, site, primary=site == primary)
                if len(sites) > 1:
                    work.grams[source] = work.grams.get(source, 0.0) + scaled_gram(matrices[source])
                inputs.progress.advance()
        for source, gram_NN in work.grams.items():
            _describe_stacked(work, gram_NN, source)
            inputs.progress.advance()
    inputs.progress.end()
    with one_thread():
        tokens = describe_tokens(config, material, workspace.out, k=work.primary_k, progress=inputs.progress)
    write_all(workspace.out, work.tables, work.rows)
    write_json(workspace.out / "summary.json", _record(work, primary) | {"tokens": tokens})
    return Result(_printed(work, primary))


def _describe(work: Work, rows_ND: np.ndarray, source: Source, site: Site, *, primary: bool) -> None:
    """One source at one site: K-means in the reduced and the full space, the other methods, and more at the primary site."""
    config, questions = work.config, work.material.questions
    # Exact: all principal components keep every distance, and the leading ones are among them.
    full = pca(rows_ND, components=min(rows_ND.shape))
    reduced = full.first(config.components)
    where = {"source": source, "site": site.name}
    add_components(work.tables, reduced, questions, where)
    found: dict[str, dict[int, Clustering]] = {}
    for space, points_NC, width in (
        ("pca", reduced.scores_NC, reduced.scores_NC.shape[1]),
        ("full", full.scores_NC, rows_ND.shape[1]),
    ):
        swept = kmeans_sweep(points_NC, ks=work.ks, seed=config.seed, restarts=config.restarts)
        found[space] = dict(zip(work.ks, swept, strict=True))
        add_clusterings(work.tables, found[space], questions, space=space, width=width, seed=config.seed, where=where)
    work.rows["methods"] += sweep_rows(
        config, reduced.scores_NC, _partitions(found["pca"]), ks=work.ks, groups=work.groups, where=where
    )
    work.rows["methods"] += partition_rows(
        full.scores_NC,
        _partitions(found["full"]),
        "kmeans",
        "full",
        groups=work.groups,
        where=where,
        seed=config.seed,
        width=rows_ND.shape[1],
    )
    if source == "organism":
        work.rows["methods"] += reference_rows(full.scores_NC, ks=work.ks, groups=work.groups, where=where)
    if primary:
        _examine(work, full, found["pca"][work.primary_k], where)


def _describe_stacked(work: Work, gram_NN: np.ndarray, source: Source) -> None:
    """All layers together: the methods table only, as steering and figures belong to one layer."""
    config = work.config
    scores_NC = coordinates(gram_NN, components=config.components).scores_NC
    swept = kmeans_sweep(scores_NC, ks=work.ks, seed=config.seed, restarts=config.restarts)
    work.rows["methods"] += sweep_rows(
        config,
        scores_NC,
        _partitions(dict(zip(work.ks, swept, strict=True))),
        ks=work.ks,
        groups=work.groups,
        where={"source": source, "site": STACKED},
    )


def _examine(work: Work, full: Pca, clustering: Clustering, where: dict[str, str]) -> None:
    """The choice of k and stability; of the shift also its components."""
    config, k, labels_N = work.config, work.primary_k, clustering.labels_N
    scores_NC = full.first(config.components).scores_NC
    found = curves(config, scores_NC)
    work.chosen[where["source"]] = {curve.criterion: curve.chosen for curve in found}
    work.rows["selection"] += selection_rows(found, where)
    recovered = recoveries(config, scores_NC, labels_N, k=k)
    work.rows["stability"] += strength_rows(found, where)
    work.rows["stability"] += stability_rows(config, scores_NC, labels_N, recovered, k=k, where=where)
    if where["source"] != "shift":
        return
    site, ids = where["site"], work.question_ids
    add_clusters(work.rows, scores_NC, clustering, recovered.get("kmeans"), question_ids=ids, site=site)
    for kind, loadings_NP in add_parts(work.rows, config, full, question_ids=ids, site=site).items():
        again = cluster(loadings_NP, by="kmeans", ks=work.ks, seed=config.seed, restarts=config.restarts)
        work.rows["methods"] += partition_rows(
            loadings_NP, again, "kmeans", kind, groups=work.groups, where=where, seed=config.seed
        )


def _partitions(found: dict[int, Clustering]) -> tuple[Partition, ...]:
    return tuple(Partition(k, clustering.labels_N) for k, clustering in found.items())


def _record(work: Work, primary: Site) -> dict[str, Any]:
    material, config = work.material, work.config
    return {
        "questions": len(material.questions),
        "left_out": material.left_out,
        "sites": [site.name for site in material.sites],
        "primary_site": primary.name,
        "k": list(work.ks),
        "primary_k": work.primary_k,
        "components": min(config.components, len(material.questions) - 1, material.store.width),
        "shift_norm": work.geometry,
        "stacked_site": STACKED if work.grams else None,
        "chosen_k": work.chosen,
        "scored": int(material.questions["misalignment"].notna().sum()),
    }


def _printed(work: Work, primary: Site) -> dict[str, Any]:
    import pandas as pd

    metrics = pd.concat(work.tables["metrics"])
    chosen = metrics[(metrics["site"] == primary.name) & (metrics["k"] == work.primary_k) & (metrics["space"] == "pca")]
    return {
        "questions": len(work.material.questions),
        "site": primary.name,
        "k": work.primary_k,
        "silhouette": {row.source: round(float(row.silhouette), 3) for row in chosen.itertuples()},
        "ami_with_dimension": {row.source: round(float(row.ami_dimension), 3) for row in chosen.itertuples()},
    }


STAGE = Stage(
    "decomposition",
    "decompose the shift",
    3,
    DecompositionConfig,
    ("questions", "responses", "activations", "scores"),
    False,
    run,
)
