"""`unmask remote run STUDY --on runpod`: a fake of the paid API, and a real OpenSSH server behind its pods' port."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fake_runpod import KEY, FakeRunPod, serve_banner, serve_runpod
from openssh import PASSPHRASE, OpenSsh
from test_runs import tiny_config
from unmask.cli.app import app
from unmask.errors import StudyError, UnmaskError
from unmask.execution.runpod import reaching
from unmask.execution.runpod.asking import KEY_VARIABLE, URL_VARIABLE
from unmask.execution.ssh import PASSPHRASE_VARIABLE, Access
from unmask.pipeline import open_study
from unmask.progress import Silent
from unmask.remote import rented_run
from unmask.remote.interruption import ended_in_order
from unmask.remote.ledger import last_pod
from unmask.remote.order import Quiet, RemoteOrder
from unmask.remote.renting import RentSettings

pytestmark = pytest.mark.slow

STUB = """#!/bin/sh
exec "{python}" - "$@" <<'END'
import sys
from pathlib import Path
from urllib.request import Request, urlopen
url, (verb, _, pod) = Path(r"{folder}/url").read_text(), sys.argv[1:]
urlopen(Request(f"{{url}}/v1/pods/{{pod}}/{{verb}}", method="POST", headers={{"Authorization": "Bearer {key}"}}))
END
"""
"""A `runpodctl` that asks the fake: `runpodctl stop pod ID`."""

CLIENT = """
import subprocess, time
from unmask.execution.runpod import reaching
from unmask.progress import Silent
from unmask.remote.renting import RentSettings, rent
reaching.PAUSE = 0.05
with rent("runpod", RentSettings(gpu=("A40",), max_hours=6 / 3600), progress=Silent()) as rented:
    subprocess.run(["sh", "-c", rented.timer_command], check=True)
    print(rented.pod.id, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeRunPod]:
    monkeypatch.setattr(reaching, "PAUSE", 0.05)
    monkeypatch.setattr(rented_run, "rent_settings", lambda values: RentSettings(**values, user=getpass.getuser()))
    with serve_runpod() as fake:
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        monkeypatch.setenv(URL_VARIABLE, fake.url)
        monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
        yield fake


def end_timer(home: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((home / ".unmask-timer" / "pid").read_text(encoding="utf-8")), signal.SIGKILL)


def arguments(study: Path, server: OpenSsh, *more: str) -> list[str]:
    """A pod without a volume, so that all lies in the home of the server's sessions."""
    return [
        "remote", "run", str(study), "--on", "runpod", "--gpu", "A40", "--volume-gb", "0", "--until", "questions",
        "--key", str(server.key), "--known-hosts", str(server.known_hosts), "--accept-new",
        "--env", sys.executable, "--python", sys.executable, *more,
    ]  # fmt: skip


