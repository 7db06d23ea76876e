"""Maps of the base activation that a shift may follow, the same for every dimension.

Letters: N questions, D coordinates, R directions read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unmask.analysis.world_noise import PowerLaw
from unmask.analysis.world_spec import MapKind

MapDraw = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""(base, topic means, generator) to rows that follow the base; all N x D."""


def follow(
    kind: MapKind, base_ND: np.ndarray, topic_ND: np.ndarray, *, energy: float, rng: np.random.Generator
) -> np.ndarray:
    """A random map of that kind, centred, with total variance `energy`; `topic_ND` is each question's topic mean.

    Raises ValueError when the base activations do not vary.
    """
    rows_ND = _MAPS[kind](base_ND, topic_ND, rng)
    rows_ND = rows_ND - rows_ND.mean(axis=0)
    total = float(np.mean((rows_ND**2).sum(axis=1)))
    if total == 0:
        raise ValueError("base activations that do not vary carry nothing")
    return rows_ND * np.sqrt(energy / total)


def _readings(base_ND: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Projections (N x R) on random directions, each of unit variance."""
    read_NR = base_ND @ rng.standard_normal((base_ND.shape[1], count))
    return (read_NR - read_NR.mean(axis=0)) / read_NR.std(axis=0)


def _write(read_NR: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    return read_NR @ rng.standard_normal((read_NR.shape[1], width))


def _linear(base_ND: np.ndarray, topic_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two random rotations with a falling spectrum between them: full rank without a D x D matrix."""
    width = base_ND.shape[1]
    into = PowerLaw.make(width, exponent=0.5, skew=0, rng=rng)
    out_of = PowerLaw.make(width, exponent=0, skew=0, rng=rng)
    return out_of.rotate(into.rotate(base_ND) * np.sqrt(into.variance_D))


def _lowrank(base_ND: np.ndarray, topic_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _write(_readings(base_ND, 3, rng), base_ND.shape[1], rng)


def _nonlinear(base_ND: np.ndarray, topic_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    phase_R = rng.uniform(0, 2 * np.pi, size=32)
    return _write(np.cos(1.2 * _readings(base_ND, 32, rng) + phase_R), base_ND.shape[1], rng)


def _saturating(base_ND: np.ndarray, topic_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _write(np.tanh(4 * _readings(base_ND, 6, rng)), base_ND.shape[1], rng)


def _gain_by_h(base_ND: np.ndarray, topic_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _write(np.exp(0.6 * _readings(base_ND, 3, rng)), base_ND.shape[1], rng)


def _topic(base_ND: np.ndarray, topic_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    axes_RD = np.linalg.svd(np.unique(topic_ND, axis=0), full_matrices=False)[2][:3]
    return _write(base_ND @ axes_RD.T, base_ND.shape[1], rng)


_MAPS: dict[MapKind, MapDraw] = {
    "linear": _linear,
    "lowrank": _lowrank,
    "nonlinear": _nonlinear,
    "saturating": _saturating,
    "gain_by_h": _gain_by_h,
    "topic": _topic,
}
