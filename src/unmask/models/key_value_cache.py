"""Keys and values of past tokens in buffers made once: written in place, never grown by concatenation.

Sliding-window layers keep all of their past too; what they may look at is the attention mask's business.

Shapes: B rows, H key-value heads, T columns (tokens), E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

_KEPT_WHOLE = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def keeps_keys_and_values(config: Any) -> bool:
    """Whether every layer's past is keys and values of its own, on a model of that configuration (Hugging Face's).

    Not where layers are recurrent, compressed or share a past: prompts of such a model cannot be shared.
    """
    layer_types, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    return _KEPT_WHOLE.issuperset(layer_types)


class Slots(CacheLayerMixin):
    """One layer's keys and values (B x H x T x E), of which the columns from `start` to before `stop` are in use."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, start: int = 0, stop: int) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.start, self.stop = start, stop
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to be done."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind what is in use; returns views of all that is then in use."""
        keys, values = self.buffers()
        first, self.stop = self.stop, self.stop + key_states.shape[2]
        keys[:, :, first : self.stop] = key_states
        values[:, :, first : self.stop] = value_states
        return keys[:, :, self.start : self.stop], values[:, :, self.start : self.stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.stop - self.start + query_length, 0

    def get_seq_length(self) -> int:
        return self.stop - self.start

    def get_max_length(self) -> int:
        return self.buffers()[0].shape[2]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only, moved to the front of the same buffers."""
        used = slice(self.start, self.stop)
        kept = []
        for buffer in self.buffers():
            front = buffer[: len(indices)]
            front[:, :, used] = buffer[:, :, used].index_select(0, indices)
            kept.append(front)
        self.keys, self.values = kept

    def move_to_front(self) -> None:
        """Move the columns in use to the first ones, so that there is room behind them."""
        length = self.stop - self.start
        for buffer in self.buffers():
            buffer[:, :, :length] = buffer[:, :, self.start : self.stop].clone()
        self.start, self.stop = 0, length

    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys, self.values


class KeyValueCache(Cache):
    """What `past_key_values` of a model may be: one `Slots` per layer."""

    def __init__(self, slots: Sequence[Slots]) -> None:
        super().__init__(layers=list(slots))
        self.slots = tuple(slots)
