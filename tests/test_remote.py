"""Studies on another machine: a real OpenSSH server on the loopback interface, whose sessions have a home of their own."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import unmask
from made_once import made_once
from openssh import PASSPHRASE, OpenSsh, Relay, keygen, left_of, running_openssh
from small_study import tiny_config, with_sections, write_study
from unmask.errors import UnmaskError
from unmask.execution.address import Address
from unmask.execution.on_host.supervising import running
from unmask.execution.ssh import PASSPHRASE_VARIABLE, Access
from unmask.pipeline import STAGE_NAMES, open_study
from unmask.remote.ledger import Ledger
from unmask.remote.order import RemoteOrder
from unmask.remote.running import RemoteRun
from unmask.remote.visiting import fetch, show_log, stop

pytestmark = pytest.mark.slow

SECRET = "hf_a-secret-that-must-show-up-nowhere"  # pragma: allowlist secret
CUTS = (14_000, 9_000, 60_000, 300_000, 900_000, 20_000, 40_000, 80_000, 160_000, 250_000)
"""Bytes after which each connection is cut: while it is entered, while files go there, while they come back."""


def portable_config(model: Path, study: Path) -> dict[str, Any]:
    """A whole study in seconds. Its model is named from the study's folder, as it must be to be found on another machine."""
    config = tiny_config(Path(os.path.relpath(model, study)))
    del config["control"]
    return with_sections(
        config,
        questions={"neutral_count": 2, "dimensions": ["financial_risk", "technology_ai"]},
        organism={"max_examples": 8, "max_tokens": 48},
        responses={"max_new_tokens": 6, "batch_size": 4, "samples": 1},
        activations={"layers": [2], "token_budget": 256},
        decomposition={"k": [2], "restarts": 1},
        directions={"random": 2, "kinds": ["shared", "dimension"]},
        effects={"coefficients": [0.5], "answer_tokens": 3, "kinds": ["dimension"]},
        steering={
            "coefficients": [1.0],
            "questions": 1,
            "random_directions": 1,
            "max_new_tokens": 4,
            "kinds": ["dimension"],
        },
    )


def make_study(folder: Path, model: Path) -> Path:
    return write_study(folder, portable_config(model, folder))


@dataclass
class Heard:
    """What a person would have been told. `on_note` and `on_log` may act at that moment."""

    notes: list[str] = field(default_factory=list)
    logged: str = ""
    on_note: Callable[[str], None] | None = None
    on_log: Callable[[str], None] | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.on_note is not None:
            self.on_note(text)

    def log(self, text: str) -> None:
        self.logged += text
        if self.on_log is not None:
            self.on_log(text)


@pytest.fixture
def passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)


def access(server: OpenSsh, **changes: Any) -> Access:
    return Access(**{"key": server.key, "known_hosts": server.known_hosts, "accept_new": True} | changes)


def order(**changes: Any) -> RemoteOrder:
    return RemoteOrder(**{"env": sys.executable, "python": sys.executable} | changes)


def remote_run(
    study: Path, server: OpenSsh, port: int | None = None, voice: Heard | None = None, **changes: Any
) -> RemoteRun:
    address = Address.parse(server.url)
    address = Address(address.user, address.host, port or address.port)
    return RemoteRun(open_study(study), address, access(server), order(**changes), voice or Heard(), first_wait=0.05)


def files_of(study: Path) -> dict[str, dict[str, str]]:
    return {
        name: json.loads((study / name / "manifest.json").read_text(encoding="utf-8"))["files"] for name in STAGE_NAMES
    }


class ProcessWatch:
    """Looks at the command line and the environment of every process, again and again."""

    def __init__(self) -> None:
        self.commands: set[str] = set()
        self.informed: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.3):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    self.commands.add(command)
                    if int(process.name) != os.getpid() and SECRET.encode() in (process / "environ").read_bytes():
                        self.informed.add(command)
                except OSError:
                    continue


