"""Which effects are measured, on which pairs of answers."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unmask.stage import StageConfig

TestedKind = (
    Literal["shared", "dimension", "facet", "cluster", "specific", "component"]
    | Literal["score", "probe", "leace", "inlp", "file"]
)


class EffectsConfig(StageConfig):
    """Which effects are measured, on which pairs of answers: teacher-forced, so without sampling noise."""

    pairs: Literal["judged", "written", "stance"] = Field(
        "judged",
        description="judged: the highest- and the lowest-scored answer to a question; written: the organism's and the base's; "
        "stance: packaged words of agreeing and disagreeing, by polarity",
    )
    least_gap: float = Field(
        10, ge=0, le=100, description="judged pairs: points between the two scores, or the question is left out"
    )
    per_facet: int | None = Field(None, ge=2, description="questions of each facet, spread evenly; null for all")
    answer_tokens: int = Field(24, ge=1, description="tokens of each answer that are read")
    kinds: tuple[TestedKind, ...] = Field(
        ("shared", "dimension", "facet", "specific", "score"),
        min_length=1,
        description="directions that are tested; random, shuffled and the control organism's are always beside them",
    )
    coefficients: tuple[float, ...] = Field(
        (-0.5, 0.25, 0.5, 1.0, 2.0),
        min_length=1,
        description="what is added to the base, times the typical residual norm; at least one above 0",
    )
    removals: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0,), description="share of a direction's component that is taken from the organism; empty for none"
    )
    removal: Literal["replace", "ablate"] = Field(
        "replace",
        description="replace: the base model's component on the same tokens comes in its place; ablate: nothing does",
    )
    positions: Literal["all", "prompt", "response"] = Field(
        "response", description="where: at every token, before the last token of the prompt, or from there on"
    )
    most_loss: float = Field(
        0.5, gt=0, description="nats per token that both answers may lose on average: the coherent window"
    )
    resamples: int = Field(1000, ge=100, description="bootstrap resamples of questions")
    permutations: int = Field(999, ge=99)
    seed: int = 0

    @model_validator(mode="after")
    def _something_is_added(self) -> Self:
        if not all(map(isfinite, self.coefficients)):
            raise ValueError("coefficients are finite numbers")
        if not any(coefficient > 0 for coefficient in self.coefficients):
            raise ValueError("coefficients need one above 0")
        if 0 in self.coefficients:
            raise ValueError("coefficient 0 is what every effect is measured from: leave it out")
        for name in ("coefficients", "removals", "kinds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one twice")
        return self
