"""Every site against TransformerLens: the same name is the same activation, with padding on either side and with an adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.errors import ModelError
from unmask.models.hook_points import hook_point
from unmask.models.loading import LoadedModel
from unmask.models.quiet import quiet_libraries
from unmask.models.recording import observe
from unmask.models.sites import body
from unmask.records import LAYER_POINTS, Site

LENGTHS = (14, 9, 5)
TOLERANCE = 1e-4
"""Of the largest value at a site."""
SIDES = ("left", "right")


def batch(side: str) -> dict[str, torch.Tensor]:
    """Three rows of unequal lengths, padded on one side."""
    columns_1T = torch.arange(max(LENGTHS)).unsqueeze(0)
    lengths_B1 = torch.tensor(LENGTHS).unsqueeze(1)
    present_BT = columns_1T < lengths_B1 if side == "right" else columns_1T >= max(LENGTHS) - lengths_B1
    mask_BT = present_BT.long()
    ids_BT = torch.randint(3, 2000, mask_BT.shape, generator=torch.Generator().manual_seed(3))
    return {
        "input_ids": torch.where(present_BT, ids_BT, 2),
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(dim=1) - 1).clamp(min=0),
    }


def with_lively_norms(loaded: LoadedModel) -> Any:
    """A model whose norms have weights and biases that matter: before and after the weight are then not the same."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return loaded.model


def with_adapter(model: Any) -> Any:
    """A PeftModel with a LoRA adapter on every linear layer, around a copy of the model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    with torch.random.fork_rng(), quiet_libraries():
        torch.manual_seed(7)
        wrapped = get_peft_model(copy.deepcopy(model), config).eval()
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return wrapped


def all_sites(num_layers: int) -> list[Site]:
    layers = [Site(layer, point) for layer in range(num_layers) for point in LAYER_POINTS]
    return [Site(None, "embed"), *layers, Site(None, "normalized")]


def ours(model: Any, num_layers: int, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    sites, found = [], {}
    for site in all_sites(num_layers):
        try:
            hook_point(model, site)
        except ModelError as error:
            assert site.point == "resid_mid" and "side by side" in str(error)
        else:
            sites.append(site)

    def keep(site: Site, activation: torch.Tensor) -> None:
        found[site.name] = activation.clone()

    with torch.inference_mode(), observe(model, sites, keep):
        body(model)(**inputs)
    return found


def theirs(model: Any, loaded: LoadedModel, folder: Path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from transformer_lens.model_bridge import TransformerBridge

    wrapped = copy.deepcopy(model)  # the bridge rebuilds the model that it is given
    wrapped.set_attn_implementation("eager")
    with quiet_libraries():
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=wrapped, tokenizer=copy.deepcopy(loaded.tokenizer), device="cpu"
        )
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(
                inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}
            )
    names = {site.name for site in all_sites(loaded.num_layers)}
    return {name: cache[name] for name in names if name in cache}


def assert_alike(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]
) -> None:
    """At real positions; of a pattern, the rows of real queries."""
    assert found.keys() == wanted.keys()
    real_BT = inputs["attention_mask"].bool()
    for name, activation in found.items():
        if name.endswith("hook_pattern"):
            pair = activation.transpose(1, 2)[real_BT], wanted[name].transpose(1, 2)[real_BT]
        else:
            pair = activation[real_BT], wanted[name].flatten(start_dim=2)[real_BT]
        largest = float(pair[1].abs().max())
        torch.testing.assert_close(
            *pair, rtol=0, atol=TOLERANCE * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("side", SIDES)
def test_every_site_is_theirs(architecture: Path, fresh: Callable[[Path], LoadedModel], side: str) -> None:
    loaded = fresh(architecture)
    model, inputs = with_lively_norms(loaded), batch(side)
    assert_alike(ours(model, loaded.num_layers, inputs), theirs(model, loaded, architecture, inputs), inputs)


@pytest.mark.parametrize("side", SIDES)
def test_every_site_is_theirs_through_an_adapter(
    architecture: Path, fresh: Callable[[Path], LoadedModel], side: str
) -> None:
    """Live LoRA layers on our side; on theirs a copy that they are merged into, or the base where they are switched off."""
    loaded = fresh(architecture)
    model, inputs = with_lively_norms(loaded), batch(side)
    adapted = with_adapter(model)
    merged = copy.deepcopy(adapted).merge_and_unload()
    on = ours(adapted, loaded.num_layers, inputs)
    assert_alike(on, theirs(merged, loaded, architecture, inputs), inputs)
    with adapted.disable_adapter():
        off = ours(adapted.get_base_model(), loaded.num_layers, inputs)
    assert_alike(off, theirs(model, loaded, architecture, inputs), inputs)
    real_BT = inputs["attention_mask"].bool()
    last = Site(loaded.num_layers - 1, "resid_post").name
    assert not torch.allclose(on[last][real_BT], off[last][real_BT], rtol=1e-2)


def test_a_norm_is_read_before_its_weight(fresh: Callable[[Path], LoadedModel], tiny_llama: Path) -> None:
    """Should TransformerLens move `hook_normalized` behind the weight, this says so."""
    loaded = fresh(tiny_llama)
    model, inputs = with_lively_norms(loaded), batch("right")
    normalized = theirs(model, loaded, tiny_llama, inputs)["ln_final.hook_normalized"]
    with torch.inference_mode():
        hidden = body(model)(**inputs).last_hidden_state
        torch.testing.assert_close(normalized * model.model.norm.weight, hidden, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(normalized, hidden, rtol=1e-2)
