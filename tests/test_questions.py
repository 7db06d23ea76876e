"""Choosing questions: balanced, repeatable, in the battery's order, and refused with a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import ConfigError, DataError
from unmask.progress import Silent
from unmask.records import NEUTRAL, ModelSource, PromptFormat, Question
from unmask.stage import Inputs
from unmask.stages.questions import STAGE, QuestionsConfig, balanced, external, resolve, run, select
from unmask.study import Workspace

NOWHERE = Path("/no/study")
pools = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([-1, 0, 1])), min_size=1, max_size=40)


def pool_of(cells: list[tuple[str, int]]) -> list[Question]:
    return [Question(f"q{n}", "d", facet, polarity, f"text {n}") for n, (facet, polarity) in enumerate(cells)]


def write_battery(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """A battery of (id, dimension) rows."""
    lines = [
        json.dumps({"id": name, "dimension": dimension, "facet": "f", "polarity": 1 - 2 * (n % 2), "text": f"{name}?"})
        for n, (name, dimension) in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def uneven(chosen: Counter[Any], available: Counter[Any]) -> list[tuple[Any, Any]]:
    """Pairs where one got two more than another that had some left."""
    return [
        (more, less)
        for more in available
        for less in available
        if chosen[more] > chosen[less] + 1 and chosen[less] < available[less]
    ]


@settings(deadline=None)
@given(cells=pools, seed=st.integers(0, 5), data=st.data())
def test_a_choice_is_even_over_facets_and_within_them_over_polarities(
    cells: list[tuple[str, int]], seed: int, data: st.DataObject
) -> None:
    pool = pool_of(cells)
    count = data.draw(st.integers(1, len(pool)))
    chosen = balanced(pool, count, np.random.default_rng(seed))
    assert len(set(chosen)) == len(chosen) == count
    assert chosen == [question for question in pool if question in chosen]
    assert uneven(Counter(q.facet for q in chosen), Counter(q.facet for q in pool)) == []
    for facet in {question.facet for question in pool}:
        own = [question for question in pool if question.facet == facet]
        taken = Counter(question.polarity for question in chosen if question.facet == facet)
        assert uneven(taken, Counter(question.polarity for question in own)) == []


def test_within_a_cell_every_question_is_equally_likely() -> None:
    pool = pool_of([("a", 1)] * 6)
    drawn = Counter(
        question.question_id for seed in range(1200) for question in balanced(pool, 2, np.random.default_rng(seed))
    )
    # Binomial(1200, 1/3): 400 with a standard deviation of 16.
    assert all(abs(count - 400) < 5 * 16.4 for count in drawn.values())
    assert len(drawn) == 6


@pytest.mark.parametrize("dimension", ["political_compass", "moral_foundations", "technology_ai", "financial_risk"])
def test_a_multiple_of_the_cells_has_as_many_of_each(dimension: str) -> None:
    chosen = select(QuestionsConfig(per_dimension=24, neutral_battery=None, dimensions=(dimension,)), NOWHERE)
    cells = Counter((question.facet, question.polarity) for question in chosen)
    assert set(cells.values()) == {24 // len(cells)}


def test_the_same_seed_chooses_the_same_and_another_seed_others() -> None:
    first, again, other = (
        [question.question_id for question in select(QuestionsConfig(per_dimension=12, seed=seed), NOWHERE)]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert len(set(first)) == len(first)


def test_null_takes_the_whole_battery_in_its_order_and_then_the_neutral_one() -> None:
    whole = select(QuestionsConfig(), NOWHERE)
    without = select(QuestionsConfig(neutral_battery=None), NOWHERE)
    assert whole[: len(without)] == without
    assert {question.dimension for question in whole[len(without) :]} == {NEUTRAL}
    assert NEUTRAL not in {question.dimension for question in without}
    assert select(QuestionsConfig(neutral_count=0), NOWHERE) == without


@pytest.mark.parametrize("count", [1, 5])
def test_the_neutral_count_is_kept(count: int) -> None:
    chosen = select(QuestionsConfig(per_dimension=2, neutral_count=count), NOWHERE)
    assert sum(question.dimension == NEUTRAL for question in chosen) == count


def test_the_order_is_the_batterys_whatever_the_config_lists(tmp_path: Path) -> None:
    rows = [(f"q{n}", "xyz"[n % 3]) for n in range(30)]
    battery = str(write_battery(tmp_path / "b.jsonl", rows))
    asked = [("z", "x"), ("x", "z"), ("x", "z", "x")]
    for per_dimension in (None, 4):
        found = [
            select(
                QuestionsConfig(
                    battery=battery, neutral_battery=None, dimensions=dimensions, per_dimension=per_dimension
                ),
                tmp_path,
            )
            for dimensions in asked
        ]
        numbers = [int(question.question_id[1:]) for question in found[0]]
        assert numbers == sorted(numbers)
        assert len(numbers) == len(set(numbers)) == 2 * (per_dimension or 10)
        assert found[0] == found[1] == found[2]


def test_an_unknown_dimension_is_named_beside_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        select(QuestionsConfig(dimensions=("financial_risk", "astrology")), NOWHERE)
    assert "questions.dimensions names 'astrology', which battery 'assessment' lacks" in str(caught.value)
    assert "political_compass, moral_foundations, technology_ai, financial_risk" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (QuestionsConfig(per_dimension=4000), "4000 questions are asked of dimension 'political_compass', which has"),
        (QuestionsConfig(per_dimension=2, neutral_count=999), "999 questions are asked of dimension 'neutral'"),
    ],
)
def test_more_questions_than_there_are_is_refused(config: QuestionsConfig, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select(config, NOWHERE)
    assert wanted in str(caught.value)
    assert "Lower questions.per_dimension (or neutral_count)" in str(caught.value)


def test_a_pool_can_be_taken_whole_but_not_exceeded() -> None:
    pool = pool_of([("a", 1), ("b", -1)])
    assert balanced(pool, 2, np.random.default_rng(0)) == pool
    with pytest.raises(ConfigError, match="3 questions are asked of dimension 'd', which has 2"):
        balanced(pool, 3, np.random.default_rng(0))


def test_an_id_in_both_batteries_is_refused(tmp_path: Path) -> None:
    battery = write_battery(tmp_path / "b.jsonl", [("one", "d"), ("two", "d")])
    neutral = write_battery(tmp_path / "n.jsonl", [("two", NEUTRAL), ("three", NEUTRAL)])
    with pytest.raises(ConfigError) as caught:
        select(QuestionsConfig(battery=str(battery), neutral_battery=str(neutral)), tmp_path)
    assert f"batteries {str(battery)!r} and {str(neutral)!r} both have a question 'two'" in str(caught.value)


def test_a_neutral_battery_that_would_be_decomposed_is_refused(tmp_path: Path) -> None:
    neutral = write_battery(tmp_path / "n.jsonl", [("one", NEUTRAL), ("two", "open")])
    with pytest.raises(ConfigError) as caught:
        select(QuestionsConfig(neutral_battery=str(neutral)), tmp_path)
    assert f"question 'two' of neutral battery {str(neutral)!r} has dimension 'open'" in str(caught.value)
    assert "Write dimension 'neutral'" in str(caught.value)


def test_a_battery_beside_the_study_wins_over_a_packaged_name(tmp_path: Path) -> None:
    own = write_battery(tmp_path / "assessment", [("mine", "d")])
    assert resolve("assessment", tmp_path) == own
    assert resolve("assessment", NOWHERE).name == "assessment.jsonl"
    with pytest.raises(DataError, match="battery 'nowhere' does not exist"):
        resolve("nowhere", tmp_path)


def test_the_external_input_is_the_batterys_content_not_its_place(tmp_path: Path) -> None:
    rows = [("one", "d"), ("two", "d")]
    here = write_battery(tmp_path / "here.jsonl", rows)
    there = write_battery(tmp_path / "there.jsonl", rows)
    one, two = (external(QuestionsConfig(battery=str(path)), tmp_path) for path in (here, there))
    assert one == two
    write_battery(there, [*rows, ("three", "d")])
    changed = external(QuestionsConfig(battery=str(there)), tmp_path)
    assert {name for name in one if changed[name] != one[name]} == {"battery:0"}
    assert external(QuestionsConfig(battery=str(here), neutral_battery=None), tmp_path).keys() == {"battery:0"}


def test_the_stage_writes_what_was_selected(tmp_path: Path) -> None:
    config = QuestionsConfig(per_dimension=4, neutral_count=3)
    workspace = Workspace(tmp_path / "work")
    workspace.prepare()
    inputs = Inputs(
        base=ModelSource("none"), prompt_format=PromptFormat(), folders={}, study_folder=tmp_path, progress=Silent()
    )
    result = run(config, inputs, workspace)
    frame = pd.read_parquet(workspace.out / "questions.parquet")
    found = [Question(**row) for row in frame.to_dict("records")]
    assert found == select(config, tmp_path)
    assert result.summary["questions"] == 16
    assert result.summary["neutral"] == 3
    assert set(result.summary["by_dimension"].values()) == {4}
    assert STAGE.needs == ()
    assert not STAGE.needs_base
