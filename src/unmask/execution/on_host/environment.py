"""A virtual environment with exactly the versions that were asked for, made once per list of versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.execution.on_host.supervising import only_one

if TYPE_CHECKING:
    from unmask.execution.on_host.supervising import Supervisor

COMPLETE = ".complete"
_VERSIONS = """
import importlib.metadata as m, json, sys
found = {}
for name in json.loads(sys.stdin.read()):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        found[name] = None
print(json.dumps([found, sys.version_info[:2]]))
"""


class EnvironmentError_(Exception):
    """An environment cannot be made or used: one sentence."""


def make(folder: Path, *, python: str, pins: Sequence[str], supervisor: Supervisor) -> str:
    """The Python of the environment in `folder`, made if it is not complete. Raises EnvironmentError_."""
    made = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_one(folder.with_name(f"{folder.name}.lock")):
        if (folder / COMPLETE).is_file():
            return str(made)
        shutil.rmtree(folder, ignore_errors=True)
        supervisor.say(f"Making an environment of {len(pins)} packages in {folder} (once)\n")
        if supervisor.call([python, "-m", "venv", str(folder)]) != 0:
            raise EnvironmentError_(
                f"{python} cannot make a virtual environment. Install its venv module (Debian: apt install python3-venv), or "
                "name another Python with --python, or an environment that is there with --env."
            )
        listed = folder / "pins.txt"
        listed.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        if _install(made, listed, supervisor) != 0:
            what = "stopped" if supervisor.stopped else "the packages could not be installed: see the log above"
            raise EnvironmentError_(
                f"{what}. `unmask remote run` again goes on; --env names an environment that is there."
            )
        (folder / COMPLETE).touch()
    return str(made)


def _install(python: Path, pins: Path, supervisor: Supervisor) -> int:
    """By uv where it can be installed, which takes a tenth of pip's time; else, and where uv fails, by pip."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    if supervisor.call([*pip, "install", "--quiet", "uv"]) == 0:
        settings = _pip_settings(pip)
        command = [str(python), "-m", "uv", "pip", "install", "--python", str(python), *_uv_options(settings)]
        command += ["--requirement", str(pins)]
        if supervisor.call(command, environment={**os.environ, **_uv_variables(settings)}) == 0:
            return 0
    if supervisor.stopped:
        return 1
    return supervisor.call([*pip, "install", "--progress-bar", "off", "--requirement", str(pins)])


def _pip_settings(pip: Sequence[str]) -> dict[str, str]:
    """What this machine's pip is configured with, in files and PIP_ variables."""
    asked = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    settings: dict[str, str] = {}
    for row in asked.stdout.splitlines():  # global.index-url='...'
        name, _, value = row.partition("=")
        if not name.startswith(":env:"):
            settings[name.rpartition(".")[2]] = value.strip().strip("'\"")
    for name, value in os.environ.items():  # which win over files
        if name.startswith("PIP_"):
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return settings


def _uv_options(settings: Mapping[str, str]) -> list[str]:
    """What holds no secret of pip's settings, as options of uv, which does not read them."""
    options = [
        "--index-strategy",
        "unsafe-best-match",
    ]  # as pip: the best of all indices, not of the first that has any
    for value in _values(settings, "trusted-host"):
        options += ["--allow-insecure-host", value]
    return options


def _uv_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """The rest of pip's settings as uv's variables: an address may hold a password, and arguments are seen by everybody."""
    variables = {}
    for setting, variable, between in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("cert", "SSL_CERT_FILE", " "),
    ):
        if values := _values(settings, setting):
            variables[variable] = between.join(values)
    return variables


def _values(settings: Mapping[str, str], name: str) -> list[str]:
    text = settings.get(name, "")
    return [text] if name == "cert" and text else text.replace("\\n", " ").split()


def differences(python: str, pins: Sequence[str]) -> list[str]:
    """Where an environment that is there differs from the versions asked for, in words; local labels (`+cu126`) do not count.

    Raises EnvironmentError_ where there is no such Python.
    """
    wanted = dict(pin.split("==", 1) for pin in pins)
    try:
        asked = subprocess.run(
            [python, "-c", _VERSIONS], input=json.dumps(list(wanted)), capture_output=True, text=True, check=True
        )
        found, python_version = json.loads(asked.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise EnvironmentError_(f"{python} is no Python that works ({error})") from error
    words = []
    if tuple(python_version) < (3, 11):
        words.append(f"Python is {python_version[0]}.{python_version[1]}, 3.11 or newer is needed")
    for name, version in wanted.items():
        there = found[name]
        if there is None:
            words.append(f"{name} {version} is missing")
        elif there.partition("+")[0] != version.partition("+")[0]:
            words.append(f"{name} is {there}, here it is {version}")
    return words
