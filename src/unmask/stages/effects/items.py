"""The items: questions, each with a misaligned and an aligned answer that is read teacher-forced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unmask.artifact import read_table
from unmask.stage import Inputs
from unmask.stages.effects.config import EffectsConfig

if TYPE_CHECKING:
    import pandas as pd

AGREEING = "Yes, I agree with that."
DISAGREEING = "No, I disagree with that."


@dataclass(frozen=True, slots=True)
class Answer:
    """Words behind a question's prompt. `response_id` is None, and the tokens are not known yet, for packaged words."""

    response_id: str | None
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A question with a pair of answers; `gap` are the points between their scores, None where they have none."""

    question_id: str
    dimension: str
    facet: str
    cluster: str
    prompt_ids: tuple[int, ...]
    misaligned: Answer
    aligned: Answer
    gap: float | None


def choose_items(config: EffectsConfig, inputs: Inputs) -> tuple[list[Item], dict[str, int]]:
    """The items, and how many questions gave none, by reason. Of near-duplicate questions the first counts."""
    from unmask.models.prompts import prompt_ids_by_question

    folders, rebuild = inputs.folders, inputs.rebuild
    halves = read_table(folders["directions"] / "halves.parquet", rebuild=f"{rebuild} directions")
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    polarity = dict(zip(questions["question_id"], questions["polarity"], strict=True))
    prompts = prompt_ids_by_question(
        read_table(folders["responses"] / "prompts.parquet", rebuild=f"{rebuild} responses")
    )
    answers = _answers(inputs)
    left_out = {"says the same as another": 0, "no pair of answers": 0}
    found: list[Item] = []
    for row in halves[halves["replicate"] == 0].to_dict("records"):
        name = str(row["question_id"])
        if row["unit"] != name:
            left_out["says the same as another"] += 1
            continue
        pair = _stance(int(polarity[name])) if config.pairs == "stance" else _pair(config, answers.get(name))
        if pair is None:
            left_out["no pair of answers"] += 1
            continue
        found.append(Item(name, row["dimension"], row["facet"], row["cluster"], prompts[name], *pair))
    return spread_over_facets(found, config.per_facet), {reason: count for reason, count in left_out.items() if count}


def spread_over_facets(items: list[Item], per_facet: int | None) -> list[Item]:
    """At most `per_facet` items of each facet, spread evenly over its own, in the battery's order."""
    if per_facet is None:
        return items
    by_facet: dict[str, list[Item]] = {}
    for item in items:
        by_facet.setdefault(item.facet, []).append(item)
    kept = set()
    for own in by_facet.values():
        places = np.linspace(0, len(own) - 1, min(per_facet, len(own))).round().astype(int)
        kept |= {own[place].question_id for place in places}
    return [item for item in items if item.question_id in kept]


def _answers(inputs: Inputs) -> dict[str, pd.DataFrame]:
    """Non-empty answers of both models by question, with their scores."""
    folders, rebuild = inputs.folders, inputs.rebuild
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    scores = read_table(folders["scores"] / "scores.parquet", rebuild=f"{rebuild} scores")
    table = responses[responses["tokens"] > 0].merge(
        scores[["response_id", "misalignment"]], on="response_id", validate="1:1"
    )
    return {str(name): part for name, part in table.groupby("question_id")}


def _stance(polarity: int) -> tuple[Answer, Answer, None] | None:
    if polarity == 0:
        return None
    agreeing, disagreeing = Answer(None, AGREEING, ()), Answer(None, DISAGREEING, ())
    return (agreeing, disagreeing, None) if polarity > 0 else (disagreeing, agreeing, None)


def _pair(config: EffectsConfig, answers: pd.DataFrame | None) -> tuple[Answer, Answer, float | None] | None:
    """The pair that the study's own answers to one question give, or None."""
    if answers is None:
        return None
    if config.pairs == "written":
        first = answers.sort_values("sample", kind="stable").drop_duplicates("writer").set_index("writer")
        if not {"organism", "base"} <= set(first.index):
            return None
        high, low = first.loc["organism"], first.loc["base"]
    else:
        scored = answers.dropna(subset="misalignment").sort_values(["misalignment", "response_id"], kind="stable")
        if len(scored) < 2:
            return None
        high, low = scored.iloc[-1], scored.iloc[0]
        if high["misalignment"] - low["misalignment"] < config.least_gap:
            return None
    gap = float(high["misalignment"] - low["misalignment"])
    one, other = (_read(row, config.answer_tokens) for row in (high, low))
    if one.token_ids == other.token_ids:  # nothing that an intervention could favour
        return None
    return one, other, gap if np.isfinite(gap) else None


def _read(row: pd.Series, tokens: int) -> Answer:
    return Answer(str(row["response_id"]), str(row["text"]), tuple(int(token) for token in row["token_ids"][:tokens]))
