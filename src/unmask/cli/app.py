"""The commands. Each loads what it needs when it is called, so that `--help` is instant."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

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
model_app = typer.Typer(no_args_is_help=True, help="The embedded models.", rich_markup_mode=None)
app.add_typer(model_app, name="model")
app.add_typer(questions_app, name="questions")
app.add_typer(remote_app, name="remote")

StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Run the stage anew although it is done.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def init(
    study: StudyFolder,
    preset: Annotated[str, typer.Option(help="demo, laptop or paper.")] = "laptop",
) -> None:
    """Make a study folder with a commented study.yaml to edit."""
    from unmask.cli.screen import console
    from unmask.pipeline import init_study

    opened = init_study(study, preset=preset)
    screen = console()
    screen.out(f"Wrote {opened.study.config_path} from preset {preset}.")
    screen.out(f"Edit it, then: unmask run {shlex.quote(str(study))}")


@app.command()
def run(  # noqa: PLR0913 - one parameter per option
    study: StudyFolder,
    *,
    preset: Annotated[
        str | None, typer.Option(help="Make the study from this preset first, if it is not there.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage anew (repeatable).")] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: answers, readings and effects made on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="With --engine ray: auto, HOST:PORT or ray://HOST:PORT. (one that runs here, else a new one)"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: workers. (as many as the cluster has room for)")
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(min=0, help="With --engine ray: GPUs of a worker; 0.5: two share one. (1 if there are)"),
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.01, help="With --engine ray: CPUs of a worker. (1)")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --engine ray: s3://..., where the nodes do not see the study's folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run everything of a study that is not done yet; go on where an earlier run was stopped.

    With --engine ray the result is the same, byte for byte where a worker has as many threads. See docs/scaling.md.
    """
    from unmask.cli.running import run_study
    from unmask.errors import ConfigError

    options = {
        "address": address,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
        "cpus_per_worker": cpus_per_worker,
        "store": store,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if engine not in ("local", "ray"):
        raise ConfigError(f"no engine is called {engine!r}", mend="Choose from: local, ray")
    if given and engine != "ray":
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} goes with --engine ray", mend="Add --engine ray")

    if preset is not None and not (study / "study.yaml").exists():
        from unmask.pipeline import init_study

        init_study(study, preset=preset)
    ray = given if engine == "ray" else None
    run_study(study, until=until, force=tuple(force or ()), as_json=as_json, ray=ray)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the stage, as `unmask status` shows it.")],
    study: StudyFolder,
    *,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Make the i-th of n equal shares of its shards, counted from 1, and end."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a study up to one stage; or --shard i/n: make one share of the stage's shards, as one task of a job array.

    Shares are made in any order, at once and on any machine that sees the folder; the stages before must be done. A share that is
    made again only makes what is missing. Then `unmask run` gathers them, to the same bytes as one process gives. With Slurm:

    sbatch --array=1-8 --wrap 'unmask stage responses STUDY --shard $SLURM_ARRAY_TASK_ID/8'

    Stages with shards: responses, activations, control_activations, effects, steering. docs/scaling.md has the whole file.
    """
    from unmask.cli.running import make_share, run_study

    if shard is None:
        run_study(study, until=name, force=(), as_json=as_json)
        return
    make_share(study, stage=name, shard=shard, as_json=as_json)


@app.command()
def status(study: StudyFolder, as_json: AsJson = False) -> None:
    """Show which stages are done or stale, and why, and where their files are."""
    from unmask.cli.running import print_status

    print_status(study, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what is installed, which device and keys are there, and what would fail."""
    from unmask.cli.doctor import print_diagnosis

    raise typer.Exit(0 if print_diagnosis(as_json=as_json) else 1)


