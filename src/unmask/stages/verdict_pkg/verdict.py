"""Stage `verdict`: is the shift one thing over the groups of questions? Tests, planted controls, the rule, over all sites."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from unmask.analysis.examination import LEAST_IN_GROUP, Settings, flips_for
from unmask.analysis.score_gradient import ScoreBearing, score_bearing
from unmask.analysis.site_map import SiteData, SiteFinding, decisions_planned, map_sites
from unmask.analysis.verdict import Thresholds
from unmask.artifact import read_json, read_table
from unmask.errors import DataError
from unmask.records import NEUTRAL
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.stages.verdict_tables import write_all
from unmask.store import ActivationStore, question_means_by_sample
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

GROUPINGS = ("dimension", "facet")
SAME_WORDS = 0.9
"""Jaccard similarity of two questions' words from which they count as one question."""


class VerdictConfig(StageConfig):
    """How the verdict is reached. Limits and defaults are those of docs/calibration.md; change them before looking."""

    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of every test")
    rho: float = Field(0.10, gt=0, lt=1, description="share of mean-shift energy outside one direction that matters")
    eta: float = Field(0.06, gt=0, lt=1, description="the same energy over the question variance that matters")
    gamma: float = Field(1.5, ge=1, description="how much more topic may carry over between groups than within them")
    flips: int = Field(499, ge=99, description="sign flips per test")
    resamples: int = Field(400, ge=100, description="bootstrap resamples per interval")
    planted_runs: int = Field(199, ge=20, description="planted data sets per effect")
    planted_effects: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0, 2.0), min_length=1, description="planted effects, in units of the smallest effect of interest"
    )
    seed: int = 0

    @property
    def settings(self) -> Settings:
        return Settings(
            thresholds=Thresholds(alpha=self.alpha, rho=self.rho, eta=self.eta),
            gamma=self.gamma,
            flips=self.flips,
            resamples=self.resamples,
            planted_runs=self.planted_runs,
            planted_effects=self.planted_effects,
        )


@dataclass(frozen=True, slots=True)
class Material:
    """What the tests read: questions (one row each, near-duplicates merged), rows of the store, and the stores."""

    questions: pd.DataFrame
    responses: pd.DataFrame
    store: ActivationStore
    control: ActivationStore | None
    left_out: int
    merged: int

    @property
    def samples(self) -> int:
        return int(self.responses["sample"].nunique())

    def load(self, site: str) -> SiteData:
        """Shift, base activations, replicates and the control's shift of one site, a row per question."""
        base_RD = self.store.read(f"base/{site}").astype(np.float64)
        shift_RD = self.store.read(f"organism/{site}").astype(np.float64) - base_RD
        ids = self.store.response_ids()
        shift = question_means_by_sample(shift_RD, ids, self.responses, writer="organism")
        base = question_means_by_sample(base_RD, ids, self.responses, writer="organism")
        control_ND = None
        if self.control is not None:
            row_of = {identity: row for row, identity in enumerate(ids)}
            control_ids = self.control.response_ids()
            rows = [row_of[identity] for identity in control_ids]
            away_RD = self.control.read(f"control/{site}").astype(np.float64) - base_RD[rows]
            control = question_means_by_sample(away_RD, control_ids, self.responses, writer="organism")
            control_ND = self._stacked(lambda name: control[name].mean(axis=0))
        return SiteData(
            shift_ND=self._stacked(lambda name: shift[name].mean(axis=0)),
            base_ND=self._stacked(lambda name: base[name].mean(axis=0)),
            replicates_NSD=self._stacked(lambda name: _filled(shift[name], self.samples)) if self.samples > 1 else None,
            control_ND=control_ND,
        )

    def _stacked(self, row: Callable[[str], np.ndarray]) -> np.ndarray:
        """One array per question, the members of a merged question averaged."""
        return np.stack([np.mean([row(name) for name in names], axis=0) for names in self.questions["members"]])


def _filled(rows_SD: np.ndarray, samples: int) -> np.ndarray:
    """Rows padded with NaN to the study's number of samples: a question lacking an answer has no replicate."""
    lacking = samples - len(rows_SD)
    return np.vstack([rows_SD, np.full((lacking, rows_SD.shape[1]), np.nan)]) if lacking else rows_SD


def run(config: VerdictConfig, inputs: Inputs, workspace: Workspace) -> Result:
    material = load_material(inputs)
    primary = read_json(inputs.folders["decomposition"] / "summary.json", rebuild=f"{inputs.rebuild} decomposition")[
        "primary_site"
    ]
    sites, settings = material.store.sites, config.settings
    groupings = {name: material.questions[name].to_numpy() for name in GROUPINGS}
    inputs.progress.begin(
        "testing", total=decisions_planned(len(sites), len(groupings), control=material.control is not None)
    )
    found = map_sites(
        [(site, lambda site=site: material.load(site)) for site in sites],
        groupings,
        primary=primary,
        seed=config.seed,
        settings=settings,
        told=inputs.progress.advance,
    )
    gradient = score_gradient(config, material, primary)
    inputs.progress.end()
    verdict = write_all(
        workspace.out, found, gradient=gradient, primary=primary, settings=settings, material_facts=facts(material)
    )
    return Result(_summary(verdict, found))


