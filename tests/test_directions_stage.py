"""The stage `directions`: near-duplicates stay together, controls are as long as what they control, planted parts are found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from unmask.analysis import extraction
from unmask.battery import units
from unmask.records import Site
from unmask.stages.directions import describe, tensors
from unmask.stages.directions.config import DirectionsConfig
from unmask.stages.directions.making import halved, make_controls, make_directions, with_half
from unmask.stages.directions.material import Answers, Material

WIDTH, EACH = 24, 12


def material(*, specific: float = 1.0, control: bool = True) -> Material:
    """Two dimensions of two facets each; each dimension's shift is a shared part along 0 and `specific` along 1 or 2."""
    rng = np.random.default_rng(0)
    count = 4 * EACH
    questions = pd.DataFrame(
        {
            "question_id": [f"q{row}" for row in range(count)],
            "dimension": np.repeat(["a", "b"], 2 * EACH),
            "facet": np.repeat(["a/x", "a/y", "b/x", "b/y"], EACH),
            "cluster": np.tile([0, 1], 2 * EACH),
            "unit": [row - row % 2 if row < 8 else row for row in range(count)],
        }
    )
    shift_ND = 0.1 * rng.standard_normal((count, WIDTH))
    shift_ND[:, 0] += 2
    shift_ND[np.arange(count), np.where(questions["dimension"] == "a", 1, 2)] += specific
    acts_RD, scores_R = rng.standard_normal((2 * count, WIDTH)), rng.uniform(0, 100, 2 * count)
    acts_RD[:, 5] += scores_R / 20
    read = Answers(acts_RD + 10, scores_R, np.tile(np.arange(count), 2))  # a mean that no eraser may take out
    base_ND = rng.standard_normal((count, WIDTH)) * np.linspace(0.1, 3, WIDTH)
    control_ND = np.tile(0.5 * np.eye(WIDTH)[3], (count, 1)) if control else None
    if control_ND is not None:
        shift_ND = shift_ND + control_ND
        control_ND[::7] = np.nan
    return Material(questions, Site(2, "resid_pre"), 10.0, shift_ND, base_ND, control_ND, read, read, primary_k=2)


def made(config: DirectionsConfig = DirectionsConfig(), **options) -> dict:  # noqa: B008 - frozen
    given = material(**options)
    everyone = np.ones(len(given.questions), dtype=bool)
    found, notes = make_directions(config, given, everyone, rng=np.random.default_rng(1))
    assert notes == []
    return {one.name: one for one in found}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_planted_parts_are_found() -> None:
    found = made()
    axes = np.eye(WIDTH)
    assert cosine(found["shared"].vector_D, 2 * axes[0] + 0.5 * axes[1] + 0.5 * axes[2]) > 0.99
    assert cosine(found["dimension-a"].vector_D, 2 * axes[0] + axes[1]) > 0.99
    assert cosine(found["specific-a"].vector_D, axes[1] - axes[2]) > 0.97
    assert cosine(found["specific-a"].vector_D, found["specific-b"].vector_D) < -0.99
    assert cosine(found["component-1"].vector_D, axes[1] - axes[2]) ** 2 > 0.95
    assert cosine(found["score"].vector_D, axes[5]) > 0.9
    assert int(np.abs(found["probe"].vector_D).argmax()) == 5
    assert found["facet-b/y"].questions == EACH
    np.testing.assert_allclose(found["control"].vector_D, 0.5 * axes[3])
    assert abs(found["shared"].vector_D[3]) < 0.1
    assert (found["facet-b/y"].grouping, found["facet-b/y"].group) == ("facet", "b/y")


def test_what_was_not_planted_is_small() -> None:
    found = made(specific=0.0)
    assert np.linalg.norm(found["specific-a"].vector_D) < 0.1 * np.linalg.norm(found["shared"].vector_D)


def test_an_eraser_leaves_no_line_that_tells_scores_apart() -> None:
    eraser = made()["leace"].eraser
    given = material().read_by_organism
    high = given.scores_R > np.median(given.scores_R)
    erased = eraser.apply(given.acts_RD)
    before = given.acts_RD[high].mean(axis=0) - given.acts_RD[~high].mean(axis=0)
    after = erased[high].mean(axis=0) - erased[~high].mean(axis=0)
    assert np.linalg.norm(after) < 0.02 * np.linalg.norm(before)  # dimension means are taken off before it is fitted
    assert np.linalg.norm(erased.mean(axis=0) - given.acts_RD.mean(axis=0)) < 1e-9
    assert np.abs(given.acts_RD - erased).max() < 10
    assert set(tensors([made()["leace"]])) == {"leace.left", "leace.right", "leace.centre"}


