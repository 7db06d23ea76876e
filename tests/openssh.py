"""A real OpenSSH server on the loopback interface, with its own configuration and keys, as "the other machine"."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unmask.execution.on_host.supervising import start_time

PASSPHRASE = "a throw-away passphrase"  # pragma: allowlist secret
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class OpenSsh:
    """A server that is running. `home` is what its sessions have as HOME; `key` the passphrase-protected key it lets in."""

    folder: Path
    port: int
    home: Path
    key: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"ssh://{os.environ.get('USER') or _user()}@127.0.0.1:{self.port}"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def start(self) -> None:
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "Subsystem sftp internal-sftp",
            "MaxStartups 100",
            f"SetEnv {' '.join(f'{name}={value}' for name, value in self.environment.items())}",
        ]
        config = self.folder / f"sshd_config-{self.port}"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        log.close()
        until = time.monotonic() + 30
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                if probe.recv(4) == b"SSH-":
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text(encoding="utf-8"))

    def stop(self) -> None:
        if self.process is not None:
            self.cut()
            self.process.terminate()
            self.process.wait(10)

    def children(self) -> list[int]:
        """Processes of the server's open connections."""
        assert self.process is not None
        found, fresh = [], [self.process.pid]
        while fresh:
            parent = fresh.pop()
            for pid in map(int, _said_of(parent, f"task/{parent}/children").split()):
                name, _, state = _said_of(pid, "stat").partition("(")[2].rpartition(") ")
                if name.startswith("sshd") and not state.startswith("Z"):
                    found.append(pid)
                    fresh.append(pid)
        return found

    def cut(self) -> int:
        """Kill every open connection, as a network does. Returns how many processes that were.

        They are gone when it returns: on a busy machine a killed process may be there for a while, and be cut twice.
        """
        pids = self.children()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while time.monotonic() < until and not set(pids).isdisjoint(self.children()):
            time.sleep(0.005)
        return len(pids)


def _said_of(pid: int, file: str) -> str:
    """What /proc says of a process; nothing once it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8")
    return ""


def left_of(pids: Iterable[int]) -> list[int]:
    """The processes that are still there when all had time to end: one that was killed may be there for a while."""
    until = time.monotonic() + 10
    while (left := [pid for pid in pids if start_time(pid) is not None]) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def keygen(path: Path, passphrase: str | None = None) -> None:
    """A key pair as OpenSSH writes it. Not by ssh-keygen, which is told the passphrase on its command line."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment="test")
    key.write_private_key(path, passphrase=passphrase)
    key.write_public_key(path.with_name(f"{path.name}.pub"))
    path.chmod(0o600)


def _user() -> str:
    import getpass

    return getpass.getuser()


@contextmanager
def running_openssh(folder: Path, *, environment: dict[str, str] | None = None) -> Generator[OpenSsh]:
    """A server in `folder`, the same as before where one has been. Skips where there is no sshd; in CI that is a failure."""
    if not Path(SSHD).exists():
        message = "no OpenSSH server on this machine (Debian: apt install openssh-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd of root keeps its unprivileged child
    if not (folder / "host_key").exists():
        keygen(folder / "host_key")
        keygen(folder / "key", PASSPHRASE)
        shutil.copyfile(folder / "key.pub", folder / "authorized_keys")
    names = (
        "PATH",
        "UNMASK_CACHE",
        "HF_HOME",
        "SSL_CERT_FILE",
        *(name for name in os.environ if name.startswith("PIP_")),
    )
    kept = {name: os.environ[name] for name in names if name in os.environ and " " not in os.environ[name]}
    cache = os.environ.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))
    told = {**kept, "HOME": str(home), "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    told |= {"CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    server = _started(OpenSsh(folder, free_port(), home, folder / "key", told))
    try:
        yield server
    finally:
        server.stop()


def _started(server: OpenSsh) -> OpenSsh:
    """The server, at another port where somebody took its own meanwhile."""
    for _ in range(3):
        try:
            server.start()
        except AssertionError:
            server.stop()
            server.port = free_port()
        else:
            return server
    raise AssertionError((server.folder / "log").read_text(encoding="utf-8"))


class Relay:
    """Passes bytes between a client and a server, and counts them. `on_bytes(total)` is called as they pass."""

    def __init__(self, port: int, on_bytes: Callable[[int], None] | None = None) -> None:
        self._target, self._on_bytes = port, on_bytes
        self.up = self.down = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def total(self) -> int:
        return self.up + self.down

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for source, sink, way in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass, args=(source, sink, way), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16_384):
                setattr(self, way, getattr(self, way) + len(data))
                if self._on_bytes is not None:
                    self._on_bytes(self.total)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.close()
