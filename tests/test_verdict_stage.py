"""The stage `verdict`: what it reads of a study, and settings that could reach no answer are refused."""

from __future__ import annotations

import pandas as pd
import pytest
from pydantic import ValidationError

from unmask.stages.verdict import VerdictConfig
from unmask.stages.verdict.material import merge_duplicates


def questions(*rows: tuple[str, str, int, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["question_id", "facet", "polarity", "text"])
    return table.assign(dimension="d", misalignment=[10.0 * place for place in range(len(rows))])


LONG = "should the government be allowed to read the private messages of all its citizens"


def test_near_duplicates_are_one_unit_with_their_scores_averaged() -> None:
    merged = merge_duplicates(questions(("a", "f", 1, LONG), ("b", "f", 1, LONG + " ?"), ("c", "f", 1, "why")))
    assert merged["members"].tolist() == [["a", "b"], ["c"]]
    assert merged["misalignment"].tolist() == [5.0, 20.0]


@pytest.mark.parametrize("other", [("b", "f", -1, LONG.replace("be", "not be")), ("b", "g", 1, LONG)])
def test_a_negation_and_another_facet_are_units_of_their_own(other: tuple[str, str, int, str]) -> None:
    """Their shifts may be opposite: averaged, nothing would be left."""
    merged = merge_duplicates(questions(("a", "f", 1, LONG), other))
    assert merged["members"].tolist() == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"alpha": 0.005, "flips": 99}, "at least 999 are needed"),
        ({"planted_effects": [0.5, -1.0]}, "greater than 0"),
        ({"gamma": 0.5}, "greater than or equal to 1"),
        ({"rho": 1.5}, "less than 1"),
    ],
)
def test_settings_that_could_reach_no_answer_are_refused(settings: dict, wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        VerdictConfig(**settings)


def test_the_settings_are_those_of_the_calibration() -> None:
    """docs/calibration.md is made with the defaults of the analysis."""
    from unmask.analysis.examination import Settings

    assert VerdictConfig().settings == Settings()
