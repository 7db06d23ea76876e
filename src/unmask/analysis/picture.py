"""UMAP, for pictures only: distances and densities in it mean nothing, and nothing in a study is computed from it.

Shapes: N questions, C coordinates.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from unmask.analysis.threads import one_thread
from unmask.errors import ConfigError


def umap_picture(points_NC: np.ndarray, *, seed: int, neighbours: int = 15, min_distance: float = 0.1) -> np.ndarray:
    """A flat picture of the points (N x 2) by UMAP (McInnes, Healy & Melville 2018), with its authors' defaults.

    Raises ConfigError when the package `umap-learn` is not installed, ValueError for fewer than 4 points or values that are not
    finite.
    """
    points_NC = np.asarray(points_NC, dtype=np.float64)
    if len(points_NC) < 4 or not np.isfinite(points_NC).all():
        raise ValueError("a picture needs at least 4 points of finite values")
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError as error:
        raise ConfigError(
            "UMAP pictures need the package umap-learn, which is not installed",
            mend="Install it with `pip install 'unmask[umap]'`",
        ) from error
    drawing = umap.UMAP(
        n_components=2,
        n_neighbors=min(neighbours, len(points_NC) - 1),
        min_dist=min_distance,
        random_state=seed,
        n_jobs=1,
    )
    with one_thread():
        return np.asarray(drawing.fit_transform(points_NC), dtype=np.float64)
