"""The sparse dictionary: planted atoms come back better than principal components, and its parts keep their contracts."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.analysis.components import half_stability, matched_cosines
from unmask.analysis.dictionary import sparse_dictionary
from unmask.analysis.reduction import pca


def sparse_rows(
    n: int = 400, atoms: int = 12, width: int = 10, used: float = 0.12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that use few of more atoms than there are coordinates, and the atoms."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(atoms, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = rng.uniform(1, 2, (n, atoms)) * (rng.random((n, atoms)) < used)
    return codes @ directions + 0.02 * rng.normal(size=(n, width)) + 5, directions


def test_planted_atoms_come_back_better_than_by_principal_components() -> None:
    rows, directions = sparse_rows()
    found = sparse_dictionary(rows, atoms=16, active=2, seed=0, steps=1500)
    dictionary, _ = matched_cosines(directions, found.atoms_AC, signed=False)
    principal, _ = matched_cosines(directions, pca(rows, components=10).loadings_CD, signed=True)
    assert np.median(dictionary) > 0.95
    assert np.nanmean(dictionary) > np.nanmean(principal) + 0.2


def test_it_keeps_the_number_of_codes_it_was_given_and_explains_the_rows() -> None:
    rows, _ = sparse_rows()
    found = sparse_dictionary(rows, atoms=16, active=2, seed=0)
    assert (found.codes_NA >= 0).all()
    assert (found.codes_NA > 0).sum() == pytest.approx(2 * len(rows), rel=0.01)
    assert found.explained > 0.9
    missed = rows - found.bias_C - found.codes_NA @ found.atoms_AC
    assert found.explained == pytest.approx(1 - (missed**2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum())
    assert found.dead == int((~(found.codes_NA > 0).any(axis=0)).sum())


def test_a_row_is_encoded_by_itself_as_in_company() -> None:
    rows, _ = sparse_rows(100)
    found = sparse_dictionary(rows, atoms=8, active=2, seed=0, steps=100)
    np.testing.assert_allclose(np.vstack([found.encode(row[None]) for row in rows]), found.codes_NA)


def test_atoms_have_unit_length_and_the_seed_decides_them() -> None:
    rows, _ = sparse_rows(100)
    one, again, other = (sparse_dictionary(rows, atoms=8, active=2, seed=s, steps=100) for s in (0, 0, 1))
    np.testing.assert_allclose(np.linalg.norm(one.atoms_AC, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(one.atoms_AC, again.atoms_AC)
    assert not np.allclose(one.atoms_AC, other.atoms_AC)


def test_scaling_and_moving_the_rows_scales_the_codes_alone() -> None:
    rows, _ = sparse_rows(100)
    one = sparse_dictionary(rows, atoms=8, active=2, seed=0, steps=50)
    other = sparse_dictionary(64 * (rows - 5), atoms=8, active=2, seed=0, steps=50)
    np.testing.assert_allclose(other.codes_NA, 64 * one.codes_NA, rtol=1e-2, atol=1)
    assert other.explained == pytest.approx(one.explained, abs=1e-2)


@pytest.mark.parametrize(("n", "atoms"), [(60, 20), (20, 32), (3, 2)])
def test_it_works_on_few_rows(n: int, atoms: int) -> None:
    rows, _ = sparse_rows(n)
    found = sparse_dictionary(rows, atoms=atoms, active=1, seed=0, steps=100)
    assert found.codes_NA.shape == (n, atoms)
    assert np.isfinite(found.explained)


def test_parts_are_the_atoms_in_use_strongest_first() -> None:
    rows, _ = sparse_rows(100)
    found = sparse_dictionary(rows, atoms=24, active=2, seed=0, steps=200)
    parts = found.parts(rows)
    assert len(parts.strength_P) == 24 - found.dead
    assert parts.strength_P.tolist() == sorted(parts.strength_P, reverse=True)
    np.testing.assert_allclose(parts.loadings_NP @ parts.atoms_PC, found.codes_NA @ found.atoms_AC, atol=1e-6)


def test_atoms_of_noise_do_not_come_back_in_halves() -> None:
    rng = np.random.default_rng(1)

    def fit(rows: np.ndarray):
        return sparse_dictionary(rows, atoms=12, active=2, seed=0, steps=300).parts(rows)

    noise = rng.normal(size=(200, 20))
    of_noise = half_stability(noise, fit(noise), fit, signed=False, splits=3, rng=rng)
    rows, _ = sparse_rows(600)
    of_atoms = half_stability(rows, fit(rows), fit, signed=False, splits=3, rng=rng)
    assert of_noise.mean() < 0.3
    assert of_atoms.mean() > of_noise.mean() + 0.2


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        sparse_dictionary(np.ones((2, 3)), atoms=2, active=1, seed=0)
    with pytest.raises(ValueError, match="active from 1 to 2"):
        sparse_dictionary(np.ones((5, 3)), atoms=2, active=3, seed=0)
    with pytest.raises(ValueError, match="rows that differ"):
        sparse_dictionary(np.ones((5, 3)), atoms=2, active=1, seed=0)
    rows = np.ones((5, 3))
    rows[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        sparse_dictionary(rows, atoms=2, active=1, seed=0)
