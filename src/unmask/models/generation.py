"""Answer prompts by sampling, each from its own random numbers, and let a recorder see the answers while they are written.

A row draws one uniform number per step from its own seed and takes the token where the filtered distribution's cumulative sum
passes it. Its answer depends on its prompt, its seed and the model, and on the rows beside it only through rounding: where two
tokens are equal to about 1e-7, or the draw falls on the edge between them, other company can tip the choice. The same plan of
work gives the same answers.

Shapes: N answers, B rows, P prompts, A answers that begin, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.models.decoding import FREE, Book, Hooks, decode
from unmask.models.intervening import Addition
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.packed_weights import packed_weights
from unmask.models.picking import pick_tokens
from unmask.models.prompt_cache import Around, PromptCache, Recorder, prefill
from unmask.models.prompts import end_token_ids
from unmask.models.running_batch import RunningBatch, UnsharedBatch

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.records import Sampling, Site, StopReason

__all__ = ["Generated", "Recorder", "Steering", "generate", "pick_tokens"]


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: token ids without the end mark, and why it stopped."""

    token_ids: tuple[int, ...]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Steering:
    """What is added to each row while it is answered: `delta_BD` at `site`, over all positions."""

    site: Site
    delta_BD: np.ndarray


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    steering: Steering | None = None,
    recorder: Recorder | None = None,
    prompt_cache: PromptCache | None = None,
    prompt_rows: Sequence[int] | None = None,
    rows: int = 64,
) -> list[Generated]:
    """Answer `prompts` (token ids), one seed each, optionally steered. Returns one answer per prompt, in order.

    Prompts that are equal (and equally steered) are run once; with `prompt_cache` none is run, and `prompt_rows` says which of
    the cached prompts each of `prompts` is (by default they are the same). At most `rows` are answered at a time: who is done
    makes room for the next. The recorder sees every response token but the end mark, also the last one of an answer that is cut.

    Raises ValueError for a prompt cache together with steering, which is felt from the prompt on.
    """
    if prompt_cache is not None and steering is not None:
        raise ValueError("a prompt cache holds prompts that were not steered")
    if not prompts:
        return []
    ends, special = _marks(loaded)
    uniforms_NT = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
    book = Book(uniforms_NT, ends=ends, special=special, reads_last=recorder is not None)
    around = None if steering is None else _steered(loaded, steering.site, steering.delta_BD)
    with loaded.active(), packed_weights(loaded.model), Hooks(loaded, recorder, around) as hooks:
        if not keeps_keys_and_values(loaded.model.config):
            _decode_unshared(loaded, prompts, book, rows=rows, sampling=sampling, recorder=recorder, hooks=hooks)
        else:
            if prompt_cache is None:
                prompt_cache, prompt_rows = _prefilled(loaded, prompts, steering=steering, recorder=recorder)
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


def _prefilled(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    steering: Steering | None,
    recorder: Recorder | None,
) -> tuple[PromptCache, list[int]]:
    """A cache of the prompts, each once for each way it is steered, and the row of it that serves each answer."""
    deltas = [b"" if steering is None else steering.delta_BD[job].tobytes() for job in range(len(prompts))]
    keys = [(tuple(prompt), delta) for prompt, delta in zip(prompts, deltas, strict=True)]
    first = {key: job for job, key in reversed(list(enumerate(keys)))}
    unique = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    jobs_P = [first[key] for key in unique]
    around = None if steering is None else _steered(loaded, steering.site, steering.delta_BD[jobs_P])
    cache = prefill(loaded, [prompts[job] for job in jobs_P], recorder=recorder, around=around)
    return cache, [unique[key] for key in keys]


def _decode_unshared(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    book: Book,
    *,
    rows: int,
    sampling: Sampling,
    recorder: Recorder | None,
    hooks: Hooks,
) -> None:
    """Answer prompts that cannot share a cache, in batches one after the other."""
    unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    for start in range(0, len(prompts), rows):
        jobs = range(start, min(start + rows, len(prompts)))
        here = [prompts[job] for job in jobs]
        batch = UnsharedBatch(loaded, here)
        book.seat(np.array(jobs))
        hooks.fit(jobs)
        if recorder is not None:
            rows_B = torch.tensor([unique[tuple(prompt)] for prompt in here], device=loaded.device)
            recorder.prompts(rows_B, torch.full_like(rows_B, max(map(len, here)) - 1))
        hidden_BD = batch.start()
        decode(loaded, batch, book, sampling=sampling, recorder=recorder, hooks=hooks, hidden_BD=hidden_BD)


def _steered(loaded: LoadedModel, site: Site, delta_ND: np.ndarray) -> Around:
    return lambda rows: Addition(loaded.model, site, torch.from_numpy(delta_ND[list(rows)]))


def _marks(loaded: LoadedModel) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens that end an answer, and tokens that never count as part of what is recorded of it."""
    generation = loaded.model.generation_config
    ends = end_token_ids(loaded.tokenizer, generation.eos_token_id if generation is not None else None)
    return ends, frozenset(loaded.tokenizer.all_special_ids)
