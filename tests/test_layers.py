"""The layers of ARCHITECTURE.md hold: import-linter's contracts in pyproject.toml, checked on the code as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import unmask

PROJECT = Path(__file__).resolve().parents[1]


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of `config` against the installed package, in a process of its own."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--config", str(config), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_contracts_hold() -> None:
    result = lint_imports(PROJECT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


def test_the_checked_package_is_this_one() -> None:
    assert Path(unmask.__file__).is_relative_to(PROJECT / "src")


def test_a_broken_contract_is_noticed(tmp_path: Path) -> None:
    config = tmp_path / "upside_down.toml"
    config.write_text(
        """
        [tool.importlinter]
        root_package = "unmask"

        [[tool.importlinter.contracts]]
        name = "errors above the pipeline"
        type = "layers"
        layers = ["unmask.errors", "unmask.pipeline"]
        """,
        encoding="utf-8",
    )
    result = lint_imports(config)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "unmask.pipeline -> unmask.errors" in result.stdout
