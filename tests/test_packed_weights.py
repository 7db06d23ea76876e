"""Packed weights: the same results to rounding, inside the block only, and nothing changes where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.models import packed_weights as module
from unmask.models.loading import LoadedModel
from unmask.models.packed_weights import packed_weights
from unmask.models.sites import decoder_layers

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [99, 98, 97, 96, 95, 94, 93, 92, 91, 90]])


def linears(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [layer for layer in loaded.model.modules() if isinstance(layer, torch.nn.Linear)]


def packed(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [layer for layer in linears(loaded) if "forward" in layer.__dict__]


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    model: Any = loaded.model
    return model(IDS).logits


def test_a_model_says_the_same_with_packed_weights(each_model: LoadedModel) -> None:
    plain = logits(each_model)
    with packed_weights(each_model.model):
        assert packed(each_model) == linears(each_model)
        torch.testing.assert_close(logits(each_model), plain, atol=1e-4, rtol=1e-4)
    assert not packed(each_model)
    assert torch.equal(logits(each_model), plain)


def test_a_layer_says_the_same_for_any_number_of_rows() -> None:
    layer = torch.nn.Linear(48, 80)
    for shape in ((48,), (1, 48), (3, 1, 48), (7, 5, 48), (300, 48), (0, 48)):
        input_NI = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wanted = layer(input_NI)
            with packed_weights(torch.nn.Sequential(layer)):  # ty: ignore[invalid-argument-type]
                torch.testing.assert_close(layer(input_NI), wanted, atol=1e-5, rtol=1e-5)


def test_the_copies_of_all_models_together_must_fit(
    llama: LoadedModel, tiny_llama: Path, fresh: Callable[[Path], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, size = fresh(tiny_llama), sum(layer.weight.nbytes for layer in linears(llama))
    monkeypatch.setattr(module, "memory", lambda: 4.0 * size)
    with packed_weights(llama.model, llama.model):  # one copy of the weights, however often it is named
        assert packed(llama) == linears(llama)
    with packed_weights(llama.model, other.model):
        assert not packed(llama) and not packed(other)
    monkeypatch.setattr(module, "memory", lambda: 8.0 * size)
    with packed_weights(llama.model, other.model):
        assert packed(llama) == linears(llama) and packed(other) == linears(other)


def test_parts_of_a_model_are_packed_alone(llama: LoadedModel) -> None:
    layers = decoder_layers(llama.model)
    with packed_weights(*layers[:2]):
        assert packed(llama) == [part for part in layers[:2].modules() if isinstance(part, torch.nn.Linear)]
        with packed_weights(llama.model):
            assert packed(llama) == linears(llama)
        assert len(packed(llama)) < len(linears(llama))
    assert not packed(llama)


def test_blocks_may_be_nested(llama: LoadedModel) -> None:
    with packed_weights(llama.model):
        inner = [layer.__dict__["forward"] for layer in linears(llama)]
        with packed_weights(llama.model):
            assert [layer.__dict__["forward"] for layer in linears(llama)] == inner
        assert packed(llama) == linears(llama)
    assert not packed(llama)


def test_an_error_leaves_the_model_as_it_was(llama: LoadedModel) -> None:
    with pytest.raises(RuntimeError), packed_weights(llama.model):
        raise RuntimeError
    assert not packed(llama)


def test_hooks_on_layers_are_called_as_ever(llama: LoadedModel) -> None:
    seen = []
    handle = linears(llama)[0].register_forward_hook(lambda layer, args, output: seen.append(output.shape))
    with packed_weights(llama.model):
        logits(llama)
    handle.remove()
    assert len(seen) == 1


def test_gradients_flow_as_ever(llama: LoadedModel) -> None:
    model: Any = llama.model
    with packed_weights(model):
        model(IDS, labels=IDS).loss.backward()
    assert all(layer.weight.grad is not None for layer in linears(llama))


def test_the_global_random_numbers_are_not_touched(llama: LoadedModel) -> None:
    module._works.cache_clear()
    before = torch.get_rng_state()
    with packed_weights(llama.model):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_changes_in_another_dtype(llama: LoadedModel) -> None:
    llama.model.to(torch.bfloat16)  # ty: ignore[missing-argument]
    with packed_weights(llama.model):
        assert not packed(llama)


@pytest.mark.parametrize("reason", ["too little memory", "no operators"])
def test_nothing_changes_where_it_cannot_be_done(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "no operators":
        monkeypatch.setattr(module, "_works", lambda: False)
    else:
        monkeypatch.setattr(module, "memory", lambda: 1e4)
    with packed_weights(llama.model):
        assert not packed(llama)


def test_memory_is_what_this_process_may_use() -> None:
    assert 1e8 < module.memory() < 1e14
