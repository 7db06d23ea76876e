"""The dead-man's timer in real shells, with a stub in place of `runpodctl`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from unmask.execution.host import HostError
from unmask.execution.on_host.__main__ import OPERATIONS
from unmask.execution.runpod.timer import timer_command
from unmask.remote.running import RemoteRun

POD_KEY = "rpa_pod_scoped_key_0123456789"  # pragma: allowlist secret
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]


class Host:
    """A home with stubs on PATH; each records how it was called, with the key that its environment or input held."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.home, self.go = folder, folder / "bin", folder / "home", folder / "go"
        self.bin.mkdir()
        self.home.mkdir()
        self.stub("runpodctl", 'echo "runpodctl $* key=$RUNPOD_API_KEY" >>"$CALLS"')
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "CALLS": str(folder / "calls"),
            "GO": str(self.go),
            "RUNPOD_POD_ID": "pod1",
            "RUNPOD_API_KEY": POD_KEY,
        }

    def stub(self, name: str, line: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def hold_timers(self) -> None:
        """A timer of one second lasts until `self.go` is there, however slow the machine is."""
        sleep = shutil.which("sleep")
        until_go = f'while [ ! -e "$GO" ]; do {sleep} 0.05; done'
        self.stub("sleep", f'if [ "$1" = 1 ]; then {until_go}; else exec {sleep} "$@"; fi')

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def arm(self, command: str, *, shell: str = "sh", **changes: str) -> None:
        environment = {name: value for name, value in (self.environment | changes).items() if value}
        subprocess.run([shell, "-c", command], env=environment, check=True, timeout=60, capture_output=True)

    def wait(self, until: Callable[[], bool], seconds: float = 60) -> bool:
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            time.sleep(0.05)
        return until()

    def pid(self) -> str:
        """That of the timer armed last; empty until it has written it."""
        path = self.home / ".unmask-timer" / "pid"
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def kill(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(self.pid()), signal.SIGKILL)
        self.go.touch()  # an earlier timer that is still held ends by itself


@pytest.fixture
def host(tmp_path: Path) -> Generator[Host]:
    host = Host(tmp_path)
    yield host
    host.kill()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_pod_is_stopped_although_the_client_was_killed(host: Host, shell: str) -> None:
    """The client is a process group of its own, killed whole as soon as it has armed the timer."""
    host.hold_timers()
    client = subprocess.Popen(
        [shell, "-c", f"{timer_command('pod1', seconds=1)}; sleep 60"], env=host.environment, start_new_session=True
    )
    assert host.wait(lambda: host.pid() != "")
    assert host.calls() == []
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    host.go.touch()
    assert host.wait(lambda: bool(host.calls()))
    assert host.calls() == [f"runpodctl stop pod pod1 key={POD_KEY}"]


def test_arming_again_replaces_the_earlier_timer(host: Host) -> None:
    host.hold_timers()
    host.arm(timer_command("pod1", seconds=1))
    assert host.wait(lambda: host.pid() != "")
    first = host.pid()
    host.arm(timer_command("pod1", seconds=100))
    assert host.wait(lambda: host.pid() not in ("", first)), "the second sleeps"
    host.go.touch()
    assert host.wait(lambda: not Path(f"/proc/{first}").exists()), "the first woke, and ended"
    assert host.calls() == []


def test_newer_words_then_the_api_itself_with_the_pods_own_key(host: Host) -> None:
    """An old `runpodctl` is followed by the new one's words, and both by REST; the key is in no argument."""
    host.stub("runpodctl", 'echo "runpodctl $*" >>"$CALLS"; exit 1')
    host.stub("curl", 'echo "curl $*" >>"$CALLS"; cat >>"$CALLS"')
    host.arm(timer_command("pod1", seconds=1, action="terminate"))
    assert host.wait(lambda: len(host.calls()) >= 4)
    old, new, rest, header = host.calls()[:4]
    assert (old, new) == ("runpodctl remove pod pod1", "runpodctl pod delete pod1")
    assert rest == "curl -fsS -m 60 -K - -X DELETE https://rest.runpod.io/v1/pods/pod1"
    assert header == f'header = "Authorization: Bearer {POD_KEY}"'


def test_the_pod_that_it_runs_on_is_stopped_whatever_was_asked_for(host: Host) -> None:
    """Its own identity counts; the client's word is for a host that has none."""
    host.arm(timer_command("another", seconds=1), RUNPOD_POD_ID="own")
    assert host.wait(lambda: bool(host.calls()))
    assert host.calls()[0].startswith("runpodctl stop pod own ")


def test_without_an_identity_the_clients_word_counts(host: Host) -> None:
    host.arm(timer_command("named", seconds=1), RUNPOD_POD_ID="", RUNPOD_API_KEY="")
    assert host.wait(lambda: bool(host.calls()))
    assert host.calls()[0] == "runpodctl stop pod named key="


def test_it_does_not_give_up_while_the_pod_is_alive(host: Host) -> None:
    host.stub("sleep", "exit 0")
    for program in ("runpodctl", "curl"):
        host.stub(program, f'echo {program} >>"$CALLS"; exit 1')
    host.arm(timer_command("pod1", seconds=1))
    assert host.wait(lambda: len(host.calls()) > 60)


def test_a_run_that_goes_on_is_given_a_timer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation on the host; a timer that cannot be armed is an error."""
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    assert OPERATIONS["arm"]({"timer": timer_command("pod1", seconds=1)}) == {}
    assert host.wait(lambda: bool(host.calls()))
    monkeypatch.setenv("HOME", str(host.bin / "runpodctl"))
    with pytest.raises(OSError, match="could not be armed"):
        OPERATIONS["arm"]({"timer": timer_command("pod1", seconds=1)})


class Listener:
    """A host that hears operations, and refuses them if told so; and a rented machine, and a voice."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses, self.heard, self.notes, self.left = refuses, [], [], []

    async def ask(self, operation: str, request: dict[str, Any]) -> None:
        self.heard.append((operation, request))
        if self.refuses:
            raise HostError("it could not be armed")

    def note(self, text: str) -> None:
        self.notes.append(text)

    def leave_running(self, why: str) -> None:
        self.left.append(why)


@pytest.mark.parametrize("refuses", [False, True])
def test_whoever_attaches_arms_once_and_relies_on_what_is_armed_alone(refuses: bool) -> None:
    listener = Listener(refuses=refuses)
    run: Any = RemoteRun(None, None, None, None, listener)  # type: ignore[arg-type]
    run.timer, run.rented = (lambda: "a line of shell"), listener
    asyncio.run(run._arm(listener))
    assert listener.heard == [("arm", {"timer": "a line of shell"})]
    assert run.armed is not refuses
    assert len(listener.notes) == refuses
    asyncio.run(run._arm(listener))
    assert len(listener.heard) == 1 + refuses, "a reconnection tries again only what failed"
    run.begun = True
    run._leave()
    assert len(listener.left) == (not refuses)


def test_a_command_is_made_of_ids_only() -> None:
    with pytest.raises(ValueError, match="id"):
        timer_command("x; reboot", seconds=1)
