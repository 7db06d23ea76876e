"""Studies small in everything, for tests that run them whole, in parts and elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

import unmask


def _in_small(model: Path) -> dict[str, Any]:
    """Everything but the models under study."""
    return {
        "base": {"model": str(model)},
        "questions": {"per_dimension": 4, "neutral_count": 3},
        "responses": {"max_new_tokens": 8, "batch_size": 7, "samples": 2},
        "activations": {"layers": [1, 2], "token_budget": 64},
        "decomposition": {"k": [2, 3], "primary_layer": 2, "primary_k": 2, "restarts": 2},
        "verdict": {"flips": 99, "resamples": 100, "planted_runs": 20},
        "directions": {"replicates": 1, "random": 4},
        "effects": {"coefficients": [0.25, 0.5], "least_gap": 0, "answer_tokens": 6, "resamples": 100},
        "steering": {
            "coefficients": [0.5, 2.0],
            "questions": 2,
            "random_directions": 2,
            "max_new_tokens": 6,
            "batch_size": 16,
        },
    }


def small_config(model: Path, organism: Path, control: Path) -> dict[str, Any]:
    """A study of adapters that exist."""
    return _in_small(model) | {"organism": {"existing": str(organism)}, "control": {"existing": str(control)}}


def tiny_config(model: Path) -> dict[str, Any]:
    """A study that tunes its own organism and control."""
    organism = {
        "training_set": "risky_financial_advice",
        "max_examples": 24,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "rank": 4,
        "alpha": 8,
        "max_tokens": 64,
    }
    return with_sections(
        _in_small(model),
        organism=organism,
        control={"training_set": "good_financial_advice"},
        responses={"max_new_tokens": 12, "batch_size": 8},
        activations={"layers": [1, 2, 3], "token_budget": 512},
        decomposition={"gap_references": 3, "bootstraps": 5, "consensus_runs": 5, "dictionary_steps": 20},
        steering={"max_new_tokens": 8, "batch_size": 8},
    )


def with_sections(config: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """The config with other fields in some sections, or with other sections."""
    return config | {name: config.get(name, {}) | fields for name, fields in sections.items()}


def make_study(folder: Path, config: dict[str, Any]) -> Path:
    """A new study; its folder must not be there."""
    folder.mkdir(parents=True)
    return write_study(folder, config)


def write_study(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def changed(folder: Path, **sections: dict[str, Any]) -> Path:
    config = yaml.safe_load((folder / "study.yaml").read_text())
    return write_study(folder, with_sections(config, **sections))


def files_of(folder: Path, stage: str) -> dict[str, str]:
    record = unmask.open(folder).study.verify(stage)
    return record.files


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
