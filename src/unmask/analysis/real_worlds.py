"""Worlds on a study's own base activations and its own noise, with planted shifts.

Letters: N questions, S responses a question, D coordinates, K rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmask.analysis.world_noise import Noise
from unmask.analysis.world_spec import WORLDS, WorldSpec
from unmask.analysis.world_topics import Layout
from unmask.analysis.worlds import Setting, World, build, described

RealKind = Literal["none", "shared", "pass_through", "separable"]
"""What is planted: nothing, one direction with gains, that and a linear map of the base activation, specific directions."""

_WORLD: dict[RealKind, str] = {
    "none": "no_shift",
    "shared": "monolithic",
    "pass_through": "pass_through_linear",
    "separable": "separable",
}
_FLOOR = 0.1  # of the median spread: no coordinate counts as less variable than that


@dataclass(frozen=True, slots=True)
class Empirical:
    """The covariance of given rows (trace 1), as they are: draws are Gaussian mixtures of the rows."""

    rows_ND: np.ndarray

    def draw(self, count: int, *, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((count, len(self.rows_ND))) @ self.rows_ND

    def variance_along(self, direction_D: np.ndarray) -> float:
        return float(((self.rows_ND @ direction_D) ** 2).sum() / (direction_D @ direction_D))


def real_world(
    base_ND: np.ndarray,
    groups_N: np.ndarray,
    facets_N: np.ndarray,
    *,
    kind: RealKind | WorldSpec,
    noise_ND: np.ndarray,
    rng: np.random.Generator,
    group_free: bool = True,
    **overrides: object,
) -> World:
    """Plant a shift among real base activations; the noise is `noise_ND`'s rows, dealt out anew with random signs.

    `noise_ND` are real shifts: the rows are centred over all questions, and within facets where `group_free`. Each response of a
    question gets another row; the persona's size follows from `noise_ratio`. Row-wise kinds of noise (lengths, outliers, tails,
    near-topics) are the data's own. Raises ValueError for arrays that do not fit each other, values that are not finite, noise
    that is all zero, and what `draw` refuses.
    """
    spec = kind if isinstance(kind, WorldSpec) else WORLDS[_WORLD[kind]]
    dimensions = len(np.unique(groups_N))
    spec = described(
        spec, {**overrides, "questions": len(base_ND), "dimensions": dimensions, "width": base_ND.shape[1]}
    )
    _check(base_ND, groups_N, facets_N, noise_ND)
    layout = Layout.of_labels(np.asarray(groups_N), np.asarray(facets_N))
    rows_ND = np.asarray(noise_ND, dtype=float)
    rows_ND = rows_ND - (_facet_means(rows_ND, layout) if group_free else rows_ND.mean(axis=0))
    unit_D = _units(rows_ND)
    rows_ND = rows_ND / unit_D
    rows_ND /= np.sqrt((rows_ND**2).sum() / len(rows_ND))
    centred_ND = np.asarray(base_ND, dtype=float) - np.mean(base_ND, axis=0)
    centred_ND /= _units(centred_ND)
    centred_ND /= np.sqrt(np.mean((centred_ND**2).sum(axis=1)))
    setting = Setting(
        layout=layout,
        groups_N=np.asarray(groups_N),
        facets_N=np.asarray(facets_N),
        base_ND=np.asarray(base_ND),
        centred_ND=centred_ND,
        topic_ND=_facet_means(centred_ND, layout),
        spread=Empirical(rows_ND / np.sqrt(len(rows_ND))),
        noise_scale_N=np.ones(len(rows_ND)),
        unit_D=unit_D,
    )
    noise_rng, control_rng, rest_rng = rng.spawn(3)
    fresh = _dealt(spec, rows_ND, rng=control_rng) if spec.control else None
    return build(spec, setting, _dealt(spec, rows_ND, rng=noise_rng), fresh, rng=rest_rng)


def _check(base_ND: np.ndarray, groups_N: np.ndarray, facets_N: np.ndarray, noise_ND: np.ndarray) -> None:
    if base_ND.shape != noise_ND.shape or not len(base_ND) == len(groups_N) == len(facets_N):
        raise ValueError(
            f"base activations {base_ND.shape}, noise {noise_ND.shape}, {len(groups_N)} groups and {len(facets_N)} facets"
            " do not fit each other"
        )
    if not (np.isfinite(base_ND).all() and np.isfinite(noise_ND).all()):
        raise ValueError("real worlds need finite values")


def _facet_means(rows_ND: np.ndarray, layout: Layout) -> np.ndarray:
    member_FN = (layout.facet_N == np.arange(layout.facets)[:, None]).astype(float)
    return (member_FN @ rows_ND / member_FN.sum(axis=1, keepdims=True))[layout.facet_N]


def _units(rows_ND: np.ndarray) -> np.ndarray:
    """Each coordinate's spread, no less than a tenth of the median one. Raises ValueError when nothing varies."""
    spread_D = rows_ND.std(axis=0)
    if not spread_D.any():
        raise ValueError("rows that are all the same have no spread to plant a shift in")
    return np.maximum(spread_D, _FLOOR * float(np.median(spread_D[spread_D > 0])))


def _dealt(spec: WorldSpec, rows_ND: np.ndarray, *, rng: np.random.Generator) -> Noise:
    """Rows for every response: a permutation each, with random signs; the mean's root mean square norm is `noise_ratio`."""
    order_SN = np.stack([rng.permutation(len(rows_ND)) for _ in range(spec.responses)])
    sign_SN = rng.choice([-1.0, 1.0], size=order_SN.shape)
    dealt_NSD = (rows_ND[order_SN] * sign_SN[..., None]).transpose(1, 0, 2)
    return Noise(rows_NSD=spec.noise_ratio * np.sqrt(spec.responses) * dealt_NSD, variance=spec.noise_ratio**2)
