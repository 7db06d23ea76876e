"""Answers and items behind the causal tests, chosen by a rule and not by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.report.causal_evidence import RANDOM, UNSTEERED, CausalEvidence
from unmask.report.causal_wording import mean
from unmask.report.examples import choose
from unmask.report.formats import is_present, label, number, signed

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 700
"""Characters of an answer that are shown."""
OWN_QUESTIONS, OTHER_QUESTIONS, ITEMS = 2, 1, 3

STEERED_RULE = (
    "For each dimension's direction, added to the base at the strength nearest to that at which the matrix was read: answers "
    f"to the first questions, up to {OWN_QUESTIONS} of its own dimension before any other and "
    f"{OWN_QUESTIONS + OTHER_QUESTIONS} in all, beside the unsteered answer and that under the first random direction, with "
    "the same seed."
)
ITEMS_RULE = (
    "In each dimension the questions are ranked by what the dimension's own direction does to them; shown are the highest, the "
    "one around the median and the lowest. Ties go by question id."
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A text with a heading and a line of numbers; `look` is the name of its style."""

    heading: str
    text: str
    left_out: int
    told: str
    look: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A question with texts beside each other, and why it is shown."""

    why: str
    question_id: str
    question: str
    texts: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """What is shown of one dimension; `missing` says why nothing is."""

    dimension: str
    remark: str
    compared: tuple[Compared, ...]
    missing: str


def steered_answers(causal: CausalEvidence, questions: pd.DataFrame) -> list[Group]:
    """Steered answers of every dimension's direction beside unsteered ones and those of a random direction."""
    text_of = dict(zip(questions["question_id"], questions["text"], strict=True))
    at = causal.shown_at("base")
    directions = causal.directions[causal.directions["kind"] == "dimension"]
    found = []
    for dimension in dict.fromkeys(directions["group"].astype(str)):
        names = set(directions.loc[directions["group"] == dimension, "direction_id"])
        answers = causal.answers[(causal.answers["target"] == "base") & (causal.answers["coefficient"] >= 0)]
        own = answers[answers["direction_id"].isin(names) & answers["added_norm"].notna()]
        if own.empty or at is None:
            found.append(Group(dimension, "", (), "No answer was generated with this direction added to the base."))
            continue
        dose, part = _nearest(own, at)
        own = own[(own["part"] == part) & np.isclose(own["added_norm"], dose)]
        rows = [row for row in own.to_dict("records") if row["sample"] == own["sample"].min()]
        inside = [row for row in rows if row["dimension"] == dimension][:OWN_QUESTIONS]
        outside = [row for row in rows if row["dimension"] != dimension]
        chosen = inside + outside[: OTHER_QUESTIONS + OWN_QUESTIONS - len(inside)]
        compared = tuple(_compared(row, answers, text_of, dimension) for row in chosen)
        where = "questions of the dimensions" if part == "confirmation" else "open questions"
        found.append(Group(dimension, f"{dose:g} typical norms added, {where}", compared, ""))
    return found


def _nearest(own: pd.DataFrame, at: float) -> tuple[float, str]:
    """Added norm and part of the answers that are nearest to `at`; the confirmation before the doses where both are."""
    ranked = sorted(
        {(float(norm), str(part)) for norm, part in zip(own["added_norm"], own["part"], strict=True)},
        key=lambda pair: (round(abs(pair[0] - at), 9), pair[1] != "confirmation", pair),
    )
    return ranked[0]


def _compared(row: Mapping[Any, Any], answers: pd.DataFrame, text_of: Mapping[str, str], dimension: str) -> Compared:
    same = answers[
        (answers["part"] == row["part"])
        & (answers["question_id"] == row["question_id"])
        & (answers["sample"] == row["sample"])
    ]
    plain = same[same["kind"] == UNSTEERED].head(1).to_dict("records")
    random = same[same["kind"].isin(RANDOM) & np.isclose(same["added_norm"].astype(float), float(row["added_norm"]))]
    chance = random.sort_values("direction_id").head(1).to_dict("records")
    texts = [_answer(one, "base, unsteered", "") for one in plain]
    texts.append(_answer(row, f"with the direction of {label(dimension)}", "organism"))
    texts += [_answer(one, "with a random direction", "random") for one in chance]
    asked = str(row["dimension"])
    why = "own dimension" if asked == dimension else f"another's question: {label(asked)}"
    name = str(row["question_id"])
    return Compared(why, name, str(text_of.get(name, "")), tuple(texts))


def _answer(row: Mapping[Any, Any], heading: str, look: str) -> Shown:
    told = f"misalignment {number(row['misalignment'], 0)} · coherence {number(row['coherence'], 0)}"
    if is_present(row["perplexity"]):
        told += f" · perplexity {number(row['perplexity'], 0)}"
    if row["stop_reason"] == "length":
        told += " · ended by the token limit"
    return _shown(heading, row["text"], told, look)


def items(causal: CausalEvidence, questions: pd.DataFrame) -> list[Group]:
    """A few items of every dimension: both answers, and what directions do to the odds between them."""
    text_of = dict(zip(questions["question_id"], questions["text"], strict=True))
    at = causal.shown_at("base")
    found = []
    for dimension in dict.fromkeys(causal.items["dimension"].astype(str)):
        own_items = causal.items[causal.items["dimension"] == dimension].set_index("question_id")
        held = causal.effects[
            (causal.effects["target"] == "base") & causal.effects["question_id"].isin(own_items.index)
        ]
        held = held[np.isclose(held["coefficient"], at)] if at is not None else held[:0]
        parts = held[held["kind"] == "dimension"]
        own = parts[parts["group"] == dimension].groupby("question_id")["effect"].mean()
        if own.empty or at is None:
            found.append(Group(dimension, "", (), "No direction of this dimension was tested on these questions."))
            continue
        compared = []
        for name, place in choose(own, ITEMS):
            others = mean(parts.loc[(parts["question_id"] == name) & (parts["group"] != dimension), "effect"].tolist())
            random = held[(held["question_id"] == name) & held["kind"].isin(RANDOM)]["effect"].tolist()
            why = (
                f"{place} · own direction {signed(own[name], 2)} · other dimensions' {signed(others, 2)} · "
                f"random {signed(mean(random), 2)} nats per token"
            )
            compared.append(_item(own_items.loc[name].to_dict(), why, name, str(text_of.get(name, ""))))
        found.append(Group(dimension, f"at coefficient {at:g}", tuple(compared), ""))
    return found


def _item(row: Mapping[Any, Any], why: str, name: str, question: str) -> Compared:
    gap = f"{number(row['gap'], 0)} points of misalignment above the other" if is_present(row["gap"]) else ""
    plain = f"log-odds in the base {signed(row['plain_base'], 2)}" if is_present(row["plain_base"]) else ""
    texts = (
        _shown(
            "misaligned answer", row["misaligned_text"], " · ".join(part for part in (gap, plain) if part), "organism"
        ),
        _shown("aligned answer", row["aligned_text"], "", ""),
    )
    return Compared(why, name, question, texts)


def _shown(heading: str, text: Any, told: str, look: str) -> Shown:
    text = str(text or "")
    return Shown(heading, text[:LONGEST], max(0, len(text) - LONGEST), told, look)


def any_shown(groups: Sequence[Group]) -> bool:
    return any(group.compared for group in groups)
