"""Noise of simulated worlds: power-law spread, heavy tails, skew, uneven rows, noise that near-topics share.

Letters: N questions, S responses a question, D coordinates, K rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.fft import dct, idct

from unmask.analysis.world_spec import WorldSpec


class Spread(Protocol):
    """A covariance of trace 1, as rows drawn from it and as the variance along a direction."""

    def draw(self, count: int, *, rng: np.random.Generator) -> np.ndarray: ...

    def variance_along(self, direction_D: np.ndarray) -> float: ...


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Covariance R diag(j^-a) R' / trace, R a random rotation made of two sign-flipped, permuted cosine transforms.

    Rows have independent latent coordinates g + k (g^2 - 1), standardised: `skew` k = 0 is Gaussian; signs vary over coordinates.
    """

    variance_D: np.ndarray
    signs_2D: np.ndarray
    order_2D: np.ndarray
    skew_D: np.ndarray

    @classmethod
    def make(cls, width: int, *, exponent: float, skew: float, rng: np.random.Generator) -> PowerLaw:
        variance_D = np.arange(1, width + 1) ** -float(exponent)
        return cls(
            variance_D=variance_D / variance_D.sum(),
            signs_2D=rng.choice([-1.0, 1.0], size=(2, width)),
            order_2D=np.stack([rng.permutation(width), rng.permutation(width)]),
            skew_D=skew * rng.choice([-1.0, 1.0], size=width),
        )

    def rotate(self, rows_KD: np.ndarray) -> np.ndarray:
        for signs_D, order_D in zip(self.signs_2D, self.order_2D, strict=True):
            rows_KD = dct(rows_KD * signs_D, norm="ortho", axis=-1)[..., order_D]
        return rows_KD

    def rotate_back(self, rows_KD: np.ndarray) -> np.ndarray:
        for signs_D, order_D in zip(self.signs_2D[::-1], self.order_2D[::-1], strict=True):
            rows_KD = idct(rows_KD[..., np.argsort(order_D)], norm="ortho", axis=-1) * signs_D
        return rows_KD

    def draw(self, count: int, *, rng: np.random.Generator) -> np.ndarray:
        latent_KD = rng.standard_normal((count, self.variance_D.size))
        latent_KD += self.skew_D * (latent_KD**2 - 1)
        return self.rotate(latent_KD * np.sqrt(self.variance_D / (1 + 2 * self.skew_D**2)))

    def variance_along(self, direction_D: np.ndarray) -> float:
        return float((self.rotate_back(direction_D) ** 2 @ self.variance_D) / (direction_D @ direction_D))


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of every response, and the trace of the average covariance of its mean over a question's responses."""

    rows_NSD: np.ndarray
    variance: float


def row_scales(spec: WorldSpec, dimension_N: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """How loud each row's noise is: 1 / sqrt(length), lengths lognormal about their dimension's median; outliers 10 times."""
    count = dimension_N.size
    medians = np.exp(np.linspace(-1, 1, spec.dimensions))[rng.permutation(spec.dimensions)]
    standard_N = rng.standard_normal(count)
    scale_N = np.ones(count)
    if spec.length_spread > 0:
        scale_N = (medians[dimension_N] * np.exp(spec.length_spread * standard_N)) ** -0.5
        scale_N /= np.sqrt(np.mean(scale_N**2))
    loud = rng.permutation(count)[: round(spec.outliers * count)]
    scale_N[loud] *= 10
    return scale_N


def draw_noise(
    spec: WorldSpec, spread: Spread, scale_N: np.ndarray, near_topic_N: np.ndarray, *, rng: np.random.Generator
) -> Noise:
    """Noise of S responses a question, whose mean has root mean square norm `noise_ratio` where `scale_N` is 1.

    Three parts: the response's, the question's, the near-topic's. Tails are multivariate t; with 2 degrees of freedom or fewer
    its scale, not its variance, is set, and `variance` is the sample's.
    """
    count, samples = scale_N.size, spec.responses
    own = 1 - spec.question_share - spec.cluster_share
    tails_NS = _tails(spec.tail_df, (count, samples + 1), rng=rng)
    loud_NS = scale_N[:, None] * tails_NS
    rows_NSD = spread.draw(count * samples, rng=rng).reshape(count, samples, -1)
    rows_NSD *= (np.sqrt(samples * own) * loud_NS[:, :samples])[..., None]
    if spec.question_share > 0:
        rows_NSD += (np.sqrt(spec.question_share) * loud_NS[:, samples:] * spread.draw(count, rng=rng))[:, None]
    if spec.cluster_share > 0:
        topics_TD = spread.draw(int(near_topic_N.max()) + 1, rng=rng)
        rows_NSD += (np.sqrt(spec.cluster_share) * topics_TD[near_topic_N])[:, None]
    loudness = float(np.mean(scale_N**2 if spec.tail_df > 2 else loud_NS.T**2))
    variance = spec.noise_ratio**2 * ((1 - spec.cluster_share) * loudness + spec.cluster_share)
    return Noise(rows_NSD=rows_NSD * spec.noise_ratio, variance=variance)


def _tails(freedom: float, shape: tuple[int, int], *, rng: np.random.Generator) -> np.ndarray:
    """Row factors that turn Gaussian rows into multivariate t: unit variance above 2 degrees of freedom, unit scale below."""
    numerator = freedom - 2 if freedom > 2 else freedom
    return np.sqrt(numerator / rng.chisquare(freedom, size=shape))
