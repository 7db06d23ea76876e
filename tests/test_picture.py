"""Pictures by UMAP: an extra that may be missing, and nothing that a study is computed from."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from unmask.analysis.picture import umap_picture
from unmask.errors import ConfigError


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"umap-learn.*pip install 'unmask\[umap\]'"):
        umap_picture(np.random.default_rng(0).normal(size=(20, 4)), seed=0)


def test_few_points_have_few_neighbours_and_the_seed_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    class Umap:
        def __init__(self, **options: object) -> None:
            asked.update(options)

        def fit_transform(self, points: np.ndarray) -> np.ndarray:
            return points[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    assert umap_picture(np.ones((6, 4)), seed=3).shape == (6, 2)
    assert (asked["n_neighbors"], asked["random_state"], asked["n_components"]) == (5, 3, 2)


def test_nothing_is_imported_before_a_picture_is_asked_for() -> None:
    importlib.reload(sys.modules["unmask.analysis.picture"])
    assert not isinstance(sys.modules.get("umap"), type(np))


@pytest.mark.parametrize("points", [np.ones((3, 2)), np.full((9, 2), np.nan)])
def test_what_cannot_be_drawn_is_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least 4 points of finite values"):
        umap_picture(points, seed=0)