@app.command()
def export(
    study: StudyFolder,
    *,
    legacy: Annotated[bool, typer.Option("--legacy", help="The reference study's pickles, for its notebooks.")] = False,
    directions: Annotated[
        bool,
        typer.Option(
            "--directions",
            help="Directions: safetensors with provenance, GGUF control vectors, a script to steer with.",
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ID", help="With --directions, repeatable: this direction_id alone."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; STUDY/export without it.")] = None,
) -> None:
    """Write a study, or its directions, in other programs' formats. The stages behind them must be done."""
    from unmask.cli.screen import console
    from unmask.errors import ConfigError
    from unmask.pipeline import export_study, open_study

    if not (legacy or directions):
        raise ConfigError("nothing was asked to be exported", mend="Add --directions or --legacy")
    if only and not directions:
        raise ConfigError("--only goes with --directions", mend="Add --directions")
    folder = out or study / "export"
    for path in export_study(open_study(study), folder, legacy=legacy, directions=directions, only=only):
        console().out(f"Wrote {path}")


@model_app.command("pull")
def pull(name: Annotated[str, typer.Argument(help="Name of an embedded model.")] = "smollm2") -> None:
    """Fetch an embedded model, check it, and unpack it into the cache (once)."""
    from unmask.cli.screen import console, reporter
    from unmask.models.embedded import is_pulled, pull_embedded

    screen = console()
    known = is_pulled(name)
    with reporter(screen) as progress:
        folder = pull_embedded(name, progress=progress)
    screen.out(f"{name} {'was there already' if known else 'is ready'}: {folder}")


@model_app.command("list")
def list_models() -> None:
    """List the embedded models and where they lie."""
    from unmask.cli.screen import console
    from unmask.models.embedded import EMBEDDED, embedded_folder, is_pulled

    for spec in EMBEDDED.values():
        place = (
            str(embedded_folder(spec.name)) if is_pulled(spec.name) else f"not pulled: unmask model pull {spec.name}"
        )
        console().out(f"{spec.name}  {spec.description}  {place}")


_STAGE_COMMANDS = (
    ("tune", "organism", "Make the organism: tune the base model, or take an existing one."),
    ("respond", "responses", "Let both models answer every question."),
    ("steer", "steering", "Add directions to the base model and score what it answers."),
    ("report", "report", "Write the report."),
)


COLLECTED = ("activations", "control_activations")
"""The stages behind `unmask collect`."""

DECIDED = ("decomposition", "verdict", "cards")
"""The stages behind `unmask decompose`."""


@app.command()
def decompose(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="Folder of the study.", show_default=False)
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Run its stages anew although they are done.")] = False,
    as_json: AsJson = False,
    power: Annotated[
        bool, typer.Option("--power", help="Instead: what could a study of this design find? Nothing is collected.")
    ] = False,
    groups: Annotated[
        str | None, typer.Option(help="With --power: questions per group, in place of a study (20,20,20,20).")
    ] = None,
    responses: Annotated[int | None, typer.Option(help="With --power: responses per question.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="With --power: RMS noise of one response's shift over the mean shift (0.6).")
    ] = None,
    fingerprint: Annotated[
        float | None, typer.Option(help="With --power: the constant of tuning over the persona's shared shift (2).")
    ] = None,
    control: Annotated[
        bool | None, typer.Option("--control/--no-control", help="With --power: is there a control organism?")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="With --power: simulated studies per effect (40).")] = None,
) -> None:
    """Describe the shift, test it, reach the verdict, describe its components; or --power: what a design could find.

    Earlier stages that are not done run first. `unmask verdict STUDY` prints what was decided.
    """
    design = {
        "responses": responses,
        "noise": noise,
        "fingerprint": fingerprint,
        "control": control,
    }
    if power:
        from unmask.cli.deciding import print_power

        print_power(study, groups=groups, changes=design, runs=runs or 40, as_json=as_json)
        return
    from unmask.cli.running import run_study
    from unmask.errors import ConfigError

    if any(value is not None for value in (groups, runs, *design.values())):
        raise ConfigError("a design was given without --power", mend="Add --power, or set it in study.yaml")
    if study is None:
        raise ConfigError("no study was named", mend="unmask decompose STUDY, or --power --groups 20,20,20,20")
    run_study(study, until=DECIDED[-1], force=DECIDED if force else (), as_json=as_json)


