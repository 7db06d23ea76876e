"""`unmask remote`: a study on another machine."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.screen import Lines, console, print_json

if TYPE_CHECKING:
    from unmask.pipeline import StudyPipeline
    from unmask.remote.order import RemoteOrder
    from unmask.remote.renting import Rented, RentSettings

INTERRUPTED = 130
ROOT = "~/.unmask-remote"

remote_app = typer.Typer(no_args_is_help=True, help="Run a study on another machine, over SSH.", rich_markup_mode=None)

StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study.", show_default=False)]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="WHERE", help="ssh://USER@HOST:PORT, runpod or runpod:POD_ID. (where it ran last)"),
]
Key = Annotated[
    Path | None,
    typer.Option(help="Private key; its passphrase from RUNPOD_PRIVATE_KEY or a prompt. (an agent, ~/.ssh/id_ed25519)"),
]
KnownHosts = Annotated[Path | None, typer.Option(help="File of known host keys. (~/.ssh/known_hosts)")]
AcceptNew = Annotated[bool, typer.Option("--accept-new", help="Trust a host that is not known yet, without asking.")]
Root = Annotated[str | None, typer.Option(help=f"Folder on the host for all of this. ({ROOT}; on a pod, its volume)")]
Python = Annotated[str | None, typer.Option(help="The host's Python, 3.11 or newer. (the first that is found)")]
Env = Annotated[
    str | None,
    typer.Option("--env", metavar="PYTHON", help="Python of an environment there that has these versions: make none."),
]
MaxGb = Annotated[float, typer.Option("--max-gb", help="Most that may come back, in GB.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Gpu = Annotated[list[str] | None, typer.Option("--gpu", help="RunPod: GPU type, repeatable, in order of preference.")]
Image = Annotated[str | None, typer.Option(help="RunPod: container image of a new pod.")]
DiskGb = Annotated[int | None, typer.Option(help="RunPod: container disk of a new pod.")]
VolumeGb = Annotated[int | None, typer.Option(help="RunPod: volume of a new pod, which survives a stop.")]
Spot = Annotated[bool | None, typer.Option("--spot/--on-demand", help="RunPod: cheaper, and may be taken away.")]
MaxUsdPerHour = Annotated[float | None, typer.Option(help="RunPod: most that a pod may cost an hour.")]
MaxUsd = Annotated[float | None, typer.Option(help="RunPod: the pod is stopped once the run has cost so much.")]
MaxHours = Annotated[float | None, typer.Option(help="RunPod: the pod is stopped after so many hours.")]
After = Annotated[str | None, typer.Option(help="RunPod: stop, terminate or keep the pod afterwards. (stop)")]


class _Screen:
    """Prints notes of our own, and what the host's run says as it comes."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        from rich.console import Console

        self._screen = Console(stderr=True, highlight=False, soft_wrap=True) if to_stderr else console()

    def note(self, text: str) -> None:
        self._screen.out(f"[remote] {text}", highlight=False)

    def log(self, text: str) -> None:
        self._screen.file.write(text)
        self._screen.file.flush()


def _access(key: Path | None, known_hosts: Path | None, *, accept_new: bool, alias: str | None = None) -> Any:
    """How a machine is entered. Questions reach a person only where one sits at a terminal."""
    from getpass import getpass

    from unmask.remote.entering import access_of

    person = sys.stdin.isatty()
    return access_of(
        key=key,
        known_hosts=known_hosts,
        accept_new=accept_new,
        alias=alias,
        ask=typer.confirm if person else None,
        ask_secret=getpass if person else None,
    )


def _order(study: Path, on: str | None, root: str | None, **chosen: Any) -> tuple[StudyPipeline, RemoteOrder, Any]:
    """The study, what is asked, and the address: None for a machine that is to be rented."""
    from unmask.pipeline import open_study
    from unmask.remote.entering import place_of
    from unmask.remote.order import RemoteOrder
    from unmask.remote.renting import is_rented

    opened = open_study(study)
    if on is not None and is_rented(on):
        return opened, RemoteOrder(root=root or ROOT, **chosen), None
    address, place = place_of(opened.study, on=on, root=root)
    return opened, RemoteOrder(root=place, **chosen), address


