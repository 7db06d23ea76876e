"""Layers and sites of a model: the stack of decoder layers, found by structure, which layers are meant, how wide a site is.

Shapes: N positions, V vocabulary, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from unmask.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unmask.records import Site


LayerSpec = int | float | Literal["all"]
"""A layer's index, a fraction of the depth, or every layer."""


@dataclass(frozen=True, slots=True)
class SiteShape:
    """How large an activation is: coordinates a token, and heads. None where a site has no fixed width, or no heads."""

    width: int | None
    heads: int | None


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The stack of decoder layers: the shallowest ModuleList with one entry per hidden layer of the text model.

    Raises ModelError when the architecture has none.
    """
    wanted = int(model.config.get_text_config().num_hidden_layers)
    stacks = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted
    ]
    if not stacks:
        raise ModelError(
            f"no stack of {wanted} decoder layers was found in {type(model).__name__}",
            mend="Use a decoder-only Hugging Face model such as Llama, Qwen, Gemma, Mistral, Phi, GPT-2 or GPT-NeoX",
        )
    return min(stacks, key=lambda stack: stack[0])[1]


def check_sites(sites: Iterable[Site], *, num_layers: int, model_name: str) -> None:
    """Raise ModelError for the first site whose layer the model lacks."""
    for site in sites:
        if site.layer is not None and not 0 <= site.layer < num_layers:
            raise ModelError(
                f"site {site.name} does not exist: {model_name} has {num_layers} layers",
                mend=f"Choose layers from 0 to {num_layers - 1}",
            )


def choose_layers(specs: Sequence[LayerSpec] | Literal["all"], *, num_layers: int) -> tuple[int, ...]:
    """Indices of the layers that are meant, sorted, each once.

    A whole number is an index. A fraction f of the depth (0 <= f < 1) is layer floor(f * num_layers), so 0.55 of 36 layers is
    layer 19; a product that only rounding keeps below a whole number counts as that number, so 0.29 of 100 is layer 29. "all" is
    every layer.

    Raises ModelError for an index that the model lacks, ConfigError for anything else that is no layer.
    """
    given: Sequence[Any] = [specs] if isinstance(specs, str) else specs
    return tuple(sorted({layer for spec in given for layer in _chosen(spec, num_layers)}))


def _chosen(spec: Any, num_layers: int) -> Iterable[int]:
    if spec == "all":
        return range(num_layers)
    if isinstance(spec, bool) or not isinstance(spec, (int, float)):
        raise ConfigError(
            f"layer {spec!r} is not known",
            mend=f'Write an index from 0 to {num_layers - 1}, a fraction like 0.5, or "all"',
        )
    if isinstance(spec, int):
        if not 0 <= spec < num_layers:
            raise ModelError(
                f"layer {spec} does not exist: the model has {num_layers} layers",
                mend=f"Choose layers from 0 to {num_layers - 1}",
            )
        return (spec,)
    if not 0 <= spec < 1:
        raise ConfigError(
            f"layer {spec} is no fraction of the depth: it is not in [0, 1)",
            mend=f"Write a fraction from 0 to less than 1, or without a point an index from 0 to {num_layers - 1}",
        )
    return (min(int(spec * num_layers + 1e-9), num_layers - 1),)


def site_shape(model_or_config: Any, site: Site) -> SiteShape:
    """The width of a site and how many heads share it, from a model or its configuration.

    `z` holds its heads side by side. `pattern` (heads x queries x keys) is as wide as the text is long: its width is None.
    """
    config = getattr(model_or_config, "config", model_or_config).get_text_config()
    heads = int(config.num_attention_heads)
    if site.point == "pattern":
        return SiteShape(width=None, heads=heads)
    if site.point == "z":
        given = (getattr(config, name, None) for name in ("v_head_dim", "head_dim"))
        width = next((width for width in given if width), config.hidden_size // heads)
        return SiteShape(width=heads * int(width), heads=heads)
    return SiteShape(width=int(config.hidden_size), heads=None)


def unwrapped(model: PreTrainedModel) -> PreTrainedModel:
    """The Hugging Face model inside a PeftModel, with its adapter layers; any other model itself."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def body(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output head."""
    return unwrapped(model).base_model


def head_logits(model: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Logits (N x vocabulary, float32) of normed hidden states, with the soft cap or scale that the architecture has.

    What is known here of scales and caps `trial` compares with the model's own logits.
    """
    config = model.config.get_text_config()
    logits_NV = model.get_output_embeddings()(hidden_ND).float()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits_NV = logits_NV * scale
    if (multiplier := getattr(config, "lm_head_multiplier", None)) is not None:
        logits_NV = logits_NV * multiplier
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits_NV = logits_NV * scaling if config.model_type == "hyperclovax" else logits_NV / scaling
    caps = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    if (cap := next((cap for cap in caps if cap is not None), None)) is not None:
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV
