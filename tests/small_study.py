"""A study of adapters that exist, small in everything, for tests that run it in parts and elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

import unmask


def small_config(model: Path, organism: Path, control: Path) -> dict[str, Any]:
    return {
        "base": {"model": str(model)},
        "questions": {"per_dimension": 4, "neutral_count": 3},
        "organism": {"existing": str(organism)},
        "control": {"existing": str(control)},
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


def write_study(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def changed(folder: Path, **sections: dict[str, Any]) -> Path:
    config = yaml.safe_load((folder / "study.yaml").read_text())
    for name, fields in sections.items():
        config[name] |= fields
    return write_study(folder, config)


def files_of(folder: Path, stage: str) -> dict[str, str]:
    record = unmask.open(folder).study.verify(stage)
    return record.files


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
