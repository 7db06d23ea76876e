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
    """Answers of both models as one reader saw them: activations less their dimension's mean, and scores (NaN: missing)."""

    acts_RD: np.ndarray
    scores_R: np.ndarray
    question_R: np.ndarray
    """Rows of `Material.questions`."""


@dataclass(frozen=True, slots=True)
class Material:
    """Questions (question_id, dimension, facet, cluster, unit), their shifts, and their answers.

    `shift_ND` is on the organism's text, less the control's mean shift (`control_D`) where that is wanted and there.
    """

    questions: pd.DataFrame
    site: Site
    typical_norm: float
    shift_ND: np.ndarray
    base_ND: np.ndarray
    control_D: np.ndarray | None
    read_by_base: Answers
    read_by_organism: Answers
    primary_k: int


def load_material(inputs: Inputs, *, remove_control: bool) -> Material:
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
    asked = responses[responses["question_id"].isin(set(questions["question_id"]))]
    control_D = _control(inputs, site, ids, read["base"], asked)
    if remove_control and control_D is not None:
        shift_ND = shift_ND - control_D
    scored = _scored(inputs, ids, responses, questions)
    return Material(
        questions=questions,
        site=site,
        typical_norm=float(summary["shift_norm"][site.name]["typical_norm"]),
        shift_ND=shift_ND,
        base_ND=by_question(read["base"]),
        control_D=control_D,
        read_by_base=_answers(read["base"], scored, questions),
        read_by_organism=_answers(read["organism"], scored[scored["writer"] == "organism"], questions),
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
) -> np.ndarray | None:
    """The control organism's mean shift (D) over the questions of `responses`, on the organism's text; None without a control."""
    control = ActivationStore.open(inputs.folders["control_activations"])
    if not control.shards:
        return None
    row_of = {identity: row for row, identity in enumerate(ids)}
    control_ids = control.response_ids()
    away_RD = control.read(f"control/{site.name}").astype(np.float64) - base_RD[[row_of[name] for name in control_ids]]
    means = question_means(away_RD, control_ids, responses, writer="organism")
    rows = [mean_D for mean_D in means.values() if np.isfinite(mean_D).all()]
    return np.mean(rows, axis=0) if rows else None


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


def _answers(acts_RD: np.ndarray, scored: pd.DataFrame, questions: pd.DataFrame) -> Answers:
    """Answers whose dimension's mean is taken off: what is left tells answers apart, not topics."""
    kept_RD = acts_RD[scored["row"].to_numpy()]
    labels_R = questions["dimension"].to_numpy()[scored["question"].to_numpy()]
    centred_RD = kept_RD.copy()
    for label in np.unique(labels_R):
        centred_RD[labels_R == label] -= kept_RD[labels_R == label].mean(axis=0)
    return Answers(centred_RD, scored["misalignment"].to_numpy(dtype=float), scored["question"].to_numpy())
