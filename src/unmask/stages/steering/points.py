"""What is to be answered: which question under which direction at which dose, and with which seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from unmask.errors import ConfigError
from unmask.records import NEUTRAL
from unmask.stages.steering.config import UNSTEERED, SteeringConfig, Target
from unmask.stages.steering.directions import Chosen, Direction

if TYPE_CHECKING:
    import pandas as pd

Operation = Literal["add", "ablate"]
Part = Literal["dose", "confirmation"]


@dataclass(frozen=True, slots=True)
class Point:
    """One answer to be made: by which model, under what (`direction` None: nothing), to which question, with which seed.

    `length` is how far the stream is moved along the direction (signed, in the site's units); 0 for what is taken out.
    """

    part: Part
    target: Target
    direction: Direction | None
    operation: Operation | None
    coefficient: float
    length: float
    question_id: str
    dimension: str
    sample: int
    prompt_ids: tuple[int, ...]
    seed: int

    @property
    def answer_id(self) -> str:
        named = UNSTEERED if self.direction is None else self.direction.direction_id
        return f"{self.part}/{self.target}/{named}/{self.coefficient}/{self.question_id}/{self.sample}"


def check_questions(config: SteeringConfig, *, available: int) -> None:
    """Raise ConfigError when the study has fewer open questions than steering asks."""
    if config.questions > available:
        raise ConfigError(
            f"steering.questions is {config.questions}, the study has {available} open questions",
            mend="Lower it, or raise questions.neutral_count",
        )


def choose_questions(
    config: SteeringConfig, questions: pd.DataFrame, *, askable: Collection[str] | None = None
) -> list[str]:
    """The questions put to steered models: of the neutral battery, else spread evenly over the study's own that are `askable`.

    Raises ConfigError when there are too few.
    """
    neutral = questions[questions["dimension"] == NEUTRAL]
    if len(neutral):
        check_questions(config, available=len(neutral))
        return [str(name) for name in neutral["question_id"][: config.questions]]
    pool = questions if askable is None else questions[questions["question_id"].isin(list(askable))]
    check_questions(config, available=len(pool))
    return _spread(pool, config.questions)


def choose_confirming(config: SteeringConfig, questions: pd.DataFrame, chosen: Chosen) -> list[str]:
    """Questions of each dimension that has a direction, spread evenly over those that are askable; as many as there are."""
    found: list[str] = []
    for direction in chosen.dimensions:
        pool = questions[(questions["dimension"] == direction.group) & questions["question_id"].isin(chosen.askable)]
        found += _spread(pool, min(config.confirm_per_group, len(pool)))
    return found


def _spread(pool: pd.DataFrame, count: int) -> list[str]:
    rows = np.linspace(0, len(pool) - 1, count).round().astype(int) if count else []
    return [str(name) for name in pool["question_id"].iloc[rows]]


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions to ask, each with as many seeds as samples; the same seeds under every direction and dose."""

    part: Part
    questions: tuple[str, ...]
    dimension_of: Mapping[str, str]
    ids_of: Mapping[str, tuple[int, ...]]
    seeds: Mapping[tuple[str, int], int]

    @classmethod
    def of(
        cls,
        config: SteeringConfig,
        part: Part,
        names: Sequence[str],
        *,
        questions: pd.DataFrame,
        ids_of: Mapping[str, tuple[int, ...]],
    ) -> Asked:
        rng = np.random.default_rng([config.seed, 1 if part == "dose" else 2])
        seeds = {(name, sample): int(rng.integers(2**53)) for name in names for sample in range(config.samples)}
        dimension_of = dict(zip(questions["question_id"], questions["dimension"], strict=True))
        return cls(part, tuple(names), dimension_of, ids_of, seeds)

    def points(
        self,
        target: Target,
        direction: Direction | None = None,
        operation: Operation | None = None,
        *,
        coefficient: float = 0.0,
        length: float = 0.0,
    ) -> list[Point]:
        """Every question and sample under one dose."""
        under = (self.part, target, direction, operation, coefficient, length)
        return [
            Point(*under, name, self.dimension_of[name], sample, self.ids_of[name], seed)
            for (name, sample), seed in self.seeds.items()
        ]


def dose_points(
    config: SteeringConfig, directions: Sequence[Direction], asked: Asked, *, typical_norm: float
) -> list[Point]:
    """Every target unsteered and under every direction and dose."""
    points: list[Point] = []
    for target in config.targets:
        points += asked.points(target)
        for direction in directions:
            if target == "organism":
                for strength in config.removals:
                    points += asked.points(target, direction, "ablate", coefficient=strength)
                continue
            per_unit = typical_norm if config.units == "residual_norm" else direction.norm
            for coefficient in config.coefficients:
                points += asked.points(target, direction, "add", coefficient=coefficient, length=coefficient * per_unit)
    return points


def confirmation_points(chosen: Chosen, asked: Asked, *, coefficient: float, typical_norm: float) -> list[Point]:
    """The base unsteered, under every dimension's direction and under random ones, at a coefficient of the stage effects."""
    points = asked.points("base")
    for direction in (*chosen.dimensions, *chosen.random):
        points += asked.points("base", direction, "add", coefficient=coefficient, length=coefficient * typical_norm)
    return points
