"""Directions from the questions of one half, or of all: mean shifts by group, components, contrasts of scores, erasers.

Shapes: N questions, R answers, D width, K rank of an eraser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unmask.analysis import erasure, extraction
from unmask.stages.directions.config import DirectionsConfig
from unmask.stages.directions.material import Answers, Material

GROUPINGS = ("dimension", "facet", "cluster")
LEAST_IN_GROUP = 2
"""Questions of a group in a half from which its mean shift is taken."""


@dataclass(frozen=True, slots=True)
class Made:
    """A direction (`vector_D`, in the site's units) or an eraser, with what it was made from."""

    kind: str
    name: str
    label: str
    vector_D: np.ndarray | None
    questions: int
    grouping: str | None = None
    group: str | None = None
    eraser: erasure.Eraser | None = None
    replicate: int | None = None
    half: str | None = None

    @property
    def direction_id(self) -> str:
        """`dimension-financial_risk.0a`: replicate 0, half a; without a suffix, all questions."""
        suffix = "" if self.replicate is None or self.half is None else f".{self.replicate}{self.half}"
        return f"{self.name}{suffix}"


def make_directions(
    config: DirectionsConfig, material: Material, chosen_N: np.ndarray, *, rng: np.random.Generator
) -> tuple[list[Made], list[str]]:
    """Every kind of direction from the chosen questions (N, bool), and in words what could not be made."""
    shift_ND = material.shift_ND[chosen_N]
    labels = material.questions[chosen_N].reset_index(drop=True)
    made: list[Made] = []
    count = len(labels)
    if "shared" in config.kinds:
        made.append(Made("shared", "shared", "mean shift of all questions", shift_ND.mean(axis=0), count))
    for grouping in GROUPINGS:
        if grouping in config.kinds:
            made += _by_group(grouping, shift_ND, labels[grouping].astype(str).to_numpy(), k=material.primary_k)
    if "specific" in config.kinds:
        dimension_N = labels["dimension"].to_numpy()
        parts = extraction.specific_parts(shift_ND, dimension_N)
        for group, vector_D in parts.items():
            size = int((dimension_N == group).sum())
            text = f"{group}: mean shift less the shared one"
            made.append(Made("specific", f"specific-{group}", text, vector_D, size, "dimension", group))
    if "component" in config.kinds:
        count_wanted = min(config.components, count - 1)
        for number, vector_D in enumerate(extraction.shift_components(shift_ND, count_wanted), start=1):
            text = f"principal component {number} of the shift"
            made.append(Made("component", f"component-{number}", text, vector_D, count))
    made += _shuffled(material, shift_ND, labels["dimension"].to_numpy(), rng)
    scored, notes = _from_scores(config, material, chosen_N, count)
    return made + scored, notes


def make_controls(config: DirectionsConfig, material: Material, *, rng: np.random.Generator) -> list[Made]:
    """Random directions, each as long as one of the dimensions' mean shifts, and the control organism's mean shift."""
    dimension_N = material.questions["dimension"].to_numpy()
    norms = [
        float(np.linalg.norm(mean_D)) for mean_D in extraction.group_means(material.shift_ND, dimension_N).values()
    ]
    found = []
    for number in range(config.random):
        spans = bool(number % 2)
        vector_D = (
            extraction.random_in_span(rng, material.base_ND)
            if spans
            else extraction.random_isotropic(rng, material.base_ND.shape[1])
        )
        vector_D = vector_D * (norms[number % len(norms)] / np.linalg.norm(vector_D))
        kind, text = ("random-span", "in the span of activations") if spans else ("random-isotropic", "isotropic")
        name = f"{kind}-{number // 2}"
        found.append(Made(kind, name, f"random {number // 2}, {text}", vector_D, 0))
    if material.control_D is not None:
        count = len(material.questions)
        found.append(Made("control", "control", "mean shift of the control organism", material.control_D, count))
    return found


def halved(material: Material, replicates: int, *, seed: int) -> list[np.ndarray]:
    """Random halves (N, bool: in half a) of the questions, stratified by facet; near-duplicates stay together."""
    unit_N = material.questions["unit"].to_numpy()
    first_N = np.unique(unit_N)
    strata = material.questions["facet"].to_numpy()[first_N]
    found = []
    for replicate in range(replicates):
        half = dict(
            zip(first_N, extraction.halves(strata, rng=np.random.default_rng([seed, 7, replicate])), strict=True)
        )
        found.append(np.array([half[unit] for unit in unit_N]))
    return found


def with_half(made: list[Made], replicate: int, half: str) -> list[Made]:
    """The same, marked as made from that half."""
    return [replace(one, replicate=replicate, half=half) for one in made]


def _by_group(grouping: str, shift_ND: np.ndarray, groups_N: np.ndarray, *, k: int) -> Iterator[Made]:
    for group, mean_D in extraction.group_means(shift_ND, groups_N).items():
        size = int((groups_N == group).sum())
        if size >= LEAST_IN_GROUP:
            text = f"cluster {group} of {k}" if grouping == "cluster" else group
            yield Made(grouping, f"{grouping}-{group}", text, mean_D, size, grouping, group)


def _shuffled(
    material: Material, shift_ND: np.ndarray, groups_N: np.ndarray, rng: np.random.Generator
) -> Iterator[Made]:
    """Mean shifts of random sets of questions as large as the dimensions: what a dimension's label is worth."""
    names, sizes = np.unique(groups_N, return_counts=True)
    vectors = extraction.shuffled_group_means(shift_ND, sizes.tolist(), rng)
    for number, (name, size, vector_D) in enumerate(zip(names, sizes, vectors, strict=True)):
        text = f"mean shift of {size} random questions (as many as {name})"
        yield Made("shuffled", f"shuffled-{number}", text, vector_D, int(size))


def _from_scores(
    config: DirectionsConfig, material: Material, chosen_N: np.ndarray, count: int
) -> tuple[list[Made], list[str]]:
    """Contrasts, probes and erasers of high- against low-scored answers."""
    made: list[Made] = []
    notes: list[str] = []
    for kind in ("score", "probe", "leace", "inlp"):
        if kind not in config.kinds:
            continue
        answers = material.read_by_organism if kind in ("leace", "inlp") else material.read_by_base
        inside_R = chosen_N[answers.question_R] & np.isfinite(answers.scores_R)
        try:
            made.append(_from_answers(kind, config, answers, inside_R, count))
        except ValueError as error:
            notes.append(f"{kind}: {error}")
    return made, notes


def _from_answers(kind: str, config: DirectionsConfig, answers: Answers, inside_R: np.ndarray, count: int) -> Made:
    acts_RD, scores_R = answers.acts_RD[inside_R], answers.scores_R[inside_R]
    if kind == "score":
        vector_D = extraction.score_contrast(acts_RD, scores_R, share=config.score_share)
        return Made(kind, kind, "high- less low-scored answers, as the base reads them", vector_D, count)
    if len(scores_R) < 8 or np.ptp(scores_R) == 0:
        raise ValueError(f"{len(scores_R)} scored answers, or all with one score, cannot be told apart")
    high_R = scores_R > np.median(scores_R)
    if kind == "probe":
        vector_D = extraction.ridge_probe(acts_RD, high_R.astype(float), penalty=config.penalty)
        return Made(kind, kind, "ridge probe of high- against low-scored answers", vector_D, count)
    if kind == "leace":
        eraser = erasure.leace(acts_RD, high_R.astype(float)[:, None])
        return Made(kind, kind, "LEACE eraser of high against low scores", None, count, eraser=eraser)
    eraser = erasure.inlp(acts_RD, high_R.astype(int), steps=4)
    return Made(kind, kind, "INLP eraser of high against low scores", None, count, eraser=eraser)
