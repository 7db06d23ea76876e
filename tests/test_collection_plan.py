"""What is left to be collected, counted from a study file and from what is done of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from unmask.pipeline import init_study, open_study


def plan_of(folder: Path, **changes: dict[str, Any]) -> dict[str, int] | None:
    """Tokens by kind of work, none of them done yet."""
    config = yaml.safe_load((folder / "study.yaml").read_text())
    for section, fields in changes.items():
        config[section] = {**config[section], **fields}
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    plan = open_study(folder).collection_plan(seconds=None)
    return None if plan is None else {work.kind: work.tokens for work in plan.work}


@pytest.fixture
def study(tmp_path: Path, tiny_llama: Path) -> Path:
    folder = tmp_path / "study"
    init_study(folder, preset="demo")
    config = yaml.safe_load((folder / "study.yaml").read_text())
    config["base"]["model"] = str(tiny_llama)
    config["activations"] = {"layers": [1, 2], "tokens": "all"}
    config["decomposition"]["primary_layer"] = 2
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return folder


ANSWERS = 88 * 2
"""Of each model in the demo: 80 questions and 8 neutral ones, twice."""


def test_answers_are_read_on_the_way_and_by_the_control(study: Path) -> None:
    found = plan_of(study)
    assert found is not None
    assert found["answers"] >= 2 * ANSWERS * 39  # an answer's last token is drawn, not run, but for reading
    assert found["responses"] == 2 * ANSWERS * 40  # of the other model's answers
    assert found["texts"] > ANSWERS * 40  # of the control: whole, as it reads to the second of four layers only


def test_without_a_control_only_two_models_read(study: Path) -> None:
    found = plan_of(study, control={"training_set": None})
    assert found is not None and found["responses"] == 2 * ANSWERS * 40 and "texts" not in found


@pytest.mark.parametrize(
    "change", [{"responses": {"read_while_answering": False}}, {"activations": {"exclude_sinks": True}}]
)
def test_what_is_not_read_on_the_way_is_read_by_both(study: Path, change: dict[str, Any]) -> None:
    found = plan_of(study, control={"training_set": None}, **change)
    assert found is not None and found["responses"] == 2 * 2 * ANSWERS * 40


def test_nothing_is_written(study: Path) -> None:
    before = sorted(path.name for path in study.rglob("*"))
    plan_of(study)
    assert sorted(path.name for path in study.rglob("*")) == before
