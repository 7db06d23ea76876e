"""Continuations of a prompt, all in one pass, are as likely as each is alone."""

from __future__ import annotations

import numpy as np
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
        np.testing.assert_allclose(chooser.log_probs(prompt, CHOICES), wanted, rtol=1e-4, atol=1e-4)


def test_the_same_prompt_again_and_a_wholly_other_one(llama: LoadedModel) -> None:
    chooser = Chooser(llama)
    first = chooser.log_probs((3, 4, 5), CHOICES)
    np.testing.assert_allclose(chooser.log_probs((3, 4, 5), CHOICES), first, rtol=1e-6)
    wanted = [alone(llama, (9, 8), choice) for choice in CHOICES]
    np.testing.assert_allclose(chooser.log_probs((9, 8), CHOICES), wanted, rtol=1e-4)
