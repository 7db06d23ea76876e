"""The same study as a SkyPilot task, for the clouds that it knows: https://docs.skypilot.co/en/latest/reference/yaml-spec.html.

Written against that page as it stood in November 2026; SkyPilot itself is no dependency and was not run.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import yaml

from unmask.artifact import atomic_path, write_text
from unmask.execution.wheel import PACKAGE, pins, wheel
from unmask.pipeline import StudyPipeline
from unmask.remote.needs import mirrored, referred

HOME = PurePosixPath("unmask")
"""Everything lies below this folder of the cluster's home; local folders are mirrored in `tree`, so relative paths hold."""
ACCELERATORS = ("RTX4090:1", "L4:1", "A10G:1", "L40S:1", "A100:1")
"""24 GB and more, tried in this order."""

_HEAD = """\
# The study {study} as a SkyPilot task: {spec}
#
#   sky launch -c {cluster} {file}            start, or go on after a change; the cluster stops itself when idle
#   sky logs {cluster}                              follow
#   rsync -Pavz {cluster}:{remote}/ {local}/
#                                             bring the results back; `unmask status` then knows them
#   sky down {cluster}                              remove the cluster: nothing on it is kept
#
# {wheel} must lie where `sky` is called: `unmask remote export STUDY --out {file}` writes both.
# Keys are in no file: uncomment what the study needs, and pass the value with `sky launch --secret NAME`.
# secrets:
#   HF_TOKEN: null
"""

_SETUP = """\
set -e
mkdir -p "$HOME"/{home} && cd "$HOME"/{home}
python3 -m pip install --quiet --user uv
python3 -m uv venv --allow-existing --python {python} env
cat >pins.txt <<'END'
{pins}
END
python3 -m uv pip install --python env/bin/python --requirement pins.txt
python3 -m uv pip install --python env/bin/python --no-deps --reinstall {wheel}
"""

_RUN = """\
set -e
mkdir -p "$HOME"/{cwd} && cd "$HOME"/{cwd}
"$HOME"/{home}/env/bin/python -m unmask run "$HOME"/{study}
"""


def task_yaml(
    opened: StudyPipeline,
    *,
    accelerators: Sequence[str] = ACCELERATORS,
    disk_gb: int = 150,
    spot: bool = False,
    idle_minutes: int = 20,
    file: str = "task.yaml",
) -> str:
    """The text of a task file: GPU types in order of preference, this installation's versions, the study and what it refers to.

    `idle_minutes` after the run the cluster stops itself. Raises ConfigError for absolute paths in the study file.
    """
    folder = opened.study.folder.resolve()
    name = re.sub(r"[^a-z0-9]+", "-", f"{PACKAGE}-{folder.name}".lower()).strip("-")
    study, cwd = HOME / "tree" / mirrored(folder), HOME / "tree" / mirrored(Path())
    package = wheel()[0]
    mounts = {f"~/{HOME / package}": package, f"~/{study}": str(folder)}
    for one in referred(opened):
        if not one.source.resolve().is_relative_to(folder):
            mounts[f"~/{HOME / 'tree' / one.target}"] = str(one.source.resolve())
    task = {
        "name": name,
        "resources": {
            "accelerators": list(accelerators),
            "use_spot": spot,
            "disk_size": disk_gb,
            "autostop": {"idle_minutes": idle_minutes, "down": False},
        },
        "file_mounts": mounts,
        "setup": _SETUP.format(
            home=_quoted(HOME),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            pins="\n".join(pins()),
            wheel=_quoted(PurePosixPath(package)),
        ),
        "run": _RUN.format(home=_quoted(HOME), cwd=_quoted(cwd), study=_quoted(study)),
    }
    head = _HEAD.format(
        study=folder.name,
        spec="https://docs.skypilot.co/en/latest/reference/yaml-spec.html",
        cluster=name,
        file=shlex.quote(file),
        remote=shlex.quote(str(study)),
        local=shlex.quote(str(folder)),
        wheel=package,
    )
    return head + "\n" + yaml.dump(task, Dumper=_Plain, sort_keys=False, width=1000, allow_unicode=True)


def write_task(opened: StudyPipeline, path: Path) -> tuple[Path, Path]:
    """Write a task file, and beside it the wheel that it installs. Returns both paths."""
    name, content = wheel()
    package = path.parent / name
    with atomic_path(package) as partial:
        partial.write_bytes(content)
    write_text(path, task_yaml(opened, file=path.name))
    return path, package


def _quoted(path: PurePosixPath) -> str:
    return shlex.quote(str(path))


class _Plain(yaml.SafeDumper):
    """Writes scripts as blocks that a person can read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
