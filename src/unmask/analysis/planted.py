"""Planted controls: what would the tests have found in this very data, had there been something to find - or nothing?

A planted run keeps the study's questions, groups, pass-through model and noise: X* = W^-1 (e o r) + K, where r are the whitened,
group-free residuals, e random signs, and K group offsets orthogonal to the shared direction. The shared part, which T3 projects
out, drops out of X*. The group contrasts carry all the pass-through that the model believes in, with offsets and without (the
false-positive control).

Shapes: N questions, C coordinates, F groups, G = F - 1 contrasts, B flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from unmask.analysis.preparation import Groups
from unmask.analysis.transport import Transport, off_constant

Offsets = Literal["isotropic", "hard"]
OFFSETS: tuple[Offsets, ...] = ("isotropic", "hard")
TARGET_POWER = 0.8


@dataclass(frozen=True, slots=True)
class PlantedPoint:
    """How often `k_adj >= k_star` was found in `runs` planted runs whose offsets hold `energy` between groups."""

    offsets: Offsets
    energy: float
    runs: int
    detected: int

    @property
    def share(self) -> float:
        return self.detected / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.detected, self.runs)


@dataclass(frozen=True, slots=True)
class PlantedControls:
    """All planted points; energy 0 is the false-positive control."""

    points: tuple[PlantedPoint, ...]
    k_star: int

    @property
    def false_positive_rate(self) -> float:
        return next(point.share for point in self.points if point.energy == 0)

    def power_at(self, energy: float) -> float:
        """Power at an energy, linear between the points, the worse of the two kinds of offsets.

        NaN where nothing was planted, or for more energy than was planted.
        """
        return min(self._power(kind, energy) for kind in OFFSETS) if self.points else float("nan")

    def _power(self, kind: Offsets, energy: float) -> float:
        curve = self.curve(kind)
        if not curve or energy > curve[-1][0] * (1 + 1e-9):
            return float("nan")
        return float(np.interp(energy, [e for e, _ in curve], [p for _, p in curve]))

    def curve(self, kind: Offsets) -> list[tuple[float, float]]:
        """(energy, power), rising, made monotone by running maxima."""
        points = sorted((p.energy, p.share) for p in self.points if p.offsets == kind or p.energy == 0)
        best = np.maximum.accumulate([share for _, share in points]) if points else []
        return [(energy, float(share)) for (energy, _), share in zip(points, best, strict=True)]

    def detectable(self) -> float:
        """Energy found with power .8, linear between the points, the worse kind of offsets; NaN if none planted sufficed."""
        found = []
        for kind in OFFSETS:
            curve = self.curve(kind)
            place = next((i for i, (_, power) in enumerate(curve) if power >= TARGET_POWER), None)
            if place is None:
                return float("nan")
            if place == 0:
                found.append(curve[0][0])
                continue
            (e0, p0), (e1, p1) = curve[place - 1], curve[place]
            found.append(e0 + (e1 - e0) * (TARGET_POWER - p0) / (p1 - p0))
        return max(found)


def wilson(hits: int, runs: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927)."""
    z = float(norm.ppf((1 + level) / 2))
    share = hits / runs
    middle = (share + z**2 / (2 * runs)) / (1 + z**2 / runs)
    reach = z / (1 + z**2 / runs) * np.sqrt(share * (1 - share) / runs + z**2 / (4 * runs**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def plant(
    found: Transport,
    groups: Groups,
    shared_C: np.ndarray,
    *,
    energies: Sequence[float],
    k_star: int,
    runs: int,
    flips: int,
    alpha: float,
    rng: np.random.Generator,
) -> PlantedControls:
    """Plant group offsets of each energy in `runs` data sets each, and count how often T3 finds at least `k_star` of them.

    Energy is sum_f w_f |K_f - mean K|^2, the unit of tr G; 0 is always planted. The whitener is the study's own: the runs have
    its covariance by construction. All runs draw their flips from one pool, since a flip of a flip is a flip, so that one matrix
    product serves them all.
    """
    noise = _Noise.of(found, runs=runs, flips=flips, rng=rng)
    inverse_NN = np.linalg.inv(found.whitener_NN)
    spread_NG = found.contrasts_NG.T @ off_constant(
        found.whitener_NN @ groups.indicator_NF, _unit(found.whitener_NN @ np.ones(len(inverse_NN)))
    )
    hard_NC = inverse_NN @ found.residual_NC
    points = []
    for kind in OFFSETS:
        for energy in sorted({0.0, *energies}):
            if energy == 0.0 and kind != OFFSETS[0]:
                continue
            detected = 0
            for run in range(runs):
                offsets_FC = _draw_offsets(kind, hard_NC, groups, shared_C, rng=rng) * np.sqrt(energy)
                detected += noise.rank(run, spread_NG @ offsets_FC, k_star=k_star, alpha=alpha) >= k_star
            points.append(PlantedPoint(kind, energy, runs, detected))
    return PlantedControls(tuple(points), k_star)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _draw_offsets(
    kind: Offsets, hard_NC: np.ndarray, groups: Groups, shared_C: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """Offsets (F x C) of unit weighted energy about their mean, orthogonal to the shared direction."""
    if kind == "isotropic":
        offsets_FC = rng.standard_normal((groups.count, hard_NC.shape[1]))
    else:
        offsets_FC = rng.standard_normal((groups.count, len(hard_NC))) @ hard_NC
    offsets_FC -= np.outer(offsets_FC @ shared_C, shared_C)
    norms_F = np.linalg.norm(offsets_FC, axis=1, keepdims=True)
    offsets_FC = offsets_FC / np.maximum(norms_F, 1e-300)
    w_F = groups.weights_F
    centred_FC = offsets_FC - w_F @ offsets_FC
    energy = float(w_F @ np.einsum("fc,fc->f", centred_FC, centred_FC))
    return centred_FC / np.sqrt(max(energy, 1e-300))


@dataclass(frozen=True, slots=True)
class _Noise:
    """Pools of flipped noise: `outer` makes the runs, `inner` their null distributions (random signs either way)."""

    outer_RGC: np.ndarray
    outer_RN: np.ndarray
    inner_BGC: np.ndarray
    inner_BN: np.ndarray
    contrasts_NG: np.ndarray

    @classmethod
    def of(cls, found: Transport, *, runs: int, flips: int, rng: np.random.Generator) -> _Noise:
        residual_NC, contrasts_NG = found.residual_NC.astype(np.float32), found.contrasts_NG

        def pool(count: int) -> tuple[np.ndarray, np.ndarray]:
            signs = rng.integers(0, 2, size=(count, len(residual_NC))).astype(np.float32) * 2 - 1
            flat = (signs[:, None, :] * contrasts_NG.T.astype(np.float32)).reshape(-1, len(residual_NC))
            return (flat @ residual_NC).reshape(count, contrasts_NG.shape[1], -1), signs

        outer_RGC, outer_RN = pool(runs)
        inner_BGC, inner_BN = pool(flips)
        return cls(outer_RGC, outer_RN, inner_BGC, inner_BN, contrasts_NG)

    def rank(self, run: int, planted_GC: np.ndarray, *, k_star: int, alpha: float) -> int:
        """k_adj of one planted run, counted up to `k_star`."""
        planted_GC = planted_GC.astype(np.float32)
        effects_GC = self.outer_RGC[run] + planted_GC
        left_GG, singular_G, right_GC = np.linalg.svd(effects_GC, full_matrices=False)
        # inner signs are those of the flip times those of the run, which is as random
        flips_BN = self.inner_BN * self.outer_RN[run]
        turn_BGG = self._turns(flips_BN)
        for rank in range(min(k_star, len(singular_G))):
            null_GC = (left_GG[:, :rank] * singular_G[:rank]) @ right_GC[:rank]
            moved_BGC = self.inner_BGC + turn_BGG @ (planted_GC - null_GC) + null_GC
            eigenvalues_BG = np.linalg.eigvalsh(moved_BGC @ moved_BGC.transpose(0, 2, 1))[:, ::-1]
            beyond_B = eigenvalues_BG[:, rank:].sum(axis=1)
            p = (1 + (beyond_B >= float((singular_G[rank:] ** 2).sum())).sum()) / (1 + len(beyond_B))
            if p > alpha:
                return rank
        return min(k_star, len(singular_G))

    def _turns(self, flips_BN: np.ndarray) -> np.ndarray:
        """q' diag(e) q for every flip (B x G x G)."""
        n, g = self.contrasts_NG.shape
        outer_NGG = (self.contrasts_NG[:, :, None] * self.contrasts_NG[:, None, :]).reshape(n, g * g)
        return (flips_BN @ outer_NGG.astype(np.float32)).reshape(-1, g, g)
