"""Commands that run a study up to some of its stages, or show what these would take or have found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import AsJson, Force, ForceAll, MaybeStudyFolder, StudyFolder
from unmask.cli.running import run_study

COLLECTED = ("activations", "control_activations")
"""The stages behind `unmask collect`."""

DECIDED = ("decomposition", "verdict", "cards")
"""The stages behind `unmask decompose`."""


def decompose(
    study: MaybeStudyFolder = None,
    *,
    force: ForceAll = False,
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
    from unmask.errors import ConfigError

    if any(value is not None for value in (groups, runs, *design.values())):
        raise ConfigError("a design was given without --power", mend="Add --power, or set it in study.yaml")
    if study is None:
        raise ConfigError("no study was named", mend="unmask decompose STUDY, or --power --groups 20,20,20,20")
    run_study(study, until=DECIDED[-1], force=DECIDED if force else (), as_json=as_json)


def collect(
    study: StudyFolder,
    *,
    force: ForceAll = False,
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
    run_study(study, until=COLLECTED[-1], force=COLLECTED if force else (), as_json=as_json)


def judge(  # noqa: PLR0913 - one parameter per option
    study: MaybeStudyFolder = None,
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
    run_study(study, until="scores", force=("scores",) if force else (), as_json=as_json)


def verdict(study: StudyFolder, as_json: AsJson = False) -> None:
    """Print the verdict with its reasons and numbers, and the same for every layer and site."""
    from unmask.cli.deciding import print_verdict

    print_verdict(study, as_json=as_json)


def one_stage(stage: str, text: str) -> Callable[..., None]:
    """A command that runs a study up to one stage, with `text` as the beginning of its help."""

    def command(study: StudyFolder, force: Force = False, as_json: AsJson = False) -> None:
        run_study(study, until=stage, force=(stage,) if force else (), as_json=as_json)

    command.__doc__ = f"{text} Earlier stages that are not done run first."
    return command
