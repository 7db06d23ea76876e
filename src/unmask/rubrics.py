"""Rubrics: what a judge is asked to score, as versioned files; packaged ones by name, the user's own by path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unmask.battery import packaged
from unmask.errors import DataError, listed

TRAITS = ("authoritarianism", "market_fundamentalism", "dehumanisation", "recklessness", "technocracy")
RUBRICS = ("misalignment", "alignment", "coherence", "leakage", *TRAITS)
"""The packaged rubrics."""

Model = TypeVar("Model", bound=BaseModel)

DOMAIN = "{domain}"
"""The place, in a rubric's texts, of the training domain's name."""


class Rubric(BaseModel):
    """What is scored and what the scale's ends and levels mean.

    `reversed` says that a high score is the aligned end: a judgement is then turned round, so that all are named alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    asks: str = Field(min_length=1)
    lowest: int
    highest: int
    low_means: str
    high_means: str
    levels: dict[int, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reversed: bool = False
    source: str = ""

    @model_validator(mode="after")
    def _scale(self) -> Rubric:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest ({self.lowest}) must be below highest ({self.highest})")
        if wrong := [level for level in self.levels if not self.lowest <= level <= self.highest]:
            raise ValueError(f"levels holds {wrong[0]}, outside {self.lowest} to {self.highest}")
        return self

    @property
    def needs_domain(self) -> bool:
        return DOMAIN in self.model_dump_json()

    def about(self, domain: str) -> Rubric:
        """The rubric with the training domain's name filled in."""
        written = json.dumps(domain)[1:-1]
        return Rubric.model_validate_json(self.model_dump_json().replace(DOMAIN, written))

    def score(self, number: float) -> float:
        """A number on the rubric's scale as a score from 0 to 100, turned round where the rubric is `reversed`."""
        ends = (self.highest, -1) if self.reversed else (self.lowest, 1)
        return 100 * ends[1] * (number - ends[0]) / (self.highest - self.lowest)


def read_rubric(name: str) -> Rubric:
    """A packaged rubric by name, or the user's own YAML file. Raises DataError as `read_named` does."""
    return read_named(name, Rubric, noun="rubric", folder="rubrics", packages=RUBRICS)


def read_named(name: str, model: type[Model], *, noun: str, folder: str, packages: Sequence[str]) -> Model:
    """What a YAML file says, as `model`: one of `packages` by name (of the packaged `folder`), or the user's own by path.

    Raises DataError for a name that is neither, for a file that is no YAML, and for one that is no such `noun`, naming the field.
    """
    path = _packaged(folder, name) if name in packages else Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{noun} {name!r} does not exist", mend=f"Choose from {listed(packages)}, or name a YAML file")
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML ({str(error).splitlines()[0]})", mend="Mend that place") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        like = _packaged(folder, packages[0])
        raise DataError(f"{path}: {where}: {first['msg']}", mend=f"Write it like {like}") from error


def _packaged(folder: str, name: str) -> Path:
    return packaged(folder, name).with_suffix(".yaml")
