"""An environment made from nothing on another machine, with the versions of this one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from openssh import PASSPHRASE, OpenSsh
from test_remote import Heard, make_study, remote_run
from unmask.artifact import read_json
from unmask.execution.ssh import PASSPHRASE_VARIABLE
from unmask.execution.wheel import pins
from unmask.pipeline import open_study

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_an_environment_is_made_once_and_has_the_versions_of_here(
    tmp_path: Path, tiny_llama: Path, openssh: OpenSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    study = make_study(tmp_path / "study", tiny_llama)
    heard = Heard()
    remote_run(study, openssh, voice=heard, env=None, until="questions").run()
    assert "Making an environment" in heard.logged
    assert read_json(study / "questions" / "manifest.json", rebuild="")["stage"] == "questions"
    root = openssh.home / ".unmask-remote"
    (python,) = root.glob("envs/*/bin/python")
    (code,) = root.glob("code/*")
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    there = {
        entry["name"].lower().replace("_", "-"): entry["version"].partition("+")[0]
        for entry in json.loads(listed.stdout)
    }
    assert [pin for pin in pins() if there.get(pin.split("==")[0]) != pin.split("==")[1]] == []
    told = subprocess.run(
        [python, "-m", "unmask", "--version"], env={"PYTHONPATH": str(code)}, capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("unmask ")
    again = Heard()
    remote_run(study, openssh, voice=again, env=None, until="questions", even_if_done=True).run()
    assert "Making an environment" not in again.logged
    assert open_study(study).status()[0].state == "done"