@remote_app.command()
def check(
    study: StudyFolder,
    *,
    on: On = None,
    key: Key = None,
    known_hosts: KnownHosts = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    python: Python = None,
    env: Env = None,
    pods: Annotated[bool, typer.Option("--pods", help="Instead: list the pods of the RunPod account.")] = False,
    as_json: AsJson = False,
) -> None:
    """Could the study run there? Key, Python, GPU, CUDA, disk against what the study needs, clock. Exit code 1 if not."""
    from unmask.errors import ConfigError

    if pods:
        _print_pods(as_json=as_json)
        return
    opened, order, address = _order(study, on, root, python=python, env=env)
    if address is None:
        raise ConfigError(
            "a pod is checked once it runs", mend="List pods with --pods, or name one by its ssh:// address"
        )
    from unmask.remote.checking import check as look

    findings = look(opened, address, _access(key, known_hosts, accept_new=accept_new), order)
    if as_json:
        print_json([{"what": one.what, "judgement": one.judgement, "detail": one.detail} for one in findings])
    else:
        _print_findings(findings)
    if any(one.judgement == "no" for one in findings):
        raise typer.Exit(1)


def _print_findings(findings: list[Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    for name in ("what", "", "found"):
        table.add_column(name, overflow="fold")
    colours = {"ok": "green", "no": "bold red", "note": "yellow"}
    for one in findings:
        table.add_row(one.what, f"[{colours[one.judgement]}]{one.judgement}[/]", escape(one.detail))
    console().print(table)


def _print_pods(*, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from unmask.remote.renting import list_pods

    pods = list_pods()
    if as_json:
        print_json(pods)
        return
    table = Table(header_style="bold")
    columns = ("id", "name", "status", "gpu", "usd_per_hour", "uptime_hours", "address")
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for pod in pods:
        table.add_row(*(escape("-" if pod[name] is None else str(pod[name])) for name in columns))
    console().print(table)


@remote_app.command()
def run(  # noqa: PLR0913 - one parameter per option
    study: StudyFolder,
    *,
    on: On = None,
    key: Key = None,
    known_hosts: KnownHosts = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    python: Python = None,
    env: Env = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage anew (repeatable).")] = None,
    send_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Repeatable: let the run see this variable of the environment, HF_TOKEN say."
        ),
    ] = None,
    max_gb: MaxGb = 100.0,
    gpu: Gpu = None,
    image: Image = None,
    disk_gb: DiskGb = None,
    volume_gb: VolumeGb = None,
    spot: Spot = None,
    max_usd_per_hour: MaxUsdPerHour = None,
    max_usd: MaxUsd = None,
    max_hours: MaxHours = None,
    after: After = None,
) -> None:
    """Run what is not done on a host, follow it, and bring all of it back; or attach to what is going on there.

    The work goes on when the connection drops or this command ends: `run` and `logs -f` attach again, `stop` ends it.
    """
    from unmask.errors import ConfigError
    from unmask.remote.running import RemoteRun

    opened, order, address = _order(
        study,
        on,
        root,
        python=python,
        env=env,
        until=until,
        force=tuple(force or ()),
        send_keys=tuple(send_key or ()),
        max_gb=max_gb,
    )
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
    if address is not None and renting:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in renting)
        raise ConfigError(f"{named} goes with a rented machine", mend="Add --on runpod, or leave it out")
    voice = _Screen()
    if address is not None:
        job = RemoteRun(opened, address, _access(key, known_hosts, accept_new=accept_new), order, voice)
        with _interruptible(study, goes_on=True):
            job.run()
    else:
        assert on is not None
        _run_rented(
            opened, on, order, renting | {"label": _label(opened.study.folder), "key_file": key},
            entry=(key, known_hosts, accept_new), root=root,
        )  # fmt: skip
    if (study / "report.html").is_file():
        voice.note(f"Report: {(study / 'report.html').resolve().as_uri()}")


def _label(folder: Path) -> str:
    """A study's name for its pods, with digits of where it lies: another study of that name has pods of its own."""
    from unmask.artifact import digest_json

    place = folder.resolve()
    return f"{place.name[:32]}-{digest_json(str(place))[:6]}"


