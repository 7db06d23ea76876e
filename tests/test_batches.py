"""Batches hold every row once within the budget, in rising order of length, and spend little on padding."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unmask.models import batches
from unmask.models.batches import CACHED, MOST_PADDING, plan_batches, plan_continuations


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    planned = plan_batches(lengths, token_budget=budget)
    assert sorted(row for batch in planned for row in batch) == list(range(len(lengths)))
    for batch in planned:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    in_order = [lengths[row] for batch in planned for row in batch]
    assert in_order == sorted(lengths)


def padded(lengths: list[int], planned: list[list[int]]) -> int:
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in planned)


@given(st.lists(st.integers(8, 400), min_size=1, max_size=300), st.integers(400, 4096))
def test_at_most_a_twentieth_is_padding(lengths: list[int], budget: int) -> None:
    planned = plan_batches(lengths, token_budget=budget)
    assert 1 - sum(lengths) / padded(lengths, planned) <= MOST_PADDING


def test_no_other_cut_is_cheaper() -> None:
    """Against every way to cut eight rows."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = np.sort(rng.integers(1, 100, 8))
        price, budget = float(rng.integers(1, 80)), 250
        found = batches._cuts(lengths, budget, price)

        def cost(cuts: list[tuple[int, int]], lengths: np.ndarray = lengths, price: float = price) -> float:
            return sum((stop - start) * int(lengths[stop - 1]) + price for start, stop in cuts)

        every = []
        for count in range(8):
            for inner in combinations(range(1, 8), count):
                edges = [0, *inner, 8]
                cuts = list(pairwise(edges))
                if all(b - a == 1 or (b - a) * lengths[b - 1] <= budget for a, b in cuts):
                    every.append(cost(cuts))
        assert cost(found) == min(every)


def test_rows_of_one_length_make_full_batches() -> None:
    assert [len(batch) for batch in plan_batches([10] * 25, token_budget=100)] in ([10, 10, 5], [5, 10, 10])


def test_no_rows_make_no_batches() -> None:
    assert plan_batches([], token_budget=100) == []


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 30)), max_size=60), st.integers(30, 200))
def test_what_stands_behind_prompts_holds_so_many_of_their_keys_at_once(
    rows: list[tuple[int, int]], budget: int
) -> None:
    prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
    planned = plan_continuations(prompts, responses, token_budget=budget)
    assert [row for batch in planned for row in batch] == [
        row for batch in plan_batches(responses, token_budget=budget) for row in batch
    ]
    for batch in planned:
        cached = len(batch) * (max(prompts[row] for row in batch) + max(responses[row] for row in batch))
        assert len(batch) == 1 or cached <= CACHED * budget


def test_responses_behind_short_prompts_are_cut_by_their_own_length() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(20, 60, 200)]
    assert plan_continuations([30] * 200, lengths, token_budget=512) == plan_batches(lengths, token_budget=512)