def load_material(inputs: Inputs) -> Material:
    """Questions with a non-empty organism answer, and the stores. Raises DataError when fewer than 3 are left."""
    folders, rebuild = inputs.folders, inputs.rebuild
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    scores = read_table(folders["scores"] / "scores.parquet", rebuild=f"{rebuild} scores")
    asked = questions[questions["dimension"] != NEUTRAL]
    readable = responses[(responses["writer"] == "organism") & (responses["tokens"] > 0)]
    kept = asked[asked["question_id"].isin(readable["question_id"])].reset_index(drop=True)
    if len(kept) < 3:
        raise DataError(
            f"only {len(kept)} questions have a non-empty answer of the organism",
            mend="Look at the responses; raise responses.max_new_tokens or train the organism more gently",
        )
    own = scores[scores["writer"] == "organism"].groupby("question_id")["misalignment"].mean()
    kept = kept.assign(misalignment=kept["question_id"].map(own).astype(float))
    merged = merge_duplicates(kept)
    merged["facet"] = merged["dimension"] + "/" + merged["facet"]
    control = ActivationStore.open(folders["control_activations"])
    return Material(
        questions=merged,
        responses=responses[responses["question_id"].isin(kept["question_id"])],
        store=ActivationStore.open(folders["activations"]),
        control=control if control.shards else None,
        left_out=len(asked) - len(kept),
        merged=len(kept) - len(merged),
    )


def merge_duplicates(questions: pd.DataFrame) -> pd.DataFrame:
    """One row per question that says something of its own; `members` lists the ids behind it, scores are averaged.

    Questions of one facet whose sets of words have a Jaccard similarity of at least .9 are one unit: they are no independent
    evidence, and are averaged before any test.
    """
    unit_of: dict[int, int] = {}
    words = [frozenset(re.findall(r"\w+", str(text).casefold())) for text in questions["text"]]
    for _, part in questions.groupby(["dimension", "facet"], sort=False):
        rows = list(part.index)
        for place, row in enumerate(rows):
            alike = (other for other in rows[:place] if _alike(words[row], words[other]))
            unit_of[row] = unit_of[next(alike, row)] if (first := next(alike, None)) is None else unit_of[first]
    units = questions.assign(unit=[unit_of[row] for row in questions.index])
    merged = units.drop_duplicates("unit").copy()
    members = units.groupby("unit")["question_id"].agg(list)
    merged["members"] = merged["unit"].map(members)
    merged["misalignment"] = merged["unit"].map(units.groupby("unit")["misalignment"].mean())
    return merged.drop(columns="unit").reset_index(drop=True)


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= SAME_WORDS * max(len(one | other), 1)


def score_gradient(config: VerdictConfig, material: Material, primary: str) -> ScoreBearing | None:
    """The score-bearing part at the primary site, over dimensions; None where too few questions are scored."""
    labels_N = material.questions["dimension"].to_numpy()
    return score_bearing(
        material.load(primary).shift_ND,
        material.questions["misalignment"].to_numpy(),
        labels_N,
        signs_BN=flips_for(len(labels_N), seed=config.seed, settings=config.settings),
        alpha=config.alpha,
        least_in_group=LEAST_IN_GROUP,
        rng=np.random.default_rng([config.seed, 6]),
    )


def facts(material: Material) -> dict[str, Any]:
    """What the written verdict says of the data."""
    own = material.responses[material.responses["writer"] == "organism"]
    return {
        "question_ids": material.questions["question_id"].tolist(),
        "questions": len(material.questions),
        "left_out": material.left_out,
        "merged": material.merged,
        "samples": material.samples,
        "tokens": float(own["tokens"].mean()),
        "has_control": material.control is not None,
        "unscored": int(material.questions["misalignment"].isna().sum()),
    }


def _summary(verdict: dict[str, Any], found: list[SiteFinding]) -> dict[str, Any]:
    numbers = verdict["numbers"]
    shown = {name: None if numbers.get(name) is None else round(numbers[name], 4) for name in SHOWN}
    spread: dict[str, int] = {}
    for finding in found:
        if (finding.grouping, finding.correction) == ("dimension", verdict["correction"]):
            spread[finding.decision.verdict] = spread.get(finding.decision.verdict, 0) + 1
    return {"verdict": verdict["verdict"], "headline": verdict["headline"], **shown, "sites": spread}


SHOWN = ("p_shift", "p_rank", "rho", "rho_high", "eta", "eta_high", "k_adj", "k_star")
"""Numbers of the printed summary."""

STAGE = Stage(
    "verdict",
    "reach the verdict",
    1,
    VerdictConfig,
    ("questions", "responses", "activations", "control_activations", "scores", "decomposition"),
    False,
    run,
)
