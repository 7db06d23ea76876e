"""The part of a simulated shift that is no noise: drift, persona, specific directions, what follows the base activation.

Letters: N questions, D coordinates, G dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from unmask.analysis.world_maps import follow
from unmask.analysis.world_noise import Spread
from unmask.analysis.world_spec import WorldSpec
from unmask.analysis.world_topics import Layout

_CORRELATION = 0.6  # of neighbouring dimensions' directions, "correlated" offsets
_GRADES = (0.25, 1.75)  # least and largest share of the axis in a "graded" world


class Sizes(NamedTuple):
    """`rho` and `eta` of dimension means: energy outside the shared direction over all energy, and over the questions' variance
    outside it."""

    rho: float
    eta: float


@dataclass(frozen=True, slots=True)
class Signal:
    """Rows add up: drift + persona + mapped. `persona_rho` is of the shared and specific part alone; `strength_N` is what a
    score may rise with, standardised (None: nothing)."""

    drift_D: np.ndarray
    persona_ND: np.ndarray
    mapped_ND: np.ndarray
    persona_rho: float
    strength_N: np.ndarray | None
    polarity_N: np.ndarray

    @property
    def rows_ND(self) -> np.ndarray:
        return self.drift_D + self.persona_ND + self.mapped_ND


def sizes(rows_ND: np.ndarray, dimension_N: np.ndarray, spread: Spread, *, noise_variance: float) -> Sizes:
    """rho and eta (METHODS: tr G - l1 over tr G, and over the question variance orthogonal to the shared direction) without noise
    in the means. NaN where the means are zero."""
    return _sizes(rows_ND, _means(rows_ND, dimension_N), spread, noise_variance=noise_variance)


def _means(rows_ND: np.ndarray, dimension_N: np.ndarray) -> np.ndarray:
    """Dimension means times the root of the dimension's share of questions."""
    count = int(dimension_N.max()) + 1
    member_GN = (dimension_N == np.arange(count)[:, None]).astype(float)
    return member_GN @ rows_ND / np.sqrt(member_GN.sum(axis=1) * dimension_N.size)[:, None]


def _rho(means_GD: np.ndarray) -> float:
    energies = np.maximum(np.linalg.eigvalsh(means_GD @ means_GD.T), 0)
    total = float(energies.sum())
    return float(energies[:-1].sum()) / total if total > 0 else float("nan")


def _sizes(rows_ND: np.ndarray, means_GD: np.ndarray, spread: Spread, *, noise_variance: float) -> Sizes:
    rho = _rho(means_GD)
    if np.isnan(rho):
        return Sizes(rho=rho, eta=float("nan"))
    values, vectors_GG = np.linalg.eigh(means_GD @ means_GD.T)
    shared_D = vectors_GG[:, -1] @ means_GD
    shared_D /= np.linalg.norm(shared_D)
    centred_ND = rows_ND - rows_ND.mean(axis=0)
    outside = float(np.mean((centred_ND**2).sum(axis=1) - (centred_ND @ shared_D) ** 2))
    outside += noise_variance * (1 - spread.variance_along(shared_D))
    return Sizes(rho=rho, eta=float(np.maximum(values[:-1], 0).sum()) / outside)


def plant(
    spec: WorldSpec,
    layout: Layout,
    bases: tuple[np.ndarray, np.ndarray],
    spread: Spread,
    *,
    noise_variance: float,
    rng: np.random.Generator,
) -> Signal:
    """Signal of a world; `bases` are base activations and their topic means, both N x D and centred.

    Raises ValueError when no size of the specific directions gives the `rho` or `eta` that `spec` asks.
    """
    count, width = bases[0].shape
    dimension_N = layout.dimension_N
    shared_D, drift_D, second_D, axis_D, inner_D = _directions(5, spread, width, rng=rng)
    log_gain_N = _log_gains(spec, layout, rng=rng)
    polarity_N = _polarity(spec, layout, rng=rng)
    gain_N = np.exp(log_gain_N)
    persona_ND = gain_N[:, None] * _axes(spec, shared_D, second_D, rng=rng)[dimension_N]
    if spec.polarity is not None and spec.polarity_axis == "shared":
        persona_ND *= polarity_N[:, None]
    offsets_GD = _offsets(spec, layout.dimensions, shared_D, spread, rng=rng)
    specific_ND = gain_N[:, None] * offsets_GD[dimension_N]
    persona_ND += specific_ND * _scale(
        spec, persona_ND, specific_ND, dimension_N, spread, noise_variance=noise_variance
    )
    persona_rho = _rho(_means(persona_ND, dimension_N))
    if spec.polarity is not None and spec.polarity_axis == "own":
        persona_ND += polarity_N[:, None] * axis_D
    if spec.nested > 0:
        persona_ND += spec.nested * _halves(layout, rng=rng)[:, None] * inner_D
    strength_N = None if spec.score == "none" else _standardised(log_gain_N)
    if spec.score == "separable":
        strength_N = _standardised(_within_facets(rng.standard_normal(count), layout))
        persona_ND += 0.7 * strength_N[:, None] * offsets_GD[dimension_N]
    mapped_ND = np.zeros((count, width))
    if spec.map_kind is not None:
        mapped_ND = follow(spec.map_kind, *bases, energy=spec.map_energy, rng=rng)
    return Signal(
        drift_D=spec.drift * drift_D,
        persona_ND=persona_ND,
        mapped_ND=mapped_ND,
        persona_rho=persona_rho,
        strength_N=strength_N,
        polarity_N=polarity_N,
    )