def _study(folder: Path, tiny_llama: Path) -> Path:
    study = folder / "rented"
    study.mkdir()
    settings = tiny_config(tiny_llama)
    settings["base"]["model"] = os.path.relpath(tiny_llama, study)
    (study / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return study


def test_a_study_is_run_on_a_rented_pod_and_its_cost_is_kept(
    fake: FakeRunPod, openssh: OpenSsh, tmp_path: Path, tiny_llama: Path
) -> None:
    study = _study(tmp_path, tiny_llama)
    fake.billed, fake.ssh_port = 0.02, openssh.port
    try:
        ran = CliRunner().invoke(app, arguments(study, openssh, "--max-usd", "0.40"))
    finally:
        end_timer(openssh.home)
    assert ran.exit_code == 0, ran.output
    assert (study / "questions" / "manifest.json").is_file(), "it came back"
    (pod,) = fake.created()
    assert pod.status == "EXITED", "stopped: the default policy"
    assert "the pod is stopped after 1.00 h at the latest" in ran.output
    note = json.loads((study / "remote.json").read_text(encoding="utf-8"))["runs"][-1]["rented"]
    assert (note["pod"], note["gpu"], note["usd_per_hour"], note["billed_usd"]) == (pod.id, "NVIDIA A40", 0.40, 0.02)
    assert 0 < note["usd"] < 0.40
    assert last_pod(open_study(study).study) == pod.id
    assert 0 < note["hours"] < 1
    assert (openssh.home / ".unmask-timer" / "token").is_file(), "the pod would have stopped itself"
    assert f"runpod-{pod.id}" in openssh.known_hosts.read_text(encoding="utf-8"), "known by its id, not its port"
    secret = KEY.encode()
    for place in (study, openssh.home):
        held = [path for path in place.rglob("*") if path.is_file() and secret in path.read_bytes()]
        assert not held, "the account's key goes nowhere"
    assert KEY not in ran.output
    assert PASSPHRASE not in ran.output
    again = CliRunner().invoke(app, arguments(study, openssh))
    assert again.exit_code == 0, again.output
    assert len(fake.created()) == 1, "nothing is left to be done, and nothing is rented"


def test_nothing_is_rented_or_ended_while_another_process_works_on_the_study(
    fake: FakeRunPod, openssh: OpenSsh, tmp_path: Path, tiny_llama: Path
) -> None:
    """Its pod would be found, and stopped under the run."""
    study = _study(tmp_path, tiny_llama)
    with open_study(study).study.lock():
        ran = CliRunner().invoke(app, arguments(study, openssh))
    assert isinstance(ran.exception, StudyError), ran.output
    assert "another unmask process" in str(ran.exception)
    assert not fake.calls


def test_a_second_call_does_not_come_between_a_pod_and_its_run(
    fake: FakeRunPod, tmp_path: Path, tiny_llama: Path
) -> None:
    """It would find the pod that is starting, and its run would lose it when the first call gives up and gives it back."""
    study = _study(tmp_path, tiny_llama)
    settings = RentSettings(gpu=("A40",), volume_gb=0, wait_seconds=0.3)
    second: list[UnmaskError] = []

    def call() -> None:
        opened, order = open_study(study), RemoteOrder(until="questions")
        rented_run.run_rented(opened, "runpod", order, settings, Access, root=None, voice=Quiet(), progress=Silent())

    def come_between(asked: str) -> None:
        if asked.startswith("GET /v1/pods/new") and not second:
            second.append(UnmaskError("was not refused"))
            try:
                call()
            except UnmaskError as refused:
                second.append(refused)

    fake.on_call = come_between
    with pytest.raises(UnmaskError, match="was not ready"):
        call()
    assert isinstance(second[-1], StudyError)
    assert "another unmask process" in str(second[-1])
    assert [pod.status for pod in fake.created()] == ["EXITED"]
    with open_study(study).study.lock():
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_ends_this_side_in_order(number: signal.Signals) -> None:
    others: list[int] = []
    before = signal.signal(number, lambda number, frame: others.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), ended_in_order():
            signal.raise_signal(number)
        signal.raise_signal(number)
        signal.signal(number, signal.SIG_IGN)
        with ended_in_order():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert others == [number], "restored afterwards"


def test_pods_are_listed_in_a_table(fake: FakeRunPod, tmp_path: Path) -> None:
    fake.add("abc123", name="mine")
    listed = CliRunner().invoke(app, ["remote", "check", str(tmp_path), "--pods", "--json"])
    assert listed.exit_code == 0, listed.output
    assert json.loads(listed.output)[0]["id"] == "abc123"


def test_the_pod_ends_although_the_client_was_killed(fake: FakeRunPod, tmp_path: Path) -> None:
    """This machine is the pod: the timer is armed in a shell of its own, and its `runpodctl` asks the fake."""
    (tmp_path / "url").write_text(fake.url, encoding="utf-8")
    (tmp_path / "runpodctl").write_text(STUB.format(python=sys.executable, folder=tmp_path, key=KEY), encoding="utf-8")
    (tmp_path / "runpodctl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    try:
        with (
            serve_banner() as fake.ssh_port,
            subprocess.Popen(
                [sys.executable, "-c", CLIENT], env=environment, stdout=subprocess.PIPE, text=True
            ) as client,
        ):
            assert client.stdout is not None
            pod = fake.pods[client.stdout.readline().strip()]
            assert pod.status == "RUNNING"
            client.kill()
        assert fake.count(r"POST /v1/pods/\w+/stop") == 0, "killed before it could stop anything"
        until = time.monotonic() + 30
        while pod.status == "RUNNING" and time.monotonic() < until:
            time.sleep(0.1)
        assert pod.status == "EXITED"
    finally:
        end_timer(tmp_path)
