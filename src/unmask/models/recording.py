"""Record residual-stream means while a model reads; hooks live only inside the block.

Shapes: B rows, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from unmask.models.sites import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unmask.records import Site


@dataclass(slots=True)
class RecordedMeans:
    """What one forward pass left behind: per site the mean over the weighted tokens (B x D) and the mean token norm (B)."""

    means_BD: dict[Site, torch.Tensor] = field(default_factory=dict)
    norms_B: dict[Site, torch.Tensor] = field(default_factory=dict)


@contextmanager
def record_means(model: PreTrainedModel, sites: Sequence[Site], weights_BT: torch.Tensor) -> Generator[RecordedMeans]:
    """Record weighted means over tokens at `sites` during the forward pass made inside the block.

    `weights_BT` (float32) sums to 1 over the tokens to be averaged and is 0 elsewhere. The mean is taken inside the hook in
    float32, so memory does not grow with layers x tokens. Nothing of the model or its outputs is changed.
    """
    layers = decoder_layers(model)
    recorded = RecordedMeans()
    handles: list[Any] = []

    def keep(site: Site, hidden_BTD: torch.Tensor) -> None:
        hidden_BTD = hidden_BTD.detach().float()
        recorded.means_BD[site] = torch.bmm(weights_BT.unsqueeze(1), hidden_BTD).squeeze(1)
        recorded.norms_B[site] = (torch.linalg.vector_norm(hidden_BTD, dim=-1) * weights_BT).sum(dim=1)

    def before(site: Site) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(site, args[0] if args else kwargs["hidden_states"])

        return hook

    def after(site: Site) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            keep(site, output[0] if isinstance(output, tuple) else output)

        return hook

    try:
        for site in sites:
            layer = layers[site.layer]
            if site.point == "resid_pre":
                handles.append(layer.register_forward_pre_hook(before(site), with_kwargs=True))
            else:
                handles.append(layer.register_forward_hook(after(site)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
