"""Descriptions of dimensions, from which questions are written: packaged ones by name, the user's own as YAML files."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unmask.errors import ConfigError, listed
from unmask.records import NEUTRAL
from unmask.rubrics import read_named

PAPER = ("political_compass", "moral_foundations", "technology_ai", "financial_risk")
"""The packaged descriptions, in the order of the packaged battery: 230, 227, 218 and 210 questions."""

AGREE, DISAGREE = 1, -1
"""Polarities: agreeing is the misaligned answer, or disagreeing is."""

_PREFIX = r"[a-z0-9]+"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Examples(_Part):
    """Texts that show what is wanted, at least one of each polarity."""

    agree_is_misaligned: tuple[str, ...] = Field(min_length=1)
    disagree_is_misaligned: tuple[str, ...] = Field(min_length=1)

    def of(self, polarity: int) -> tuple[str, ...]:
        return self.agree_is_misaligned if polarity == AGREE else self.disagree_is_misaligned


class Facet(_Part):
    """A part of a dimension: one kind of conviction, its two poles, scenes to vary over, examples."""

    name: str = Field(min_length=1)
    id_prefix: str = Field(pattern=f"^{_PREFIX}$")
    about: str = Field(min_length=1)
    misaligned_pole: str = Field(min_length=1)
    aligned_pole: str = Field(min_length=1)
    settings: tuple[str, ...] = Field(min_length=1)
    examples: Examples


class Description(_Part):
    """What a dimension asks, and how many questions per facet; `data/dimensions/README.md` says what makes one good."""

    dimension: str = Field(min_length=1)
    version: int = Field(ge=1)
    about: str = Field(min_length=1)
    id_prefix: str = Field(pattern=f"^{_PREFIX}$")
    facets: tuple[Facet, ...] = Field(min_length=1)
    counts: dict[str, int]
    rules: tuple[str, ...] = ()

    @field_validator("dimension")
    @classmethod
    def _not_neutral(cls, name: str) -> str:
        if name == NEUTRAL:
            raise ValueError(f"{NEUTRAL!r} is the dimension without polarity, which no description has")
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        names = [facet.name for facet in self.facets]
        prefixes = [facet.id_prefix for facet in self.facets]
        for what, values in (("name", names), ("id_prefix", prefixes)):
            if len(set(values)) < len(values):
                raise ValueError(f"two facets have the same {what}")
        if set(self.counts) != set(names):
            raise ValueError(f"counts names {listed(self.counts)}, and the facets are {listed(names)}")
        if any(count < 1 for count in self.counts.values()):
            raise ValueError("counts holds a number below 1")
        return self

    def id_prefix_of(self, facet: Facet) -> str:
        """What the ids of a facet's questions begin with: `pc-eco-`."""
        return f"{self.id_prefix}-{facet.id_prefix}-"

    @property
    def told_texts(self) -> list[str]:
        """What a writer is told and must not hand back: examples and scenes."""
        examples = [text for facet in self.facets for side in (AGREE, DISAGREE) for text in facet.examples.of(side)]
        return examples + [scene for facet in self.facets for scene in facet.settings]


def read_description(name: str) -> Description:
    """A packaged description by name, or the user's own YAML file. Raises DataError as `read_named` does."""
    return read_named(name, Description, noun="description", folder="dimensions", packages=PAPER)


def read_descriptions(names: Sequence[str], *, preset: str | None = None) -> list[Description]:
    """The descriptions named, or those of a preset (`paper`: the four packaged ones).

    Raises ConfigError when there are none or both, or when two share a dimension or the beginning of their ids.
    """
    if preset not in (None, "paper"):
        raise ConfigError(f"preset {preset!r} is not known", mend="Choose from: paper")
    if bool(names) == (preset is not None):
        raise ConfigError(
            "descriptions and a preset were both given" if names else "no description was given",
            mend="Name description files (or packaged ones), or give --preset paper instead",
        )
    descriptions = [read_description(name) for name in (names or PAPER)]
    for what in ("dimension", "id_prefix"):
        values = [getattr(each, what) for each in descriptions]
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"two descriptions have {what} {repeated[0]!r}", mend="Give each its own")
    return descriptions
