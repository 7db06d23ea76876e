"""The study file: the base model and one section per stage, read with errors that name the field and the mend."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from unmask.collection import CollectionConfig
from unmask.errors import ConfigError, listed
from unmask.records import PromptFormat
from unmask.stage import StageConfig
from unmask.stages.cards import CardsConfig
from unmask.stages.decomposition import DecompositionConfig
from unmask.stages.directions import DirectionsConfig
from unmask.stages.effects import EffectsConfig
from unmask.stages.organism import ControlConfig, OrganismConfig
from unmask.stages.questions import QuestionsConfig
from unmask.stages.report import ReportConfig
from unmask.stages.responses import ResponsesConfig
from unmask.stages.scores import ScoresConfig
from unmask.stages.steering import SteeringConfig
from unmask.stages.verdict import VerdictConfig

PRESETS = ("demo", "laptop", "paper")


class BaseConfig(StageConfig):
    """The base model, and how questions are put to both models."""

    model: str = Field(description="smollm2, a Hugging Face id, or a local folder")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    system_prompt: str | None = Field(None, description="null: the chat template's own default")
    thinking: bool = Field(False, description="the switch of templates that have one")

    @property
    def prompt_format(self) -> PromptFormat:
        return PromptFormat(self.system_prompt, self.thinking)


class StudyConfig(StageConfig):
    """A study file: the base model and one section per stage."""

    base: BaseConfig
    questions: QuestionsConfig = QuestionsConfig()
    organism: OrganismConfig
    control: ControlConfig = ControlConfig()
    responses: ResponsesConfig = ResponsesConfig()
    activations: CollectionConfig
    scores: ScoresConfig = ScoresConfig()
    decomposition: DecompositionConfig = DecompositionConfig()
    directions: DirectionsConfig = DirectionsConfig()
    effects: EffectsConfig = EffectsConfig()
    verdict: VerdictConfig = VerdictConfig()
    cards: CardsConfig = CardsConfig()
    steering: SteeringConfig = SteeringConfig()
    report: ReportConfig = ReportConfig()


def preset_text(name: str) -> str:
    """The commented study file of a preset. Raises ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}", mend=f"Choose from: {listed(PRESETS)}")
    return (files("unmask") / "data" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def read_config(path: Path) -> StudyConfig:
    """Read a study file. Raises ConfigError naming the field, its value, and what is allowed."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path} is not YAML{line} ({problem})", mend="Correct that line") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings", mend="Write a new one with `unmask init NEW_FOLDER`")
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise _config_error(path, error) from error


def _config_error(path: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = _allowed_fields(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        return ConfigError(f"{path}: unknown field {place}", mend=f"{hint}Allowed there: {listed(allowed)}")
    if first["type"] == "missing":
        return ConfigError(f"{path}: field {place} is missing", mend="Add it; `unmask init` writes a complete example")
    if first["input"] is None and first["type"] == "model_type":
        return ConfigError(f"{path}: section {place} is empty", mend="Give it at least one field or take it out")
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], dict) else f" is {first['input']!r}"
    return ConfigError(f"{path}: {place}{value}: {message}", mend="Correct it in the study file")


def _allowed_fields(place: tuple[int | str, ...]) -> list[str]:
    model: Any = StudyConfig
    for part in place:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