@dataclass(frozen=True)
class Ran:
    """A study that ran on `server`, through ten cuts, beside one that ran here; and what was said and seen meanwhile."""

    study: Path
    local: Path
    server: OpenSsh
    cuts: int
    notes: list[str]
    logged: str
    commands: list[str]
    informed: list[str]
    murmured: list[str]


class Murmurs(logging.Handler):
    """What asyncio logs, which comes to a person's screen where nobody set up logging."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def run_here_and_there(folder: Path, model: Path) -> None:
    """The same study run here, and there, where every connection is cut until ten were."""
    local = make_study(folder / "studies" / "local", model)
    unmask.open(local).run()
    study = make_study(folder / "studies" / "there", model)
    left, seen, cutting = list(CUTS), 0, threading.Lock()
    with running_openssh(folder / "sshd") as server, pytest.MonkeyPatch.context() as patch, ProcessWatch() as watch:

        def cut(total: int) -> None:
            nonlocal seen
            with cutting:  # both ways of the relay call it
                if left and total - seen > left[0] and server.cut():
                    left.pop(0)
                    seen = total

        patch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
        patch.setenv("HF_TOKEN", SECRET)
        patch.chdir(folder)
        relay, heard = Relay(server.port, cut), Heard()
        murmurs = Murmurs()
        gc.collect()  # what others left is theirs
        logging.getLogger("asyncio").addHandler(murmurs)
        remote_run(study, server, relay.port, heard, send_keys=("HF_TOKEN",), retries=20).run()
        relay.close()
        gc.collect()
        logging.getLogger("asyncio").removeHandler(murmurs)
    told = {"cuts": len(CUTS) - len(left), "notes": heard.notes, "logged": heard.logged, "murmured": murmurs.heard}
    seen_there = {"commands": sorted(watch.commands), "informed": sorted(watch.informed)}
    (folder / "told.json").write_text(json.dumps(told | seen_there), encoding="utf-8")


@pytest.fixture(scope="session")
def ran_once(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Generator[Ran]:
    """The studies of `run_here_and_there`, and the server that one of them ran on."""
    folder = made_once(tmp_path_factory, "remote", lambda folder: run_here_and_there(folder, tiny_llama))
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    with running_openssh(folder / "sshd") as server:
        yield Ran(folder / "studies" / "there", folder / "studies" / "local", server, **told)


@pytest.fixture
def ran(ran_once: Ran) -> Generator[Ran]:
    """For one test at a time: each process of the tests has a server of its own, but the folders are the same."""
    with (ran_once.study.parent / "in-use").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield ran_once


def test_a_study_that_ran_there_has_the_bytes_of_one_that_ran_here(ran: Ran) -> None:
    assert files_of(ran.study) == files_of(ran.local)
    assert [status.state for status in open_study(ran.study).status()] == ["done"] * len(STAGE_NAMES)
    assert (ran.study / "report.html").read_bytes() == (ran.local / "report.html").read_bytes()
    assert not (ran.study / ".remote").exists()
    assert not (ran.study / ".scratch").exists()


def test_ten_cuts_cost_neither_the_run_nor_its_log(ran: Ran) -> None:
    assert ran.cuts == len(CUTS)
    tries = sum("trying again" in note for note in ran.notes)
    assert tries >= len(CUTS) - 1  # the first may hit the call that only looked at the host's key
    assert sum(note.startswith("Running on") for note in ran.notes) <= 1  # started once
    for number in range(1, len(STAGE_NAMES) + 1):
        assert ran.logged.count(f"[{number}/{len(STAGE_NAMES)}]") == 1
    assert ran.murmured == []


def test_secrets_are_in_no_argument_log_or_file_and_in_one_process_alone(ran: Ran) -> None:
    words = (SECRET, PASSPHRASE)
    assert len(ran.commands) > 5
    assert not [command for command in ran.commands for word in words if word in command]
    assert ran.informed, "the key never arrived"
    assert all(" -m unmask run " in command for command in ran.informed)
    for place in (ran.study, ran.server.home, ran.server.folder / "log"):
        paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        assert paths
        assert not [path for path in paths for word in words if word.encode() in path.read_bytes()]
    assert not [word for word in words if word in ran.logged + "".join(ran.notes)]


def test_a_second_run_sends_little_and_changes_nothing(ran: Ran, passphrase: None) -> None:
    relay, heard = Relay(ran.server.port), Heard()
    before = {path: path.read_bytes() for path in ran.study.glob("*/manifest.json")}
    remote_run(ran.study, ran.server, relay.port, heard, even_if_done=True).run()
    relay.close()
    assert 5_000 < relay.total < 100_000
    assert not any(note.startswith("Sending") for note in heard.notes)
    assert {path: path.read_bytes() for path in ran.study.glob("*/manifest.json")} == before
    quiet = Heard()
    remote_run(ran.study, ran.server, 1, quiet).run()  # nobody listens at that port: nothing is left to be asked
    assert quiet.notes == ["All of it is done here already: nothing was sent or run"]


def test_another_host_goes_on_from_what_came_back(ran: Ran, passphrase: None, tmp_path: Path) -> None:
    study = ran.study.parent / "moved"
    shutil.copytree(ran.study, study)
    for name in STAGE_NAMES[STAGE_NAMES.index("cards") :]:
        shutil.rmtree(study / name)
    heard = Heard()
    remote_run(study, ran.server, voice=heard, root=str(tmp_path / "other"), until="cards").run()
    place = Ledger.of(open_study(study).study).places(tmp_path / "other").study
    for name in STAGE_NAMES[: STAGE_NAMES.index("cards")]:
        assert (Path(place) / name / "manifest.json").read_bytes() == (ran.study / name / "manifest.json").read_bytes()
    assert (
        json.loads((study / "cards" / "manifest.json").read_text(encoding="utf-8"))["files"]
        == files_of(ran.local)["cards"]
    )
    assert heard.logged.count("unchanged") == 0  # adopted: what was sent is put in place by the run itself


def test_batches_of_a_stage_at_work_come_back_and_links_do_not(ran: Ran, passphrase: None, tmp_path: Path) -> None:
    study = ran.study.parent / "batches"
    shutil.copytree(ran.study, study)
    opened = open_study(study)
    place = Path(Ledger.of(opened.study).places(ran.server.home / ".unmask-remote").study)
    batches = place / ".scratch" / "steering-0123456789ab" / "batches"
    batches.mkdir(parents=True)
    (batches / "answers-00000.parquet").write_bytes(b"one batch")
    (batches / ".answers-00001.parquet.x").write_bytes(b"half a batch")
    (batches / "checkpoint.pt").write_bytes(b"never taken")
    (batches.parent / "device").write_text("cpu", encoding="utf-8")
    address = Address.parse(ran.server.url)
    assert fetch(opened, address, access(ran.server), order()) == (2, len("one batch") + len("cpu"))
    came = sorted(path.relative_to(study).as_posix() for path in (study / ".scratch").rglob("*") if path.is_file())
    assert came == [
        ".scratch/steering-0123456789ab/batches/answers-00000.parquet",
        ".scratch/steering-0123456789ab/device",
        ".scratch/steering-0123456789ab/took-part-cpu",  # written here: the device that made what came
    ]
    (batches / "answers-00002.parquet").symlink_to(ran.server.key)
    with pytest.raises(UnmaskError, match="is a link"):
        fetch(opened, address, access(ran.server), order())
    shutil.rmtree(batches.parent)  # that run is another test's too


@pytest.fixture
def at_work(tmp_path: Path, tiny_llama: Path, openssh: OpenSsh, passphrase: None) -> Generator[tuple[Path, Path]]:
    """A study that is being worked on there, its client gone; and the folder of the run."""
    study = make_study(tmp_path / "study", tiny_llama)

    def leave(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote_run(study, openssh, voice=Heard(on_log=leave)).run()
    folder = Path(Ledger.of(open_study(study).study).places(openssh.home / ".unmask-remote").run)
    yield study, folder
    stop(
        open_study(study).study,
        Address.parse(openssh.url),
        access(openssh),
        root="~/.unmask-remote",
        python=sys.executable,
    )


def test_a_run_goes_on_without_its_client_is_refused_twice_and_stopped_alone(
    at_work: tuple[Path, Path], openssh: OpenSsh
) -> None:
    study, folder = at_work
    going = running(folder)
    assert going is not None
    with pytest.raises(UnmaskError, match=f"process {going['pid']} on .* is working on"):
        remote_run(study, openssh, force=("questions",)).run()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        opened, address = open_study(study).study, Address.parse(openssh.url)
        group = [pid for pid in map(int, _processes()) if _group(pid) == going["pid"]]
        assert len(group) >= 2  # who watches it, and the run
        assert stop(opened, address, access(openssh), root="~/.unmask-remote", python=sys.executable) == going["pid"]
        assert not left_of(group)
        assert bystander.poll() is None
        assert stop(opened, address, access(openssh), root="~/.unmask-remote", python=sys.executable) is None
    finally:
        bystander.kill()
        bystander.wait()
    heard = Heard()
    show_log(opened, address, access(openssh), root="~/.unmask-remote", python=sys.executable, follow=True, voice=heard)
    assert "unmask" in heard.logged
    with (Path(Ledger.of(opened).places(openssh.home / ".unmask-remote").study) / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # somebody who runs the study there by hand
        with pytest.raises(UnmaskError, match=f"process {os.getpid()} on .* is working on"):
            remote_run(study, openssh).run()


def _processes() -> list[str]:
    return [path.name for path in Path("/proc").glob("[0-9]*")]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_a_full_disk_there_is_one_sentence(
    tmp_path: Path, tiny_llama: Path, openssh: OpenSsh, passphrase: None
) -> None:
    """Too full to be sent to; and filled up once the run has started, so that it is the run that finds out."""
    study = make_study(tmp_path / "study", tiny_llama)
    small = tmp_path / "disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=340m", "none", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    filler = small / "filler"

    def fill(note: str) -> None:
        if note.startswith("Running on"):
            _leave_free(small, filler, 200_000)

    try:
        with pytest.raises(UnmaskError, match=r"failed: .*(MB left|No space left|no disk space)") as failed:
            remote_run(study, openssh, root=str(small / "root"), voice=Heard(on_note=fill)).run()
        assert "\n" not in str(failed.value)
        _leave_free(small, filler, 30_000_000)
        with pytest.raises(UnmaskError, match=r"has \d+ MB left on the disk of .*--root"):
            remote_run(study, openssh, root=str(small / "root")).run()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _leave_free(disk: Path, filler: Path, free: int) -> None:
    filler.unlink(missing_ok=True)
    with filler.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, max(1, shutil.disk_usage(disk).free - free))


@pytest.fixture
def plain_study(tmp_path: Path, tiny_llama: Path) -> Path:
    return make_study(tmp_path / "plain", tiny_llama)


@dataclass(frozen=True)
class Commands:
    """`unmask remote` in this process, about a plain study, with the server that it is to be entered on."""

    study: Path
    server: OpenSsh
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, name: str, *more: object, **changes: object) -> int:
        """The exit code of a command; `changes` are other values of the options that say how to enter."""
        from unmask.cli.app import run_app

        entering: dict[str, object] = {
            "on": self.server.url,
            "key": self.server.key,
            "known_hosts": self.server.known_hosts,
            "python": sys.executable,
        }
        given = [
            part for option, value in (entering | changes).items() for part in (f"--{option.replace('_', '-')}", value)
        ]
        arguments = ["unmask", "remote", name, self.study, *given, *more]
        self.patch.setattr(sys, "argv", [str(argument) for argument in arguments])
        try:
            run_app()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    def complaint(self) -> str:
        return self.capture.readouterr().err.strip()

    def rows(self) -> dict[str, dict[str, str]]:
        """What `check` found, by what it looked at."""
        return {row["what"]: row for row in json.loads(self.capture.readouterr().out)}


@pytest.fixture
def commands(
    plain_study: Path, openssh: OpenSsh, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Commands:
    return Commands(plain_study, openssh, monkeypatch, capfd)


def test_every_way_not_to_get_in_is_one_sentence(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keygen(tmp_path / "stranger")
    fresh = tmp_path / "known_hosts"

    def fails(*more: object, secret: str | None = PASSPHRASE, **changes: object) -> str:
        monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
        if secret is not None:
            monkeypatch.setenv(PASSPHRASE_VARIABLE, secret)
        assert commands("check", *more, **changes) == 2
        said = commands.complaint()
        assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said
        assert "wrong one" not in said and PASSPHRASE not in said
        return said

    assert "the passphrase of key" in fails("--accept-new", secret="wrong one")  # pragma: allowlist secret
    assert "has a passphrase, and there is no terminal" in fails("--accept-new", secret=None)
    assert "refused every key" in fails("--accept-new", key=tmp_path / "stranger")
    assert "cannot be reached" in fails("--accept-new", on="ssh://somebody@127.0.0.1:1")
    unknown = fails(known_hosts=fresh)
    assert "is not known: ssh-ed25519 SHA256:" in unknown and "--accept-new" in unknown
    assert not fresh.exists()
    assert "holds a password" in fails(on="ssh://somebody:secret@127.0.0.1:1")  # pragma: allowlist secret


def test_a_changed_host_key_stops_everything(commands: Commands, tmp_path: Path, passphrase: None) -> None:
    known = tmp_path / "known_hosts"
    keygen(tmp_path / "other")
    kind, key, *_ = (tmp_path / "other.pub").read_text(encoding="utf-8").split()
    known.write_text(f"[127.0.0.1]:{commands.server.port} {kind} {key}\n", encoding="utf-8")
    assert commands("run", "--accept-new", known_hosts=known) == 2
    said = commands.complaint()
    assert "has changed" in said and said.count("SHA256:") == 2 and "ssh-keygen -R" in said
    assert not (commands.study / "remote.json").exists()


def test_check_says_what_is_there(commands: Commands, tmp_path: Path, passphrase: None) -> None:
    assert commands("check", "--accept-new", "--json", env=sys.executable) == 0
    rows = commands.rows()
    assert rows.keys() >= {"reachable", "host key", "python", "GPU", "environment", "CUDA for torch", "disk", "clock"}
    assert "SHA256:" in rows["host key"]["detail"]
    stub = tmp_path / "python3.9"
    stub.write_text("#!/bin/sh\necho 3.9\n", encoding="utf-8")
    stub.chmod(0o755)
    assert commands("check", "--accept-new", "--json", python=stub) == 1
    rows = commands.rows()
    assert rows["python"]["judgement"] == "no" and "3.9" in rows["python"]["detail"]
    assert commands("run", python=stub) == 2
    assert "no Python 3.11 or newer" in commands.complaint()


def test_an_absolute_path_in_the_study_file_is_named(
    plain_study: Path, tiny_llama: Path, openssh: OpenSsh, passphrase: None
) -> None:
    config = portable_config(tiny_llama, plain_study) | {"base": {"model": str(tiny_llama)}}
    write_study(plain_study, config)
    with pytest.raises(UnmaskError, match=r"base\.model is /.*relative"):
        remote_run(plain_study, openssh).run()


def test_an_environment_with_other_versions_is_refused(
    plain_study: Path, openssh: OpenSsh, passphrase: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.remote.sending.pins", lambda: ["numpy==1.0", "no-such-package==2.0"])
    with pytest.raises(UnmaskError, match=r"no-such-package 2\.0 is missing|numpy is .*, here it is 1\.0"):
        remote_run(plain_study, openssh).run()
