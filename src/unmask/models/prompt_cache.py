"""Run prompts once and keep their keys and values, so that any number of continuations may stand behind them.

Shapes: P prompts, B rows of a batch, H key-value heads, T tokens of the longest prompt, E width of a head, D width of the
residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from unmask.errors import ModelError
from unmask.models.batches import plan_batches
from unmask.models.key_value_cache import KeyValueCache, Slots, keeps_keys_and_values
from unmask.models.recording import observe
from unmask.models.sites import body

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.records import Site

Around = Callable[[Sequence[int], torch.Tensor | None], AbstractContextManager[object]]
"""Given the prompts of a pass (indices) and which of its positions predict response tokens (B x T, bool; None: all), what is
entered around it: an intervention on those rows."""


class Recorder(Protocol):
    """Who is told which token each position of the coming pass is, and is then shown what the sites hold.

    `wants_log_probs`: whether log p(token) under the model's own, untempered distribution is wanted.
    """

    sites: Sequence[Site]
    wants_log_probs: bool

    def prompts(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> None:
        """The coming pass runs prompts: their indices, and the column of each one's last token."""

    def tokens(self, rows_B: torch.Tensor, index_BT: torch.Tensor) -> None:
        """The coming pass runs response tokens: the index of each row's answer in the caller's order, and the ordinal
        (0, 1, ...) of the response token that is input at each position; -1 for padding, end marks, special tokens."""

    def keep(self, site: Site, activation: torch.Tensor) -> None:
        """What a site shows in the pass that was told of."""

    def keep_log_probs(self, rows_B: torch.Tensor, log_prob_B: torch.Tensor) -> None:
        """Log-probability of one more response token of each of these answers."""


class Expanded(NamedTuple):
    """What a model is given to go on behind prompts: `past_key_values`, and the attention mask (B x T, 0 or 1) of the past."""

    past: KeyValueCache
    mask_BT: torch.Tensor


@dataclass(frozen=True, slots=True)
class PromptCache:
    """Keys and values of prompts, one tensor (P x H x T x E) per layer, padded on the left.

    `last_hidden_PD` is the final norm's output at each prompt's last token: the first response token's logits come from it.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    lengths_P: torch.Tensor
    last_hidden_PD: torch.Tensor

    def expand(self, rows_B: torch.Tensor, *, room: int, first_layer: int = 0) -> Expanded:
        """A copy of these prompts (they may repeat), as long as the longest of them, with room for `room` more tokens a row.

        Layers below `first_layer` are not going to be run: theirs are no copies, and hold nothing.
        """
        longest = self.keys[0].shape[2]
        lengths_B = self.lengths_P[rows_B]
        length = int(lengths_B.max())

        def copied(kept: torch.Tensor, layer: int) -> torch.Tensor:
            shape = (len(rows_B), kept.shape[1], length + room, kept.shape[3])
            if layer < first_layer:
                return kept.new_empty(1).expand(shape)
            buffer = kept.new_empty(shape)
            buffer[:, :, :length] = kept[:, :, longest - length :].index_select(0, rows_B)
            return buffer

        layers = [
            Slots(copied(keys, layer), copied(values, layer), stop=length)
            for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True))
        ]
        columns_T = torch.arange(length, device=lengths_B.device)
        return Expanded(KeyValueCache(layers), (columns_T >= length - lengths_B.unsqueeze(1)).long())


@torch.inference_mode()
def prefill(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    token_budget: int = 2048,
    recorder: Recorder | None = None,
    around: Around | None = None,
) -> PromptCache:
    """Run every prompt (token ids) once, in batches of like length of at most `token_budget` padded tokens.

    The recorder is told of each batch by `prompts`. Raises ModelError for a model whose past is not keys and values alone.
    """
    model, device = loaded.model, loaded.device
    if not keeps_keys_and_values(model.config):
        raise ModelError(
            f"{type(model).__name__} has layers whose past is not keys and values: its prompts cannot be shared",
            mend="Read and answer every text whole",
        )
    lengths = [len(prompt) for prompt in prompts]
    assert lengths and min(lengths) > 0, "there must be prompts, and none empty"
    layers = [_PromptSlots(len(prompts), max(lengths)) for _ in range(loaded.num_layers)]
    last_hidden_PD: torch.Tensor | None = None
    for batch in plan_batches(lengths, token_budget=token_budget):
        rows_B = torch.tensor(batch, device=device)
        ids_BT, last_B = _right_padded([prompts[row] for row in batch], device=device)
        groups = _by_length(batch, lengths, device=device)
        for layer in layers:
            layer.groups = groups
        with ExitStack() as stack:
            stack.enter_context(loaded.active())
            if around is not None:
                columns_T = torch.arange(ids_BT.shape[1], device=device)
                stack.enter_context(around(batch, columns_T >= last_B.unsqueeze(1)))
            if recorder is not None:
                recorder.prompts(rows_B, last_B)
                stack.enter_context(observe(model, recorder.sites, recorder.keep))
            # Padding stands on the right, where a causal model does not look: no mask is needed.
            positions_1T = torch.arange(ids_BT.shape[1], device=device).unsqueeze(0)
            output = body(model)(
                input_ids=ids_BT, position_ids=positions_1T, past_key_values=Cache(layers=list(layers)), use_cache=True
            )
        hidden_BTD = output.last_hidden_state
        if last_hidden_PD is None:
            last_hidden_PD = hidden_BTD.new_empty(len(prompts), hidden_BTD.shape[2])
        last_hidden_PD[rows_B] = hidden_BTD[torch.arange(len(batch), device=device), last_B]
    assert last_hidden_PD is not None
    return PromptCache(
        keys=tuple(layer.keys for layer in layers if layer.keys is not None),
        values=tuple(layer.values for layer in layers if layer.values is not None),
        lengths_P=torch.tensor(lengths, device=device),
        last_hidden_PD=last_hidden_PD,
    )


class _PromptSlots(CacheLayerMixin):
    """One layer's keys and values of all prompts, put in place batch by batch; a batch sees its own only.

    `groups` says of the coming batch which rows of it, of which length, are which prompts.
    """

    is_sliding = False

    def __init__(self, prompts: int, longest: int) -> None:
        super().__init__()
        self.groups: list[_Group] = []
        self._prompts, self._longest = prompts, longest

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def room(states: torch.Tensor) -> torch.Tensor:
            return states.new_zeros(self._prompts, states.shape[1], self._longest, states.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        for length, here, prompts in self.groups:
            self.keys[prompts, :, self._longest - length :] = key_states[here, :, :length]
            self.values[prompts, :, self._longest - length :] = value_states[here, :, :length]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class _Group(NamedTuple):
    """Prompts of one length in a batch: their rows there, and which prompts they are."""

    length: int
    here: torch.Tensor
    prompts: torch.Tensor


def _by_length(batch: Sequence[int], lengths: Sequence[int], *, device: torch.device) -> list[_Group]:
    found: dict[int, list[int]] = {}
    for here, row in enumerate(batch):
        found.setdefault(lengths[row], []).append(here)
    return [
        _Group(length, torch.tensor(here, device=device), torch.tensor([batch[row] for row in here], device=device))
        for length, here in found.items()
    ]


def _right_padded(prompts: Sequence[Sequence[int]], *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B x T) and the column of each row's last token; any token id pads."""
    last_B = torch.tensor([len(prompt) - 1 for prompt in prompts])
    ids_BT = torch.zeros(len(prompts), int(last_B.max()) + 1, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = torch.tensor(prompt)
    return ids_BT.to(device), last_B.to(device)
