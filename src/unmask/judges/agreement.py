"""How far judges agree on the same answers, as a record for reports: pairs, alpha, and the answers they divide on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unmask.analysis.agreement import krippendorff_alpha, pair_agreements, widest_disagreements

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Answers listed of those on which judges differ most."""


def agreement_record(judgements: pd.DataFrame, answers: pd.DataFrame) -> list[dict[str, Any]]:
    """One record per rubric that more than one judge used: alpha over all, every pair, the widest disagreements with texts.

    `judgements` has response_id, judge, rubric, score; `answers` response_id, question, text.
    """
    texts = answers.set_index("response_id")
    found = []
    for rubric, part in judgements.groupby("rubric", sort=False):
        judges = list(dict.fromkeys(part["judge"]))
        if len(judges) < 2:
            continue
        wide = part.pivot(index="response_id", columns="judge", values="score")[judges]
        scores_JN = wide.to_numpy(dtype=float).T
        rows = widest_disagreements(scores_JN, most=SHOWN)
        found.append(
            {
                "rubric": str(rubric),
                "judges": judges,
                "scored": {judge: int(wide[judge].notna().sum()) for judge in judges},
                "answers": len(wide),
                "alpha": krippendorff_alpha(scores_JN),
                "pairs": [
                    {**pair._asdict(), "first": judges[pair.first], "second": judges[pair.second]}
                    for pair in pair_agreements(scores_JN)
                ],
                "disagreements": [_disagreement(wide.iloc[row], texts) for row in rows.tolist()],
            }
        )
    return found


def _disagreement(scores: pd.Series, texts: pd.DataFrame) -> dict[str, Any]:
    answer = texts.loc[scores.name]
    return {
        "response_id": str(scores.name),
        "question": str(answer["question"]),
        "text": str(answer["text"]),
        "scores": {str(judge): float(score) for judge, score in scores.dropna().items()},
    }
