"""The rows that are being answered side by side: they may leave, and others take their slots, at any step.

All rows write their next token into the same column. A prompt that comes in is put where it ends in the column written last; a
mask hides from each row what stands before its own first column. Columns that no row uses any more are not looked at.

Shapes: B rows, A rows coming in, D width of the residual stream, T columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import Cache, DynamicCache

from unmask.models.key_value_cache import KeyValueCache, Slots
from unmask.models.sites import body
from unmask.models.step_masks import step_mask, windows

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.models.prompt_cache import PromptCache


class RunningBatch:
    """Slots for `rows` prompts of `prompts`, each of which may be followed by `room` tokens.

    With `refilled` there is room for prompts that come in after others have left.
    """

    def __init__(self, loaded: LoadedModel, prompts: PromptCache, *, rows: int, room: int, refilled: bool) -> None:
        self._model, self._device, self._prompts = loaded.model, loaded.device, prompts
        self._dtype = prompts.last_hidden_PD.dtype
        self._lengths_P = prompts.lengths_P.cpu().numpy()
        self._longest = self._stop = int(self._lengths_P.max())
        columns = self._longest + room + (max(room // 2, 64) if refilled else 0)

        def empty(kept: torch.Tensor) -> torch.Tensor:
            return kept.new_zeros(rows, kept.shape[1], columns, kept.shape[3])

        self._past = KeyValueCache(
            [Slots(empty(k), empty(v), stop=self._stop) for k, v in zip(prompts.keys, prompts.values, strict=True)]
        )
        self._first_B = np.full(rows, self._stop)
        self._windows = windows(self._model)
        self._columns_T = torch.arange(columns, device=self._device)
        self._changed = True  # rows came or went since the mask was made

    def admit(self, slots_A: np.ndarray, prompt_rows_A: np.ndarray) -> torch.Tensor:
        """Put prompts into slots. Returns the normed hidden states of their last tokens (A x D)."""
        slots, rows = (torch.from_numpy(index).to(self._device) for index in (slots_A, prompt_rows_A))
        lengths_A = self._lengths_P[prompt_rows_A]
        longest = int(lengths_A.max())
        for layer, *kept in zip(self._past.slots, self._prompts.keys, self._prompts.values, strict=True):
            for buffer, prompts in zip(layer.buffers(), kept, strict=True):
                buffer[slots, :, self._stop - longest : self._stop] = prompts[:, :, -longest:].index_select(0, rows)
        self._first_B[slots_A] = self._stop - lengths_A
        self._changed = True
        return self._prompts.last_hidden_PD[rows]

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Run one more token of every row. Returns the normed hidden states there (B x D)."""
        if self._stop == len(self._columns_T):
            self._move_to_front()
        if self._changed:
            self._look_again()
        start = self._begin_at(int(self._first_B.min()))
        self._stop += 1
        output = body(self._model)(
            input_ids=ids_B.unsqueeze(1),
            attention_mask=step_mask(self._hidden_BT[:, start : self._stop], self._windows),
            position_ids=self._stop - 1 - self._first_B1,
            past_key_values=self._past,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def leave(self, slots: np.ndarray) -> None:
        """These rows are done: until others come, their slots hold nothing that matters."""
        self._first_B[slots] = self._stop
        self._changed = True

    def keep(self, slots_B: np.ndarray) -> None:
        """Go on with these slots only, which become the first ones."""
        self._begin_at(int(self._first_B.min()))
        self._past.batch_select_indices(torch.from_numpy(slots_B).to(self._device))
        self._first_B = self._first_B[slots_B]
        self._changed = True

    def _begin_at(self, column: int) -> int:
        for layer in self._past.slots:
            layer.start = column
        return column

    def _move_to_front(self) -> None:
        """Drop columns that nobody uses any more, but leave so many that the longest prompt can come in."""
        unused = self._begin_at(min(int(self._first_B.min()), self._stop - self._longest))
        for layer in self._past.slots:
            layer.move_to_front()
        self._stop -= unused
        self._first_B -= unused
        self._changed = True

    def _look_again(self) -> None:
        """Say anew where each row begins: its position of column 0, and what it may not see."""
        self._first_B1 = torch.from_numpy(self._first_B).to(self._device).unsqueeze(1)
        hidden_BT = self._columns_T < self._first_B1
        self._hidden_BT = torch.zeros_like(hidden_BT, dtype=self._dtype).masked_fill_(hidden_BT, -torch.inf)
        self._changed = False


class UnsharedBatch:
    """The same for models whose past is more than keys and values: with their own cache, and nobody comes in later."""

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._device = loaded.model, loaded.device
        longest = max(len(prompt) for prompt in prompts)
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._ids_BT = torch.tensor(padded, device=self._device)
        lengths_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=self._device)
        self._mask_BT = (torch.arange(longest, device=self._device) >= longest - lengths_B1).long()
        self._past: Cache = DynamicCache(config=self._model.config)

    def start(self) -> torch.Tensor:
        """Run the prompts, which end in the last column. Returns the normed hidden states there (B x D)."""
        return self._run(self._ids_BT, (self._mask_BT.cumsum(dim=1) - 1).clamp(min=0))

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        positions_B1 = self._mask_BT.sum(dim=1, keepdim=True)
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(ids_B), 1)], dim=1)
        return self._run(ids_B.unsqueeze(1), positions_B1)

    def leave(self, slots: np.ndarray) -> None:
        """Nothing to do."""

    def keep(self, slots_B: np.ndarray) -> None:
        rows = torch.from_numpy(slots_B).to(self._device)
        self._past.batch_select_indices(rows)
        self._mask_BT = self._mask_BT[rows]

    def _run(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        output = body(self._model)(
            input_ids=ids_BT,
            attention_mask=self._mask_BT,
            position_ids=positions_BT,
            past_key_values=self._past,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]