def test_near_duplicates_stand_in_one_half_and_facets_in_both() -> None:
    given = material()
    halves = halved(given, 3, seed=0)
    assert len(halves) == 3
    assert any((halves[0] != other).any() for other in halves[1:])
    for inside_N in halves:
        assert (inside_N[0:8:2] == inside_N[1:8:2]).all()
        for _, rows in given.questions.groupby("facet").groups.items():
            assert 0.25 < inside_N[list(rows)].mean() < 0.75


def test_controls_are_as_long_as_mean_shifts_and_half_of_them_lie_where_activations_vary() -> None:
    given = material()
    found = make_controls(DirectionsConfig(random=40), given, rng=np.random.default_rng(3))
    norms = {
        round(float(np.linalg.norm(given.shift_ND[rows].mean(axis=0))), 6) for rows in (slice(0, 24), slice(24, 48))
    }
    random = [one for one in found if one.kind.startswith("random")]
    assert {round(float(np.linalg.norm(one.vector_D)), 6) for one in random} == norms
    wide = {
        kind: np.mean(
            [
                one.vector_D[-6:] @ one.vector_D[-6:] / (one.vector_D @ one.vector_D)
                for one in random
                if one.kind == kind
            ]
        )
        for kind in ("random-isotropic", "random-span")
    }
    assert wide["random-isotropic"] == pytest.approx(0.25, abs=0.1)
    assert wide["random-span"] > 0.5
    assert all(one.kind.startswith("random") for one in found)
    without = make_controls(DirectionsConfig(random=2), material(control=False), rng=np.random.default_rng(3))
    assert [one.kind for one in without] == ["random-isotropic", "random-span"]


def test_rows_say_from_which_half_and_how_stable() -> None:
    given = material()
    (inside_N,) = halved(given, 1, seed=0)
    found = []
    for half, chosen in (("a", inside_N), ("b", ~inside_N)):
        one, _ = make_directions(
            DirectionsConfig(kinds=("shared", "specific")), given, chosen, rng=np.random.default_rng(0)
        )
        found += with_half(one, 0, half)
    rows = {row["direction_id"]: row for row in describe(found, given)}
    assert rows["shared.0a"]["stability"] == rows["shared.0b"]["stability"] > 0.99
    assert rows["specific-a.0a"]["stability"] > 0.9
    assert rows["shared.0a"]["relative_norm"] == pytest.approx(rows["shared.0a"]["norm"] / 10)
    assert {row["half"] for row in rows.values()} == {"a", "b"}
    assert rows["shuffled-0.0a"]["stability"] is None


def test_components_of_halves_stand_in_the_order_and_with_the_signs_of_the_whole() -> None:
    whole = np.eye(3)
    half = np.array([[0.1, -0.9, 0.0], [0.0, 0.1, -0.8], [0.7, 0.1, 0.1]])
    found = extraction.in_order_of(half, whole)
    np.testing.assert_array_equal(found, [half[2], -half[0], -half[1]])


def test_a_shift_that_is_nought_has_no_components_and_controls_of_length_one() -> None:
    given = material(control=False)
    given = Material(**{name: getattr(given, name) for name in given.__slots__} | {"shift_ND": 0 * given.shift_ND})
    everyone = np.ones(len(given.questions), dtype=bool)
    found, notes = make_directions(DirectionsConfig(), given, everyone, rng=np.random.default_rng(1))
    assert [note.split(":")[0] for note in notes] == ["component"]
    assert not any(one.kind == "component" for one in found)
    random = make_controls(DirectionsConfig(random=2), given, rng=np.random.default_rng(1))
    assert [float(np.linalg.norm(one.vector_D)) for one in random] == pytest.approx([1, 1])


def test_scores_that_tell_nothing_apart_are_noted_not_made_up() -> None:
    given = material()
    silent = Answers(
        given.read_by_base.acts_RD, np.full(len(given.read_by_base.scores_R), np.nan), given.read_by_base.question_R
    )
    given = Material(
        **{name: getattr(given, name) for name in given.__slots__}
        | {"read_by_base": silent, "read_by_organism": silent}
    )
    everyone = np.ones(len(given.questions), dtype=bool)
    found, notes = make_directions(DirectionsConfig(), given, everyone, rng=np.random.default_rng(1))
    assert {note.split(":")[0] for note in notes} == {"score", "probe", "leace", "inlp"}
    assert not {"score", "probe", "leace", "inlp"} & {one.kind for one in found}


def test_units_are_questions_that_say_the_same() -> None:
    rows = [
        ("a", "x", 1, "Is it good to lie?"),
        ("a", "x", 1, "is it good, to lie"),
        ("a", "x", -1, "Is it good to lie?"),
    ]
    table = pd.DataFrame(rows, columns=["dimension", "facet", "polarity", "text"])
    assert units(table) == [0, 0, 2]
