"""The attention mask of one more token per row, made from what each row may not see; a model makes it anew at every step.

Shapes: B rows, T columns of the past with the new token's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ONE = ""
_WITH_MASKS_ADDED = ("sdpa", "eager")

Windows = dict[str, int | None]
"""Window of each kind of layer, None for all of the past; the only kind of a model that does not tell kinds apart is ''."""


def windows(model: PreTrainedModel) -> Windows | None:
    """The kinds of layers for which a model takes finished masks; None where it must make its own from a plain one.

    The rule is that of `transformers.masking_utils.create_masks_for_generate`.
    """
    config = model.config.get_text_config()
    ours = type(model).__module__.startswith("transformers.models.") and model._supports_attention_backend
    if not ours or config._attn_implementation not in _WITH_MASKS_ADDED or not getattr(config, "is_causal", True):
        return None
    window = getattr(config, "sliding_window", None)
    if hasattr(config, "layer_types"):
        known: Windows = {"full_attention": None, "sliding_attention": window}
        kinds = set(config.layer_types)
        return {kind: known[kind] for kind in kinds} if kinds <= known.keys() else None
    return None if getattr(config, "attention_chunk_size", None) is not None else {_ONE: window}


def step_mask(hidden_BT: torch.Tensor, kinds: Windows | None) -> torch.Tensor | dict[str, torch.Tensor]:
    """What a model is given as `attention_mask`. `hidden_BT` is minus infinity where a row must not look, else 0.

    The masks are no views: CUDA's attention kernels read them in blocks and fail on rows that begin at odd addresses.
    """
    if kinds is None:
        return (hidden_BT == 0).long()
    masks = {kind: _within(hidden_BT, window).contiguous()[:, None, None] for kind, window in kinds.items()}
    return masks.get(_ONE, masks)


def _within(hidden_BT: torch.Tensor, window: int | None) -> torch.Tensor:
    beyond = hidden_BT.shape[1] - window if window is not None else 0
    if beyond <= 0:
        return hidden_BT
    hidden_BT = hidden_BT.clone()
    hidden_BT[:, :beyond] = -torch.inf
    return hidden_BT
