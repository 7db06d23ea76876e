"""Planted controls: offsets of the energy asked, power that rises with it, and the fast path equal to the long way round."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from unmask.analysis.nulls import draw_flips
from unmask.analysis.planted import (
    OFFSETS,
    PlantedControls,
    PlantedPoint,
    _draw_offsets,
    plant,
    wilson,
)
from unmask.analysis.preparation import Groups, prepare_base
from unmask.analysis.transport import Transport, base_kernels, contrast_tests, transport, variance_components

SIZES = (10, 14, 20, 12)
GROUPS = Groups.of(np.repeat(["a", "b", "c", "d"], SIZES))
N, C = sum(SIZES), 8
SHARED = np.eye(C)[1]


@pytest.fixture(scope="module")
def fitted() -> tuple[Transport, list[np.ndarray]]:
    """Rows that follow a base, and their pass-through model."""
    rng = np.random.default_rng(0)
    base_ND = rng.standard_normal((N, 10)) + rng.standard_normal((4, 10))[GROUPS.codes_N]
    kernels = base_kernels(prepare_base(base_ND), GROUPS)
    rows_NC = 0.2 * base_ND @ rng.standard_normal((10, C)) + rng.standard_normal((N, C)) * np.linspace(0.5, 1.5, C)
    return transport(rows_NC, SHARED, kernels, GROUPS, gamma=1.5), kernels


def planted(found: Transport, *, energies: list[float], runs: int = 150, seed: int = 0, k_star=2):
    return plant(
        found,
        GROUPS,
        SHARED,
        energies=energies,
        k_star=k_star,
        runs=runs,
        flips=59,
        alpha=0.05,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("kind", OFFSETS)
def test_offsets_have_unit_energy_about_their_mean_off_the_shared_direction(kind: str) -> None:
    rng = np.random.default_rng(0)
    hard_NC = rng.standard_normal((N, C)) * np.geomspace(1e-3, 10, C)
    drawn = [_draw_offsets(kind, hard_NC, GROUPS, SHARED, rng=rng) for _ in range(300)]
    for offsets_FC in drawn[:5]:
        middle = sum(n / N * offset for n, offset in zip(SIZES, offsets_FC, strict=True))
        energy = sum(n / N * np.sum((offset - middle) ** 2) for n, offset in zip(SIZES, offsets_FC, strict=True))
        assert energy == pytest.approx(1)
        np.testing.assert_allclose(offsets_FC @ SHARED, 0, atol=1e-12)
    share = np.mean([(offsets_FC[:, -1] ** 2).sum() / (offsets_FC**2).sum() for offsets_FC in drawn])
    assert share > 0.6 if kind == "hard" else abs(share - 1 / (C - 1)) < 0.03  # along the loudest noise, or anywhere


def slow_count(found: Transport, kind: str, energy: float, *, runs: int, seed: int) -> int:
    """The very runs of `plant` at one energy, each made and tested row by row; only the draws are taken in its order."""
    rng = np.random.default_rng(seed)
    runs_signs, flips_signs = (rng.integers(0, 2, size=(count, N)) * 2 - 1 for count in (runs, 59))
    contrasts, whitener = found.contrasts_NG, found.whitener_NN
    hard_NC = np.linalg.inv(whitener) @ found.residual_NC
    hits = 0
    for place, level in enumerate([0.0, energy, energy]):  # without offsets, isotropic ones, hard ones
        for e_N in runs_signs:
            offsets_FC = np.sqrt(level) * _draw_offsets(OFFSETS[place == 2], hard_NC, GROUPS, SHARED, rng=rng)
            if level == 0 or OFFSETS[place == 2] != kind:
                continue
            white_NC = e_N[:, None] * found.residual_NC
            white_NC = white_NC + contrasts @ (contrasts.T @ whitener @ offsets_FC[GROUPS.codes_N])
            left, singular, right = np.linalg.svd(contrasts.T @ white_NC, full_matrices=False)
            rank = 0
            while rank < 2:
                fit_NC = contrasts @ (left[:, :rank] * singular[:rank]) @ right[:rank]
                null = []
                for flip_N in flips_signs:
                    turned_NC = fit_NC + (flip_N * e_N)[:, None] * (white_NC - fit_NC)
                    null.append((np.linalg.svd(contrasts.T @ turned_NC, compute_uv=False)[rank:] ** 2).sum())
                if (1 + sum(value >= (singular[rank:] ** 2).sum() for value in null)) / 60 > 0.05:
                    break
                rank += 1
            hits += rank == 2
    return hits


@pytest.mark.parametrize("kind", OFFSETS)
def test_the_pooled_path_is_the_same_runs_row_by_row(fitted, kind: str) -> None:
    """Single precision may turn a tie: one run of 60 may differ."""
    controls = planted(fitted[0], energies=[3.0], runs=60, seed=5)
    fast = next(point.detected for point in controls.points if point.offsets == kind and point.energy == 3.0)
    assert abs(fast - slow_count(fitted[0], kind, 3.0, runs=60, seed=5)) <= 1
    assert 10 < fast < 55


def slow_share(fitted: tuple[Transport, list[np.ndarray]], kind: str, energy: float, *, runs: int) -> float:
    """X* = W^-1 (e o r) + K run by run, whitened again by the same model, tested by T3 itself with flips of its own."""
    found, kernels = fitted
    rng = np.random.default_rng(77)
    inverse = np.linalg.inv(found.whitener_NN)
    hits = 0
    for _ in range(runs):
        noise_NC = rng.choice([-1.0, 1.0], size=(N, 1)) * found.residual_NC
        offsets_FC = np.sqrt(energy) * _draw_offsets(kind, inverse @ found.residual_NC, GROUPS, SHARED, rng=rng)
        made_NC = inverse @ noise_NC + offsets_FC[GROUPS.codes_N]
        again = transport(
            made_NC, np.zeros(C), kernels, GROUPS, gamma=found.gamma, components_K=found.components_K
        )  # the residuals hold nothing along the shared direction as it is
        hits += contrast_tests(again, draw_flips(N, flips=59, rng=rng), alpha=0.05).rank(0.05) >= 2
    return hits / runs


def over_pools(found: Transport, *, energies: list[float], **options) -> list[PlantedControls]:
    """Twelve times 100 runs: the runs of one call share their flips, so that the share differs more between calls than runs."""
    return [planted(found, energies=energies, runs=100, seed=seed, **options) for seed in range(12)]


@pytest.mark.parametrize(("kind", "energy"), [("hard", 3.5), ("isotropic", 3.5)])
def test_the_pooled_path_agrees_with_the_long_way_round(fitted, kind: str, energy: float) -> None:
    """Standard errors are .02 of the twelve calls' mean and .04 of 150 slow runs: four of the difference's are .18."""
    fast = np.mean([dict(c.curve(kind))[energy] for c in over_pools(fitted[0], energies=[energy])])
    slow = slow_share(fitted, kind, energy, runs=150)
    assert 0.2 < slow < 0.8
    assert abs(fast - slow) < 0.18


def test_power_rises_from_the_false_positive_rate_to_one(fitted) -> None:
    """150 runs with one pool of flips: neighbours may fall by .2 (their standard errors are at most .06); two dimensions are
    found without offsets in far less than 5 %."""
    controls = planted(fitted[0], energies=[1.0, 3.0, 30.0])
    assert controls.false_positive_rate <= 0.05
    for kind in OFFSETS:
        shares = [p.share for p in sorted(controls.points, key=lambda p: p.energy) if p.offsets == kind]
        assert all(later > earlier - 0.2 for earlier, later in pairwise(shares))
        assert shares[-1] > 0.97
    assert [p.energy for p in controls.points] == [0.0, 1.0, 3.0, 30.0, 1.0, 3.0, 30.0]
    assert 1 < controls.detectable() < 30


def test_one_dimension_is_found_by_chance_in_alpha(fitted) -> None:
    """k* = 1 without offsets: 5 % within 4 standard errors (.041) of the mean of twelve calls."""
    rate = np.mean([c.false_positive_rate for c in over_pools(fitted[0], energies=[], k_star=1)])
    assert abs(rate - 0.05) < 0.041


def test_the_same_generator_gives_the_same_points(fitted) -> None:
    assert planted(fitted[0], energies=[1.0], runs=20) == planted(fitted[0], energies=[1.0], runs=20)


def test_nothing_planted_is_no_power(fitted) -> None:
    controls = planted(fitted[0], energies=[], runs=10)
    assert np.isnan(controls.power_at(0.5))
    assert np.isnan(controls.detectable())
    assert np.isnan(PlantedControls((), 2).power_at(0.5))


def points(**shares: list[tuple[float, float]]) -> PlantedControls:
    made = [PlantedPoint("isotropic", 0.0, 100, 4)]
    made += [PlantedPoint(kind, e, 100, round(100 * p)) for kind, curve in shares.items() for e, p in curve]
    return PlantedControls(tuple(made), 2)


def test_power_is_read_off_the_worse_curve_made_monotone() -> None:
    controls = points(isotropic=[(1, 0.6), (2, 0.5), (4, 1.0)], hard=[(1, 0.2), (2, 0.7), (4, 0.9)])
    assert controls.curve("isotropic") == [(0.0, 0.04), (1, 0.6), (2, 0.6), (4, 1.0)]
    assert controls.power_at(1) == pytest.approx(0.2)
    assert controls.power_at(1.5) == pytest.approx(0.45)
    assert controls.power_at(0.5) == pytest.approx(0.12)
    assert np.isnan(controls.power_at(5))
    assert controls.detectable() == pytest.approx(3.0)  # hard: .7 at 2, .9 at 4
    assert np.isnan(points(isotropic=[(1, 1.0)], hard=[(1, 0.79)]).detectable())


def test_wilson_against_newcombe_1998() -> None:
    """Newcombe (1998), table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, runs), ends in published.items():
        assert wilson(hits, runs) == pytest.approx(ends, abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    assert PlantedPoint("hard", 1.0, 29, 1).interval == wilson(1, 29)


def test_components_are_reused_not_refitted(fitted) -> None:
    """The slow path above rests on it: the same variances give the same whitener."""
    found, kernels = fitted
    again = transport(found.residual_NC, SHARED, kernels, GROUPS, gamma=found.gamma, components_K=found.components_K)
    np.testing.assert_allclose(again.whitener_NN, found.whitener_NN, atol=1e-12)
    assert not np.allclose(variance_components(found.residual_NC, kernels, GROUPS), found.components_K)
