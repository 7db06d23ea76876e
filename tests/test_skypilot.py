"""The SkyPilot task: documented fields, scripts that a shell accepts, and paths that meet on the other side."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from unmask.errors import ConfigError
from unmask.execution.wheel import pins
from unmask.pipeline import StudyPipeline, init_study, open_study
from unmask.remote.skypilot import task_yaml, write_task

TASK_FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "config"}
RESOURCE_FIELDS = {
    "infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier",
    "network_tier", "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery",
}  # fmt: skip
"""Fields of docs.skypilot.co/en/latest/reference/yaml-spec.html. SkyPilot itself is not asked."""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPipeline:
    """A study in a folder with a space, that refers to a battery beside it."""
    monkeypatch.chdir(tmp_path)
    init_study(tmp_path / "my study", preset="paper")
    (tmp_path / "mine.jsonl").write_text(
        '{"id": "q1", "dimension": "d", "facet": "f", "polarity": 1, "text": "Why?"}\n', encoding="utf-8"
    )
    _change(tmp_path / "my study", "battery: assessment", "battery: mine.jsonl")
    return open_study(tmp_path / "my study")


def _change(study: Path, old: str, new: str) -> None:
    text = (study / "study.yaml").read_text(encoding="utf-8")
    assert old in text
    (study / "study.yaml").write_text(text.replace(old, new), encoding="utf-8")


def test_every_field_is_documented(opened: StudyPipeline) -> None:
    task = yaml.safe_load(task_yaml(opened, accelerators=("L4:1", "A100:1"), spot=True, disk_gb=80))
    assert set(task) <= TASK_FIELDS
    assert set(task["resources"]) <= RESOURCE_FIELDS
    assert task["name"] == "unmask-my-study"
    assert task["resources"] == {
        "accelerators": ["L4:1", "A100:1"], "use_spot": True, "disk_size": 80,
        "autostop": {"idle_minutes": 20, "down": False},
    }  # fmt: skip
    assert all(isinstance(where, str) and isinstance(what, str) for where, what in task["file_mounts"].items())


def test_what_is_installed_is_pinned_as_here(opened: StudyPipeline) -> None:
    setup = yaml.safe_load(task_yaml(opened))["setup"]
    listed = setup.partition("<<'END'\n")[2].partition("\nEND\n")[0].splitlines()
    assert listed == pins()
    assert any(pin.startswith("torch==") and "+" not in pin for pin in listed)


def test_the_study_and_what_it_refers_to_meet_where_the_run_looks(opened: StudyPipeline, tmp_path: Path) -> None:
    """Mounts are copied as rsync would; the run's script is then really run, with a stub in place of Python."""
    path, package = write_task(opened, tmp_path / "task.yaml")
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    with zipfile.ZipFile(package) as archive:
        assert "unmask/__init__.py" in archive.namelist()
    home = tmp_path / "cluster"
    for where, what in task["file_mounts"].items():
        source, target = tmp_path / what, home / where.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    stub = home / "unmask" / "env" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text('#!/bin/sh\npwd\nls\nprintf "%s\\n" "$@"\ncat "$4/study.yaml"\n', encoding="utf-8")
    stub.chmod(0o755)
    for script in (task["setup"], task["run"]):
        subprocess.run(["sh", "-n", "-c", script], check=True)
    ran = subprocess.run(
        ["sh", "-c", task["run"]], env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert ran[0] == f"{home}/unmask/tree{tmp_path}"
    assert "mine.jsonl" in ran[1:], "the battery lies where the study file's relative path leads"
    assert "run" in ran
    assert f"{home}/unmask/tree{tmp_path}/my study" in ran
    assert any("battery: mine.jsonl" in line for line in ran)


def test_a_place_of_this_machine_alone_is_refused(opened: StudyPipeline, tmp_path: Path) -> None:
    _change(tmp_path / "my study", "battery: mine.jsonl", f"battery: {tmp_path}/mine.jsonl")
    with pytest.raises(ConfigError, match="on this machine alone"):
        task_yaml(open_study(tmp_path / "my study"))


def test_no_key_is_written(opened: StudyPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    secret: Any = "hf_secret_0123456789"  # pragma: allowlist secret
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("RUNPOD_API_KEY", secret)
    text = task_yaml(opened)
    assert secret not in text
    assert "secrets" not in yaml.safe_load(text), "a comment says how"
