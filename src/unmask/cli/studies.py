"""Commands for a whole study: make one, run it or a share of it, see where it stands, take its results elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import AsJson, ForceStages, StudyFolder, Until
from unmask.cli.running import make_share, print_status, run_study
from unmask.cli.screen import console


def init(
    study: StudyFolder,
    preset: Annotated[str, typer.Option(help="demo, laptop or paper.")] = "laptop",
) -> None:
    """Make a study folder with a commented study.yaml to edit."""
    from unmask.pipeline import init_study

    opened = init_study(study, preset=preset)
    screen = console()
    screen.out(f"Wrote {opened.study.config_path} from preset {preset}.")
    screen.out(f"Edit it, then: unmask run {shlex.quote(str(study))}")


def run(  # noqa: PLR0913 - one parameter per option
    study: StudyFolder,
    *,
    preset: Annotated[
        str | None, typer.Option(help="Make the study from this preset first, if it is not there.")
    ] = None,
    until: Until = None,
    force: ForceStages = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: what comes in shards is made on a Ray cluster.")
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
        typer.Option(
            min=0, help="With --engine ray: GPUs of a worker that runs models; 0.5: two share one. (1 if there are)"
        ),
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

    Stages with shards: responses, activations, control_activations, scores (hf/ judges), decomposition, effects, verdict,
    steering. docs/scaling.md has the whole file.
    """
    if shard is None:
        run_study(study, until=name, force=(), as_json=as_json)
        return
    make_share(study, stage=name, shard=shard, as_json=as_json)


def status(study: StudyFolder, as_json: AsJson = False) -> None:
    """Show which stages are done or stale, and why, and where their files are."""
    print_status(study, as_json=as_json)


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
    from unmask.errors import ConfigError
    from unmask.pipeline import export_study, open_study

    if not (legacy or directions):
        raise ConfigError("nothing was asked to be exported", mend="Add --directions or --legacy")
    if only and not directions:
        raise ConfigError("--only goes with --directions", mend="Add --directions")
    folder = out or study / "export"
    for path in export_study(open_study(study), folder, legacy=legacy, directions=directions, only=only):
        console().out(f"Wrote {path}")
