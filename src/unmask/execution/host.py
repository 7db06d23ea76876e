"""A machine that was entered: a Python on it, operations of `on_host`, files sent and fetched from where they were cut."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from unmask.artifact import digest_bytes
from unmask.errors import UnmaskError
from unmask.execution.address import Address
from unmask.execution.hearsay import printable
from unmask.execution.on_host.wire import MARK, packed, unpacked
from unmask.execution.ssh import ConnectionCut
from unmask.execution.wheel import host_program

if TYPE_CHECKING:
    from asyncssh import SFTPClient, SSHClientConnection, SSHReader

BLOCK = 4 << 20
ANSWER_LIMIT = 64 << 20
LINE_LIMIT = 4 << 20
OTHERS_WRITE, STICKY, OURS_ALONE = 0o022, 0o1000, 0o700
NOISE_LIMIT = 1 << 20
SILENCE_SECONDS = 900.0
"""A machine that says nothing for so long is taken for lost. One that works says so every few seconds."""


class HostError(UnmaskError):
    """A machine answers, and not as it should."""


@dataclass(slots=True)
class Host:
    """An open connection with what was found out about the other side. `root` is an absolute path there, `user` who we are there.

    `shared`: others may have users there too, as on any machine that was not rented for us alone.
    `sent` and `came` count the bytes of files that went and came, those of files that were cut too.
    """

    connection: SSHClientConnection
    sftp: SFTPClient
    address: Address
    python: str
    python_version: str
    root: PurePosixPath
    user: int
    shared: bool = True
    sent: int = 0
    came: int = 0

    @property
    def program(self) -> PurePosixPath:
        return self.root / f"host-{digest_bytes(host_program())[:12]}.pyz"

    async def ask(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """One operation of `on_host`. Raises HostError for its error, or an answer that is none."""
        with cuts(self.address):
            process = await self.connection.create_process(self._command(operation), encoding=None)
            process.stdin.write(packed({**request, "root": str(self.root)}))
            process.stdin.write_eof()
            try:
                data = await self._all(process.stdout, ANSWER_LIMIT)
                complaint = await self._all(process.stderr, NOISE_LIMIT)
                await heard(process.wait_closed(), self.address)
            finally:
                process.close()
        _, mark, body = data.partition(MARK)
        try:
            answer = unpacked(body, limit=ANSWER_LIMIT) if mark else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            if process.exit_status is None:
                raise ConnectionCut(f"the connection to {self.address} was cut", mend="Run it again")
            said = complaint.decode(errors="replace").strip().splitlines()
            raise HostError(
                f"{self.address} could not answer ({printable(said[-1][:500]) if said else f'exit code {process.exit_status}'})",
                mend="Is its disk full? Log in there and look",
            )
        if "error" in answer:
            raise HostError(
                f"{self.address}: {printable(str(answer['error'])[:2000])}", mend="Mend that there and run it again"
            )
        return answer

    async def _all(self, stream: SSHReader[bytes], limit: int) -> bytes:
        data = b""
        while block := await heard(stream.read(1 << 16), self.address):
            data += block
            if len(data) > limit:
                raise HostError(f"{self.address} answers without end", mend="Do not trust it")
        return data

    async def stream(self, operation: str, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The lines of a streaming operation. Raises ConnectionCut when it ends before it should."""
        import asyncssh

        with cuts(self.address):
            process = await self.connection.create_process(
                self._command(operation), stderr=asyncssh.DEVNULL, encoding=None
            )
            try:
                process.stdin.write(packed({**request, "root": str(self.root)}))
                process.stdin.write_eof()
                data, started = b"", False
                while block := await heard(process.stdout.read(1 << 16), self.address):
                    data += block
                    if not started:
                        _, mark, rest = data.partition(MARK)
                        started, data = bool(mark), rest if mark else data
                    if len(data) > (LINE_LIMIT if started else NOISE_LIMIT):
                        raise HostError(f"{self.address} answers without end", mend="Do not trust it")
                    *lines, data = data.split(b"\n") if started else [data]
                    for text in lines:
                        yield _message(text, self.address)
            finally:
                process.close()
        raise ConnectionCut(f"the connection to {self.address} was cut", mend="Run it again")

    def _command(self, operation: str) -> str:
        return f"exec {shlex.quote(self.python)} {shlex.quote(str(self.program))} {operation}"

    async def install(self) -> None:
        """Put the program of operations there, if it is not. Raises HostError where it cannot be written, or others could.

        What lies below the root is run, from this program to the environments. So it is ours alone: made so, or found so.
        """
        data = host_program()
        with cuts(self.address), self._writing(self.root):
            self.root = await self._own_folder()
            if not await self.sftp.exists(str(self.program)):
                await self._put(data, self.program)

    async def _own_folder(self) -> PurePosixPath:
        """The root without links, so that nobody leads us elsewhere later. Raises HostError where it is not ours alone.

        Nor may others put another in the place of a folder that it lies in.
        """
        import asyncssh

        fresh = not await self.sftp.exists(str(self.root))
        if fresh:
            only_ours = asyncssh.SFTPAttrs(permissions=OURS_ALONE)
            await self.sftp.makedirs(str(self.root), only_ours, exist_ok=True)
        root = PurePosixPath(await self.sftp.realpath(str(self.root)))
        if not root.is_absolute() or ".." in root.parts or not str(root).isprintable():
            raise HostError(f"{self.address} does not say where {self.root} is", mend="Do not trust it")
        for above in root.parents if self.shared else ():
            rights = (await self.sftp.stat(str(above))).permissions
            if rights is None or (rights & OTHERS_WRITE and not rights & STICKY):
                raise HostError(
                    f"{root} on {self.address} lies in {above}, where others may replace it, and what lies there is run",
                    mend="Name a folder with --root that is below your home; or `chmod go-w` the one above, if it is yours",
                )
        if fresh:
            await self.sftp.chmod(str(root), OURS_ALONE)
        if not self.shared:  # nobody else is there, and a volume of its own may keep no permissions
            return root
        found = await self.sftp.stat(str(root))
        if found.uid != self.user or found.permissions is None or found.permissions & OTHERS_WRITE:
            whose = "others may write to" if found.uid == self.user else "belongs to another user"
            raise HostError(
                f"{root} on {self.address} is a folder that {whose}, and what lies there is run",
                mend="Name one of your own with --root, on a disk that keeps permissions; or `chmod go-w` it there, if all "
                "in it is yours",
            )
        return root

    @contextmanager
    def _writing(self, target: PurePosixPath) -> Generator[None]:
        """What the file server refuses becomes HostError."""
        import asyncssh

        try:
            yield
        except asyncssh.SFTPError as error:
            if isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                raise
            raise HostError(
                f"{target} could not be written on {self.address} ({printable(error.reason)})",
                mend="Is the disk full, or the folder not yours? `unmask remote check` shows; --root names another",
            ) from error

    async def _put(self, data: bytes, target: PurePosixPath) -> None:
        beside = target.with_name(f".{target.name}.part")
        async with self.sftp.open(str(beside), "wb") as handle:
            await handle.write(data)
        await self.sftp.posix_rename(str(beside), str(target))

    async def send(self, source: Path | bytes, target: PurePosixPath, *, digest: str) -> None:
        """Send a file, going on where an earlier try was cut.

        Raises HostError where the disk there is full or the folder cannot be written.
        """
        beside = target.with_name(f".{target.name}.{digest[:12]}.part")
        with cuts(self.address), self._writing(target):
            await self.sftp.makedirs(str(target.parent), exist_ok=True)
            there = (await self.sftp.stat(str(beside))).size if await self.sftp.exists(str(beside)) else 0
            async with self.sftp.open(str(beside), "r+b" if there else "wb") as handle:
                for offset, block in _blocks(source, there or 0):
                    await handle.write(block, offset)
                    self.sent += len(block)
            await self.sftp.posix_rename(str(beside), str(target))

    async def size(self, source: PurePosixPath) -> int:
        """Bytes of a regular file. Raises HostError for anything else, FileNotFoundError where nothing is."""
        import asyncssh

        with cuts(self.address):
            try:
                found = await self.sftp.lstat(str(source))
            except asyncssh.SFTPNoSuchFile as error:
                raise FileNotFoundError(str(source)) from error
            except asyncssh.SFTPError as error:
                if isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                    raise
                raise HostError(f"{source} on {self.address} could not be read ({printable(error.reason)})") from error
        if found.type != asyncssh.FILEXFER_TYPE_REGULAR or found.size is None:
            raise HostError(f"{source} on {self.address} is no regular file", mend="Nothing of it was taken")
        return found.size

    async def fetch(self, source: PurePosixPath, part: Path, *, size: int) -> int:
        """Fetch a file of exactly `size` bytes into `part`, going on where it ends. Returns the bytes that came.

        Raises HostError for what is no regular file, or has another size: nothing beyond `size` is ever kept. Raises
        FileNotFoundError where it has gone meanwhile.
        """
        import asyncssh

        if await self.size(source) != size:
            raise HostError(f"{source} on {self.address} is not the file of {size} bytes that was announced")
        with cuts(self.address):
            try:
                async with self.sftp.open(str(source), "rb") as handle:
                    return await self._receive(handle, part, size, f"{source} on {self.address}")
            except asyncssh.SFTPNoSuchFile as error:
                raise FileNotFoundError(str(source)) from error
            except asyncssh.SFTPError as error:
                if isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                    raise
                raise HostError(f"{source} on {self.address} could not be read ({printable(error.reason)})") from error

    async def _receive(self, handle: Any, part: Path, size: int, what: str) -> int:
        start = offset = min(part.stat().st_size, size) if part.exists() else 0
        with part.open("r+b" if part.exists() else "xb") as kept:
            kept.truncate(start)
            kept.seek(start)
            while offset < size:
                block = await handle.read(min(BLOCK, size - offset), offset)
                if not block:
                    raise HostError(f"{what} ends after {offset} of {size} bytes")
                if len(block) > size - offset:
                    raise HostError(f"{what} is longer than the {size} bytes that were announced")
                kept.write(block)
                offset += len(block)
                self.came += len(block)
        if await handle.read(1, size):
            raise HostError(f"{what} is longer than the {size} bytes that were announced")
        return offset - start


