"""The causal test: selective directions, directions that all do the same, and nothing at all."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from unmask.analysis.crosstalk import CrossTalk, cross_talk


def effects(
    *, groups: int = 4, items: int = 40, x: float = 0.0, size: float = 1.0, noise: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """M of METHODS T5 with cross-talk `x`, and four random directions without effect."""
    rng = np.random.default_rng(seed)
    mean_FF = size * (np.eye(groups) + x * (1 - np.eye(groups)))
    made = mean_FF[:, :, None] + noise * rng.standard_normal((groups, groups, items))
    return made, noise * rng.standard_normal((4, groups, items))


def trial(made: np.ndarray, random: np.ndarray, *, resamples: int = 200, draws: int = 199, seed: int = 0) -> CrossTalk:
    return cross_talk(made, random, resamples=resamples, permutations=draws, rng=np.random.default_rng(seed))


def outcomes(count: int = 40, **options) -> list[str]:
    """At 40 items, whose SD is the effect (METHODS T5, reference figures), four groups."""
    return [trial(*effects(noise=1.0, seed=seed, **options), resamples=150).outcome for seed in range(count)]


@pytest.mark.parametrize("groups", [4, 6])
def test_an_identity_is_selective(groups: int) -> None:
    found = trial(*effects(groups=groups))
    assert found.outcome == "selective"
    assert found.x == pytest.approx(0, abs=0.05)
    assert found.x_low < 0 < found.x_high or abs(found.x) < 0.05
    assert found.potent_share == 1
    assert found.p < 0.05
    assert found.items == 40
    np.testing.assert_allclose(found.effects_FF, np.eye(groups), atol=0.3)


@pytest.mark.parametrize("groups", [2, 4, 6])
def test_directions_that_all_do_the_same_are_cross_talk(groups: int) -> None:
    found = trial(*effects(groups=groups, x=1.0))
    assert found.outcome == "cross-talk"
    assert found.x == pytest.approx(1, abs=0.1)
    assert found.x_low > 0.5
    assert found.split_half_rank1 > 0.9


def test_nothing_at_all_is_not_potent() -> None:
    assert trial(*effects(size=0.0)).outcome == "not potent"
    assert trial(np.zeros((4, 4, 9)), np.zeros((4, 4, 9))).outcome == "not potent"
    assert trial(*effects(size=-1.0)).outcome == "not potent"


def test_half_of_the_directions_must_work() -> None:
    made, random = effects(noise=0.3)
    for place in range(3):
        made[place, place] -= 1
    assert trial(made, random).outcome == "not potent"
    made[2, 2] += 1
    assert trial(made, random).outcome != "not potent"


def test_what_random_directions_do_as_well_is_taken_off_each_column() -> None:
    made, random = effects(seed=3)
    offset_F = np.array([0.0, 5.0, -3.0, 100.0])[:, None]
    plain, moved = trial(made, random), trial(made + offset_F, random + offset_F)
    np.testing.assert_allclose(moved.effects_FF, plain.effects_FF, atol=1e-9)
    assert moved.x == pytest.approx(plain.x)
    assert moved.outcome == plain.outcome


def test_figures_are_those_of_a_slow_loop() -> None:
    made, random = effects(groups=3, items=7, x=0.4, seed=2)
    found = trial(made, random)
    mean = np.array(
        [[np.mean([made[i, j, k] - np.mean(random[:, j, k]) for k in range(7)]) for j in range(3)] for i in range(3)]
    )
    own = [mean[i, i] for i in range(3)]
    others = [mean[i, j] for i in range(3) for j in range(3) if i != j]
    np.testing.assert_allclose(found.effects_FF, mean)
    assert found.x == pytest.approx(np.mean(others) / np.mean(own))
    potent = []
    for i in range(3):
        values = [made[i, i, k] - np.mean(random[:, i, k]) for k in range(7)]
        potent.append(np.mean(values) / (np.std(values, ddof=1) / np.sqrt(7)) > 2)
    assert found.potent_share == np.mean(potent)


def test_the_interval_resamples_items_the_same_in_every_row() -> None:
    """Against 3000 slow resamples: ends agree within a tenth of the width, some 4 standard errors of the difference."""
    made, random = effects(groups=3, items=12, x=0.5, noise=0.3, size=2.0, seed=4)
    made += np.random.default_rng(5).standard_normal((1, 3, 12))  # what all directions do alike to an item
    found = trial(made, random, resamples=3000)
    rng = np.random.default_rng(9)
    ratios = []
    for _ in range(3000):
        mean = np.empty((3, 3))
        for j in range(3):
            drawn = rng.integers(12, size=12)
            for i in range(3):
                mean[i, j] = np.mean(made[i, j, drawn] - random[:, j, drawn].mean(axis=0))
        ratios.append((mean.sum() - np.trace(mean)) / 2 / np.trace(mean))
    low, high = np.quantile(ratios, [0.05, 0.95])
    assert found.x_low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.x_high == pytest.approx(high, abs=0.1 * (high - low))


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_p_is_exact_for_few_groups(groups: int) -> None:
    made, random = effects(groups=groups, items=5, noise=2.0, seed=groups)
    mean = (made - random.mean(axis=0)).mean(axis=2)
    centred = np.array(
        [[mean[i, j] - mean[i].mean() - mean[:, j].mean() + mean.mean() for j in range(groups)] for i in range(groups)]
    )
    traces = [sum(centred[order[j], j] for j in range(groups)) for order in permutations(range(groups))]
    wanted = np.mean([trace >= np.trace(centred) - 1e-9 for trace in traces])
    assert trial(made, random).p == pytest.approx(wanted)


def test_p_is_drawn_for_many_groups_fair_and_never_zero() -> None:
    """60 null matrices of 6 groups: p is .525 on average within 4 standard errors (.15)."""
    assert trial(*effects(groups=6), draws=99).p == 0.01
    found = [trial(*effects(groups=6, items=5, size=0.0, seed=s), draws=19, resamples=2).p for s in range(60)]
    assert min(found) >= 1 / 20
    assert abs(np.mean(found) - 0.525) < 0.15


def test_a_common_effect_of_all_directions_does_not_pass_for_selectivity() -> None:
    """Rows and columns with levels of their own are centred out: 60 matrices, 4 standard errors over 5 % is 16 %."""
    found = []
    for seed in range(60):
        made, random = effects(size=0.0, seed=seed)
        levels = np.random.default_rng(seed).standard_normal((2, 4))
        found.append(trial(made + levels[0][:, None, None] + levels[1][:, None], random, resamples=2).p)
    assert np.mean(np.array(found) <= 0.05) <= 0.16


@pytest.mark.parametrize(("x", "outcome"), [(0.0, "selective"), (0.25, "selective"), (1.0, "cross-talk")])
def test_reference_power_at_40_items(x: float, outcome: str) -> None:
    """METHODS: 99-100 % selective up to .25, 92-100 % cross-talk at 1. Of 40 runs at least 34 (.85, 4 SE below .98)."""
    assert outcomes(x=x).count(outcome) >= 34


def test_in_between_little_is_claimed() -> None:
    """METHODS: at .5 at most 10 % either way, so of 60 runs 6; 4 standard errors more are 15."""
    found = outcomes(count=60, x=0.5)
    assert found.count("selective") <= 15
    assert found.count("cross-talk") <= 15


@pytest.mark.parametrize("groups", [2, 3])
def test_two_or_three_groups_are_never_selective(groups: int) -> None:
    """Of 2 or 6 permutations the best has p = 1/2 or 1/6."""
    found = trial(*effects(groups=groups, noise=0.05))
    assert found.outcome == "undetermined"
    assert found.p == pytest.approx({2: 1 / 2, 3: 1 / 6}[groups])


@pytest.mark.parametrize(
    ("made", "random"),
    [
        ((4, 3, 9), (2, 3, 9)),
        ((1, 1, 9), (2, 1, 9)),
        ((4, 4, 1), (2, 4, 1)),
        ((4, 4, 9), (2, 4, 8)),
        ((4, 4, 9), (2, 3, 9)),
    ],
)
def test_other_shapes_are_refused(made: tuple, random: tuple) -> None:
    with pytest.raises(ValueError, match="F x F x I"):
        trial(np.ones(made), np.ones(random))


@pytest.mark.parametrize("made", [np.ones((4, 4)), np.ones(4)])
def test_too_few_axes_are_a_value_error(made: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"."):
        trial(made, np.ones((2, 4, 9)))


def test_missing_scores_are_refused() -> None:
    made, random = effects()
    made[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        trial(made, random)


def test_no_random_direction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        trial(effects()[0], np.empty((0, 4, 40)))  # a warning of numpy's now, hence an error in these tests


def test_the_same_generator_gives_the_same_answer() -> None:
    made, random = effects(groups=6, x=0.4, noise=1.0)
    one, two = trial(made, random), trial(made, random)
    assert (one.x_low, one.x_high, one.p, one.split_half_rank1) == (two.x_low, two.x_high, two.p, two.split_half_rank1)
