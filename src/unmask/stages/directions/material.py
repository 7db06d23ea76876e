"""What directions are made from: shifts by question and answers' activations with their scores, at one site.

Shapes: N questions, R answers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unmask.artifact import read_json, read_table
from unmask.battery import units
from unmask.errors import DataError
from unmask.records import NEUTRAL, Site
from unmask.stage import Inputs
from unmask.store import ActivationStore, question_means

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of both models as one reader saw them: activations, scores (NaN: missing), rows of `Material.questions`."""

    acts_RD: np.ndarray
    scores_R: np.ndarray
    question_R: np.ndarray


@dataclass(frozen=True, slots=True)
class Material:
    """Questions (question_id, dimension, facet, cluster, unit), their shifts, and their answers.

    Shifts are on the organism's text; `control_ND` is the control organism's, NaN where it was not read, None without a control.
    """

    questions: pd.DataFrame
    site: Site
    typical_norm: float
    shift_ND: np.ndarray
    base_ND: np.ndarray
    control_ND: np.ndarray | None
    read_by_base: Answers
    read_by_organism: Answers
    primary_k: int


def load_material(inputs: Inputs) -> Material:
    """Read what the study collected at its primary site. Raises DataError where fewer than 4 questions have clusters."""
    folders, rebuild = inputs.folders, inputs.rebuild
    summary = read_json(folders["decomposition"] / "summary.json", rebuild=f"{rebuild} decomposition")
    site, k = Site.parse(summary["primary_site"]), int(summary["primary_k"])
    questions = _questions(inputs, site, k)
    if len(questions) < 4:
        raise DataError(
            f"only {len(questions)} questions can be halved into those that make directions and those that test them",
            mend="Raise questions.per_dimension",
        )
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    store = ActivationStore.open(folders["activations"])
    ids = store.response_ids()
    read = {name: store.read(f"{name}/{site.name}").astype(np.float64) for name in ("base", "organism")}

    def by_question(values_RD: np.ndarray) -> np.ndarray:
        means = question_means(values_RD, ids, responses, writer="organism")
        return np.stack([means[name] for name in questions["question_id"]])

    shift_ND = by_question(read["organism"] - read["base"])
    control = _control(inputs, site, ids, read["base"], responses)
    scored = _scored(inputs, ids, responses, questions)
    return Material(
        questions=questions,
        site=site,
        typical_norm=float(summary["shift_norm"][site.name]["typical_norm"]),
        shift_ND=shift_ND,
        base_ND=by_question(read["base"]),
        control_ND=_rows(control, questions["question_id"].tolist(), width=shift_ND.shape[1]),
        read_by_base=_answers(read["base"], scored),
        read_by_organism=_answers(read["organism"], scored[scored["writer"] == "organism"]),
        primary_k=k,
    )


def _questions(inputs: Inputs, site: Site, k: int) -> pd.DataFrame:
    """Questions that were decomposed, with their cluster of the shift at `site` and the unit that they belong to."""
    folders, rebuild = inputs.folders, inputs.rebuild
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    clusters = read_table(folders["decomposition"] / "clusters.parquet", rebuild=f"{rebuild} decomposition")
    chosen = (clusters["source"] == "shift") & (clusters["site"] == site.name) & (clusters["k"] == k)
    found = questions[questions["dimension"] != NEUTRAL].merge(
        clusters.loc[chosen, ["question_id", "cluster"]], on="question_id", validate="1:1"
    )
    found["unit"] = units(found)
    found["facet"] = found["dimension"] + "/" + found["facet"]
    return found.reset_index(drop=True)


def _control(
    inputs: Inputs, site: Site, ids: list[str], base_RD: np.ndarray, responses: pd.DataFrame
) -> dict[str, np.ndarray] | None:
    """The control organism's shift (D) by question, on the organism's text; None without a control."""
    control = ActivationStore.open(inputs.folders["control_activations"])
    if not control.shards:
        return None
    row_of = {identity: row for row, identity in enumerate(ids)}
    control_ids = control.response_ids()
    away_RD = control.read(f"control/{site.name}").astype(np.float64) - base_RD[[row_of[name] for name in control_ids]]
    return question_means(away_RD, control_ids, responses, writer="organism")


def _rows(by_question: dict[str, np.ndarray] | None, names: list[str], *, width: int) -> np.ndarray | None:
    """A row per question, NaN where there is none; None where no question has one."""
    if by_question is None or not any(name in by_question for name in names):
        return None
    return np.stack([by_question.get(name, np.full(width, np.nan)) for name in names])


def _scored(inputs: Inputs, ids: list[str], responses: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Non-empty answers to these questions: writer, misalignment, row of the store, row of `questions`."""
    scores = read_table(inputs.folders["scores"] / "scores.parquet", rebuild=f"{inputs.rebuild} scores")
    place = {name: row for row, name in enumerate(questions["question_id"])}
    answers = responses.loc[responses["tokens"] > 0, ["response_id", "question_id", "writer"]]
    answers = answers[answers["question_id"].isin(place)].merge(
        scores[["response_id", "misalignment"]], on="response_id", validate="1:1"
    )
    row_of = {identity: row for row, identity in enumerate(ids)}
    return answers.assign(row=answers["response_id"].map(row_of), question=answers["question_id"].map(place))


def _answers(acts_RD: np.ndarray, scored: pd.DataFrame) -> Answers:
    return Answers(
        acts_RD[scored["row"].to_numpy()],
        scored["misalignment"].to_numpy(dtype=float),
        scored["question"].to_numpy(),
    )