def _directions(count: int, spread: Spread, width: int, *, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal directions, each half drawn from the noise covariance and half from all directions."""
    drawn_KD = spread.draw(count, rng=rng)
    free_KD = rng.standard_normal((count, width))
    mixed_KD = sum(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (drawn_KD, free_KD))
    return np.linalg.qr(np.asarray(mixed_KD).T)[0].T


def _log_gains(spec: WorldSpec, layout: Layout, *, rng: np.random.Generator) -> np.ndarray:
    facet_N = spec.facet_gain * rng.standard_normal(layout.facets)[layout.facet_N]
    return facet_N + spec.question_gain * rng.standard_normal(layout.facet_N.size)


def _polarity(spec: WorldSpec, layout: Layout, *, rng: np.random.Generator) -> np.ndarray:
    """+1 or -1 for each question; half of every dimension +1, or from 10 to 90 % of it."""
    count = layout.dimensions
    shares_G = (
        np.linspace(0.1, 0.9, count)[rng.permutation(count)] if spec.polarity == "unbalanced" else np.full(count, 0.5)
    )
    rank_N = _ranks(layout.dimension_N, rng=rng)
    return np.where(rank_N < shares_G[layout.dimension_N], 1, -1)


def _ranks(group_N: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Random place of each question within its group, as a share of the group: (0, 1, ..., m - 1) / m."""
    order = np.lexsort((rng.random(group_N.size), group_N))
    size_G = np.bincount(group_N)
    first_G = np.concatenate([[0], np.cumsum(size_G)[:-1]])
    rank_N = np.empty(group_N.size)
    rank_N[order] = np.arange(group_N.size) - first_G[group_N[order]]
    return rank_N / size_G[group_N]


def _axes(spec: WorldSpec, shared_D: np.ndarray, second_D: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Each dimension's persona direction (G x D): the shared one, a grade of it, or its camp's."""
    count = spec.dimensions
    order = rng.permutation(count)
    axes_GD = np.tile(shared_D, (count, 1))
    if spec.structure == "graded":
        axes_GD *= np.linspace(*_GRADES, count)[order][:, None]
    elif spec.structure == "two_way":
        axes_GD[order < count // 2] = second_D
    return spec.shared * axes_GD


def _offsets(
    spec: WorldSpec, count: int, shared_D: np.ndarray, spread: Spread, *, rng: np.random.Generator
) -> np.ndarray:
    """Specific directions (G x D) orthogonal to the shared one, of lengths near 1; zero for dimensions without one."""
    offsets_GD = rng.standard_normal((count, shared_D.size))
    if spec.offsets == "correlated":
        for row in range(1, count):
            offsets_GD[row] = _CORRELATION * offsets_GD[row - 1] + np.sqrt(1 - _CORRELATION**2) * offsets_GD[row]
    elif spec.offsets == "noise":
        offsets_GD = spread.draw(count, rng=rng)
    offsets_GD -= np.outer(offsets_GD @ shared_D, shared_D)
    offsets_GD *= np.exp(0.2 * rng.standard_normal((count, 1))) / np.linalg.norm(offsets_GD, axis=1, keepdims=True)
    bearers = count if spec.specific is None else spec.specific
    offsets_GD[rng.permutation(count)[bearers:]] = 0
    return offsets_GD


def _scale(
    spec: WorldSpec,
    persona_ND: np.ndarray,
    specific_ND: np.ndarray,
    dimension_N: np.ndarray,
    spread: Spread,
    *,
    noise_variance: float,
) -> float:
    """How much of the specific directions gives the dimension means the `rho` or `eta` asked; 0 if none is asked."""
    fixed_GD, free_GD = _means(persona_ND, dimension_N), _means(specific_ND, dimension_N)

    def rho(scale: float) -> float:
        return _rho(fixed_GD + scale * free_GD)

    def eta(scale: float) -> float:
        both_ND = persona_ND + scale * specific_ND
        return _sizes(both_ND, fixed_GD + scale * free_GD, spread, noise_variance=noise_variance).eta

    if spec.rho is not None:
        return _solve(rho, spec.rho)
    return 0.0 if spec.eta is None else _solve(eta, spec.eta)


def _solve(effect: Callable[[float], float], asked: float) -> float:
    if asked == 0:
        return 0.0
    for reach in (0.5, 1.0, 2.0, 4.0, 8.0):
        if effect(reach) > asked:
            return float(brentq(lambda scale: effect(scale) - asked, 0, reach, xtol=1e-12, rtol=1e-12))
    raise ValueError(f"no size of the specific directions gives {asked}; the largest effect found is {effect(8.0):.3f}")


def _halves(layout: Layout, *, rng: np.random.Generator) -> np.ndarray:
    """+1 and -1 in halves of every facet of one random dimension, less the facet's mean; 0 elsewhere."""
    sign_N = np.where(_ranks(layout.facet_N, rng=rng) < 0.5, 1.0, -1.0)
    sign_N[layout.dimension_N != rng.integers(layout.dimensions)] = 0
    return _within_facets(sign_N, layout)


def _within_facets(values_N: np.ndarray, layout: Layout) -> np.ndarray:
    means_F = np.bincount(layout.facet_N, weights=values_N) / np.bincount(layout.facet_N)
    return values_N - means_F[layout.facet_N]


def _standardised(values_N: np.ndarray) -> np.ndarray:
    spread = float(values_N.std())
    return (values_N - values_N.mean()) / spread if spread > 0 else np.zeros_like(values_N)
