"""The command line: argv to config to pipeline. Formats errors; holds no logic of its own."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `unmask` command."""
    from unmask.cli.app import run_app

    run_app()
