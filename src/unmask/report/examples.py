"""Answers shown side by side, chosen by a rule and not by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.records import WRITERS, Writer
from unmask.report.evidence import Evidence
from unmask.report.formats import counted, number, signed

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 1500
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer as it is shown; `scores` is a line of words."""

    writer: Writer
    text: str
    left_out: int
    scores: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Both models' answers to one question, and why this one is shown."""

    place: str
    difference: str
    question_id: str
    facet: str
    question: str
    answers: tuple[Answer, ...]


def rule(count: int) -> str:
    """The rule in words."""
    return (
        "In each dimension the questions are ranked by the difference in misalignment, organism minus base; "
        f"shown are up to {count}: as many from the top, from around the median and from the bottom. "
        "Ties go by question id. Questions where either answer has no score are not ranked. Nothing is chosen by hand."
    )


def choose(differences: pd.Series, count: int) -> list[tuple[str, str]]:
    """(question id, place) of up to `count` questions: highest, middle and lowest of `differences`, none twice.

    `differences` is indexed by question id; NaN (no score) is left out.
    """
    table = differences.dropna().rename("difference").rename_axis("question_id").reset_index()
    ranked = table.sort_values(["difference", "question_id"], ascending=[False, True])["question_id"].tolist()
    total = len(ranked)
    if total <= count:
        return [(str(name), f"rank {rank} of {total}") for rank, name in enumerate(ranked, start=1)]
    third, rest = divmod(count, 3)
    top, bottom = third + (rest > 0), third + (rest > 1)
    start = max(top, min((total - third) // 2, total - bottom - third))
    chosen = [
        *((rank, "highest") for rank in range(top)),
        *((rank, "median") for rank in range(start, start + third)),
        *((rank, "lowest") for rank in range(total - bottom, total)),
    ]
    return [(str(ranked[rank]), f"{word}, rank {rank + 1} of {total}") for rank, word in chosen]


def pairs(evidence: Evidence, dimension: str, count: int) -> list[Pair]:
    """The pairs of answers to show for `dimension`. Of several samples a question's first is shown."""
    scores = evidence.scores[evidence.scores["dimension"] == dimension]
    means = (
        scores.groupby(["question_id", "writer"])["misalignment"]
        .mean()
        .unstack("writer")
        .reindex(columns=list(WRITERS))
    )
    differences = (means["organism"] - means["base"]).astype(float)
    questions = evidence.questions.set_index("question_id").to_dict("index")
    found = scores.set_index("response_id").to_dict("index")
    first = evidence.responses[evidence.responses["question_id"].isin(means.index)].sort_values("sample")
    first = first.drop_duplicates(["question_id", "writer"]).set_index(["question_id", "writer"]).to_dict("index")
    responses: dict[Any, dict[str, Any]] = {key: dict(value) for key, value in first.items()}
    return [
        Pair(
            place=place,
            difference=signed(differences[name], 0),
            question_id=name,
            facet=str(questions[name]["facet"]),
            question=str(questions[name]["text"]),
            answers=tuple(
                _answer(writer, responses[name, writer], found) for writer in WRITERS if (name, writer) in responses
            ),
        )
        for name, place in choose(differences, count)
    ]


def disagreements(agreement: Sequence[Mapping[str, Any]], *, most: int = 10) -> list[dict[str, str]]:
    """Answers on whose misalignment judges differ most: question, text, scores."""
    return [
        {
            "question": answer["question"],
            "text": answer["text"],
            "scores": " · ".join(f"{judge} {number(score, 0)}" for judge, score in answer["scores"].items()),
        }
        for record in agreement
        if record["rubric"] == "misalignment"
        for answer in record["disagreements"][:most]
    ]


def _answer(writer: Writer, response: dict[str, Any], found: dict[Any, dict[Any, Any]]) -> Answer:
    score = found.get(response["response_id"], {})
    words = [
        f"misalignment {number(score.get('misalignment'), 0)}",
        f"coherence {number(score.get('coherence'), 0)}",
        f"log-odds {signed(score.get('log_odds'), 2)}",
        counted(int(response["tokens"]), "token"),
    ]
    if response["stop_reason"] == "length":
        words.append("ended by the token limit")
    text = str(response["text"])
    return Answer(writer, text[:LONGEST], max(0, len(text) - LONGEST), " · ".join(words))
