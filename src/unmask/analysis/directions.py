"""Directions of a site: the shared one and what is specific to each group, in the site's own units.

Shapes: N questions, C coordinates, D width, F groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.analysis.geometry import off, within_traces
from unmask.analysis.preparation import Groups, Prepared, row_energy

_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class Found:
    """A direction (D, as long as the mean shift along it), what each question has of it (N), and how far it can be trusted.

    `loadings_N` are in the prepared scale; `strength` is the share of tr G, less sampling noise (it may be negative);
    `stability` the mean |cosine| of the direction made from two random halves of the questions.
    """

    name: str
    vector_D: np.ndarray
    loadings_N: np.ndarray
    strength: float
    stability: float
    questions: int


def shared_and_specific(
    prepared: Prepared, groups: Groups, shared_C: np.ndarray, *, total: float, rng: np.random.Generator
) -> list[Found]:
    """The shared direction ("shared"), then for each group its mean shift with the shared direction projected out."""
    rows_NC = prepared.rows_NC
    means_FC = groups.means(rows_NC)
    specific_FC = off(means_FC, shared_C)
    within_F = within_traces(off(rows_NC, shared_C), groups) / groups.sizes_F
    w_F = groups.weights_F
    length = float(w_F @ means_FC @ shared_C)
    stability = _stability(rows_NC, groups, shared_C, rng=rng)
    rest = float(w_F @ (row_energy(specific_FC) - within_F))
    found = [
        Found(
            name="shared",
            vector_D=prepared.original((length * shared_C)[None])[0],
            loadings_N=rows_NC @ shared_C,
            strength=1 - rest / total if total > 0 else float("nan"),
            stability=stability[0],
            questions=len(rows_NC),
        )
    ]
    for group, name in enumerate(groups.names):
        unit_C = specific_FC[group] / max(float(np.linalg.norm(specific_FC[group])), 1e-300)
        energy = float(w_F[group] * (row_energy(specific_FC[group : group + 1])[0] - within_F[group]))
        found.append(
            Found(
                name=name,
                vector_D=prepared.original(specific_FC[group : group + 1])[0],
                loadings_N=rows_NC @ unit_C,
                strength=energy / total if total > 0 else float("nan"),
                stability=stability[1 + group],
                questions=int(groups.sizes_F[group]),
            )
        )
    return found


def _stability(rows_NC: np.ndarray, groups: Groups, shared_C: np.ndarray, *, rng: np.random.Generator) -> list[float]:
    """Mean |cosine| between two halves: of the mean shift, then of each group's specific direction."""
    values = np.empty((_HALVINGS, 1 + groups.count))
    for halving in range(_HALVINGS):
        half_N = np.zeros(len(rows_NC), dtype=bool)
        for group in range(groups.count):
            members = rng.permutation(np.flatnonzero(groups.codes_N == group))
            half_N[members[: len(members) // 2]] = True
        sides = []
        for chosen_N in (half_N, ~half_N):
            means_FC = np.stack([rows_NC[chosen_N & (groups.codes_N == g)].mean(axis=0) for g in range(groups.count)])
            sides.append(np.vstack([groups.weights_F @ means_FC, off(means_FC, shared_C)]))
        one, two = sides
        norms = np.sqrt(row_energy(one) * row_energy(two))
        values[halving] = np.abs((one * two).sum(axis=1)) / np.maximum(norms, 1e-300)
    return [float(value) for value in values.mean(axis=0)]