def _run_rented(
    opened: StudyPipeline,
    on: str,
    order: RemoteOrder,
    renting: dict[str, Any],
    *,
    entry: tuple[Path | None, Path | None, bool],
    root: str | None,
) -> None:
    """Rent, run, give back; what it cost is noted in the study."""
    from unmask.errors import UnmaskError
    from unmask.remote.renting import rent
    from unmask.remote.running import RemoteRun, check_here, is_done

    voice = _Screen()
    if is_done(opened, order):
        voice.note("All of it is done here already: nothing is rented")
        return
    check_here(opened)
    with opened.study.lock():  # whoever works on it now may do so on the very pod that would be found, and given back
        pass
    key, known_hosts, accept_new = entry
    job: RemoteRun | None = None
    rented: Rented | None = None
    with _interruptible(opened.study.folder, goes_on=False), _ended_in_order():
        try:
            with rent(on, _rent_settings(renting), progress=Lines(console())) as rented:
                try:
                    access = _access(key, known_hosts, accept_new=accept_new, alias=f"runpod-{rented.pod.id}")
                    asked = order if root else order.model_copy(update={"root": rented.root or ROOT})
                    job = RemoteRun(opened, rented.address, access, asked, voice)
                    job.timer, job.rented = partial(_timer_of, rented), rented
                    job.run()
                except UnmaskError:
                    if job is None or not job.begun:
                        rented.leave_what_ran()
                    raise
        finally:
            if job is not None and rented is not None:
                job.note_cost(rented.record())


def _timer_of(rented: Rented) -> str | None:
    return rented.timer_command


def _rent_settings(values: dict[str, Any]) -> RentSettings:
    from pydantic import ValidationError

    from unmask.errors import ConfigError
    from unmask.remote.renting import RentSettings

    try:
        return RentSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{name} is {first['input']!r}: {first['msg']}", mend="Correct it") from error


@contextmanager
def _ended_in_order() -> Generator[None]:
    """A closed terminal or `kill` ends this side as Ctrl-C does: what is rented is given back. `nohup` stays in force."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interruptible(study: Path, *, goes_on: bool) -> Generator[None]:
    """Ctrl-C ends this side alone, and says what becomes of the other."""
    try:
        yield
    except KeyboardInterrupt:
        name = shlex.quote(str(study))
        words = (
            "If a run was started there, it goes on. Follow it with"
            if goes_on
            else "What came back is kept. Go on with"
        )
        follow = (
            f"unmask remote logs {name} -f; end it with: unmask remote stop {name}" if goes_on else "the same command"
        )
        console().out(f"\nInterrupted. {words}: {follow}")
        raise typer.Exit(INTERRUPTED) from None


@remote_app.command()
def logs(
    study: StudyFolder,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the run does.")] = False,
    on: On = None,
    key: Key = None,
    known_hosts: KnownHosts = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    python: Python = None,
) -> None:
    """Show what the last run of the study on a host said."""
    from unmask.remote.visiting import show_log

    opened, order, address = _entered_before(study, on, root, python=python)
    access = _access(key, known_hosts, accept_new=accept_new)
    with _interruptible(study, goes_on=True):
        show_log(opened.study, address, access, root=order.root, python=python, follow=follow, voice=_Screen())


@remote_app.command()
def fetch(
    study: StudyFolder,
    *,
    on: On = None,
    key: Key = None,
    known_hosts: KnownHosts = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    python: Python = None,
    max_gb: MaxGb = 100.0,
) -> None:
    """Bring back what a host has finished of the study: stages, and batches of stages at work."""
    from unmask.remote.visiting import fetch as bring

    opened, order, address = _entered_before(study, on, root, python=python, max_gb=max_gb)
    files, size = bring(opened, address, _access(key, known_hosts, accept_new=accept_new), order)
    console().out(f"{files} files came back, {size / 1e6:.1f} MB. Look: unmask status {shlex.quote(str(study))}")


@remote_app.command()
def stop(
    study: StudyFolder,
    *,
    on: On = None,
    key: Key = None,
    known_hosts: KnownHosts = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    python: Python = None,
) -> None:
    """End the run of the study on a host; what it finished is kept there. A rented machine goes on costing money."""
    from unmask.remote.visiting import stop as end

    opened, order, address = _entered_before(study, on, root, python=python)
    pid = end(opened.study, address, _access(key, known_hosts, accept_new=accept_new), root=order.root, python=python)
    console().out("Nothing of this study runs there." if pid is None else f"Stopped (process {pid}).")


def _entered_before(
    study: Path, on: str | None, root: str | None, **chosen: Any
) -> tuple[StudyPipeline, RemoteOrder, Any]:
    """As `_order`, for what needs no new machine: `runpod` stands for the pod where the study ran last."""
    from unmask.remote.renting import is_rented

    return _order(study, None if on is not None and is_rented(on) else on, root, **chosen)


@remote_app.command("export")
def export_task(
    study: StudyFolder,
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
