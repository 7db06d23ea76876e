"""From arrays to a verdict: whatever is put in, a verdict with a reason or a clear ValueError comes out."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.analysis.crosstalk import Causal, cross_talk
from unmask.analysis.decision import Decision, decide
from unmask.analysis.examination import Settings
from unmask.analysis.nulls import max_t
from unmask.analysis.site_map import SiteData, map_sites, plan
from unmask.analysis.verdict import VERDICTS, Thresholds
from unmask.analysis.worlds import World, draw

QUICK = Settings(flips=99, resamples=60, planted_runs=19, planted_flips=19, gammas=(1.0, 1.5, 4.0))
N, D = 48, 12
LABELS = np.repeat(["a", "b", "c"], 16)


def rows(*, n: int = N, d: int = D, seed: int = 0, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A shift along one direction, the same for all groups, and a base that has nothing to do with it."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) + shift * np.linspace(0, 4, d), rng.standard_normal((n, d))


def decided(shift_ND=None, base_ND=None, labels_N=LABELS, **options) -> Decision:
    own_ND, other_ND = rows()
    return decide(
        own_ND if shift_ND is None else shift_ND,
        other_ND if base_ND is None else base_ND,
        labels_N,
        **({"seed": 0, "settings": QUICK} | options),
    )


def of_world(world: World, **options) -> Decision:
    return decide(world.shift_ND, world.base_ND, world.groups_N, **({"seed": 0, "settings": QUICK} | options))


def assert_same(one: Decision, other: Decision) -> None:
    """The same verdict and, but for rounding, the same numbers."""
    assert one.verdict == other.verdict
    assert one.numbers.keys() == other.numbers.keys()
    for name, number in one.numbers.items():
        assert other.numbers[name] == (None if number is None else pytest.approx(number, rel=1e-4, abs=1e-7)), name


def sound(decision: Decision) -> Decision:
    """A verdict, reasons, and numbers that are numbers or missing."""
    assert decision.verdict in VERDICTS
    assert len(decision.ruling.reasons) >= 1
    for name, number in decision.numbers.items():
        assert number is None or np.isfinite(number), name
    for name in ("p_shift", "p_rank", "p_adj"):
        if decision.examined is not None:
            assert 0 < decision.numbers[name] <= 1
    return decision


# ---------------------------------------------------------------- worlds


@pytest.mark.parametrize(
    ("name", "options", "verdicts"),
    [
        ("monolithic", {"noise_ratio": 2.0}, {"monolithic"}),
        ("separable", {"rho": 0.4, "noise_ratio": 2.0}, {"separable"}),
        ("pass_through_linear", {"noise_ratio": 1.0}, {"entangled", "inconclusive"}),
        ("graded", {"noise_ratio": 1.0}, {"inconclusive", "monolithic"}),
    ],
)
def test_worlds_get_their_truth(name: str, options: dict, verdicts: set[str]) -> None:
    for seed in range(2):
        world = draw(name, rng=np.random.default_rng(seed), questions=120, width=48, **options)
        assert sound(of_world(world)).verdict in verdicts


def test_no_shift_is_no_shift_most_of_the_time() -> None:
    """10 worlds, 5 % of which may be anything: 3 are 3.6 standard errors more."""
    made = {"questions": 64, "width": 24}
    found = [of_world(draw("no_shift", rng=np.random.default_rng(seed), **made)).verdict for seed in range(10)]
    assert found.count("no-shift") >= 7


def test_few_questions_and_many_coordinates_keep_the_size_of_the_first_test() -> None:
    """120 studies of noise alone, 16 questions, 100 coordinates: 5 % reject, at most 13 % (4 standard errors)."""
    light = Settings(flips=19, resamples=2, permutations=1)
    found = []
    for seed in range(120):
        shift_ND, base_ND = rows(n=16, d=100, seed=seed, shift=0.0)
        found.append(
            decide(shift_ND, base_ND[:, :4], np.repeat([0, 1], 8), seed=seed, settings=light).numbers["p_shift"]
        )
    assert np.mean(np.array(found) <= 0.05) <= 0.13


@pytest.fixture(scope="module")
def separable() -> World:
    return draw("separable", rng=np.random.default_rng(1), questions=120, width=48, rho=0.4, noise_ratio=2.0)


def steering(x: float) -> Causal:
    rng = np.random.default_rng(0)
    made = (np.eye(4) + x * (1 - np.eye(4)))[:, :, None] + 0.2 * rng.standard_normal((4, 4, 40))
    rows, random = made.reshape(4, 160), 0.2 * rng.standard_normal((4, 160))
    return cross_talk(rows, random, np.repeat(list("abcd"), 40), names="abcd", rng=rng, resamples=100).outcome


def test_steering_confirms_or_overturns(separable) -> None:
    assert of_world(separable).qualifier == "geometric, provisional"
    selective = of_world(separable, causal=steering(0.0))
    assert (selective.verdict, selective.qualifier) == ("separable", None)
    assert of_world(separable, causal=steering(1.0)).verdict == "entangled"


def test_gamma_star_is_the_largest_gamma_at_which_enough_is_found() -> None:
    world = draw(
        "separable_pass_through", rng=np.random.default_rng(3), questions=150, width=48, rho=0.4, noise_ratio=1.0
    )
    full = of_world(world, full=True)
    assert full.examined.pass_through.shown
    found = [row.gamma for row in full.sensitivity if row.k_adj >= full.numbers["k_star"]]
    assert full.numbers["gamma_star"] == max(found)


def test_full_adds_planted_controls_and_sensitivity_and_changes_no_test(separable) -> None:
    plain, full = of_world(separable), sound(of_world(separable, full=True))
    assert plain.planted is None
    assert plain.sensitivity == ()
    assert [row.gamma for row in full.sensitivity] == [1.0, 1.5, 4.0]
    assert not full.examined.pass_through.shown
    assert full.numbers["gamma_star"] is None  # nothing is carried over that Gamma could multiply
    assert full.sensitivity[1].k_adj == full.numbers["k_adj"]
    assert 0 <= full.numbers["power_at_interest"] <= 1
    for name in ("p_shift", "p_rank", "k_adj", "rho", "rho_high", "eta_high", "rho_adj"):
        assert plain.numbers[name] == full.numbers[name]


def test_gamma_star_is_the_largest_that_still_finds_enough_and_missing_where_none_does() -> None:
    world = draw("separable_pass_through", rng=np.random.default_rng(0), questions=120, width=48, rho=0.5)
    wide = Settings(flips=99, resamples=20, planted_runs=5, planted_flips=19, gammas=(1.0, 1e3, 1e6))
    found = decide(world.shift_ND, world.base_ND, world.groups_N, seed=0, settings=wide, full=True)
    assert [row.k_adj >= 2 for row in found.sensitivity] == [True, False, False]
    assert [row.rejected for row in found.sensitivity] == [True, False, False]
    assert [row.p <= 0.05 for row in found.sensitivity] == [True, False, False]
    assert found.numbers["gamma_star"] == 1.0
    idle = draw("no_shift", rng=np.random.default_rng(0), questions=64, width=24)
    assert of_world(idle, full=True).numbers["gamma_star"] is None


def test_matrices_can_be_let_go(separable) -> None:
    whole = of_world(separable)
    light = whole.without_matrices()
    assert light.examined.pass_through.kernels == []
    assert light.examined.transport.whitener_NN.size == light.examined.prepared.rows_NC.size == 0
    assert light.numbers == whole.numbers
    assert whole.examined.prepared.rows_NC.size > 0


# ---------------------------------------------------------------- what it depends on


def test_the_same_seed_gives_the_same_numbers(separable) -> None:
    one, two = of_world(separable, full=True), of_world(separable, full=True)
    assert one.numbers == two.numbers
    assert one.ruling == two.ruling
    other = decide(separable.shift_ND, separable.base_ND, separable.groups_N, seed=1, settings=QUICK)
    assert other.numbers["rho_high"] != one.numbers["rho_high"]
    assert other.numbers["rho"] == one.numbers["rho"]


def test_the_unit_of_the_shift_changes_nothing(separable) -> None:
    plain = of_world(separable)
    for factor in (1e-6, 1e6):
        assert_same(plain, decided(factor * separable.shift_ND, separable.base_ND / factor, separable.groups_N))


def test_the_order_of_questions_changes_no_estimate_and_no_verdict(separable) -> None:
    order_N = np.random.default_rng(0).permutation(120)
    plain = of_world(separable)
    found = decided(separable.shift_ND[order_N], separable.base_ND[order_N], separable.groups_N[order_N])
    assert found.verdict == plain.verdict
    for name in ("rho", "eta", "rho_adj", "eta_adj", "mean_share", "transport_share", "noise_ratio", "capped"):
        assert found.numbers[name] == pytest.approx(plain.numbers[name], rel=1e-5, abs=1e-8)


def isotropic(rows_ND: np.ndarray) -> np.ndarray:
    """The same rows, whitened about their mean: every coordinate of every rotation has SD 1."""
    centred_ND = rows_ND - rows_ND.mean(axis=0)
    values, vectors = np.linalg.eigh(centred_ND.T @ centred_ND / len(rows_ND))
    return rows_ND @ (vectors / np.sqrt(values)) @ vectors.T


def test_a_rotation_of_isotropic_coordinates_changes_nothing() -> None:
    shift_ND, base_ND = rows(shift=0.3)
    shift_ND[:16] *= 1.2
    shift_ND, base_ND = (
        isotropic(shift_ND),
        isotropic(base_ND[:, :8]),
    )  # eight components: none of equal ones is left out
    rng = np.random.default_rng(3)
    turns = [np.linalg.qr(rng.standard_normal((d, d)))[0] for d in (D, 8)]
    assert_same(decided(shift_ND, base_ND), decided(shift_ND @ turns[0], base_ND @ turns[1]))


def test_names_of_groups_may_be_numbers(separable) -> None:
    codes_N = np.unique(separable.groups_N, return_inverse=True)[1]
    for labels_N in (codes_N, codes_N.astype(float), codes_N.astype(str), list(separable.groups_N)):
        found = decide(separable.shift_ND, separable.base_ND, labels_N, seed=0, settings=QUICK)
        assert (
            found.numbers["p_rank"]
            == decided(separable.shift_ND, separable.base_ND, separable.groups_N).numbers["p_rank"]
        )


# ---------------------------------------------------------------- degenerate input


@pytest.mark.parametrize("labels_N", [np.repeat("a", N), np.arange(N), np.array(["a"] * 45 + ["b"] * 3)])
def test_one_group_is_not_testable(labels_N: np.ndarray) -> None:
    found = sound(decided(labels_N=labels_N))
    assert (found.verdict, found.qualifier) == ("inconclusive", "not testable")
    assert "separability over groups needs two" in found.ruling.reasons[0]
    assert found.examined is None
    assert found.numbers == {}


def test_a_group_of_two_questions_is_left_out_and_told() -> None:
    labels_N = np.concatenate([["z", "z"], LABELS[2:]])
    found = sound(decided(labels_N=labels_N))
    assert found.dropped == {"z": 2}
    assert found.examined.groups.names == ("a", "b", "c")
    shift_ND, base_ND = rows()
    alone = decided(shift_ND[2:], base_ND[2:], LABELS[2:])
    assert alone.numbers == found.numbers
    shift_ND[:2] = np.nan
    assert decided(shift_ND, base_ND, labels_N).numbers == found.numbers


@pytest.mark.parametrize("n", [0, 1, 8, 15])
def test_too_few_questions_are_not_testable(n: int) -> None:
    shift_ND, base_ND = rows()
    labels_N = np.array(["a", "b"])[np.arange(n) % 2]
    assert sound(decided(shift_ND[:n], base_ND[:n], labels_N)).qualifier == "not testable"


def test_sixteen_questions_in_four_groups_are_enough() -> None:
    shift_ND, base_ND = rows(n=16)
    assert sound(decided(shift_ND, base_ND, np.repeat([0, 1, 2, 3], 4))).examined is not None


def test_models_with_the_same_activations_have_no_shift() -> None:
    """As where the organism is the base itself."""
    found = sound(decided(0 * rows()[0]))
    assert found.verdict == "no-shift"
    assert "the same activations" in found.ruling.reasons[0]
    assert found.numbers == {}


@pytest.mark.parametrize("change", [lambda s: np.ones_like(s) * 3.3, lambda s: 3.3 + 1e-14 * s])
def test_a_shift_that_is_the_same_everywhere_is_not_testable(change) -> None:
    assert sound(decided(change(rows()[0]))).qualifier == "not testable"


@pytest.mark.parametrize("means", [np.outer([1.0, 2, 3], np.linspace(1, 2, D)), np.eye(3, D) + 1])
def test_rows_that_do_not_vary_within_groups_are_not_testable(means: np.ndarray) -> None:
    assert sound(decided(np.repeat(means, 16, axis=0))).qualifier == "not testable"


def test_constant_coordinates_and_constant_bases_are_borne() -> None:
    shift_ND, base_ND = rows()
    shift_ND[:, 3], base_ND[:, 5] = 7.0, 0.0
    assert sound(decided(shift_ND, base_ND)).examined is not None
    assert sound(decided(shift_ND, np.ones_like(base_ND))).numbers["pass_through_p"] == 1.0


@pytest.mark.parametrize("d", [1, 2, 600])
def test_any_width_is_borne(d: int) -> None:
    shift_ND, base_ND = rows(d=d)
    found = sound(decided(shift_ND + 1, base_ND))
    assert found.verdict in {"monolithic", "inconclusive"}


def test_duplicated_questions_are_borne() -> None:
    shift_ND, base_ND = rows()
    sound(decided(np.repeat(shift_ND[::2], 2, axis=0), np.repeat(base_ND[::2], 2, axis=0)))


def test_two_groups_have_one_contrast_and_cannot_be_separable_without_a_control_or_steering() -> None:
    labels_N = np.repeat(["a", "b"], 24)
    shift_ND, base_ND = rows()
    shift_ND[24:, 0] += 9
    shift_ND[24:, 5] -= 9
    found = sound(decided(shift_ND, base_ND, labels_N, full=True))
    assert found.numbers["k_star"] == 2
    assert found.numbers["k_adj"] == 1
    assert (found.verdict, found.qualifier) == ("inconclusive", "graded axis or two camps")


def test_one_enormous_row_decides_nothing() -> None:
    shift_ND, base_ND = rows()
    plain = decided(shift_ND, base_ND).verdict
    shift_ND[5] *= 1e6
    found = sound(decided(shift_ND, base_ND))
    assert found.numbers["capped"] >= 1
    assert found.verdict in {plain, "inconclusive", "no-shift"}


def test_half_of_the_rows_zero_and_a_group_zero() -> None:
    shift_ND, base_ND = rows()
    half_ND = np.where((np.arange(N) % 2 == 0)[:, None], 0.0, shift_ND)
    assert sound(decided(half_ND, base_ND)).verdict != "separable"
    shift_ND[:16] = 0
    assert sound(decided(shift_ND, base_ND)).verdict != "separable"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_a_value_error(value: float) -> None:
    for place in (0, 1):
        parts = list(rows())
        parts[place][4, 4] = value
        with pytest.raises(ValueError, match="not finite, in 1 of 48 rows"):
            decided(*parts)


def test_a_stricter_level_still_takes_topic_out() -> None:
    """Pass-through must be able to reach its own part of the level, whatever the level is."""
    world = draw("pass_through_topic", rng=np.random.default_rng(0), questions=160, width=64, noise_ratio=1.0)
    strict = Settings(thresholds=Thresholds(alpha=0.01), flips=199, resamples=100, planted_runs=20, planted_flips=99)
    found = of_world(world, settings=strict)
    assert found.examined.pass_through.shown
    assert found.verdict != "separable"


def test_other_shapes_are_a_value_error() -> None:
    shift_ND, base_ND = rows()
    for bad in ((shift_ND[:, 0], base_ND), (shift_ND, base_ND[:, 0]), (shift_ND[:, :0], base_ND)):
        with pytest.raises(ValueError, match="must be a table"):
            decided(*bad)


@pytest.mark.parametrize("which", ["shift", "base", "labels", "replicates", "control"])
def test_lengths_that_differ_are_a_value_error(which: str) -> None:
    shift_ND, base_ND = rows()
    parts = {"shift": shift_ND, "base": base_ND, "labels": LABELS, "replicates": None, "control": None}
    parts[which] = {"replicates": np.stack([shift_ND] * 2, axis=1), "control": shift_ND}.get(which, parts[which])[:40]
    with pytest.raises(ValueError, match="40"):
        decided(
            parts["shift"], parts["base"], parts["labels"],
            replicates_NSD=parts["replicates"], control_ND=parts["control"],
        )  # fmt: skip


# ---------------------------------------------------------------- replicates and controls


def test_parts_within_groups_are_found_by_replicates_alone() -> None:
    """Questions of one group differ along a direction that comes back: one thing over the groups, and yet parts."""
    shift_ND, base_ND = rows(shift=2.0)
    rng = np.random.default_rng(1)
    own_ND = 4 * np.outer(rng.choice([-1.0, 1.0], N), rng.choice([-1.0, 1.0], D))
    replicates_NSD = 0.5 * (shift_ND + own_ND)[:, None] + 0.2 * rng.standard_normal((N, 2, D))
    base_ND = rng.standard_normal((N, D))
    wide = Settings(flips=99, resamples=60, thresholds=Thresholds(rho=0.9, eta=0.9))
    options = {"labels_N": LABELS, "settings": wide}
    assert decided(replicates_NSD.mean(axis=1), base_ND, **options).verdict == "monolithic"
    found = sound(decided(replicates_NSD.mean(axis=1), base_ND, replicates_NSD=replicates_NSD, **options))
    assert (found.verdict, found.qualifier) == ("entangled", "not along the facets")


def test_replicates_with_holes_are_used_where_they_are() -> None:
    shift_ND, base_ND = rows()
    replicates_NSD = shift_ND[:, None] + np.random.default_rng(1).standard_normal((N, 3, D))
    whole = sound(decided(shift_ND, base_ND, replicates_NSD=replicates_NSD))
    replicates_NSD[[0, 20], 1] = np.nan
    part = sound(decided(shift_ND, base_ND, replicates_NSD=replicates_NSD))
    assert part.replicates is not None
    assert part.replicates.reliability != whole.replicates.reliability
    for nothing in (None, replicates_NSD[:, :1], replicates_NSD * np.nan):
        found = sound(decided(shift_ND, base_ND, replicates_NSD=nothing))
        assert found.replicates is None
        assert found.numbers["replicate_dimensions"] is None


def test_a_control_with_holes_is_used_where_it_is_and_one_of_holes_refused() -> None:
    shift_ND, base_ND = rows()
    control_ND = 1 + np.random.default_rng(1).standard_normal((N, D))
    control_ND[:9, 2] = np.nan
    found = sound(decided(shift_ND, base_ND, control_ND=control_ND))
    by_hand = decided(shift_ND - control_ND[9:].mean(axis=0), base_ND)
    for name in ("p_rank", "rho", "eta", "k_adj"):
        assert found.numbers[name] == by_hand.numbers[name]
    assert found.numbers["origin_share"] is not None
    with pytest.raises(ValueError, match="no row without missing values"):
        decided(shift_ND, base_ND, control_ND=np.full((N, D), np.nan))


def test_a_control_like_the_organism_leaves_no_shift() -> None:
    shift_ND, base_ND = rows()
    assert sound(decided(shift_ND, base_ND, control_ND=shift_ND)).verdict == "no-shift"


def test_a_questions_own_part_counts_by_its_size_beside_the_shared_shift() -> None:
    """Half of the noise comes back in a second response. T4 cannot tell it from parts of a persona; small, it is let pass."""
    for seed in range(2):
        drawn = {"rng": np.random.default_rng(seed), "questions": 150, "width": 64}
        large = draw("question_parts", **drawn)
        assert of_world(large, replicates_NSD=large.replicates_NSD).qualifier == "not along the facets"
        small = draw("monolithic_question_noise", **drawn)
        assert of_world(small, replicates_NSD=small.replicates_NSD).verdict == "monolithic"


def test_signs_that_follow_polarity_are_turned_where_no_shift_is_found_otherwise() -> None:
    """A shift along one axis whose sign is the question's polarity: half and half, so that no mean is left."""
    rng = np.random.default_rng(0)
    polarity_N = np.tile([1, -1], N // 2)
    shift_ND = rng.standard_normal((N, D)) + polarity_N[:, None] * np.linspace(0, 3, D)
    base_ND = rng.standard_normal((N, D))
    assert sound(decided(shift_ND, base_ND)).verdict == "no-shift"
    found = sound(decided(shift_ND, base_ND, polarity_N=polarity_N))
    by_hand = decided(shift_ND * polarity_N[:, None], base_ND * polarity_N[:, None])
    assert found.verdict == by_hand.verdict != "no-shift"
    assert found.numbers == by_hand.numbers
    assert found.qualifier.endswith("sign by polarity")
    assert "turned round" in found.ruling.reasons[0]
    for useless_N in (np.ones(N), -np.ones(N), rng.permutation(polarity_N)):
        assert decided(shift_ND, base_ND, polarity_N=useless_N).verdict == "no-shift"
    plain_ND = rng.standard_normal((N, D)) + np.linspace(0, 3, D)
    assert decided(plain_ND, base_ND, polarity_N=polarity_N).numbers == decided(plain_ND, base_ND).numbers


def test_the_second_look_by_polarity_must_pass_a_stricter_level() -> None:
    """p = .04 of the turned shifts is enough at .05, not at a fifth of it."""
    rng = np.random.default_rng(11)
    polarity_N = np.tile([1, -1], N // 2)
    shift_ND = rng.standard_normal((N, D)) + 0.24 * polarity_N[:, None]
    base_ND = rng.standard_normal((N, D))
    turned = decided(shift_ND * polarity_N[:, None], base_ND * polarity_N[:, None])
    assert 0.01 < turned.numbers["p_shift"] <= 0.05
    assert decided(shift_ND, base_ND, polarity_N=polarity_N).verdict == "no-shift"


# ---------------------------------------------------------------- sites


@pytest.fixture(scope="module")
def one_thing() -> World:
    """No p-value of T2 or T3 is small here, so that paying for more tests shows."""
    return draw("monolithic", rng=np.random.default_rng(1), questions=120, width=48, noise_ratio=2.0)


@pytest.fixture(scope="module")
def three_sites(one_thing) -> dict[str, SiteData]:
    """An early site without shift, the primary one, and one that is the same for every question."""
    rng = np.random.default_rng(0)
    shape = one_thing.shift_ND.shape
    return {
        "early": SiteData(rng.standard_normal(shape), one_thing.base_ND),
        "middle": SiteData(one_thing.shift_ND, one_thing.base_ND, control_ND=0.3 + rng.standard_normal(shape)),
        "late": SiteData(np.ones(shape), one_thing.base_ND),
    }


def mapped(sites: dict[str, SiteData], groupings: dict[str, np.ndarray], **options):
    loaders = [(name, lambda data=data: data) for name, data in sites.items()]
    return map_sites(loaders, groupings, primary="middle", seed=0, settings=QUICK, **options)


@pytest.fixture(scope="module")
def site_map(three_sites, one_thing):
    told = []
    groupings = {"dimension": one_thing.groups_N, "facet": one_thing.facets_N}
    return mapped(three_sites, groupings, told=lambda: told.append(1)), told


def test_every_site_grouping_and_correction_is_decided(site_map) -> None:
    found, told = site_map
    assert [(f.site, f.grouping, f.correction) for f in found] == [
        ("early", "dimension", "none"), ("early", "facet", "none"),
        ("middle", "dimension", "none"), ("middle", "dimension", "control"),
        ("middle", "facet", "none"), ("middle", "facet", "control"),
        ("late", "dimension", "none"), ("late", "facet", "none"),
    ]  # fmt: skip
    assert len(told) == len(found)
    sites, groupings = ("early", "middle", "late"), ("dimension", "facet")
    assert [(f.site, f.grouping, f.correction) for f in found if f.site == "middle"] == [
        (each.site, each.grouping, each.correction)
        for each in plan(sites, groupings, primary="middle", control=True)
        if each.site == "middle"
    ]
    assert [each.full for each in plan(sites, groupings, primary="middle", control=False)] == [
        *(False, False),
        *(True, False),
        *(False, False),
    ]
    for finding in found:
        sound(finding.decision)
        full = (finding.site, finding.grouping) == ("middle", "dimension")
        assert bool(finding.decision.sensitivity) == full


def test_sites_of_one_key_pay_for_each_other_by_max_t_of_the_same_flips(site_map, three_sites, one_thing) -> None:
    found, _ = site_map
    alone = [
        decide(three_sites[site].shift_ND, one_thing.base_ND, one_thing.groups_N, seed=0, settings=QUICK).examined
        for site in ("early", "middle")
    ]
    ranks = max_t([examined.ranks.tests[0] for examined in alone])
    contrasts = max_t([examined.contrasts.tests[0] for examined in alone])
    paid = [f for f in found if f.key == ("dimension", "none")]
    assert [f.p_rank_max_t for f in paid] == [*ranks, None]
    assert [f.p_adj_max_t for f in paid] == [*contrasts, None]
    for finding in paid[:2]:
        assert finding.p_rank_max_t >= finding.first_rank.p
        assert finding.p_adj_max_t >= finding.first_contrast.p
    only = next(f for f in found if f.key == ("facet", "control"))
    assert (only.p_rank_max_t, only.p_adj_max_t) == (only.first_rank.p, only.first_contrast.p)
    assert any(f.p_rank_max_t > f.first_rank.p for f in paid[:2])


def test_a_site_that_cannot_be_tested_has_no_p_and_no_directions(site_map) -> None:
    late = [f for f in site_map[0] if f.site == "late"]
    for finding in late:
        assert finding.decision.qualifier == "not testable"
        assert finding.first_rank is finding.first_contrast is finding.p_rank_max_t is None
        assert finding.directions == ()


def test_directions_are_the_shared_one_and_one_for_each_group_in_the_sites_units(site_map, one_thing) -> None:
    finding = next(f for f in site_map[0] if f.site == "middle" and f.key == ("dimension", "none"))
    assert [d.name for d in finding.directions] == ["shared", *np.unique(one_thing.groups_N)]
    shared = finding.directions[0]
    scale_D = one_thing.shift_ND.std(axis=0)
    mean_D = one_thing.shift_ND.mean(axis=0)
    cosine = (shared.vector_D / scale_D) @ (mean_D / scale_D)
    cosine /= np.linalg.norm(shared.vector_D / scale_D) * np.linalg.norm(mean_D / scale_D)
    assert cosine > 0.9
    assert shared.stability > 0.8
    assert shared.strength + sum(d.strength for d in finding.directions[1:]) == pytest.approx(1)
    assert sum(d.questions for d in finding.directions[1:]) == shared.questions == 120


def test_a_second_site_that_is_the_same_costs_nothing_and_an_idle_one_little(three_sites, one_thing) -> None:
    middle = SiteData(one_thing.shift_ND, one_thing.base_ND)
    groupings = {"dimension": one_thing.groups_N}
    same = mapped({"middle": middle, "again": middle}, groupings)
    alone = mapped({"middle": middle}, groupings)
    assert same[0].p_rank_max_t == same[1].p_rank_max_t == alone[0].p_rank_max_t
    assert same[0].decision.numbers["p_rank"] == same[1].decision.numbers["p_rank"]
