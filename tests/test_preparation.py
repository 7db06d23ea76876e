"""Rows made ready: one scale, no row that dominates, coordinates that keep every inner product."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.analysis.preparation import (
    Groups,
    cap_factors,
    coordinate_scale,
    finite_rows,
    prepare_base,
    prepare_shift,
    row_energy,
)


def slow_ready(rows_ND: np.ndarray, *, limit: float) -> np.ndarray:
    """Scaled and capped rows from METHODS section 1, one coordinate and one row at a time."""
    n, d = rows_ND.shape
    spread = [float(np.sqrt(sum((x - np.mean(rows_ND[:, j])) ** 2 for x in rows_ND[:, j]) / n)) for j in range(d)]
    floor = 0.1 * float(np.median(spread))
    ready = np.array([[rows_ND[q, j] / max(spread[j], floor) for j in range(d)] for q in range(n)])
    middle = float(np.median([np.sqrt(sum(x**2 for x in row)) for row in ready]))
    for q in range(n):
        norm = float(np.sqrt(sum(x**2 for x in ready[q])))
        if norm > limit * middle:
            ready[q] *= limit * middle / norm
    return ready


def loud_rows(n: int, d: int, *, seed: int = 0) -> np.ndarray:
    """Rows with massive and nearly constant coordinates, a mean, and two rows that are far too long."""
    rng = np.random.default_rng(seed)
    rows_ND = rng.standard_normal((n, d)) * np.geomspace(1e-4, 1e3, d) + rng.standard_normal(d)
    rows_ND[[1, n - 1]] *= 40
    return rows_ND


@pytest.mark.parametrize(("n", "d"), [(20, 7), (9, 30), (12, 12)])
def test_the_coordinates_keep_every_inner_product_of_the_scaled_and_capped_rows(n: int, d: int) -> None:
    rows_ND = loud_rows(n, d)
    prepared = prepare_shift(rows_ND)
    ready_ND = slow_ready(rows_ND, limit=3.0)
    assert prepared.rows_NC.shape == (n, min(n, d))
    np.testing.assert_allclose(prepared.rows_NC @ prepared.rows_NC.T, ready_ND @ ready_ND.T, rtol=1e-7, atol=1e-8)
    assert prepared.capped == 2


@pytest.mark.parametrize(("n", "d"), [(20, 7), (9, 30)])
def test_coordinates_and_back(n: int, d: int) -> None:
    rows_ND = loud_rows(n, d)
    prepared = prepare_shift(rows_ND)
    c = prepared.rows_NC.shape[1]
    np.testing.assert_allclose(prepared.basis_DC.T @ prepared.basis_DC, np.eye(c), atol=1e-7)
    np.testing.assert_allclose(prepared.coordinates(rows_ND), prepared.rows_NC, atol=1e-6)
    back_ND = prepared.original(prepared.rows_NC)
    np.testing.assert_allclose(back_ND, rows_ND * prepared.cap_N[:, None], rtol=1e-5, atol=1e-5)


def test_replicates_average_to_the_coordinates_of_their_mean() -> None:
    rng = np.random.default_rng(2)
    halves_2ND = rng.standard_normal((2, 15, 40))
    prepared = prepare_shift(halves_2ND.mean(axis=0))
    both = [prepared.coordinates(half) for half in halves_2ND]
    np.testing.assert_allclose((both[0] + both[1]) / 2, prepared.rows_NC, atol=1e-8)


def test_rows_of_low_rank_get_as_many_coordinates_as_their_rank() -> None:
    rng = np.random.default_rng(1)
    prepared = prepare_shift(rng.standard_normal((10, 3)) @ rng.standard_normal((3, 50)))
    assert prepared.rows_NC.shape == (10, 3)
    assert prepare_shift(np.zeros((6, 20))).rows_NC.tolist() == [[0.0]] * 6


@pytest.mark.parametrize("d", [8, 60])
def test_the_units_of_coordinates_do_not_matter(d: int) -> None:
    """No spread is near the floor here, so a gain per coordinate changes nothing, and neither does one for all."""
    rng = np.random.default_rng(3)
    rows_ND = rng.standard_normal((25, d)) + rng.standard_normal(d)
    gains_D = rng.uniform(0.5, 2, d)
    plain_NN, scaled_NN = (prepare_shift(r).rows_NC @ prepare_shift(r).rows_NC.T for r in (rows_ND, rows_ND * gains_D))
    np.testing.assert_allclose(plain_NN, scaled_NN, rtol=1e-9, atol=1e-9)
    for factor in (1e-6, 1e6):
        other = prepare_shift(factor * rows_ND).rows_NC
        np.testing.assert_allclose(other @ other.T, plain_NN, rtol=1e-9, atol=1e-9)


def test_scale_is_the_sd_floored_at_a_tenth_of_the_median() -> None:
    rows_ND = np.array([[0.0, 0, 0, 5], [2, 4, 1e-3, 5]])
    np.testing.assert_allclose(coordinate_scale(rows_ND), [1, 2, 0.1, 0.1])
    np.testing.assert_allclose(coordinate_scale(np.full((4, 3), 9.0)), [1, 1, 1])


def test_a_cap_shortens_long_rows_only_and_zeros_are_left() -> None:
    rows_ND = np.array([[1.0, 0], [0, 1], [0, -1], [30, 40]])
    np.testing.assert_allclose(cap_factors(rows_ND, limit=3.0), [1, 1, 1, 3 / 50])
    np.testing.assert_allclose(cap_factors(np.array([[0.0], [0], [0], [8]]), limit=3.0), np.ones(4))


def test_base_is_centred_first_then_scaled_and_capped() -> None:
    rows_ND = loud_rows(12, 5) + 1000
    np.testing.assert_allclose(
        prepare_base(rows_ND), slow_ready(rows_ND - rows_ND.mean(axis=0), limit=4.0), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("prepare", [prepare_shift, prepare_base, lambda rows: finite_rows(rows, name="it")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_and_counted(prepare, value: float) -> None:
    rows_ND = np.ones((5, 3))
    rows_ND[[1, 4], 2] = value
    with pytest.raises(ValueError, match="in 2 of 5 rows"):
        prepare(rows_ND)


@pytest.mark.parametrize("shape", [(5,), (0, 3), (3, 0), (2, 2, 2)])
def test_what_is_no_table_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be a table"):
        prepare_shift(np.zeros(shape))


@pytest.mark.parametrize("labels", [[3, 1, 3, 10, 1, 3], ["c", "a", "c", "b", "a", "c"]])
def test_groups_against_a_loop(labels: list) -> None:
    rows_NC = np.random.default_rng(0).standard_normal((6, 4))
    groups = Groups.of(np.array(labels))
    assert groups.names == tuple(sorted({str(label) for label in labels}))
    assert groups.count == 3
    for place, name in enumerate(groups.names):
        own = [q for q in range(6) if str(labels[q]) == name]
        assert groups.sizes_F[place] == len(own)
        assert groups.weights_F[place] == pytest.approx(len(own) / 6)
        np.testing.assert_allclose(groups.means(rows_NC)[place], sum(rows_NC[q] for q in own) / len(own))
        np.testing.assert_allclose(groups.centred(rows_NC)[own].sum(axis=0), 0, atol=1e-12)
        np.testing.assert_array_equal(np.flatnonzero(groups.indicator_NF[:, place]), own)


def test_row_energy_is_the_squared_norm() -> None:
    np.testing.assert_allclose(row_energy(np.array([[3.0, 4], [0, 0]])), [25, 0])
