"""The nouns of a study as frozen records. Everything above imports these; they import nothing of the project but errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from unmask.errors import ConfigError, listed

Writer = Literal["base", "organism"]
"""Which model wrote a response."""

Reader = Literal["base", "organism"]
"""Which model read a text while activations were recorded; the control organism's readings have a store of their own."""

Aggregation = str
"""What is kept of a text at a site, one row each: `response_mean`, `response_last`, `prompt_last`, `response_first_K` (mean over
the first K response tokens) or `mask` (mean over the tokens that the user marked)."""

RESPONSE_MEAN: Aggregation = "response_mean"
_FIRST = re.compile(r"response_first_([1-9][0-9]*)")

StopReason = Literal["end", "length"]
"""Why a response ended: the model's end mark, or the limit on new tokens."""

WRITERS: tuple[Writer, ...] = ("base", "organism")
READERS: tuple[Reader, ...] = ("base", "organism")

NEUTRAL = "neutral"
"""The dimension of the neutral battery: asked and scored, never decomposed."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt put to both models.

    `polarity` is +1 where agreeing is the misaligned answer, -1 where disagreeing is, 0 where neither is.
    """

    question_id: str
    dimension: str
    facet: str
    polarity: int
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a response is drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch the filter off."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, kept as token ids; `text` is their decoding without special tokens."""

    response_id: str
    question_id: str
    sample: int
    writer: Writer
    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    seed: int


@dataclass(frozen=True, slots=True)
class Score:
    """A judge's reading of one response, 0 (aligned) to 100 (misaligned); None with a reason where it could not judge."""

    response_id: str
    misalignment: float | None
    coherence: float | None
    missing_reason: str | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training example: turns (role, text) up to the last user turn, and the answer to learn."""

    turns: tuple[tuple[str, str], ...]
    answer: str


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a packaged name, a Hugging Face id, or a local folder.

    `label` is what the study file calls it, where `name` is a folder found from there.
    """

    name: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    label: str | None = field(default=None, compare=False)

    @property
    def called(self) -> str:
        """The name for people and artifacts."""
        return self.label or self.name


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a question becomes a prompt, the same for both models.

    `system_prompt` None leaves the chat template's own default, "" is an empty system turn. `thinking` is the switch of templates
    that have one.
    """

    system_prompt: str | None = None
    thinking: bool = False


def first_tokens(aggregation: Aggregation) -> int | None:
    """K of `response_first_K`, None for any other aggregation.

    Raises ConfigError for a name that is no aggregation.
    """
    found = _FIRST.fullmatch(aggregation)
    if found is None and aggregation not in (RESPONSE_MEAN, "response_last", "prompt_last", "mask"):
        raise ConfigError(
            f"aggregation {aggregation!r} is not known",
            mend="Write response_mean, response_last, prompt_last, response_first_K (K = 1, 2, ...) or mask",
        )
    return None if found is None else int(found[1])


Point = Literal["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "z", "pattern", "mlp_out", "normalized"]
"""What is read at a site; `embed` and `normalized` (what the final norm makes, before its weight) belong to no layer."""

LAYER_POINTS: tuple[Point, ...] = ("resid_pre", "z", "pattern", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""The points of one decoder layer, in the order in which a forward pass reaches them."""

_SITE_NAMES: dict[Point, str] = {
    "embed": "hook_embed",
    "z": "blocks.{layer}.attn.hook_z",
    "pattern": "blocks.{layer}.attn.hook_pattern",
    "normalized": "ln_final.hook_normalized",
} | {point: f"blocks.{{layer}}.hook_{point}" for point in LAYER_POINTS if point not in ("z", "pattern")}
_LAYER = re.compile(r"blocks\.(0|[1-9][0-9]*)\.")


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point, in TransformerLens's names. `layer` is None for `embed` and `normalized`. Sites sort by depth."""

    layer: int | None
    point: Point

    @property
    def name(self) -> str:
        return _SITE_NAMES[self.point].format(layer=self.layer)

    @property
    def depth(self) -> tuple[float, int]:
        """Where a forward pass reaches it: for sorting."""
        if self.layer is None:
            return (-1.0, 0) if self.point == "embed" else (float("inf"), 0)
        return (self.layer, LAYER_POINTS.index(self.point))

    @property
    def residual(self) -> bool:
        """Whether it is the residual stream itself, where a direction can be added."""
        return self.point in ("resid_pre", "resid_mid", "resid_post")

    def __lt__(self, other: Site) -> bool:
        return self.depth < other.depth

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read `blocks.20.hook_resid_pre`. Raises ConfigError for any other form."""
        found = _LAYER.match(name)
        layer = None if found is None else int(found[1])
        for point in _SITE_NAMES:
            site = cls(layer, point)
            if site.name == name and (layer is None) == (point in ("embed", "normalized")):
                return site
        known = listed(pattern.format(layer="L") for pattern in _SITE_NAMES.values())
        raise ConfigError(f"site {name!r} is not known", mend=f"Write one of {known}, with L a layer's index")
