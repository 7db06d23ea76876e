"""Entering a machine: the connection, a Python that will do, and our program beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from unmask.execution.address import Address
from unmask.execution.host import Host, HostError, cuts, printable
from unmask.execution.ssh import Access, SshError, connect

if TYPE_CHECKING:
    from asyncssh import SFTPClient, SSHClientConnection

LEAST_PYTHON = (3, 11)
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")
_USER = re.compile(r"[0-9]{1,10}")
PROBE_LIMIT, PROBE_SECONDS = 64_000, 60.0
"""Most bytes and seconds that a machine may take to say which Pythons it has."""
_PYTHONS = (
    "python3.14 python3.13 python3.12 python3.11 python3 python /opt/conda/bin/python3 "
    "$HOME/miniconda3/bin/python3 /usr/local/bin/python3"
)
_PROBE = """
for python in {candidates}; do
  found=$(command -v "$python") || continue
  version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  echo "unmask-python $version $found"
done
echo "unmask-user $(id -u)"
echo "unmask-home $HOME"
"""


@asynccontextmanager
async def entered(address: Address, access: Access, *, root: str, python: str | None = None) -> AsyncGenerator[Host]:
    """Enter a machine and find a Python there. Raises UnmaskError where it cannot be entered or has no Python that will do."""
    with _told_once():
        connection = await connect(address, access)
        try:
            candidates = shlex.quote(python) if python else _PYTHONS
            pythons, user, home = _pythons(await _said(connection, address, _PROBE.format(candidates=candidates)))
            version, path = _choose(pythons, address, python)
            if not home.startswith("/") or not home.isprintable() or user is None:
                raise HostError(
                    f"{address} has no home folder or user",
                    mend="unmask needs a POSIX shell there, as Linux and macOS have",
                )
            where = PurePosixPath(home) / root.removeprefix("~/") if root.startswith("~") else PurePosixPath(root)
            if not where.is_absolute():
                where = PurePosixPath(home) / where
            with cuts(address):
                sftp = await _sftp(connection, address)
            host = Host(connection, sftp, address, path, version, where, user, shared=access.alias is None)
            await host.install()
            yield host
        finally:
            connection.close()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.wait_closed(), 5)


@contextmanager
def _told_once() -> Generator[None]:
    """The end of a connection is told by what waited for it: asyncio says nothing of asyncssh's other requests that met it.

    Those are several for every block, found when they are collected, with a traceback each.
    """
    logger, loop = logging.getLogger("asyncio"), asyncio.get_running_loop()
    if loop.get_exception_handler() is None:  # for good: they may be collected long after
        loop.set_exception_handler(_heard)
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)


def _heard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    import asyncssh

    if not isinstance(context.get("exception"), asyncssh.DisconnectError | asyncssh.SFTPError | ConnectionError):
        loop.default_exception_handler(context)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("socket.send() raised")


async def _said(connection: SSHClientConnection, address: Address, command: str) -> str:
    """What a command prints. Raises SshError where it takes too long, HostError where it prints too much."""
    import asyncssh

    data = b""
    try:
        with cuts(address):
            async with asyncio.timeout(PROBE_SECONDS):
                process = await connection.create_process(
                    command, stdin=asyncssh.DEVNULL, stderr=asyncssh.DEVNULL, encoding=None
                )
                try:
                    while block := await process.stdout.read(1 << 14):
                        data += block
                        if len(data) > PROBE_LIMIT:
                            raise HostError(f"{address} answers without end", mend="Do not trust it")
                finally:
                    process.close()
    except TimeoutError as error:
        raise SshError(
            f"{address} let us in and does not run commands within {PROBE_SECONDS:g} s",
            mend="Does its login script wait for something? Log in there and look",
        ) from error
    return data.decode(errors="replace")


async def _sftp(connection: SSHClientConnection, address: Address) -> SFTPClient:
    import asyncssh

    try:
        return await connection.start_sftp_client()
    except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
        raise SshError(
            f"{address} offers no file transfer (SFTP)",
            mend="On RunPod use the address of `SSH over exposed TCP`, not ssh.runpod.io; elsewhere switch on its sftp subsystem",
        ) from error


def _pythons(text: str) -> tuple[list[tuple[str, str]], int | None, str]:
    """The Pythons by version and path, who we are there, and the home folder."""
    found, user, home = [], None, ""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "unmask-python":
            version, _, path = rest.partition(" ")
            found.append((version, path))
        elif word == "unmask-user" and _USER.fullmatch(rest):
            user = int(rest)
        elif word == "unmask-home":
            home = rest
    return found, user, home


def _choose(pythons: list[tuple[str, str]], address: Address, asked: str | None) -> tuple[str, str]:
    for version, path in pythons:
        found = _VERSION.fullmatch(version)
        if found is not None and (int(found[1]), int(found[2])) >= LEAST_PYTHON:
            return version, path
    seen = ", ".join(sorted({printable(f"{version} at {path}")[:200] for version, path in pythons})) or "none at all"
    where = f" at {asked}" if asked else ""
    raise HostError(
        f"{address} has no Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer{where} (found: {seen})",
        mend="Install one there, or name it with --python",
    )
