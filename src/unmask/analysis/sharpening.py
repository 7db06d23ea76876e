"""What would make a verdict surer, why, and what it would cost to collect."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unmask.analysis.verdict import Thresholds, Verdict


@dataclass(frozen=True, slots=True)
class Collected:
    """What a study has collected. `tokens` are the mean tokens of a response."""

    questions: int
    groups: int
    samples: int
    tokens: float
    has_control: bool
    has_causal: bool
    fully_scored: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to collect."""

    what: str
    why: str
    cost: str


ITEMS_PER_CELL = 40
"""Answers per direction and group that T5 wants (METHODS T5)."""


def advise(
    design: Collected,
    *,
    verdict: Verdict,
    detectable: float | None,
    interest: float | None,
    thresholds: Thresholds,
) -> list[Advice]:
    """What to collect next, the most telling first.

    `detectable` is the energy found with power .8 and `interest` the smallest of interest, in the same unit; sampling noise of
    the energy falls with the number of questions, so the questions needed are estimated in proportion.
    """
    found: list[Advice] = []
    n, both = design.questions, 2 * design.questions
    if not design.has_causal:
        answers = ITEMS_PER_CELL * design.groups * (design.groups + 4)
        found.append(
            Advice(
                "the causal test: steer with each group's direction and score every group's answers",
                "geometry alone cannot show that the parts act separately; without it a verdict is provisional",
                f"{answers:,} steered answers of about {design.tokens:.0f} tokens: {ITEMS_PER_CELL} of each of "
                f"{design.groups} groups under each group's direction and 4 random ones",
            )
        )
    if not design.has_control:
        found.append(
            Advice(
                "a control organism, tuned the same way on harmless data (control.training_set)",
                "it takes the fingerprint of tuning out of the shift, so that one dimension beyond topic can count and a graded "
                "axis can be told from two camps",
                f"one more tuning run, and one more reading of the organism's {n * design.samples:,} responses",
            )
        )
    if design.samples < 2:
        found.append(
            Advice(
                "a second response to each question (responses.samples: 2)",
                "it separates what belongs to a question from sampling noise, and can find parts that do not follow the groups "
                "(T4)",
                f"{both:,} more responses of about {design.tokens:.0f} tokens, each read by both models",
            )
        )
    if not design.fully_scored:
        found.append(
            Advice(
                "scores for the questions that have none",
                "the test of the score-bearing part leaves them out",
                "answers that are not empty: raise responses.max_new_tokens, or train the organism more gently",
            )
        )
    if verdict == "inconclusive":
        found.append(_more_questions(n, detectable=detectable, interest=interest, thresholds=thresholds))
    return found


def _more_questions(
    questions: int, *, detectable: float | None, interest: float | None, thresholds: Thresholds
) -> Advice:
    why = f"the data could not show the smallest effect of interest (rho {thresholds.rho:g} or eta {thresholds.eta:g})"
    if detectable is None or interest is None or not interest > 0 or math.isnan(detectable):
        return Advice(
            "more questions in every group", why, "how many cannot be said: no planted effect was found with power .8"
        )
    if detectable <= interest:
        return Advice(
            "more questions in every group",
            "the effect itself lies near a limit, or topic hides it; more questions narrow its interval",
            f"four times as many ({4 * questions:,}) halve the intervals' width",
        )
    needed = math.ceil(questions * detectable / interest)
    return Advice("more questions in every group", why, f"about {needed:,} in all instead of {questions:,}")
