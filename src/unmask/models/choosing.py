"""How likely a model finds each of a few continuations of one prompt: the prompt is run once, all continuations in one pass.

Shapes: P prompt tokens, C continuations, T tokens of all of them but their last, K = P + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from unmask.errors import ModelError
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.loading import LoadedModel
from unmask.models.step_masks import windows


class Chooser:
    """Keeps the keys and values of one beginning: the next prompt that begins with it runs only what is behind it.

    Where a prompt's beginning ends is the caller's word alone. What is run behind it has therefore the same shapes, and every bit
    of what is found is the same, whatever was asked before.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises ModelError for a model whose past is more than keys and values that can be cut back."""
        found = windows(loaded.model)
        if found is None or not keeps_keys_and_values(loaded.model.config):
            raise ModelError(
                "this model keeps a past that cannot be cut back, so it cannot choose among continuations",
                mend="Use a plain transformer, or a server for that model",
            )
        self._loaded, self._windows = loaded, found
        self._cache: DynamicCache | None = None
        self._beginning: tuple[int, ...] | None = None

    @torch.inference_mode()
    def log_probs(
        self, prompt_ids: Sequence[int], choices: Sequence[Sequence[int]], *, beginning: int = 0
    ) -> np.ndarray:
        """Summed log-probability (nats, float64, C) of each continuation, one token or more, behind the prompt.

        `beginning` is how many of its tokens, fewer than all, are run by themselves and kept for the next prompt.
        """
        assert 0 <= beginning < len(prompt_ids)
        begins, rest = tuple(prompt_ids[:beginning]), tuple(prompt_ids[beginning:])
        # A pass that breaks off leaves a cache of which nothing is known: what is kept is noted once all is run.
        kept, self._beginning = self._beginning, None
        with self._loaded.active():
            if begins != kept:
                self._cut(0)
                if begins:
                    self._run(begins)
            self._cut(beginning)
            next_V = self._run(rest)
            first_C = [float(next_V[choice[0]]) for choice in choices]
            found_C = np.array(first_C) + self._rest(choices, prompt_length=len(prompt_ids))
        self._beginning = begins
        return found_C

    def _run(self, ids: tuple[int, ...]) -> torch.Tensor:
        """Run tokens behind what is in the cache, and leave theirs there. Returns log-probabilities (V) of what follows."""
        ids_1P = torch.tensor([ids], device=self._loaded.device)
        output = self._model(input_ids=ids_1P, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return torch.log_softmax(output.logits[0, -1].float(), dim=-1)

    def _rest(self, choices: Sequence[Sequence[int]], *, prompt_length: int) -> np.ndarray:
        """Log-probability (C) of every token but the first: each sees the prompt and those before it in its own continuation."""
        inputs = [list(choice[:-1]) for choice in choices]
        total = sum(map(len, inputs))
        if total == 0:
            return np.zeros(len(choices))
        device, dtype = self._loaded.device, self._model.dtype
        own = [number for number, part in enumerate(inputs) for _ in part]
        own_T = torch.tensor(own, device=device)
        step_T = torch.tensor([step for part in inputs for step in range(len(part))], device=device)
        seen_TT = (own_T[:, None] == own_T) & (step_T[:, None] >= step_T)
        seen_TK = torch.cat([torch.ones(total, prompt_length, dtype=torch.bool, device=device), seen_TT], dim=1)
        place_K = torch.cat([torch.arange(prompt_length, device=device), prompt_length + step_T])
        masks = {}
        for kind, window in self._windows.items():
            near_TK = seen_TK if window is None else seen_TK & (place_K[prompt_length:, None] - place_K < window)
            masks[kind] = torch.zeros(1, 1, *seen_TK.shape, dtype=dtype, device=device)
            masks[kind].masked_fill_(~near_TK, torch.finfo(dtype).min)
        output = self._model(
            input_ids=torch.tensor([[token for part in inputs for token in part]], device=device),
            past_key_values=self._cache,
            use_cache=True,
            attention_mask=masks.get("", masks),
            position_ids=place_K[None, prompt_length:],
        )
        self._cut(prompt_length)
        targets_T = torch.tensor([token for choice in choices for token in choice[1:]], device=device)
        log_TV = torch.log_softmax(output.logits[0].float(), dim=-1)
        found_T = log_TV.gather(1, targets_T[:, None])[:, 0].double().cpu().numpy()
        return np.bincount(np.array(own), weights=found_T, minlength=len(choices))

    def _cut(self, length: int) -> None:
        """Cut the cache back to the first `length` tokens. It keeps all of the past, also for layers with a window."""
        if self._cache is None or length == 0:
            self._cache = DynamicCache()
        elif (surplus := self._cache.get_seq_length() - length) > 0:
            self._cache.crop(-surplus)

    @property
    def _model(self) -> Any:
        return self._loaded.model
