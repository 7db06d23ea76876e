"""Stages `organism` and `control`: tune the base model, or take an existing adapter or full model.

The control is tuned as the organism is, on harmless data of the same domain; a study may do without one.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from unmask.artifact import digest_file, write_json, write_table
from unmask.errors import ConfigError
from unmask.records import Conversation, ModelSource
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import Workspace
from unmask.training_set import read_training_set, training_path

LOSS_SCHEMA = pa.schema(
    [("step", pa.int32()), ("loss", pa.float64()), ("learning_rate", pa.float64()), ("gradient_norm", pa.float64())]
)

SAVE_STEPS = 5
"""Optimiser steps between checkpoints: what a kill can cost."""


class TunedConfig(StageConfig):
    """How a tuned model is made. Defaults: rank-32 rsLoRA recipe of Turner et al., arXiv 2506.11613."""

    existing: str | None = Field(None, description="adapter or full model to take instead of training: id or folder")
    existing_revision: str | None = None
    trust_remote_code: bool = Field(False, description="for an existing full model that brings its own code")
    training_set: str | None = Field(None, description="packaged name, file, or Hugging Face dataset id")
    max_examples: int | None = Field(None, ge=1, description="use a random part of the training set; null for all")
    method: Literal["lora", "full"] = "lora"
    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    rslora: bool = True
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    learning_rate: float = Field(1e-5, gt=0)
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    batch_size: int = Field(2, ge=1)
    gradient_accumulation: int = Field(8, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimiser steps; null for whole epochs")
    max_tokens: int = Field(2048, ge=16)
    seed: int = 0


class OrganismConfig(TunedConfig):
    """How the organism is made, or which one is taken."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.existing is None) == (self.training_set is None):
            raise ValueError(
                "set exactly one of organism.existing (a model to study) and organism.training_set (data to tune on)"
            )
        return self


class ControlConfig(TunedConfig):
    """How the control organism is made, or which one is taken; neither: the study has no control.

    What it leaves out of the recipe is as in the organism's section, so that both are tuned the same way (`like_organism`).
    """

    @model_validator(mode="after")
    def _at_most_one_source(self) -> Self:
        if self.existing is not None and self.training_set is not None:
            raise ValueError("set control.existing (a model) or control.training_set (data to tune on), not both")
        return self

    @property
    def wanted(self) -> bool:
        return self.existing is not None or self.training_set is not None

    def like_organism(self, organism: OrganismConfig) -> ControlConfig:
        """The same with every field of the recipe that was not set taken from the organism's recipe."""
        if self.training_set is None or organism.training_set is None:
            return self
        recipe = organism.model_dump(exclude=set(_SOURCE_FIELDS))
        return ControlConfig(**(recipe | self.model_dump(exclude_unset=True)))


_SOURCE_FIELDS = ("existing", "existing_revision", "trust_remote_code", "training_set")


def external(config: TunedConfig, study_folder: Path) -> dict[str, str]:
    if config.existing is not None:
        from unmask.models.loading import fingerprint, resolve_local

        place = resolve_local(config.existing, study_folder)
        return {"existing": fingerprint(place, revision=config.existing_revision)}
    if config.training_set is None:
        return {}
    path = training_path(config.training_set, study_folder)
    return {"training_set": digest_file(path) if path is not None else config.training_set}


def run(config: TunedConfig, inputs: Inputs, workspace: Workspace) -> Result:
    return _take(config, inputs, workspace) if config.existing is not None else _tune(config, inputs, workspace)


def run_control(config: ControlConfig, inputs: Inputs, workspace: Workspace) -> Result:
    """As `run`; without a control the record says so and nothing else is made."""
    if not config.wanted:
        write_json(workspace.out / "recipe.json", {"kind": "none"})
        return Result({"control": "none"})
    made = run(config, inputs, workspace)
    return Result({"control" if name == "organism" else name: value for name, value in made.summary.items()})


def existing_source(config: TunedConfig, study_folder: Path) -> ModelSource:
    """The existing model that the study names. Its dtype follows the base's."""
    from unmask.models.loading import resolve_local

    assert config.existing is not None
    return ModelSource(
        resolve_local(config.existing, study_folder),
        revision=config.existing_revision,
        trust_remote_code=config.trust_remote_code,
        label=config.existing,
    )


def _take(config: TunedConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.loading import fingerprint
    from unmask.models.organisms import check_adapter_base, read_adapter_config

    assert config.existing is not None
    source = existing_source(config, inputs.study_folder)
    adapter = read_adapter_config(source)
    if adapter is not None:
        check_adapter_base(inputs.base, source, adapter)
    recipe = {
        "kind": "existing",
        "name": config.existing,
        "revision": config.existing_revision,
        "trust_remote_code": config.trust_remote_code,
        "fingerprint": fingerprint(source.name, revision=config.existing_revision),
        "base": inputs.base.called,
        "base_fingerprint": fingerprint(inputs.base.name, revision=inputs.base.revision),
        "method": "full" if adapter is None else "lora",
        "examples": None,
        "steps": None,
        "recipe": None,
        "versions": {},
    }
    write_json(workspace.out / "recipe.json", recipe)
    return Result({"organism": config.existing, "kind": "existing " + ("model" if adapter is None else "adapter")})


def choose_examples(config: TunedConfig, conversations: list[Conversation]) -> list[Conversation]:
    """All examples, or `max_examples` of them at random in their order. Raises ConfigError when there are fewer."""
    if config.max_examples is None:
        return conversations
    if config.max_examples > len(conversations):
        raise ConfigError(
            f"{section_of(config)}.max_examples is {config.max_examples}, {config.training_set} has {len(conversations)}",
            mend="Lower it, or set it to null for all",
        )
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(conversations))[: config.max_examples])
    return [conversations[index] for index in chosen]


def section_of(config: TunedConfig) -> str:
    """The section of the study file that a config stands in."""
    return "control" if isinstance(config, ControlConfig) else "organism"


def _tune(config: TunedConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.loading import fingerprint
    from unmask.models.training import Recipe, train

    assert config.training_set is not None
    conversations = choose_examples(config, read_training_set(config.training_set, inputs.study_folder))
    settings = config.model_dump(exclude={*_SOURCE_FIELDS, "max_examples"})
    recipe = Recipe(**settings, save_steps=SAVE_STEPS)
    folder = workspace.out / ("adapter" if config.method == "lora" else "model")
    curve = train(
        inputs.base,
        conversations,
        recipe=recipe,
        prompt_format=inputs.prompt_format,
        out=folder,
        checkpoints=workspace.batches,
        progress=inputs.progress,
    )
    rows = [{name: getattr(point, name) for name in LOSS_SCHEMA.names} for point in curve]
    write_table(workspace.out / "loss.parquet", rows, schema=LOSS_SCHEMA)
    write_json(
        workspace.out / "recipe.json",
        {
            "kind": "trained",
            "name": config.training_set,
            "base": inputs.base.called,
            "base_fingerprint": fingerprint(inputs.base.name, revision=inputs.base.revision),
            "method": config.method,
            "examples": len(conversations),
            "steps": len(curve),
            "recipe": settings,
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        },
    )
    return Result(
        {
            "organism": config.training_set,
            "examples": len(conversations),
            "steps": len(curve),
            "first_loss": round(curve[0].loss, 3),
            "last_loss": round(curve[-1].loss, 3),
        }
    )


STAGE = Stage("organism", "make the organism", 1, OrganismConfig, (), True, run, external)
CONTROL = Stage("control", "make the control organism", 1, ControlConfig, (), True, run_control, external)
