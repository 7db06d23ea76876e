"""`unmask remote`: a study on another machine."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli import options
from unmask.cli.remote_screen import SpokenAloud, interruptible, print_findings, print_pods
from unmask.cli.screen import Lines, console
from unmask.remote.interruption import ended_in_order

remote_app = typer.Typer(no_args_is_help=True, help="Run a study on another machine, over SSH.", rich_markup_mode=None)


def _access(key: Path | None, known_hosts: Path | None, pod: str | None = None, *, accept_new: bool) -> Any:
    """How a machine is entered. Questions reach a person only where one sits at a terminal."""
    from getpass import getpass

    from unmask.remote.entering import access_of

    person = sys.stdin.isatty()
    return access_of(
        key=key,
        known_hosts=known_hosts,
        accept_new=accept_new,
        pod=pod,
        ask=typer.confirm if person else None,
        ask_secret=getpass if person else None,
    )


@remote_app.command()
def check(
    study: options.StudyFolder,
    *,
    on: options.On = None,
    key: options.Key = None,
    known_hosts: options.KnownHosts = None,
    accept_new: options.AcceptNew = False,
    root: options.Root = None,
    python: options.Python = None,
    env: options.Env = None,
    pods: Annotated[bool, typer.Option("--pods", help="Instead: list the pods of the RunPod account.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Could the study run there? Key, Python, GPU, CUDA, disk against what the study needs, clock. Exit code 1 if not."""
    from unmask.errors import ConfigError
    from unmask.remote.checking import check as look
    from unmask.remote.entering import errand
    from unmask.remote.renting import is_rented, list_pods

    if pods:
        print_pods(list_pods(), as_json=as_json)
        return
    if on is not None and is_rented(on):
        raise ConfigError(
            "a pod is checked once it runs", mend="List pods with --pods, or name one by its ssh:// address"
        )
    opened, order, address, pod = errand(study, on, root, python=python, env=env)
    findings = look(opened, address, _access(key, known_hosts, pod, accept_new=accept_new), order)
    print_findings(findings, as_json=as_json)
    if any(one.judgement == "no" for one in findings):
        raise typer.Exit(1)


@remote_app.command()
def run(  # noqa: PLR0913 - one parameter per option
    study: options.StudyFolder,
    *,
    on: options.On = None,
    key: options.Key = None,
    known_hosts: options.KnownHosts = None,
    accept_new: options.AcceptNew = False,
    root: options.Root = None,
    python: options.Python = None,
    env: options.Env = None,
    until: options.Until = None,
    force: options.ForceStages = None,
    send_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Repeatable: let the run see this variable of the environment, HF_TOKEN say."
        ),
    ] = None,
    max_gb: options.MaxGb = 100.0,
    gpu: options.Gpu = None,
    image: options.Image = None,
    disk_gb: options.DiskGb = None,
    volume_gb: options.VolumeGb = None,
    spot: options.Spot = None,
    max_usd_per_hour: options.MaxUsdPerHour = None,
    max_usd: options.MaxUsd = None,
    max_hours: options.MaxHours = None,
    after: options.After = None,
) -> None:
    """Run what is not done on a host, follow it, and bring all of it back; or attach to what is going on there.

    The work goes on when the connection drops or this command ends: `run` and `logs -f` attach again, `stop` ends it.
    """
    from unmask.errors import ConfigError
    from unmask.pipeline import open_study
    from unmask.remote.entering import errand
    from unmask.remote.order import RemoteOrder, from_options
    from unmask.remote.rented_run import rent_settings, run_rented
    from unmask.remote.renting import is_rented
    from unmask.remote.running import RemoteRun

    chosen: dict[str, Any] = {
        "python": python,
        "env": env,
        "until": until,
        "force": tuple(force or ()),
        "send_keys": tuple(send_key or ()),
        "max_gb": max_gb,
    }
    renting = {
        "gpu": tuple(gpu) if gpu else None,
        "image": image,
        "disk_gb": disk_gb,
        "volume_gb": volume_gb,
        "spot": spot,
        "max_usd_per_hour": max_usd_per_hour,
        "max_usd": max_usd,
        "max_hours": max_hours,
        "after": after,
    }
    renting = {name: value for name, value in renting.items() if value is not None}
    voice = SpokenAloud()
    access = partial(_access, key, known_hosts, accept_new=accept_new)
    if on is not None and is_rented(on):
        opened, order = open_study(study), from_options(RemoteOrder, chosen)
        settings = rent_settings(renting | {"key_file": key})
        with interruptible(study, goes_on=False), ended_in_order():
            run_rented(opened, on, order, settings, access, root=root, voice=voice, progress=Lines(console()))
    else:
        opened, order, address, pod = errand(study, on, root, **chosen)
        if renting:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in renting)
            raise ConfigError(f"{named} goes with a rented machine", mend="Add --on runpod, or leave it out")
        with interruptible(study, goes_on=True):
            RemoteRun(opened, address, access(pod), order, voice, pod=pod).run()
    if (study / "report.html").is_file():
        voice.note(f"Report: {(study / 'report.html').resolve().as_uri()}")


