"""A run on this machine: started in a session of its own, its log and exit code kept, stopped as one group.

`RUN/` holds `run.json` (id, process, its start time), `log`, `reserve` and, once it is over, `exit.json`. The reserve is given up
when the disk is full, so that the run's last words still find a place.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESERVE_BYTES = 262_144
PATIENCE = 15.0
"""Seconds that a stopped run has to end by itself, in which it finishes nothing and keeps its batches."""

TIMER_PATIENCE = 20.0


def start_time(pid: int) -> str | None:
    """When a process started, so that its number alone is never trusted; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or None


def reading(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def running(run: Path) -> dict[str, Any] | None:
    """The run that is going on in this folder, or None."""
    found = reading(run / "run.json")
    if found is None or found["start"] is None or start_time(int(found["pid"])) != found["start"]:
        return None
    return None if reading(run / "exit.json") is not None else found


def ending(run: Path) -> dict[str, Any] | None:
    """How the last run ended; `code` is None where it was killed. None while it goes on, or where there was none."""
    found = reading(run / "run.json")
    if found is None or running(run) is not None:
        return None
    return {"code": None, "id": found["id"], **(reading(run / "exit.json") or {})}


def lock_holder(path: Path) -> int | None:
    """The process that holds a study's lock; 0 where somebody does and the system does not say who. None: nobody."""
    try:
        handle = path.open("a+")
    except OSError:
        return None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            inode = os.fstat(handle.fileno()).st_ino
        else:
            return None
    with contextlib.suppress(OSError):
        for row in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            fields = row.split()
            if fields[1] == "FLOCK" and fields[5].rsplit(":", 1)[-1] == str(inode):
                return int(fields[4])
    return 0


@contextmanager
def only_one(path: Path) -> Generator[None]:
    """Wait until nobody else is in here."""
    with path.open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a process that was forked meanwhile has it open


def start(
    run: Path, study: Path, *, identity: str, work: Callable[[Supervisor], int], timer: str | None = None
) -> dict[str, Any]:
    """Start `work` in a session of its own; `{"busy": pid}` where this study is being worked on already."""
    run.mkdir(parents=True, exist_ok=True)
    with only_one(run / "lock"):
        going = running(run)
        if going is not None:
            return {"busy": going["pid"], "id": going["id"]}
        holder = lock_holder(study / ".lock")
        if holder is not None:
            return {"busy": holder}
        if (run / "log").exists():
            (run / "log").replace(run / "log.previous")
        (run / "exit.json").unlink(missing_ok=True)
        (run / "log").touch(mode=0o600)
        (run / "reserve").write_bytes(b"\0" * RESERVE_BYTES)
        if timer is not None:
            set_timer(timer)
        _detached(lambda: _begun(run, study, identity), lambda: Supervisor(run, identity).supervise(work))
        began = reading(run / "run.json")
    if began is None or began["id"] != identity:
        raise OSError(f"the run could not be started: is the disk of {run} full?")
    return {"started": began}


def _begun(run: Path, study: Path, identity: str) -> None:
    """Say that this process is the run: itself, so that it is never at work and on no record."""
    pid = os.getpid()
    began = {"id": identity, "pid": pid, "start": start_time(pid), "started": time.time(), "study": str(study)}
    beside = run / ".run.json"
    beside.write_text(json.dumps(began), encoding="utf-8")
    beside.replace(run / "run.json")


def set_timer(command: str) -> None:
    """Run a line of shell on its own, told through its standard input: no other process can read it.

    Raises OSError where it fails, or does not return at once.
    """
    shell = subprocess.Popen(
        ["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert shell.stdin is not None
    shell.stdin.write(command.encode() + b"\n")
    shell.stdin.close()
    try:
        code = shell.wait(timeout=TIMER_PATIENCE)
    except subprocess.TimeoutExpired:
        shell.kill()
        code = shell.wait()
    if code != 0:
        raise OSError("the timer that would stop this machine could not be armed")


def _detached(begin: Callable[[], None], work: Callable[[], None]) -> None:
    """Fork twice: the process belongs to nobody, leads its own group, and holds no stream of the connection.

    Returns once the process is through with `begin`; `work` follows if that raised nothing.
    """
    told, tell = os.pipe()
    middle = os.fork()
    if middle != 0:
        os.close(tell)
        with os.fdopen(told, "rb") as answer:
            answer.read()  # to its end: the process has closed its side
        os.waitpid(middle, 0)
        return
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    try:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        begin()
        os.close(tell)
        work()
    finally:
        os._exit(0)


class Supervisor:
    """Runs commands one after the other and keeps what they say."""

    def __init__(self, run: Path, identity: str) -> None:
        self._run, self._identity = run, identity
        self._stopped = False

    def supervise(self, work: Callable[[Supervisor], int]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)  # a handler, which a program that is started does not inherit
        try:
            code = work(self)
        except Exception as error:
            self.say(f"error: {error}\n")
            code = 2
        ended = {"code": code, "id": self._identity, "stopped": self._stopped, "ended": time.time()}
        self._keep("exit.json", json.dumps(ended).encode(), "wb")

    @property
    def stopped(self) -> bool:
        return self._stopped

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = self._stopped or number != signal.SIGHUP

    def say(self, text: str) -> None:
        """Add to the log."""
        self._keep("log", text.encode(), "ab")

    def _keep(self, name: str, data: bytes, mode: str) -> None:
        for _ in range(2):
            try:
                with (self._run / name).open(mode) as handle:
                    handle.write(data)
                    handle.flush()
                return
            except OSError:
                (self._run / "reserve").unlink(missing_ok=True)

    def call(self, command: list[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> int:
        """Run a command to its end, with its output in the log."""
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                over = child.poll() is not None
                ready = selector.select(0.2)
                data = os.read(child.stdout.fileno(), 65_536) if ready else b""
                if data:
                    self._keep("log", data, "ab")
                elif ready or over:  # its end, or grandchildren that keep the pipe open
                    break
        return child.wait()


def stop(run: Path) -> dict[str, Any]:
    """End the run of this folder: asked as by Ctrl-C, and killed where it does not listen."""
    going = _at_work(run)
    if going is None:
        return {"stopped": None}
    pid = int(going["pid"])
    for number, patience in ((signal.SIGINT, PATIENCE), (signal.SIGTERM, PATIENCE / 3), (signal.SIGKILL, 5.0)):
        if _at_work(run) is None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        until = time.monotonic() + patience
        while _at_work(run) is not None and time.monotonic() < until:
            time.sleep(0.1)
    if reading(run / "exit.json") is None:
        ended = {"code": None, "id": going["id"], "stopped": True, "ended": time.time()}
        (run / "exit.json").write_text(json.dumps(ended), encoding="utf-8")
    return {"stopped": pid, "id": going["id"]}


def _at_work(run: Path) -> dict[str, Any] | None:
    """The run of this folder while any of it goes on: also where its first process alone was killed, for want of memory say."""
    found = reading(run / "run.json")
    if found is None or running(run) is not None or "study" not in found:
        return running(run)
    holder = lock_holder(Path(found["study"]) / ".lock")
    with contextlib.suppress(ProcessLookupError):
        if holder and os.getpgid(holder) == int(found["pid"]):
            return found
    return None


def python_environment(paths: list[str], given: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a run: the sent package first, output unbuffered, and the keys that were sent."""
    found = {**os.environ, **given, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    found.pop("PYTHONHOME", None)
    return found
