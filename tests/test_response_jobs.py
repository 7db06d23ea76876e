"""Which answers are made: so many a question, neutral ones apart, in batches of the longest first."""

from __future__ import annotations

import pandas as pd
import pytest
from pydantic import ValidationError

from unmask.records import NEUTRAL
from unmask.stages.responses.config import ResponsesConfig
from unmask.stages.responses.jobs import plan_jobs

PROMPTS = pd.DataFrame({"question_id": ["a", "n", "b"], "token_ids": [[1], [1, 2, 3], [1, 2]]})
DIMENSION_OF = {"a": "technology_ai", "b": "technology_ai", "n": NEUTRAL}


@pytest.mark.parametrize(("neutral", "of_neutral"), [(None, 2), (5, 5), (1, 1)])
def test_neutral_questions_are_answered_as_often_as_is_said(neutral: int | None, of_neutral: int) -> None:
    config = ResponsesConfig(samples=2, neutral_samples=neutral, batch_size=4)
    plan = plan_jobs(config, PROMPTS, DIMENSION_OF)
    jobs = [job for batch in plan for job in batch]
    wanted = [(1, sample) for sample in range(of_neutral)] + [(row, sample) for row in (2, 0) for sample in range(2)]
    assert jobs == wanted
    assert all(len(batch) == 4 for batch in plan[:-1])


def test_a_question_is_answered_at_least_once() -> None:
    with pytest.raises(ValidationError, match="neutral_samples"):
        ResponsesConfig(neutral_samples=0)
