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
    control_D = control_shift(material, chosen_N)
    if control_D is not None:
        made.append(Made("control", "control", "mean shift of the control organism", control_D, count))
        if config.remove_control:
            shift_ND = shift_ND - control_D
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
    components, notes = _components(config, shift_ND)
    made += components
    made += _shuffled(shift_ND, labels["dimension"].to_numpy(), rng)
    scored, problems = _from_scores(config, material, chosen_N)
    return made + scored, notes + problems


def _components(config: DirectionsConfig, shift_ND: np.ndarray) -> tuple[list[Made], list[str]]:
    """The leading components of the shift, and why there are none."""
    if "component" not in config.kinds:
        return [], []
    try:
        parts_KD = extraction.shift_components(shift_ND, min(config.components, len(shift_ND) - 1))
    except ValueError as error:
        return [], [f"component: {error}"]
    made = [
        Made("component", f"component-{number}", f"principal component {number} of the shift", part_D, len(shift_ND))
        for number, part_D in enumerate(parts_KD, start=1)
    ]
    return made, []


def control_shift(material: Material, chosen_N: np.ndarray) -> np.ndarray | None:
    """The control organism's mean shift (D) over those chosen questions that it read; None where there is none."""
    if material.control_ND is None:
        return None
    rows_ND = material.control_ND[chosen_N]
    rows_ND = rows_ND[np.isfinite(rows_ND).all(axis=1)]
    return rows_ND.mean(axis=0) if len(rows_ND) else None


def tensor_of(made: Made) -> np.ndarray:
    """The vector of one that is no eraser."""
    assert made.vector_D is not None
    return made.vector_D


def like_whole(made: list[Made], whole: list[Made]) -> list[Made]:
    """The components of a half in the order and with the signs of those of all questions."""
    ours, theirs = ([one for one in each if one.kind == "component"] for each in (made, whole))
    if not ours or len(ours) != len(theirs):
        return made
    vectors = extraction.in_order_of(*(np.stack([tensor_of(one) for one in each]) for each in (ours, theirs)))
    turned = iter(vectors)
    return [replace(one, vector_D=next(turned)) if one.kind == "component" else one for one in made]


def make_controls(config: DirectionsConfig, material: Material, *, rng: np.random.Generator) -> list[Made]:
    """Random directions, each as long as one of the dimensions' mean shifts (1 where these are zero)."""
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
        vector_D = vector_D * ((norms[number % len(norms)] or 1.0) / np.linalg.norm(vector_D))
        kind, text = ("random-span", "in the span of activations") if spans else ("random-isotropic", "isotropic")
        name = f"{kind}-{number // 2}"
        found.append(Made(kind, name, f"random {number // 2}, {text}", vector_D, 0))
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


def _shuffled(shift_ND: np.ndarray, groups_N: np.ndarray, rng: np.random.Generator) -> Iterator[Made]:
    """Mean shifts of random sets of questions as large as the dimensions: what a dimension's label is worth."""
    names, sizes = np.unique(groups_N, return_counts=True)
    vectors = extraction.shuffled_group_means(shift_ND, sizes.tolist(), rng)
    for number, (name, size, vector_D) in enumerate(zip(names, sizes, vectors, strict=True)):
        text = f"mean shift of random questions, as many as {name}"
        yield Made("shuffled", f"shuffled-{number}", text, vector_D, int(size))


def _from_scores(config: DirectionsConfig, material: Material, chosen_N: np.ndarray) -> tuple[list[Made], list[str]]:
    """Contrasts, probes and erasers of high- against low-scored answers."""
    made: list[Made] = []
    notes: list[str] = []
    dimension_N = material.questions["dimension"].to_numpy()
    for kind in ("score", "probe", "leace", "inlp"):
        if kind not in config.kinds:
            continue
        answers = material.read_by_organism if kind in ("leace", "inlp") else material.read_by_base
        inside_R = chosen_N[answers.question_R] & np.isfinite(answers.scores_R)
        try:
            made.append(_from_answers(kind, config, answers, inside_R, dimension_N=dimension_N))
        except ValueError as error:
            notes.append(f"{kind}: {error}")
    return made, notes


def _from_answers(
    kind: str, config: DirectionsConfig, answers: Answers, inside_R: np.ndarray, *, dimension_N: np.ndarray
) -> Made:
    acts_RD, scores_R = answers.acts_RD[inside_R], answers.scores_R[inside_R]
    if not len(scores_R):
        raise ValueError("no answer has a score")
    count = len(np.unique(answers.question_R[inside_R]))
    raw_mean_D = acts_RD.mean(axis=0)
    acts_RD = acts_RD - _own_means(
        acts_RD, dimension_N[answers.question_R[inside_R]]
    )  # what is left tells answers apart, not topics
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
        eraser = replace(erasure.leace(acts_RD, high_R.astype(float)[:, None]), centre_D=raw_mean_D)
        return Made(kind, kind, "LEACE eraser of high against low scores", None, count, eraser=eraser)
    eraser = replace(erasure.inlp(acts_RD, high_R.astype(int), steps=4), centre_D=raw_mean_D)
    return Made(kind, kind, "INLP eraser of high against low scores", None, count, eraser=eraser)


def _own_means(acts_RD: np.ndarray, labels_R: np.ndarray) -> np.ndarray:
    """For each answer the mean over all answers to questions of its dimension (R x D)."""
    means_RD = np.empty_like(acts_RD)
    for label in np.unique(labels_R):
        means_RD[labels_R == label] = acts_RD[labels_R == label].mean(axis=0)
    return means_RD
