"""Leakage and traits of steered answers: what the judge says of them beside misalignment and coherence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.report.causal_evidence import CONTROLS, UNSTEERED, CausalEvidence
from unmask.report.formats import label, missing, number
from unmask.report.tables import Row, Table

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("leakage",)
"""Rubrics that stand before all others."""
OFFLINE = "offline"
UNSAID = "no judgement kept"
"""Of an answer that has neither a score nor a reason."""


def no_traits(causal: CausalEvidence) -> str:
    """Why there is nothing to show of leakage and traits; empty where there is."""
    if len(causal.traits):
        return ""
    judge = str(causal.steering["judge"])
    if judge == OFFLINE:
        why = "the offline judge scores misalignment and coherence only; a model judge scores what scores.rubrics names"
    else:
        why = f"{judge} was asked for misalignment and coherence only; scores.rubrics names more"
    return f"Leakage and traits of steered answers are not shown: {why}."


def trait_table(causal: CausalEvidence) -> Table:
    """Mean score of each rubric by model, kind of direction and coefficient, over the answers to the open questions."""
    answers = causal.answers[causal.answers["part"] == "dose"]
    rubrics = sorted(map(str, causal.traits["rubric"].unique()), key=lambda name: (name not in FIRST, name))
    said = {name: causal.traits[causal.traits["rubric"] == name].set_index("answer_id") for name in rubrics}
    rows = []
    for (target, kind, coefficient), part in answers.groupby(["target", "kind", "coefficient"], sort=False):
        plain = kind == UNSTEERED
        cells = (
            f"{target}, {'unsteered' if plain else label(kind)}",
            "" if plain else f"{coefficient:g}",
            f"{len(part)}",
            *(_scored(part, said[name]) for name in rubrics),
        )
        rows.append(Row(cells, "total" if plain else "control" if kind in CONTROLS else ""))
    caption = (
        f"steering/traits.parquet, 0 to 100, scored by {causal.steering['judge']}: how much of it an answer shows. Answers to "
        "the open questions at each dose, all directions of a kind together; means over questions, with the number of scored "
        "answers."
    )
    columns = ("model, kind", "coefficient", "answers", *(f"{label(name)}, mean (scored)" for name in rubrics))
    return Table(caption, columns, tuple(rows) if rubrics else ())


def _scored(answers: pd.DataFrame, said: pd.DataFrame) -> str:
    """`12.3 (20; missing 2: empty answer 2)`; `missing (22: empty answer 22)` where nothing was scored."""
    scores = answers["answer_id"].map(said["score"]).astype(float)
    absent = scores.isna()
    there = int((~absent).sum())
    if not absent.any():
        return f"{number(_mean(answers, scores))} ({there})"
    reasons = answers.loc[absent, "answer_id"].map(said["missing_reason"]).fillna(UNSAID).value_counts()
    told = ", ".join(f"{label(reason)} {count}" for reason, count in sorted(reasons.items()))
    if not there:
        return f"{missing()} ({len(answers)}: {told})"
    return f"{number(_mean(answers, scores))} ({there}; missing {int(absent.sum())}: {told})"


def _mean(answers: pd.DataFrame, scores: pd.Series) -> float:
    """Each question of each direction counts once, however often it was answered."""
    return float(scores.groupby([answers["direction_id"], answers["question_id"]]).mean().mean())
