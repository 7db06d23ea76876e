"""Continuations of a prompt, all in one pass, are as likely as each is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unmask.models.choosing import Chooser
from unmask.models.loading import LoadedModel

CHOICES = [(5,), (5, 6), (7, 8, 9), (9,), (5, 6, 7, 8)]


@torch.inference_mode()
def alone(loaded: LoadedModel, prompt: tuple[int, ...], choice: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt, *choice]])
    logits = loaded.model(input_ids=ids).logits[0].float().log_softmax(dim=-1)
    return sum(float(logits[len(prompt) + step - 1, token]) for step, token in enumerate(choice))


def test_all_at_once_is_each_alone(each_model: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    begin = tuple(rng.integers(3, 60, 12).tolist())
    chooser = Chooser(each_model)
    for more in (4, 9, 1, 0):  # prompts that begin alike, longer and shorter ones
        prompt = begin + tuple(rng.integers(3, 60, more).tolist())
        wanted = [alone(each_model, prompt, choice) for choice in CHOICES]
        found = chooser.log_probs(prompt, CHOICES, beginning=min(12, len(prompt) - 1))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_was_asked_before_changes_no_bit(each_model: LoadedModel) -> None:
    rng = np.random.default_rng(1)
    begin = tuple(rng.integers(3, 60, 40).tolist())
    asked = [(begin + tuple(rng.integers(3, 60, more).tolist()), 40) for more in (30, 5, 1)]
    asked += [((*begin[:20], 7, 8, 9), 20), ((5, 6, 7), 0)]  # another beginning, and none
    fresh = [Chooser(each_model).log_probs(prompt, CHOICES, beginning=cut) for prompt, cut in asked]
    chooser = Chooser(each_model)
    for place in (0, 1, 2, 3, 1, 4, 2, 0, 0):
        prompt, cut = asked[place]
        np.testing.assert_array_equal(chooser.log_probs(prompt, CHOICES, beginning=cut), fresh[place])


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_after_a_pass_that_broke_off_nothing_is_taken_as_known(llama: LoadedModel, monkeypatch: Any) -> None:
    prompt = tuple(range(3, 30))
    chooser = Chooser(llama)
    wanted = chooser.log_probs(prompt, CHOICES, beginning=20)
    layer = llama.model.get_submodule("model.layers.2")
    monkeypatch.setattr(layer, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):  # some layers know more tokens than others
        chooser.log_probs(prompt, CHOICES, beginning=20)
    monkeypatch.undo()
    np.testing.assert_array_equal(chooser.log_probs(prompt, CHOICES, beginning=20), wanted)


def test_the_same_prompt_again_and_a_wholly_other_one(llama: LoadedModel) -> None:
    chooser = Chooser(llama)
    first = chooser.log_probs((3, 4, 5), CHOICES)
    np.testing.assert_allclose(chooser.log_probs((3, 4, 5), CHOICES), first, rtol=1e-6)
    wanted = [alone(llama, (9, 8), choice) for choice in CHOICES]
    np.testing.assert_allclose(chooser.log_probs((9, 8), CHOICES), wanted, rtol=1e-4)
