"""Which directions steer which model, how strongly, on which questions; and the columns of what is written."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import Field, PrivateAttr, model_validator

from unmask.judges.settings import ScoresConfig
from unmask.records import Sampling
from unmask.stage import StageConfig

Kind = Literal[
    "shared", "dimension", "facet", "cluster", "specific", "component", "score", "probe", "control", "file"
]  # fmt: skip
Target = Literal["base", "organism"]
UNSTEERED = "none"
"""The direction and kind of answers that nothing was done to."""

_NAMES = ("answer_id", "part", "target", "direction_id", "kind", "label", "operation")
BATCH_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _NAMES),
        ("coefficient", pa.float64()),
        ("added_norm", pa.float64()),
        ("question_id", pa.string()),
        ("dimension", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("stop_reason", pa.string()),
        ("seed", pa.int64()),
        ("perplexity", pa.float64()),
    ]
)
"""Answers before they are judged. `added_norm` is in typical norms, null where nothing is added but something taken away;
`perplexity` is the base model's, also on the organism's answers. `part` is `dose` or `confirmation`."""

ANSWERS = pa.schema(
    [
        *BATCH_SCHEMA,
        ("misalignment", pa.float64()),
        ("coherence", pa.float64()),
        ("refusal", pa.bool_()),
        ("leakage", pa.float64()),
        ("missing_reason", pa.string()),
    ]
)
TRAITS = pa.schema(
    [("answer_id", pa.string()), ("rubric", pa.string()), ("score", pa.float64()), ("missing_reason", pa.string())]
)
"""What the judge says on every rubric beside misalignment and coherence."""

MEASURES = ("misalignment", "difference", "coherence", "refusal_rate", "leakage", "perplexity")
"""What each dose has a mean and a 95 % interval of. `difference` is misalignment less that of the same questions unsteered."""

_WHICH = ("target", "direction_id", "kind", "label", "grouping", "group", "operation")
DOSES = pa.schema(
    [
        *((name, pa.string()) for name in _WHICH),
        ("coefficient", pa.float64()),
        ("added_norm", pa.float64()),
        ("n", pa.int32()),
        ("missing", pa.int32()),
        *((f"{name}{end}", pa.float64()) for name in MEASURES for end in ("", "_low", "_high")),
        ("coherent", pa.bool_()),
    ]
)
CONFIRMATION = pa.schema(
    [
        ("row", pa.string()),
        ("column", pa.string()),
        *((name, pa.float64()) for name in ("coefficient", "effect", "low", "high", "random_mean", "effect_log_prob")),
        ("n", pa.int32()),
    ]
)
"""Judged effect of a dimension's direction (`row`) on a dimension's questions (`column`): misalignment less that of the same
questions unsteered, with its 95 % interval over `n` questions. `random_mean` is the same of random directions;
`effect_log_prob` the effect on log-odds, less that of random directions (stage effects)."""


class SteeringConfig(StageConfig):
    """Which directions steer which model, how strongly, and on which questions."""

    kinds: tuple[Kind, ...] = Field(
        ("shared", "dimension", "cluster"),
        min_length=1,
        description="random directions, shared and the control organism's are always beside them",
    )
    targets: tuple[Target, ...] = Field(
        ("base", "organism"),
        min_length=1,
        description="base: directions are added; organism: their component is taken out",
    )
    coefficients: tuple[float, ...] = Field(
        (-0.5, 0.25, 0.5, 1.0, 2.0), min_length=1, description="of what is added to the base; 0 is always there"
    )
    removals: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0,), min_length=1, description="share of a direction's component that is taken out of the organism's stream"
    )
    units: Literal["residual_norm", "raw"] = Field(
        "residual_norm",
        description="of coefficients; residual_norm: times the typical residual norm; raw: times the direction as it is",
    )
    positions: Literal["all", "prompt", "response"] = Field(
        "response",
        description="where; response: from the prompt's last token on, as effects are read; prompt: before it",
    )
    random_directions: int = Field(4, ge=1, description="controls, isotropic and in the span of activations in turn")
    questions: int = Field(
        6, ge=1, description="open questions (neutral battery, else the study's own) answered at each dose"
    )
    confirm_per_group: int = Field(
        3,
        ge=0,
        description="questions of each dimension answered under every dimension's direction and random ones, at the coefficient "
        "that the stage effects chose: do judged answers say the same? 0 for none",
    )
    samples: int = Field(1, ge=1, description="answers to a question at each dose")
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.8, gt=0, le=1)
    top_k: int = Field(20, ge=0)
    max_new_tokens: int = Field(100, ge=1)
    batch_size: int = Field(48, ge=1)
    coherent_above: float = Field(
        50, ge=0, le=100, description="least mean coherence of a dose, and of all smaller ones of its sign, to count"
    )
    seed: int = 0
    _scores: ScoresConfig = PrivateAttr(default_factory=ScoresConfig)  # not of this section: no part of the key

    @model_validator(mode="after")
    def _doses(self) -> Self:
        if 0 in self.coefficients or not all(map(isfinite, self.coefficients)):
            raise ValueError("coefficients are numbers other than 0: unsteered answers are always there")
        for name in ("kinds", "targets", "coefficients", "removals"):
            values = getattr(self, name)
            if twice := [value for place, value in enumerate(values) if value in values[:place]]:
                raise ValueError(f"{name} names {twice[0]!r} twice")
        return self

    def judged_by(self, scores: ScoresConfig) -> SteeringConfig:
        """The same, knowing who judges the answers."""
        copy = self.model_copy()
        copy._scores = scores.alone()
        return copy

    @property
    def scores(self) -> ScoresConfig:
        """How answers are judged: by the judge whose scores count in the study, on its rubrics."""
        return self._scores

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)
