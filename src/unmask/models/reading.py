"""Read texts with a model: what its sites show over the response tokens, and the log-probability of the response.

Texts that share a prompt share its key-value cache: the prompt is run once, and every response behind it. Texts that do not are
run whole. Where nothing needs logits, a pass ends after the deepest site.

Shapes: N texts, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch

from unmask.models.batches import plan_batches, plan_continuations
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.outlying import find_sinks
from unmask.models.passes import Readout, Text, read_continuations, read_whole
from unmask.models.pooling import Pool, Reading, joined
from unmask.models.prompt_cache import PromptCache, prefill

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel

__all__ = ["Prompts", "Readout", "Text", "read_behind", "read_texts", "read_with_each", "run_prompts"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that one model has run: their key-value caches, which serve any number of responses behind them."""

    row_of: dict[tuple[int, ...], int]
    cache: PromptCache
    pool: Pool
    """Holds what the last token of each prompt showed, where that is wanted."""


def read_texts(
    loaded: LoadedModel,
    texts: Sequence[Text],
    readout: Readout,
    *,
    token_budget: int = 2048,
    share_prompts: bool = True,
) -> Reading:
    """Read texts with one model, in batches of like length of at most `token_budget` padded tokens.

    A batch that does not fit into the device's memory is halved. Raises ModelError for a site that the model lacks.
    """
    prompts = list(dict.fromkeys(text.prompt_ids for text in texts))
    if share_prompts and worth_sharing(loaded, texts, prompts, readout):
        ready = run_prompts(loaded, prompts, readout, token_budget=token_budget)
        return read_behind(loaded, ready, texts, readout, token_budget=token_budget)
    plan = plan_batches([text.length for text in texts], token_budget=token_budget)

    def read(rows: Sequence[int]) -> Reading:
        return read_whole(loaded, [texts[row] for row in rows], readout)

    with loaded.active():
        return joined(_in_batches(plan, read), rows=len(texts))


def read_with_each(
    models: Mapping[str, LoadedModel], texts: Sequence[Text], readout: Readout, *, token_budget: int = 2048
) -> dict[str, Reading]:
    """Read texts with several models. What is a sink the first one says for all: every mean is over the same tokens."""
    readings: dict[str, Reading] = {}
    for reader, loaded in models.items():
        reading = readings[reader] = read_texts(loaded, texts, readout, token_budget=token_budget)
        if readout.sink_ratio is not None:
            texts = with_sinks_of(reading, texts, ratio=readout.sink_ratio)
            readout = replace(readout, sink_ratio=None)
    return readings


def with_sinks_of(reading: Reading, texts: Sequence[Text], *, ratio: float) -> list[Text]:
    """The texts, each with the tokens that are sinks as this reading saw them."""
    found = {
        site: find_sinks(seen.token_norms_M, reading.offsets, ratio=ratio).found_M
        for site, seen in reading.sites.items()
    }
    return [
        replace(text, sinks={site: found_M[start:stop] for site, found_M in found.items()})
        for text, (start, stop) in zip(texts, pairwise(reading.offsets), strict=True)
    ]


def worth_sharing(
    loaded: LoadedModel, texts: Sequence[Text], prompts: Sequence[tuple[int, ...]], readout: Readout
) -> bool:
    """Whether each prompt is better run once: `sharing_pays`, and the model and what is wanted of it allow it.

    An attention pattern needs whole texts, and a past that is more than keys and values cannot be shared.
    """
    if readout.needs_whole_texts or not keeps_keys_and_values(loaded.model.config):
        return False
    responses = sum(len(text.response_ids) for text in texts)
    return sharing_pays(
        shared=sum(len(prompt) for prompt in prompts) + responses,
        whole=sum(text.length for text in texts),
        depth=readout.reading_depth(loaded.num_layers) / loaded.num_layers,
    )


def sharing_pays(*, shared: int, whole: int, depth: float) -> bool:
    """Whether `shared` tokens run through all layers cost clearly less than `whole` ones run through that share of them."""
    return shared < 0.95 * depth * whole


def run_prompts(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], readout: Readout, *, token_budget: int = 2048
) -> Prompts:
    """Run unique prompts once. Where a batch does not fit into memory, all is tried again with half the token budget."""

    def run(budget: int) -> Prompts:
        pool = readout.pool(loaded, len(prompts))
        cache = prefill(loaded, prompts, token_budget=budget, recorder=pool)
        return Prompts({prompt: row for row, prompt in enumerate(prompts)}, cache, pool)

    return halved(run, token_budget)


def read_behind(
    loaded: LoadedModel, prompts: Prompts, texts: Sequence[Text], readout: Readout, *, token_budget: int = 2048
) -> Reading:
    """Read the responses of `texts` behind prompts that were run before: only response tokens are run."""
    filled = [row for row, text in enumerate(texts) if text.response_ids]
    if not filled:
        return read_texts(loaded, texts, readout, share_prompts=False)
    lengths = ([len(texts[row].prompt_ids) for row in filled], [len(texts[row].response_ids) for row in filled])
    plan = [[filled[place] for place in batch] for batch in plan_continuations(*lengths, token_budget=token_budget)]
    rows_N = [prompts.row_of[text.prompt_ids] for text in texts]
    behind = readout.without("prompt_last")

    def read(rows: Sequence[int]) -> Reading:
        return read_continuations(
            loaded, prompts.cache, [rows_N[row] for row in rows], [texts[row] for row in rows], behind
        )

    with loaded.active():
        reading = joined(_in_batches(plan, read), rows=len(texts))
    return reading if behind == readout else reading.with_prompt_lasts(prompts.pool, rows_N)


def _in_batches(
    plan: Sequence[Sequence[int]], read: Callable[[Sequence[int]], Reading]
) -> list[tuple[Sequence[int], Reading]]:
    """Read every batch; one that does not fit into the device's memory is cut in half, down to single rows."""
    waiting, found = list(plan)[::-1], []
    while waiting:
        rows = waiting.pop()
        try:
            found.append((rows, read(rows)))
        except RuntimeError as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
            half = len(rows) // 2
            waiting += [rows[half:], rows[:half]]
            _forget()
    return found


def halved(run: Callable[[int], T], size: int) -> T:
    """`run(size)`; where the device's memory does not hold it, all of it again with half the size, down to 1."""
    while True:
        try:
            return run(size)
        except RuntimeError as error:
            if not out_of_memory(error) or size < 2:
                raise
        size //= 2
        _forget()


def out_of_memory(error: Exception) -> bool:
    """Whether a device (torch.OutOfMemoryError) or the CPU's allocator ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _forget() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
