"""Cut rows into batches of like length, so that little is spent on padding and little on starting batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_PADDING = 0.05
"""Share of padded tokens that may be padding, where batches of at least two rows can hold it."""
CACHED = 16
"""Token budgets of keys and values that the rows of a batch may hold."""
_START = 48.0
"""What starting a batch costs, in tokens: weights are read and small operations dispatched once a batch whatever its size. On
two CPU cores SmolLM2 takes some 65 ms a batch and 1.35 ms a token."""


def plan_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Batches of rows, shortest first: each at most `token_budget` padded tokens or one row.

    Of all ways to cut the rows, sorted by length, the one with the least padded tokens plus a fixed price per batch (dynamic
    programming over the sorted lengths). The price is halved until padding is at most MOST_PADDING of all padded tokens.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    sorted_N = np.array([lengths[row] for row in order], dtype=np.int64)
    price = _START
    cuts = _cuts(sorted_N, token_budget, price)
    while padding(sorted_N, cuts) > MOST_PADDING and price > 1:
        price /= 2
        cuts = _cuts(sorted_N, token_budget, price)
    return [order[start:stop] for start, stop in cuts]


def plan_continuations(prompts: Sequence[int], responses: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Batches of rows whose responses are run behind prompts that were run before, both given by their lengths.

    As `plan_batches` of the responses, cut further where the copies of the prompts' keys and values would be too long:
    prompt and response, padded, are at most CACHED x `token_budget` tokens a batch, or one row.
    """
    plan = []
    for batch in plan_batches(responses, token_budget=token_budget):
        start = longest = 0
        for place, row in enumerate(batch):
            longest = max(longest, prompts[row])
            if place > start and (place - start + 1) * (longest + responses[row]) > CACHED * token_budget:
                plan.append(batch[start:place])
                start, longest = place, prompts[row]
        plan.append(batch[start:])
    return plan


def padding(sorted_N: np.ndarray, cuts: Sequence[tuple[int, int]]) -> float:
    """Share of padded tokens that is padding, of rows in rising order cut into half-open ranges."""
    padded = sum((stop - start) * int(sorted_N[stop - 1]) for start, stop in cuts)
    return 1 - int(sorted_N.sum()) / padded if padded else 0.0


def _cuts(sorted_N: np.ndarray, token_budget: int, price: float) -> list[tuple[int, int]]:
    best = np.zeros(len(sorted_N) + 1)
    start_of = np.zeros(len(sorted_N) + 1, dtype=np.int64)
    for stop in range(1, len(sorted_N) + 1):
        longest = max(int(sorted_N[stop - 1]), 1)
        first = max(stop - max(token_budget // longest, 1), 0)
        starts = np.arange(first, stop)
        costs = best[first:stop] + (stop - starts) * longest + price
        chosen = int(costs.argmin())
        best[stop], start_of[stop] = costs[chosen], first + chosen
    cuts = []
    stop = len(sorted_N)
    while stop:
        cuts.append((int(start_of[stop]), stop))
        stop = int(start_of[stop])
    return cuts[::-1]
