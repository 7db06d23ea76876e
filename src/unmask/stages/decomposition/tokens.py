"""The same description for single tokens, where the study keeps them: streamed, as they need not fit in memory.

Shapes: R responses, M tokens, D width of a site, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.streaming import PrincipalComponents, Projected, pca, stream_moments
from unmask.analysis.token_clustering import cluster_tokens
from unmask.analysis.validation import agreement
from unmask.records import Site
from unmask.stages.decomposition.material import Material, Source
from unmask.store import ActivationStore, activation_name

if TYPE_CHECKING:
    from unmask.stages.decomposition.config import DecompositionConfig

BLOCK_NUMBERS = 16_000_000
"""Numbers of a block of rows that is read at once: 64 MB, of each reader."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of one source at one site, a block at a time and as often as wanted: `kept_M` says which of the store's tokens.

    The shift and the organism's activations are of the organism's answers, the base's of its own, as with response means.
    """

    store: ActivationStore
    site: Site
    source: Source
    kept_M: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        readers = ("organism", "base") if self.source == "shift" else (self.source,)
        names = [activation_name(reader, self.site.name, "tokens") for reader in readers]
        rows = max(1, BLOCK_NUMBERS // self.store.site(self.site.name).width)
        start = 0
        for parts in zip(*(self.store.blocks(name, rows) for name in names), strict=True):
            kept = self.kept_M[start : start + len(parts[0])]
            start += len(parts[0])
            if kept.any():
                yield parts[0][kept] - parts[1][kept] if len(parts) == 2 else parts[0][kept]


def token_sites(store: ActivationStore) -> list[Site]:
    """Sites of which the store keeps every token."""
    return [Site.parse(name) for name in store.sites if activation_name("base", name, "tokens") in store.names]


@dataclass(frozen=True, slots=True)
class TokenOrigins:
    """Whose and where each of the store's tokens is: its response, its position there, and what is known of the responses."""

    place_M: np.ndarray
    position_M: np.ndarray
    known_R: np.ndarray
    writer_R: np.ndarray
    dimension_R: np.ndarray

    @classmethod
    def of(cls, material: Material) -> TokenOrigins:
        store = material.store
        index, ids = store.token_index(), store.response_ids()
        asked = material.questions.set_index("question_id")
        rows = material.rows.set_index("response_id").reindex(ids)
        question_R = rows["question_id"].to_numpy(object)
        place_M = np.repeat(np.arange(len(ids)), index.lengths)
        return cls(
            place_M=place_M,
            position_M=np.arange(len(place_M)) - np.asarray(index.offsets)[place_M],
            known_R=np.array([name in asked.index for name in question_R]),
            writer_R=rows["writer"].to_numpy(object),
            dimension_R=np.array([asked["dimension"].get(name) for name in question_R], dtype=object),
        )

    def kept_M(self, source: Source) -> np.ndarray:
        """Which tokens are described: those of the writer's answers to questions that are decomposed."""
        writer = "base" if source == "base" else "organism"
        return (self.known_R & (self.writer_R == writer))[self.place_M]


@dataclass(frozen=True, slots=True)
class TokenDescription:
    """One source at one site: rows of `token_variance` and `token_clusters`, principal axes by tensor name, and the summary."""

    variance: list[dict[str, Any]]
    clusters: list[dict[str, Any]]
    axes: dict[str, np.ndarray]
    summary: dict[str, Any]


def describe_tokens(
    config: DecompositionConfig, material: Material, origins: TokenOrigins, *, site: Site, source: Source, k: int
) -> TokenDescription:
    """Principal components and mini-batch K-means of the tokens, and what agrees with them. Nothing where they do not differ."""
    kept_M = origins.kept_M(source)
    tokens = TokenRows(material.store, site, source, kept_M)
    where = {"source": source, "site": site.name}
    components = pca(stream_moments(tokens), components=config.components)
    summary: dict[str, Any] = {"tokens": components.count}
    if components.variances_C[0] == 0:  # the embedding's shift: nothing was tuned before it
        return TokenDescription([], [], {}, summary)
    axes = {"axes": components.axes_CD, "mean": components.mean_D}
    scores = Projected(components, tokens)
    clustering = cluster_tokens(scores, k=k, seed=config.seed)
    labels_N = np.concatenate(list(clustering.labels(scores)))
    of_N = origins.dimension_R[origins.place_M[kept_M]]
    return TokenDescription(
        [{**where, "component": n, "ratio": float(r)} for n, r in enumerate(components.share_C, start=1)],
        _cluster_rows(labels_N, of_N, origins.position_M[kept_M], where | {"k": k}),
        {f"{source}/{site.name}/{name}": array.astype(np.float32) for name, array in axes.items()},
        summary | _summary(components, labels_N, of_N),
    )


def _cluster_rows(
    labels_N: np.ndarray, dimension_N: np.ndarray, position_N: np.ndarray, where: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for label in np.unique(labels_N):
        own = labels_N == label
        names, counts = np.unique(dimension_N[own].astype(str), return_counts=True)
        top = int(counts.argmax())
        rows.append(
            {
                **where,
                "cluster": int(label),
                "tokens": int(own.sum()),
                "top_dimension": str(names[top]),
                "top_dimension_share": float(counts[top] / own.sum()),
                "mean_position": float(position_N[own].mean()),
            }
        )
    return rows


def _summary(components: PrincipalComponents, labels_N: np.ndarray, dimension_N: np.ndarray) -> dict[str, Any]:
    half = int(np.searchsorted(components.share_C.cumsum(), 0.5)) + 1
    total = float(components.variances_C.sum() / max(components.share_C.sum(), 1e-30))
    mean = float((components.mean_D**2).sum())
    return {
        "components_for_half": half if components.share_C.sum() >= 0.5 else None,
        "mean_share": mean / (mean + total),
        "ami_dimension": agreement(labels_N, dimension_N).ami,
    }
