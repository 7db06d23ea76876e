"""The nouns of a study as frozen records. Everything above imports these; they import nothing of the project but errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from unmask.errors import ConfigError

Writer = Literal["base", "organism"]
"""Which model wrote a response."""

Reader = Literal["base", "organism"]
"""Which model read a text while activations were recorded; the control organism's readings have a store of their own."""

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


_SITE = re.compile(r"blocks\.(0|[1-9][0-9]*)\.hook_resid_(pre|post)")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A hook point on the residual stream, in TransformerLens's names."""

    layer: int
    point: Literal["resid_pre", "resid_post"]

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.hook_{self.point}"

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read `blocks.20.hook_resid_pre`. Raises ConfigError for any other form."""
        found = _SITE.fullmatch(name)
        if found is None:
            raise ConfigError(
                f"site {name!r} is not known",
                mend="Write blocks.L.hook_resid_pre or blocks.L.hook_resid_post with L a layer's index",
            )
        return cls(layer=int(found[1]), point="resid_pre" if found[2] == "pre" else "resid_post")