def _blocks(source: Path | bytes, start: int) -> Generator[tuple[int, bytes]]:
    if isinstance(source, bytes):
        for offset in range(start, len(source), BLOCK):
            yield offset, source[offset : offset + BLOCK]
        return
    with source.open("rb") as handle:
        handle.seek(start)
        while block := handle.read(BLOCK):
            yield start, block
            start += len(block)


async def heard(said: Awaitable[Any], address: Address) -> Any:
    """What a machine says. Raises ConnectionCut where it is silent for too long."""
    try:
        return await asyncio.wait_for(said, SILENCE_SECONDS)
    except TimeoutError as error:
        raise ConnectionCut(f"{address} has said nothing for {SILENCE_SECONDS:g} s", mend="Run it again") from error


@contextmanager
def cuts(address: Address) -> Generator[None]:
    """Whatever asyncssh raises when a connection goes becomes ConnectionCut."""
    import asyncssh

    try:
        yield
    except (
        asyncssh.DisconnectError,
        asyncssh.ChannelOpenError,
        asyncssh.SFTPConnectionLost,
        asyncssh.SFTPNoConnection,
        BrokenPipeError,
        ConnectionError,
    ) as error:
        raise ConnectionCut(f"the connection to {address} was cut", mend="Run it again: it goes on") from error


def _message(text: bytes, address: Address) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HostError(f"{address} says what is no message", mend="Do not trust it")
    return found
