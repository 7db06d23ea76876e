"""Questions of a simulated world: which dimension, facet and near-topic each has, and base activations that show it.

Letters: N questions, D coordinates, G dimensions, F facets, T near-topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.world_noise import PowerLaw
from unmask.analysis.world_spec import WorldSpec

_SMALLEST_FACET = 4
_NEAR_TOPIC = 5  # questions about the same thing


@dataclass(frozen=True, slots=True)
class Layout:
    """Numbers of each question's dimension, facet (counted over all dimensions) and near-topic."""

    dimension_N: np.ndarray
    facet_N: np.ndarray
    near_topic_N: np.ndarray

    @property
    def dimensions(self) -> int:
        return int(self.dimension_N.max()) + 1

    @property
    def facets(self) -> int:
        return int(self.facet_N.max()) + 1

    @classmethod
    def of_labels(cls, groups_N: np.ndarray, facets_N: np.ndarray) -> Layout:
        """Numbers for a study's own labels; each facet is one near-topic."""
        dimension_N = np.unique(groups_N, return_inverse=True)[1]
        pairs_N = np.array([f"{group}/{facet}" for group, facet in zip(groups_N, facets_N, strict=True)])
        facet_N = np.unique(pairs_N, return_inverse=True)[1]
        return cls(dimension_N=dimension_N, facet_N=facet_N, near_topic_N=facet_N)


def lay_out(spec: WorldSpec, *, rng: np.random.Generator) -> Layout:
    """Dimensions of two or three facets each, unequal, in random order; at least four questions a facet.

    Raises ValueError when the questions are too few for that, or `shares` has not one entry per dimension.
    """
    count = spec.dimensions
    if spec.shares is not None and len(spec.shares) != count:
        raise ValueError(f"{len(spec.shares)} shares for {count} dimensions")
    facets_G = rng.integers(2, 4, size=count)
    if spec.questions < _SMALLEST_FACET * int(facets_G.sum()):
        raise ValueError(f"{spec.questions} questions are too few for {facets_G.sum()} facets of {_SMALLEST_FACET}")
    shares_G = np.asarray(spec.shares) if spec.shares is not None else np.exp(0.2 * rng.standard_normal(count))
    owner_F = np.repeat(np.arange(count), facets_G)
    weight_F = np.exp(0.4 * rng.standard_normal(owner_F.size))
    weight_F *= shares_G[owner_F] / np.bincount(owner_F, weights=weight_F)[owner_F]
    size_F = _sizes(weight_F, total=spec.questions)
    facet_N = rng.permutation(np.repeat(np.arange(owner_F.size), size_F))
    return Layout(dimension_N=owner_F[facet_N], facet_N=facet_N, near_topic_N=_near_topics(facet_N, size_F))


def _sizes(weight_F: np.ndarray, *, total: int) -> np.ndarray:
    """Whole numbers near `weight_F`'s proportions that add up to `total`, none below the smallest facet."""
    size_F = np.maximum(_SMALLEST_FACET, np.floor(weight_F / weight_F.sum() * total)).astype(int)
    while size_F.sum() != total:
        step = 1 if size_F.sum() < total else -1
        wanted_F = step * (weight_F / weight_F.sum() * total - size_F)
        wanted_F[(size_F <= _SMALLEST_FACET) & (step < 0)] = -np.inf
        size_F[np.argmax(wanted_F)] += step
    return size_F


def _near_topics(facet_N: np.ndarray, size_F: np.ndarray) -> np.ndarray:
    topics_F = np.maximum(1, size_F // _NEAR_TOPIC)
    first_F = np.concatenate([[0], np.cumsum(topics_F)[:-1]])
    place_N = np.empty(facet_N.size, dtype=int)
    for facet, size in enumerate(size_F):
        place_N[facet_N == facet] = np.arange(size)
    return first_F[facet_N] + place_N % topics_F[facet_N]


@dataclass(frozen=True, slots=True)
class Bases:
    """Base activations as recorded, and centred with each coordinate in its own unit (total variance about 1)."""

    recorded_ND: np.ndarray
    centred_ND: np.ndarray
    topic_ND: np.ndarray


def draw_bases(spec: WorldSpec, layout: Layout, unit_D: np.ndarray, *, rng: np.random.Generator) -> Bases:
    """h = topic + own, with multivariate t5 tails; topic (6 : 4 dimension to facet) has `topic_share` of the variance.

    Where near-topics share noise, they have 15 % of the own part's variance in common. `topic_ND` is the topic part.
    """
    spread = PowerLaw.make(spec.width, exponent=spec.spectrum, skew=spec.skew, rng=rng)
    topic_ND = np.sqrt(0.6) * spread.draw(layout.dimensions, rng=rng)[layout.dimension_N]
    topic_ND += np.sqrt(0.4) * spread.draw(layout.facets, rng=rng)[layout.facet_N]
    topic_ND -= topic_ND.mean(axis=0)
    topic_ND *= np.sqrt(spec.topic_share / np.mean((topic_ND**2).sum(axis=1)))
    near = 0.15 if spec.cluster_share > 0 else 0.0
    tails_N = np.sqrt(3 / rng.chisquare(5, size=spec.questions))
    own_ND = np.sqrt(1 - near) * tails_N[:, None] * spread.draw(spec.questions, rng=rng)
    if near:
        own_ND += np.sqrt(near) * spread.draw(int(layout.near_topic_N.max()) + 1, rng=rng)[layout.near_topic_N]
    centred_ND = topic_ND + np.sqrt(1 - spec.topic_share) * own_ND
    mean_D = rng.standard_normal(spec.width) * np.where(unit_D > unit_D.min(), 3, 0.3)
    recorded_ND = 20 * unit_D * (centred_ND + mean_D / np.sqrt(spec.width))
    return Bases(recorded_ND=recorded_ND, centred_ND=centred_ND - centred_ND.mean(axis=0), topic_ND=topic_ND)
