"""Adding a direction is what repeng and steering-vectors make of it: the same logits for the same direction and coefficient.

Their layer L adds to a block's output, which is `hook_resid_pre` of block L + 1 here. Both are asked for plain addition: repeng
without renormalising, over every position of texts without padding.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from hooks import hooks_of
from unmask.models.intervening import Add, intervene
from unmask.models.loading import LoadedModel
from unmask.models.sites import decoder_layers
from unmask.records import Site

TOLERANCE = 1e-4
"""Of logits, float32, absolute."""

TEXTS = [[5, 6, 7, 8, 9, 10, 11], [301, 44, 1999, 7, 7, 20, 3]]


@pytest.fixture
def repeng(monkeypatch: pytest.MonkeyPatch) -> Any:
    """repeng 0.4 asks for a name that NumPy 2 dropped; nothing but annotations uses it."""
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    import repeng

    return repeng


@torch.inference_mode()
def logits(model: Any, positions_BT: torch.Tensor | None = None) -> torch.Tensor:
    return model(torch.tensor(TEXTS), position_ids=positions_BT).logits.float()


def direction(loaded: LoadedModel, *, seed: int) -> np.ndarray:
    """A random unit direction."""
    vector_D = np.random.default_rng(seed).normal(size=loaded.width)
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


def ours(loaded: LoadedModel, layer: int, vector_D: np.ndarray, coefficient: float) -> torch.Tensor:
    with intervene(loaded.model, [Add(Site(layer, "resid_pre"), (coefficient * vector_D)[None])]):
        return logits(loaded.model)


def assert_like_repeng(repeng: Any, loaded: LoadedModel, layer: int, coefficient: float) -> None:
    vector_D, plain = direction(loaded, seed=layer), logits(loaded.model)
    control = repeng.ControlVector(loaded.model.config.model_type, {layer - 1: vector_D})
    wrapped = repeng.ControlModel(copy.deepcopy(loaded.model), [layer - 1])  # it changes the model it is given
    wrapped.set_control(control, coefficient, normalize=False)
    theirs = logits(wrapped, torch.arange(len(TEXTS[0])).expand(len(TEXTS), -1))
    found = ours(loaded, layer, vector_D, coefficient)
    assert (found - theirs).abs().max() < TOLERANCE
    assert (found - plain).abs().max() > 100 * TOLERANCE


def assert_like_steering_vectors(loaded: LoadedModel, layer: int, coefficient: float) -> None:
    from steering_vectors import SteeringVector

    vector_D, plain = direction(loaded, seed=layer), logits(loaded.model)
    steering = SteeringVector({layer - 1: torch.from_numpy(vector_D)})
    with steering.apply(loaded.model, multiplier=coefficient):
        theirs = logits(loaded.model)
    found = ours(loaded, layer, vector_D, coefficient)
    assert (found - theirs).abs().max() < TOLERANCE
    assert (found - plain).abs().max() > 100 * TOLERANCE
    assert torch.equal(logits(loaded.model), plain)
    assert hooks_of(decoder_layers(loaded.model)) == []


@pytest.mark.parametrize("coefficient", [-3.0, 0.5, 8.0])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_tiny_model_under_repeng(repeng: Any, llama: LoadedModel, layer: int, coefficient: float) -> None:
    assert_like_repeng(repeng, llama, layer, coefficient)


@pytest.mark.parametrize("coefficient", [-3.0, 0.5, 8.0])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_tiny_model_under_steering_vectors(llama: LoadedModel, layer: int, coefficient: float) -> None:
    assert_like_steering_vectors(llama, layer, coefficient)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [9, 20])
def test_smollm2_under_repeng(repeng: Any, smollm2_model: LoadedModel, layer: int) -> None:
    assert_like_repeng(repeng, smollm2_model, layer, 20.0)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [9, 20])
def test_smollm2_under_steering_vectors(smollm2_model: LoadedModel, layer: int) -> None:
    assert_like_steering_vectors(smollm2_model, layer, 20.0)
