"""The power of a design: what could the tests find, before anything is collected?

Studies are simulated (`worlds`) with the design's groups, responses and noise, and put through the same decision as real data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unmask.analysis.decision import decide
from unmask.analysis.examination import LEAST_IN_GROUP, LEAST_QUESTIONS, Settings
from unmask.analysis.planted import TARGET_POWER, wilson
from unmask.analysis.world_spec import WORLDS, WorldSpec
from unmask.analysis.worlds import draw

EFFECTS = (0.0, 0.02, 0.05, 0.10, 0.15, 0.25, 0.40)
"""Planted rho: share of the persona's mean-shift energy outside one direction."""

_WIDTH = 256
"""Coordinates of a simulated site. Noise has a falling spectrum, so that a wider site would change little."""


@dataclass(frozen=True, slots=True)
class Design:
    """What a study would collect.

    `sizes` are questions per group. `noise` is the RMS norm of the noise of one response's shift over the norm of the mean shift,
    of which `question_share` (of its variance) comes back in another response to the question; `fingerprint` is the constant of
    tuning itself over the persona's shared shift, both of which make the mean shift; `pass_through` is the variance, over the
    persona's squared shift, of what one map of the base activations carries over.
    """

    sizes: tuple[int, ...]
    responses: int = 1
    noise: float = 0.6
    question_share: float = 0.5
    fingerprint: float = 2.0
    control: bool = False
    pass_through: float = 0.0

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < LEAST_IN_GROUP or sum(self.sizes) < LEAST_QUESTIONS:
            raise ValueError(
                f"a design needs 2 groups of {LEAST_IN_GROUP} questions and {LEAST_QUESTIONS} questions in all, "
                f"not {', '.join(map(str, self.sizes))}"
            )
        finite = all(np.isfinite(value) for value in (self.noise, self.fingerprint, self.pass_through))
        if self.responses < 1 or not finite or self.noise <= 0 or self.fingerprint < 0 or self.pass_through < 0:
            raise ValueError(
                "a design needs 1 response or more, noise above 0, a fingerprint and pass-through of 0 or more"
            )
        if not 0 <= self.question_share <= 1:
            raise ValueError(f"a design needs a question share from 0 to 1, not {self.question_share:g}")

    @property
    def questions(self) -> int:
        return sum(self.sizes)

    def world(self, rho: float) -> WorldSpec:
        """The simulated study: noise of the mean of the responses, in units of the persona's shared shift."""
        of_mean = self.noise * np.sqrt(self.question_share + (1 - self.question_share) / self.responses)
        once = self.question_share / (self.question_share + (1 - self.question_share) / self.responses)
        return replace(
            WORLDS["separable"],
            questions=self.questions,
            dimensions=len(self.sizes),
            shares=tuple(size / self.questions for size in self.sizes),
            width=_WIDTH,
            responses=self.responses,
            rho=rho,
            drift=self.fingerprint,
            noise_ratio=float(of_mean * np.hypot(1.0, self.fingerprint)),
            question_share=float(once),
            control=self.control,
            map_kind="linear" if self.pass_through > 0 else None,
            map_energy=self.pass_through or 1.0,
        )


@dataclass(frozen=True, slots=True)
class DesignPoint:
    """How often each answer came in `runs` simulated studies whose persona has `rho` outside one direction.

    `rho_seen` and `eta_seen` are medians of the same effect in the whole shift, fingerprint included: what the report prints.
    """

    rho: float
    rho_seen: float
    eta_seen: float
    runs: int
    second_direction: int
    beyond_topic: int
    separable: int
    monolithic: int

    def interval(self, hits: int) -> tuple[float, float]:
        return wilson(hits, self.runs)


def design_power(
    design: Design,
    *,
    runs: int = 40,
    seed: int = 0,
    effects: Sequence[float] = EFFECTS,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    told: Callable[[], None] = lambda: None,
) -> list[DesignPoint]:
    """Simulate `runs` studies of the design per effect and decide each, with fewer flips and resamples than a study has.

    `settings` are the study's rule; `told` is called after each simulated study.
    Raises ValueError for a design whose groups are too small to be simulated, as each holds two or three facets.
    """
    settings = replace(settings, flips=199, resamples=200)
    return [
        _point(design, rho, runs=runs, rng=np.random.default_rng([seed, place]), settings=settings, told=told)
        for place, rho in enumerate(effects)
    ]


def _point(
    design: Design, rho: float, *, runs: int, rng: np.random.Generator, settings: Settings, told: Callable[[], None]
) -> DesignPoint:
    counts = np.zeros(4, dtype=int)
    sizes = np.empty((runs, 2))
    for run in range(runs):
        world = draw(design.world(rho), rng=rng)
        found = decide(
            world.shift_ND, world.base_ND, world.groups_N, control_ND=world.control_ND, seed=run, settings=settings
        )
        numbers = found.numbers
        sizes[run] = world.rho, world.eta
        counts += [
            (numbers.get("p_rank") or 1.0) <= settings.thresholds.alpha,
            (numbers.get("k_adj") or 0) >= (numbers.get("k_star") or 2),
            found.verdict == "separable",
            found.verdict == "monolithic",
        ]
        told()
    rho_seen, eta_seen = np.median(sizes, axis=0)
    return DesignPoint(rho, float(rho_seen), float(eta_seen), runs, *(int(count) for count in counts))


def question_share(reliability: float, *, half: int) -> float:
    """Share of one response's variance that is the question's, from the reliability of means of `half` responses.

    Spearman and Brown's formula solved for one response.
    """
    each = reliability / max(1, half)
    return each / (1 - reliability + each)


def detectable(points: Sequence[DesignPoint]) -> float | None:
    """The smallest rho called separable with power .8, linear between the effects; None where no effect sufficed."""
    before: DesignPoint | None = None
    for point in sorted(points, key=lambda point: point.rho):
        power = point.separable / point.runs
        if power >= TARGET_POWER:
            if before is None:
                return point.rho
            low = before.separable / before.runs
            return before.rho + (point.rho - before.rho) * (TARGET_POWER - low) / (power - low)
        before = point
    return None
