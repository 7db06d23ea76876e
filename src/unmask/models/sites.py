"""Where a site lies on a Hugging Face model: the stack of decoder layers, found by structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unmask.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from unmask.records import Site


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
        if not 0 <= site.layer < num_layers:
            raise ModelError(
                f"site {site.name} does not exist: {model_name} has {num_layers} layers",
                mend=f"Choose layers from 0 to {num_layers - 1}",
            )


def body(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output head."""
    return model.base_model


def head_logits(model: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Logits (N x vocabulary, float32) of normed hidden states, with the soft cap or scale that the architecture has."""
    config = model.config.get_text_config()
    logits_NV = model.get_output_embeddings()(hidden_ND).float()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits_NV = logits_NV * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits_NV = logits_NV / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV
