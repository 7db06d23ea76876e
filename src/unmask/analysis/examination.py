"""All tests of one site and one grouping: from shifts and base activations to geometry, p-values, effect sizes.

Shapes: N questions, D width, C coordinates, F groups, B flips, S responses a question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from unmask.analysis.geometry import Geometry, describe
from unmask.analysis.nulls import RankTests, Tested, draw_flips, rank_tests, shift_test
from unmask.analysis.planted import PlantedControls, plant
from unmask.analysis.preparation import Groups, Prepared, flip_rows, prepare_base, prepare_shift
from unmask.analysis.replicates import Replicates, joint_coordinates, replicate_test
from unmask.analysis.transport import (
    PassThrough,
    Transport,
    base_kernels,
    contrast_tests,
    learn_pass_through,
    topic_kernel,
    transport,
)
from unmask.analysis.verdict import Thresholds

LEAST_IN_GROUP = 4
"""Questions that a group needs: below, its own spread is not known well enough to correct for."""

LEAST_QUESTIONS = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is drawn, and the limits of the rule. Defaults are those that docs/calibration.md was made with."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    gamma: float = 1.5
    gammas: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    flips: int = 499
    resamples: int = 400
    permutations: int = 199
    planted_runs: int = 199
    planted_flips: int = 399
    planted_effects: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """In units of the smallest energy of interest, the lesser of rho* tr G and eta* times the orthogonal variance."""


SHOWN_SHARE = 5
"""Pass-through counts as shown at alpha over this. The test has power to spare, and where there is none, believing in it
costs the power to find separable parts."""


class Untestable(ValueError):
    """The data cannot be asked this question at all; the message says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Questions in groups large enough to be tested, and the groups that are too small with their sizes."""

    rows_N: np.ndarray
    dropped: dict[str, int]


def keep_groups(labels_N: np.ndarray) -> Kept:
    """Leave out groups below 4 questions. Raises Untestable when fewer than 2 groups or 16 questions are left."""
    labels_N = np.asarray(labels_N).astype(str)
    names, counts = np.unique(labels_N, return_counts=True)
    small = {str(name): int(count) for name, count in zip(names, counts, strict=True) if count < LEAST_IN_GROUP}
    rows_N = ~np.isin(labels_N, list(small))
    left = len(names) - len(small)
    if left < 2:
        raise Untestable(
            f"{left} group{'' if left == 1 else 's'} with at least {LEAST_IN_GROUP} questions: separability over groups needs two"
        )
    if rows_N.sum() < LEAST_QUESTIONS:
        raise Untestable(f"{int(rows_N.sum())} questions are too few: at least {LEAST_QUESTIONS} are needed")
    return Kept(rows_N, small)


@dataclass(frozen=True, slots=True)
class Examined:
    """What one site and grouping showed."""

    groups: Groups
    prepared: Prepared
    geometry: Geometry
    shift: Tested
    ranks: RankTests
    transport: Transport
    contrasts: RankTests
    pass_through: PassThrough
    rho_adj: float
    eta_adj: float

    def k_adj(self, alpha: float) -> int:
        """Dimensions of the group differences beyond what the base activations carry over."""
        return self.contrasts.rank(alpha)


def examine(
    shift_ND: np.ndarray,
    base_ND: np.ndarray,
    groups: Groups,
    *,
    signs_BN: np.ndarray,
    seed: int,
    settings: Settings,
    further: tuple[np.ndarray, ...] = (),
) -> Examined:
    """Geometry, T1, T2 and T3 of one site. `signs_BN` are the flips that all sites share, `further` more tables (N x D) that
    the shift may follow.

    Raises Untestable when the shift does not vary between questions, ValueError for values that are not finite.
    """
    alpha = settings.thresholds.alpha
    prepared = prepare_shift(shift_ND)
    rows_NC = prepared.rows_NC
    spread = float(((rows_NC - rows_NC.mean(axis=0)) ** 2).sum())
    if spread <= 1e-20 * max(float((rows_NC**2).sum()), 1e-300):
        raise Untestable("the shift is the same for every question, so nothing can be tested")
    if float((groups.centred(rows_NC) ** 2).sum()) <= 1e-20 * float((rows_NC**2).sum()):
        raise Untestable("the shift is the same for all questions of a group, so there is no noise to test against")
    geometry = describe(rows_NC, groups, rng=np.random.default_rng([seed, 1]), resamples=settings.resamples)
    prepared_ND = prepare_base(base_ND)
    passed = learn_pass_through(
        rows_NC,
        geometry.shared_C,
        base_kernels(prepared_ND, groups, further=tuple(prepare_base(table) for table in further)),
        topic_kernel(prepared_ND, groups),
        groups,
        alpha=alpha / SHOWN_SHARE,
        permutations=max(settings.permutations, math.ceil(2 * SHOWN_SHARE / alpha) - 1),
        rng=np.random.default_rng([seed, 4]),
    )
    carried = transport(rows_NC, geometry.shared_C, passed.kernels, groups, gamma=settings.gamma)
    energy = carried.adjusted_energy
    return Examined(
        groups=groups,
        prepared=prepared,
        geometry=geometry,
        shift=shift_test(flip_rows(shift_ND), signs_BN, groups),
        ranks=rank_tests(rows_NC, groups, signs_BN, alpha=alpha),
        transport=carried,
        contrasts=contrast_tests(carried, signs_BN, alpha=alpha),
        pass_through=passed,
        rho_adj=energy / geometry.total if geometry.total > 0 else float("nan"),
        eta_adj=energy / geometry.orthogonal_variance if geometry.orthogonal_variance > 0 else float("nan"),
    )


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What T3 finds when base differences between groups are believed to carry `gamma` times as much."""

    gamma: float
    k_adj: int
    p: float
    """Of the rank that decides: at most `k_star` - 1."""
    rejected: bool


