"""A machine that lies: a real SSH server whose answers, files and sizes a test makes up."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from unmask.execution.on_host.wire import MARK, packed


@dataclass
class Hostile:
    """What the server says. `state` answers what is there; `longer` are bytes that a file has beyond what it says.

    `greeting` is what its shell says; `refuses`: nobody may look at a file.
    """

    folder: Path
    port: int = 0
    key: Path = Path()
    state: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    greeting: bytes = b"unmask-python 3.11 /usr/bin/python3\nunmask-user %d\nunmask-home /home\n" % os.geteuid()
    longer: int = 0
    refuses: bool = False
    asked: list[str] = field(default_factory=list)

    def says(self, *, stages: dict[str, Any] | None = None, batches: list[Any] | None = None) -> None:
        self.state = {
            "stages": stages or {},
            "batches": batches or [],
            "running": None,
            "ended": None,
            "missing": [],
            "free": 10**12,
        }

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or ""
        self.asked.append(command)
        if "unmask-home" in command:
            process.stdout.write(self.greeting)
        else:
            await process.stdin.read()
            process.stdout.write(MARK + packed(self.state) if self.raw is None else self.raw)
        process.exit(0)


class _Door(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True


def _files(hostile: Hostile) -> type[asyncssh.SFTPServer]:
    class Files(asyncssh.SFTPServer):
        def __init__(self, chan: Any) -> None:
            super().__init__(chan, chroot=str(hostile.folder))

        def lstat(self, path: bytes) -> Any:
            if hostile.refuses:
                raise asyncssh.SFTPPermissionDenied("no")
            found = asyncssh.SFTPAttrs.from_local(super().lstat(path))
            if found.size is not None and found.type == asyncssh.FILEXFER_TYPE_REGULAR:
                found.size -= hostile.longer
            return found

    return Files


@contextmanager
def running_hostile(folder: Path) -> Generator[Hostile]:
    """The server, in a thread. Its files are those below `folder/files`."""
    files = folder / "files"
    files.mkdir(parents=True)
    hostile = Hostile(files, key=folder / "key")
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(hostile.key)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=_Door,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            process_factory=hostile.serve,
            sftp_factory=_files(hostile),
            encoding=None,
        )

    async def end(acceptor: asyncssh.SSHAcceptor) -> None:
        acceptor.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=5) if others else None

    acceptor = asyncio.run_coroutine_threadsafe(begin(), loop).result(20)
    hostile.port = acceptor.get_port()
    try:
        yield hostile
    finally:
        asyncio.run_coroutine_threadsafe(end(acceptor), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
