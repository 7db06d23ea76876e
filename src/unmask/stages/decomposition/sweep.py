"""The sweep over sites and sources: each piece is made from the material alone, so that any process may make it.

Shapes: N questions, D width of a site.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.clusterers import Partition, cluster
from unmask.analysis.clustering import Clustering, kmeans, kmeans_sweep
from unmask.analysis.reduction import Pca, coordinates, pca, scaled_gram
from unmask.stages.decomposition.clusters import add_clusterings, add_components
from unmask.stages.decomposition.config import DecompositionConfig, choose_k, choose_primary_k
from unmask.stages.decomposition.examination import curves, recoveries, selection_rows, stability_rows, strength_rows
from unmask.stages.decomposition.material import Material, Source
from unmask.stages.decomposition.methods import partition_rows, reference_rows, sweep_rows
from unmask.stages.decomposition.parts import add_clusters, add_parts
from unmask.stages.decomposition.pieces import STACKED, Gathered, Piece
from unmask.stages.decomposition.tokens import TokenOrigins, describe_tokens, token_sites


@dataclass(frozen=True, slots=True)
class Sweep:
    """What pieces are made from."""

    config: DecompositionConfig
    material: Material
    ks: tuple[int, ...]
    primary_k: int
    groups: dict[str, np.ndarray]
    origins: TokenOrigins | None

    @classmethod
    def of(cls, config: DecompositionConfig, material: Material) -> Sweep:
        """Raises ConfigError where a number of clusters does not fit the questions."""
        ks = choose_k(config, len(material.questions))
        origins = TokenOrigins.of(material) if token_sites(material.store) else None
        return cls(config, material, ks, choose_primary_k(config, ks), material.groups, origins)

    @property
    def question_ids(self) -> list[str]:
        return [str(name) for name in self.material.questions["question_id"]]

    def make(self, piece: Piece) -> Gathered:
        """What the piece gives to the tables and the summary."""
        made, source, site = Gathered(), piece.source, piece.site
        if piece.step == "tokens":
            _describe_tokens(self, made, piece)
            return made
        if site is None:
            _describe_stacked(self, made, source)
            return made
        rows_ND = self.material.matrix(site, source)
        where = {"source": source, "site": site.name}
        # Exact: all principal components keep every distance, and the leading ones are among them.
        full = pca(rows_ND, components=min(rows_ND.shape))
        if piece.step == "examination":
            _examine(self, made, full, where)
            return made
        _describe(self, made, full, rows_ND.shape[1], where)
        if source == "shift":
            made.geometry[site.name] = self.material.shift_size(site, rows_ND)
        return made

    def stacked_gram(self, source: Source) -> np.ndarray:
        """Inner products (N x N) of the questions' rows at all sites together."""
        gram_NN = np.zeros(())
        for site in self.material.sites:
            gram_NN = gram_NN + scaled_gram(self.material.matrix(site, source))
        return gram_NN


def _describe(sweep: Sweep, made: Gathered, full: Pca, width: int, where: dict[str, str]) -> None:
    """One source at one site: K-means in the reduced and the full space, and the other methods."""
    config, questions = sweep.config, sweep.material.questions
    reduced = full.first(config.components)
    add_components(made.tables, reduced, questions, where)
    found: dict[str, dict[int, Clustering]] = {}
    for space, points_NC, columns in (
        ("pca", reduced.scores_NC, reduced.scores_NC.shape[1]),
        ("full", full.scores_NC, width),
    ):
        swept = kmeans_sweep(points_NC, ks=sweep.ks, seed=config.seed, restarts=config.restarts)
        found[space] = dict(zip(sweep.ks, swept, strict=True))
        add_clusterings(made.tables, found[space], questions, space=space, width=columns, seed=config.seed, where=where)
    made.rows["methods"] += sweep_rows(
        config, reduced.scores_NC, _partitions(found["pca"]), ks=sweep.ks, groups=sweep.groups, where=where
    )
    made.rows["methods"] += partition_rows(
        full.scores_NC,
        _partitions(found["full"]),
        "kmeans",
        "full",
        groups=sweep.groups,
        where=where,
        seed=config.seed,
        width=width,
    )
    if where["source"] == "organism":
        made.rows["methods"] += reference_rows(full.scores_NC, ks=sweep.ks, groups=sweep.groups, where=where)


def _describe_stacked(sweep: Sweep, made: Gathered, source: Source) -> None:
    """All layers together: the methods table only, as steering and figures belong to one layer."""
    config = sweep.config
    scores_NC = coordinates(sweep.stacked_gram(source), components=config.components).scores_NC
    swept = kmeans_sweep(scores_NC, ks=sweep.ks, seed=config.seed, restarts=config.restarts)
    made.rows["methods"] += sweep_rows(
        config,
        scores_NC,
        _partitions(dict(zip(sweep.ks, swept, strict=True))),
        ks=sweep.ks,
        groups=sweep.groups,
        where={"source": source, "site": STACKED},
    )


def _describe_tokens(sweep: Sweep, made: Gathered, piece: Piece) -> None:
    """Single tokens of one source at one site."""
    site, source = piece.site, piece.source
    assert site is not None
    assert sweep.origins is not None
    found = describe_tokens(sweep.config, sweep.material, sweep.origins, site=site, source=source, k=sweep.primary_k)
    made.rows["token_variance"] += found.variance
    made.rows["token_clusters"] += found.clusters
    made.axes = found.axes
    made.tokens = {site.name: {source: found.summary}}


def _examine(sweep: Sweep, made: Gathered, full: Pca, where: dict[str, str]) -> None:
    """The choice of k and stability; of the shift also its components."""
    config, k = sweep.config, sweep.primary_k
    scores_NC = full.first(config.components).scores_NC
    clustering = kmeans(scores_NC, k=k, seed=config.seed, restarts=config.restarts)  # the same as among all k
    labels_N = clustering.labels_N
    found = curves(config, scores_NC)
    made.chosen[where["source"]] = {curve.criterion: curve.chosen for curve in found}
    made.rows["selection"] += selection_rows(found, where)
    recovered = recoveries(config, scores_NC, labels_N, k=k)
    made.rows["stability"] += strength_rows(found, where)
    made.rows["stability"] += stability_rows(config, scores_NC, labels_N, recovered, k=k, where=where)
    if where["source"] != "shift":
        return
    site, ids = where["site"], sweep.question_ids
    add_clusters(made.rows, scores_NC, clustering, recovered.get("kmeans"), question_ids=ids, site=site)
    for kind, loadings_NP in add_parts(made.rows, config, full, question_ids=ids, site=site).items():
        again = cluster(loadings_NP, by="kmeans", ks=sweep.ks, seed=config.seed, restarts=config.restarts)
        made.rows["methods"] += partition_rows(
            loadings_NP, again, "kmeans", kind, groups=sweep.groups, where=where, seed=config.seed
        )


def _partitions(found: dict[int, Clustering]) -> tuple[Partition, ...]:
    return tuple(Partition(k, clustering.labels_N) for k, clustering in found.items())
