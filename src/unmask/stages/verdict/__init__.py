"""Stage `verdict`: is the shift one thing over the groups of questions? Tests, planted controls, the rule, over all sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from unmask.analysis.decision import TURNED_SHARE
from unmask.analysis.examination import Settings, flips_for
from unmask.analysis.score_gradient import LEAST_SCORED, ScoreBearing, score_bearing
from unmask.analysis.site_map import SiteFinding
from unmask.analysis.threads import one_thread
from unmask.analysis.verdict import Thresholds
from unmask.artifact import read_json
from unmask.stage import Inputs, Result, Stage, StageConfig, Work
from unmask.stages.verdict.artifacts import write_all
from unmask.stages.verdict.causal import read_causal
from unmask.stages.verdict.decisions import decided, deciding_work
from unmask.stages.verdict.material import Material, load_material
from unmask.study import Workspace


class VerdictConfig(StageConfig):
    """How the verdict is reached. Limits and defaults are those of docs/calibration.md; change them before looking."""

    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of every test")
    rho: float = Field(0.10, gt=0, lt=1, description="share of mean-shift energy outside one direction that matters")
    eta: float = Field(0.06, gt=0, lt=1, description="the same energy over the question variance that matters")
    gamma: float = Field(1.5, ge=1, description="how much more topic may carry over between groups than within them")
    flips: int = Field(499, ge=99, description="sign flips per test")
    resamples: int = Field(400, ge=100, description="bootstrap resamples per interval")
    planted_runs: int = Field(199, ge=20, description="planted data sets per effect")
    planted_effects: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.25, 0.5, 1.0, 2.0), min_length=1, description="planted effects, in units of the smallest effect of interest"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _enough_flips(self) -> Self:
        if (self.flips + 1) * self.alpha < TURNED_SHARE:  # the second look, by polarity, has that part of the level
            least = math.ceil(TURNED_SHARE / self.alpha) - 1
            raise ValueError(
                f"{self.flips} flips cannot reach verdict.alpha = {self.alpha:g}: at least {least} are needed"
            )
        return self

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


def work(config: VerdictConfig, inputs: Inputs, workspace: Workspace) -> Work:
    """Decisions: one for every site, grouping and correction."""
    return _work(config, inputs, workspace, lambda: load_material(inputs, scored=False))


def _work(config: VerdictConfig, inputs: Inputs, workspace: Workspace, load: Callable[[], Material]) -> Work:
    return deciding_work(
        inputs, workspace, primary=_primary(inputs), settings=config.settings, seed=config.seed, load=load
    )


def _primary(inputs: Inputs) -> str:
    """The site that the decomposition dwells on."""
    rebuild = f"{inputs.rebuild} decomposition"
    return read_json(inputs.folders["decomposition"] / "summary.json", rebuild=rebuild)["primary_site"]


def run(config: VerdictConfig, inputs: Inputs, workspace: Workspace) -> Result:
    material, primary = load_material(inputs), _primary(inputs)
    shared = _work(config, inputs, workspace, lambda: material)
    shared.finish(inputs.progress)
    found = decided(shared.shards, rebuild=f"{inputs.rebuild} verdict")
    with one_thread():  # as the decisions
        gradient = score_gradient(config, material, primary)
    verdict = write_all(
        workspace.out, found, gradient=gradient, causal=read_causal(inputs), primary=primary, settings=config.settings,
        material=material, seed=config.seed,
    )  # fmt: skip
    return Result(_summary(verdict, found))


def score_gradient(config: VerdictConfig, material: Material, primary: str) -> ScoreBearing | None:
    """The score-bearing part at the primary site, over dimensions; None where too few questions are scored."""
    labels_N = material.questions["dimension"].to_numpy()
    return score_bearing(
        material.load(primary).shift_ND,
        material.questions["misalignment"].to_numpy(),
        labels_N,
        signs_BN=flips_for(len(labels_N), seed=config.seed, settings=config.settings),
        alpha=config.alpha,
        least_in_group=LEAST_SCORED,
        rng=np.random.default_rng([config.seed, 6]),
    )


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
    2,
    VerdictConfig,
    ("questions", "responses", "activations", "control_activations", "scores", "decomposition", "effects"),
    False,
    run,
    work=work,
)