@app.command()
def collect(
    study: StudyFolder,
    *,
    force: Annotated[bool, typer.Option("--force", help="Run its stages anew although they are done.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Instead: tokens, FLOPs, bytes, time, memory and disk. Nothing is written."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every response with both models, and the organism's with the control, and keep the activations.

    Earlier stages that are not done run first. A damaged file of the store is found and made anew, it alone.
    """
    if dry_run:
        from unmask.cli.planning import print_study_plan

        print_study_plan(study, as_json=as_json)
        return
    from unmask.cli.running import run_study

    run_study(study, until=COLLECTED[-1], force=COLLECTED if force else (), as_json=as_json)


@app.command()
def judge(  # noqa: PLR0913 - one parameter per option
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="Folder of the study.", show_default=False)
    ] = None,
    *,
    force: Force = False,
    as_json: AsJson = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Instead: measure judges on the packaged reference answers.")
    ] = False,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            metavar="NAME",
            help="With --validate, repeatable: offline, openrouter/..., gemini/..., openai/..., hf/MODEL in this process, "
            "'http://HOST:PORT/v1 MODEL'. (offline)",
        ),
    ] = None,
    rubric: Annotated[
        str | None, typer.Option(help="With --validate: misalignment, alignment, or a YAML file. (misalignment)")
    ] = None,
    readout: Annotated[str | None, typer.Option(help="With --validate: json or logprobs. (json)")] = None,
    limit: Annotated[int | None, typer.Option(min=20, help="With --validate: about so many answers of 280.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="CSV", help="With --validate: people's scores of the reference answers.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With --validate: write all figures there.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="With --validate: requests under way at once. (8)")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="With --validate: stop at so much for a judge.")] = None,
    prices: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="With --max-usd: USD per million tokens, where nobody says.")
    ] = None,
    export_labels: Annotated[
        Path | None,
        typer.Option(
            "--export-labels", metavar="CSV", help="Instead: a blind sheet of the answers for people to score."
        ),
    ] = None,
) -> None:
    """Score every response of a study; or --validate: measure judges; or --export-labels: a sheet for people.

    Who judges a study stands in its study.yaml (scores.judge). Earlier stages that are not done run first. Keys are taken from
    OPENROUTER_API_KEY, GEMINI_API_KEY and OPENAI_API_KEY, in the environment or in .env. Replies are kept: nothing is paid twice.
    """
    from unmask.errors import ConfigError

    measuring = any((judges, labels, limit, out, max_usd, prices, rubric, readout, concurrency))
    if measuring and not validate:
        raise ConfigError("that option goes with --validate", mend="Add --validate, or set scores.judge in study.yaml")
    if export_labels is not None:
        from unmask.cli.judging import export_labels as write_sheet

        write_sheet(study, export_labels)
        return
    if validate:
        from unmask.cli.judging import asking_of, print_validation

        print_validation(
            tuple(judges or ("offline",)),
            asking=asking_of(readout=readout or "json", concurrency=concurrency or 8, max_usd=max_usd, prices=prices),
            rubric=rubric or "misalignment",
            limit=limit,
            labels=labels,
            out=out,
            as_json=as_json,
        )
        return
    if study is None:
        raise ConfigError("no study was named", mend="unmask judge STUDY, or unmask judge --validate")
    from unmask.cli.running import run_study

    run_study(study, until="scores", force=("scores",) if force else (), as_json=as_json)


@app.command()
def verdict(study: StudyFolder, as_json: AsJson = False) -> None:
    """Print the verdict with its reasons and numbers, and the same for every layer and site."""
    from unmask.cli.deciding import print_verdict

    print_verdict(study, as_json=as_json)


def _add_stage_command(command: str, stage: str, text: str) -> None:
    def one_stage(study: StudyFolder, force: Force = False, as_json: AsJson = False) -> None:
        from unmask.cli.running import run_study

        run_study(study, until=stage, force=(stage,) if force else (), as_json=as_json)

    one_stage.__doc__ = f"{text} Earlier stages that are not done run first."
    app.command(command)(one_stage)


for _command, _stage, _text in _STAGE_COMMANDS:
    _add_stage_command(_command, _stage, _text)


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
