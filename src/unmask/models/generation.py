"""Answer prompts by sampling, each from its own random numbers, and let a recorder see the answers while they are written.

A row draws one uniform number per step from its own seed and takes the token where the filtered distribution's cumulative sum
passes it. Its answer depends on its prompt, its seed and the model, and on the rows beside it only through rounding: where two
tokens are equal to about 1e-7, or the draw falls on the edge between them, other company can tip the choice. The same plan of
work gives the same answers.

Shapes: N answers, V ways of steering, B rows, P prompts, A answers that begin, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.errors import ModelError
from unmask.models.decoding import FREE, Book, Hooks, decode
from unmask.models.intervening import Intervening, Intervention, intervene
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.packed_weights import packed_weights
from unmask.models.picking import pick_tokens
from unmask.models.prompt_cache import PromptCache, Recorder, prefill
from unmask.models.prompts import end_token_ids
from unmask.models.running_batch import RunningBatch, UnsharedBatch

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.records import Sampling, StopReason

__all__ = ["Generated", "Recorder", "generate", "pick_tokens"]


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: token ids without the end mark, and why it stopped."""

    token_ids: tuple[int, ...]
    stop_reason: StopReason


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    steering: Sequence[Intervention] | None = None,
    recorder: Recorder | None = None,
    prompt_cache: PromptCache | None = None,
    prompt_rows: Sequence[int] | None = None,
    rows: int = 64,
) -> list[Generated]:
    """Answer `prompts` (token ids), one seed each, optionally steered.

    Row n of each intervention acts on answer n, a single row on all. Prompts that are equal (and equally steered) are run once;
    with `prompt_cache` none is run, and `prompt_rows` says which of the cached prompts each of `prompts` is (by default they are
    the same). At most `rows` are answered at a time: who is done makes room for the next. The recorder sees every response token
    but the end mark, also the last one of an answer that is cut.

    Returns one answer per prompt, in order. Raises ValueError for a prompt cache together with steering, which is felt from the
    prompt on, and for interventions of another number of rows; ModelError for one that needs another model's stream.
    """
    if prompt_cache is not None and steering:
        raise ValueError("a prompt cache holds prompts that were not steered")
    if not prompts:
        return []
    steered = _Steered(loaded, steering, len(prompts)) if steering else None
    ends, special = _marks(loaded)
    uniforms_NT = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
    book = Book(uniforms_NT, ends=ends, special=special, reads_last=recorder is not None)
    around = None if steered is None else steered.around
    with loaded.active(), packed_weights(loaded.model), Hooks(loaded, recorder, around) as hooks:
        if not keeps_keys_and_values(loaded.model.config):
            _decode_unshared(
                loaded, prompts, book, rows=rows, sampling=sampling, recorder=recorder, hooks=hooks, steered=steered
            )
        else:
            if prompt_cache is None:
                prompt_cache, prompt_rows = _prefilled(loaded, prompts, steered=steered, recorder=recorder)
            rows_N = np.arange(len(prompts)) if prompt_rows is None else np.asarray(prompt_rows)
            rows = min(rows, len(prompts))
            batch = RunningBatch(
                loaded, prompt_cache, rows=rows, room=sampling.max_new_tokens, refilled=rows < len(prompts)
            )
            book.seat(np.full(rows, FREE))
            decode(
                loaded, batch, book, sampling=sampling, recorder=recorder, hooks=hooks, waiting=range(len(prompts)),
                admit=lambda slots_A, jobs_A: batch.admit(slots_A, rows_N[jobs_A]),
            )  # fmt: skip
    return [Generated(tuple(ids), reason) for ids, reason in zip(book.written, book.stopped, strict=True)]


class _Steered:
    """Interventions on `count` answers, compiled once: each distinct row of parameters is kept once, on the device.

    `variant_N` says of each answer which of these rows it is under; rows that do nothing are one.
    """

    def __init__(self, loaded: LoadedModel, steering: Sequence[Intervention], count: int) -> None:
        for each in steering:
            if each.reads == "reference":
                raise ModelError(
                    f"answers cannot be written while {each.site.name} is replaced: no other model reads them meanwhile",
                    mend="Replace components in given answers, or choose add, ablate, erase or clamp",
                )
            if len(each) not in (1, count):
                raise ValueError(f"{len(each)} rows of an intervention at {each.site.name} for {count} answers")
        told = [each.digests() * (count if len(each) == 1 else 1) for each in steering]
        keys = list(zip(*told, strict=True))
        number = {key: variant for variant, key in enumerate(dict.fromkeys(keys))}
        self.variant_N = np.array([number[key] for key in keys])
        first_V = np.unique(self.variant_N, return_index=True)[1]
        self._device = loaded.device
        self._variants = intervene(loaded.model, [each if len(each) == 1 else each.rows(first_V) for each in steering])

    def around(self, jobs: Sequence[int], response_BT: torch.Tensor | None) -> Intervening:
        """The interventions on a pass over these answers."""
        variant_B = torch.from_numpy(self.variant_N[list(jobs)]).to(self._device)
        return self._variants.on_rows(variant_B, response_BT=response_BT)


def _distinct(prompts: Sequence[Sequence[int]], steered: _Steered | None) -> tuple[list[int], list[int]]:
    """The first answer of each prompt and way of steering (P), and which of these every answer begins as (N)."""
    variants = [0] * len(prompts) if steered is None else steered.variant_N.tolist()
    keys = list(zip(map(tuple, prompts), variants, strict=True))
    first = {key: job for job, key in reversed(list(enumerate(keys)))}
    unique = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    return [first[key] for key in unique], [unique[key] for key in keys]


def _prefilled(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, steered: _Steered | None, recorder: Recorder | None
) -> tuple[PromptCache, list[int]]:
    """A cache of the prompts, each once for each way it is steered, and the row of it that serves each answer."""
    jobs_P, row_N = _distinct(prompts, steered)

    def around(prompts: Sequence[int], response_BT: torch.Tensor | None) -> Intervening:
        assert steered is not None
        return steered.around([jobs_P[prompt] for prompt in prompts], response_BT)

    unique = [prompts[job] for job in jobs_P]
    return prefill(loaded, unique, recorder=recorder, around=None if steered is None else around), row_N


def _decode_unshared(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    book: Book,
    *,
    rows: int,
    sampling: Sampling,
    recorder: Recorder | None,
    hooks: Hooks,
    steered: _Steered | None,
) -> None:
    """Answer prompts that cannot share a cache, in batches one after the other."""
    row_N = _distinct(prompts, steered)[1]
    for start in range(0, len(prompts), rows):
        jobs = range(start, min(start + rows, len(prompts)))
        here = [prompts[job] for job in jobs]
        batch = UnsharedBatch(loaded, here)
        book.seat(np.array(jobs))
        longest = max(map(len, here))
        last_BT = torch.zeros(len(here), longest, dtype=torch.bool, device=loaded.device)
        last_BT[:, -1] = True
        hooks.fit(jobs, last_BT)
        if recorder is not None:
            rows_B = torch.tensor([row_N[job] for job in jobs], device=loaded.device)
            recorder.prompts(rows_B, torch.full_like(rows_B, longest - 1))
        hidden_BD = batch.start()
        decode(loaded, batch, book, sampling=sampling, recorder=recorder, hooks=hooks, hidden_BD=hidden_BD)


def _marks(loaded: LoadedModel) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens that end an answer, and tokens that never count as part of what is recorded of it."""
    generation = loaded.model.generation_config
    ends = end_token_ids(loaded.tokenizer, generation.eos_token_id if generation is not None else None)
    return ends, frozenset(loaded.tokenizer.all_special_ids)