@remote_app.command()
def logs(
    study: options.StudyFolder,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the run does.")] = False,
    on: options.On = None,
    key: options.Key = None,
    known_hosts: options.KnownHosts = None,
    accept_new: options.AcceptNew = False,
    root: options.Root = None,
    python: options.Python = None,
) -> None:
    """Show what the last run of the study on a host said."""
    from unmask.remote.entering import errand
    from unmask.remote.visiting import show_log

    opened, order, address, pod = errand(study, on, root, python=python)
    access = _access(key, known_hosts, pod, accept_new=accept_new)
    with interruptible(study, goes_on=True):
        show_log(opened.study, address, access, root=order.root, python=python, follow=follow, voice=SpokenAloud())


@remote_app.command()
def fetch(
    study: options.StudyFolder,
    *,
    on: options.On = None,
    key: options.Key = None,
    known_hosts: options.KnownHosts = None,
    accept_new: options.AcceptNew = False,
    root: options.Root = None,
    python: options.Python = None,
    max_gb: options.MaxGb = 100.0,
) -> None:
    """Bring back what a host has finished of the study: stages, and batches of stages at work."""
    from unmask.remote.entering import errand
    from unmask.remote.visiting import fetch as bring

    opened, order, address, pod = errand(study, on, root, python=python, max_gb=max_gb)
    files, size = bring(opened, address, _access(key, known_hosts, pod, accept_new=accept_new), order)
    console().out(f"{files} files came back, {size / 1e6:.1f} MB. Look: unmask status {shlex.quote(str(study))}")


@remote_app.command()
def stop(
    study: options.StudyFolder,
    *,
    on: options.On = None,
    key: options.Key = None,
    known_hosts: options.KnownHosts = None,
    accept_new: options.AcceptNew = False,
    root: options.Root = None,
    python: options.Python = None,
) -> None:
    """End the run of the study on a host; what it finished is kept there. A rented machine goes on costing money."""
    from unmask.remote.entering import errand
    from unmask.remote.visiting import stop as end

    opened, order, address, pod = errand(study, on, root, python=python)
    access = _access(key, known_hosts, pod, accept_new=accept_new)
    pid = end(opened.study, address, access, root=order.root, python=python)
    console().out("Nothing of this study runs there." if pid is None else f"Stopped (process {pid}).")


@remote_app.command("export")
def export_task(
    study: options.StudyFolder,
    to: Annotated[str, typer.Option("--to", help="skypilot.")] = "skypilot",
    out: Annotated[Path | None, typer.Option(help="File to write; standard output without it.")] = None,
) -> None:
    """Write the study as a task for another tool that runs it in a cloud."""
    from unmask.errors import ConfigError
    from unmask.pipeline import open_study

    if to != "skypilot":
        raise ConfigError(f"--to {to!r} is not known", mend="Choose from: skypilot")
    from unmask.remote.skypilot import task_yaml, write_task

    opened = open_study(study)
    if out is None:
        sys.stdout.write(task_yaml(opened))
        return
    for path in write_task(opened, out):
        console().out(f"Wrote {path}")