def gamma_sensitivity(
    found: Examined, *, k_star: int, signs_BN: np.ndarray, settings: Settings
) -> tuple[list[Sensitivity], float | None]:
    """T3 over a range of Gamma, and Gamma*: the largest at which `k_star` dimensions are still found.

    Gamma* is None where they are found at none, and where no pass-through was shown: then Gamma has nothing to multiply.
    """
    alpha = settings.thresholds.alpha
    rows: list[Sensitivity] = []
    for gamma in settings.gammas:
        carried = transport(
            found.prepared.rows_NC,
            found.geometry.shared_C,
            found.pass_through.kernels,
            found.groups,
            gamma=gamma,
            components_K=found.transport.components_K,
        )
        tests = contrast_tests(carried, signs_BN, alpha=alpha)
        decisive = max(test.p for test in tests.tests[:k_star])
        rank = tests.rank(alpha)
        rows.append(Sensitivity(gamma, rank, decisive, rank >= k_star))
    rejected = [row.gamma for row in rows if row.rejected]
    return rows, max(rejected) if rejected and found.pass_through.shown else None


def interest_energy(geometry: Geometry, thresholds: Thresholds) -> float:
    """The smallest energy of interest: the lesser of rho* tr G and eta* times the orthogonal variance."""
    return min(thresholds.rho * geometry.total, thresholds.eta * geometry.orthogonal_variance)


def planted_controls(found: Examined, *, k_star: int, seed: int, settings: Settings) -> PlantedControls:
    """Planted power of T3 in this very data, at multiples of the smallest energy of interest."""
    unit = interest_energy(found.geometry, settings.thresholds)
    return plant(
        found.transport,
        found.groups,
        found.geometry.shared_C,
        energies=[effect * unit for effect in {1.0, *settings.planted_effects}] if unit > 0 else [],
        k_star=k_star,
        runs=settings.planted_runs,
        flips=settings.planted_flips,
        alpha=settings.thresholds.alpha,
        rng=np.random.default_rng([seed, 2]),
    )


def replicated(found: Examined, halves_2ND: np.ndarray, *, seed: int, settings: Settings) -> Replicates | None:
    """T4 on the means of two disjoint halves of each question's responses; questions with a missing half are left out.

    None when fewer than 4 questions of some group have both.
    """
    there_N = np.isfinite(halves_2ND).all(axis=(0, 2))
    groups = Groups.of(np.array(found.groups.names)[found.groups.codes_N[there_N]])
    if groups.count < found.groups.count or groups.sizes_F.min() < LEAST_IN_GROUP:
        return None
    prepared = found.prepared
    scaled_2ND = [(half / prepared.scale_D * prepared.cap_N[:, None])[there_N] for half in halves_2ND]
    halves_2NC, shared_C = joint_coordinates(np.stack(scaled_2ND), prepared.basis_DC @ found.geometry.shared_C)
    return replicate_test(
        halves_2NC,
        groups,
        shared_C,
        total=found.geometry.total,
        alpha=settings.thresholds.alpha,
        permutations=settings.permutations,
        rng=np.random.default_rng([seed, 3]),
    )


def flips_for(questions: int, *, seed: int, settings: Settings) -> np.ndarray:
    """The flips of a study: one set for all sites, groupings and corrections."""
    return draw_flips(questions, flips=settings.flips, rng=np.random.default_rng([seed, 0]))
