"""The command line: instant help, exit codes, and a wheel that works outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from unmask.pipeline import STAGE_NAMES

ROOT = Path(__file__).parent.parent


def unmask(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unmask", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("statement", ["import unmask", "import unmask.cli.app"])
def test_neither_import_nor_help_loads_heavy_libraries(statement: str) -> None:
    heavy = ("torch", "transformers", "sklearn", "pandas", "matplotlib", "pyarrow")
    code = f"import sys; {statement}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_names_every_command_and_teaches_the_first_step() -> None:
    result = unmask("--help")
    assert result.returncode == 0
    for name in ("init", "run", "status", "doctor", "export", "questions", "tune", "respond", "collect", "judge"):
        assert name in result.stdout
    assert "unmask run --preset demo" in result.stdout


def test_version() -> None:
    assert unmask("--version").stdout.startswith("unmask 0.")


@pytest.mark.parametrize("preset", ["demo", "laptop", "paper"])
def test_init_writes_a_commented_study_that_status_reads(preset: str, tmp_path: Path) -> None:
    made = unmask("init", tmp_path / "s", "--preset", preset)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "s" / "study.yaml").read_text().startswith("#")
    status = unmask("status", tmp_path / "s", "--json")
    assert status.returncode == 0, status.stderr
    assert [row["state"] for row in json.loads(status.stdout)] == ["missing"] * len(STAGE_NAMES)


def test_init_never_overwrites(tmp_path: Path) -> None:
    unmask("init", tmp_path / "s")
    (tmp_path / "s" / "study.yaml").write_text("mine")
    again = unmask("init", tmp_path / "s")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert (tmp_path / "s" / "study.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("run", "nowhere"), "no study at nowhere"),
        (("init", "s", "--preset", "big"), "demo, laptop, paper"),
        (("model", "pull", "gpt9"), "smollm2"),
        (("export", "nowhere"), "--legacy"),
        (("run", "s", "--until", "magic"), "questions, organism"),
        (("remote", "run", "s", "--on", "runpod", "--max-usd", "-1"), "--max-usd is -1"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_2(arguments: tuple[str, ...], wanted: str, tmp_path: Path) -> None:
    unmask("init", tmp_path / "s")
    result = unmask(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert wanted in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "nowhere").exists()


def test_doctor_names_keys_but_never_prints_their_values() -> None:
    result = unmask("doctor", "--json", env={"OPENROUTER_API_KEY": "sk-very-secret"})
    findings = {row["name"]: row for row in json.loads(result.stdout)}
    assert findings["OPENROUTER_API_KEY"]["detail"].startswith("set")
    assert findings["torch"]["state"] == "ok"
    assert "sk-very-secret" not in result.stdout + result.stderr


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_finds_its_data(tmp_path: Path) -> None:
    """The wheel alone is installed in a new environment; its dependencies are seen through a path file."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(ROOT)], check=True)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    home = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", home]
    subprocess.run([*install, str(next(tmp_path.glob("*.whl")))], check=True)
    own = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({own!r}); from unmask.cli import main; sys.argv = ['unmask', *sys.argv[1:]]; main()"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, "-c", code, "init", "study"], cwd=tmp_path, env=outside, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    probe = (
        f"import sys; sys.path.append({own!r}); import unmask; from unmask.battery import *; "
        "print(unmask.__file__); print(len(read_battery(battery_path('assessment'))))"
    )
    found = subprocess.run([python, "-c", probe], cwd=tmp_path, env=outside, capture_output=True, text=True, check=True)
    place, count = found.stdout.split()
    assert Path(place).is_relative_to(tmp_path)
    assert int(count) == 885
