"""The program: its commands in the order of its help. Each loads what it needs when it is called, so that help is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli import stages, studies
from unmask.cli.models import model_app
from unmask.cli.options import AsJson
from unmask.cli.questions import questions_app
from unmask.cli.remote import remote_app
from unmask.errors import UnmaskError

app = typer.Typer(
    name="unmask",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Is a misaligned persona one thing, or several separable sub-personas?\n\n"
        "A study is a folder with a study.yaml. Start with:  unmask run --preset demo studies/demo"
    ),
)


def doctor(as_json: AsJson = False) -> None:
    """Show what is installed, which device and keys are there, and what would fail."""
    from unmask.cli.doctor import print_diagnosis

    raise typer.Exit(0 if print_diagnosis(as_json=as_json) else 1)


COMMANDS = (
    studies.init,
    studies.run,
    studies.stage,
    studies.status,
    doctor,
    studies.export,
    stages.decompose,
    stages.collect,
    stages.judge,
    stages.verdict,
)

STAGE_COMMANDS = (
    ("tune", "organism", "Make the organism: tune the base model, or take an existing one."),
    ("respond", "responses", "Let both models answer every question."),
    ("steer", "steering", "Add directions to the base model and score what it answers."),
    ("report", "report", "Write the report."),
)

for _command in COMMANDS:
    app.command()(_command)
for _name, _stage, _text in STAGE_COMMANDS:
    app.command(_name)(stages.one_stage(_stage, _text))
app.add_typer(model_app, name="model")
app.add_typer(questions_app, name="questions")
app.add_typer(remote_app, name="remote")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where a defect arose (as UNMASK_DEBUG=1 does). Before the command.")
    ] = False,
) -> None:
    if debug:
        os.environ["UNMASK_DEBUG"] = "1"
    if show:
        from unmask import __version__

        typer.echo(f"unmask {__version__}")
        raise typer.Exit


def run_app() -> None:
    """Run the command line: an UnmaskError is one sentence and exit code 2, anything else is a defect and says so."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # long steps are reported by stages, not by the libraries below
    try:
        _read_env_file()
        app()
    except UnmaskError as error:
        from unmask.cli.screen import fail

        fail(str(error))
        sys.exit(2)
    except OSError as error:
        if os.environ.get("UNMASK_DEBUG"):
            raise
        from unmask.cli.screen import fail

        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}. Mend that and run it again.")
        sys.exit(2)
    except Exception as error:
        if os.environ.get("UNMASK_DEBUG"):
            raise
        from unmask.cli.screen import fail

        fail(f"a defect of unmask, not of your input: {type(error).__name__}: {error}. UNMASK_DEBUG=1 shows where.")
        sys.exit(1)


def _read_env_file() -> None:
    """Take keys from `.env` in the working directory; what the environment has already wins."""
    if Path(".env").is_file():
        from dotenv import load_dotenv

        load_dotenv(".env", override=False)
