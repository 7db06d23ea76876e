"""Which directions are extracted, and on which questions."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from unmask.stage import StageConfig

Kind = Literal["shared", "dimension", "facet", "cluster", "specific", "component", "score", "probe", "leace", "inlp"]
"""What a direction is made from; the controls (`control`, `shuffled`, `random-*`) are always made."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class DirectionsConfig(StageConfig):
    """Which directions are extracted, and on which questions."""

    kinds: tuple[Kind, ...] = Field(
        KINDS,
        min_length=1,
        description="mean shifts (shared, dimension, facet, cluster), a dimension's shift less the shared one (specific), "
        "principal components of the shift, high- less low-scored answers (score), a classifier of them (probe), erasers "
        "(leace, inlp)",
    )
    remove_control: bool = Field(
        True,
        description="take the control organism's mean shift off mean shifts, where the study has a control organism",
    )
    replicates: int = Field(
        2, ge=1, description="random halvings: directions from either half, tested on the questions of the other"
    )
    components: int = Field(3, ge=1, description="principal components of the shift")
    score_share: float = Field(0.3, gt=0, le=0.5, description="share of the answers that counts as high- or low-scored")
    penalty: float = Field(1.0, gt=0, description="ridge penalty of the probe, times the mean variance")
    random: int = Field(20, ge=2, description="random directions: half isotropic, half in the span of real activations")
    files: tuple[str, ...] = Field((), description="your own directions: safetensors or GGUF control vectors")
    seed: int = 0
