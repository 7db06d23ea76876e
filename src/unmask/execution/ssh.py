"""A connection to a machine over SSH: who it is, who we are, and every way it can fail as one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import ConfigError, UnmaskError
from unmask.execution.address import SSH_PORT, Address
from unmask.execution.host_keys import Ask, HostKeyError, HostKeys, default_known_hosts

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection, SSHKey

PASSPHRASE_VARIABLE = "RUNPOD_PRIVATE_KEY"
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
BEAT_SECONDS, BEATS = 15, 4
"""A connection that is silent for a minute is taken for lost."""


class SshError(UnmaskError):
    """A machine cannot be reached, or does not let us in."""


class ConnectionCut(SshError):
    """A connection that was there has gone: worth trying again."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a machine is entered. `ask` and `ask_secret` reach a person, where there is one.

    `alias` is its name in `known_hosts`, where it is rented: its address is another machine's tomorrow.
    """

    key: Path | None = None
    known_hosts: Path | None = None
    accept_new: bool = False
    alias: str | None = None
    timeout: float = 20.0
    ask: Ask | None = None
    ask_secret: Callable[[str], str] | None = None
    _keys: list[list[SSHKey] | None] = field(default_factory=list, repr=False, compare=False)

    def keys(self, address: Address) -> list[SSHKey] | None:
        """The private keys, read once: nobody is asked for a passphrase again when a connection is opened anew."""
        if not self._keys:
            self._keys.append(load_keys(address, self))
        return self._keys[0]


def require_asyncssh() -> None:
    """Raises ConfigError where the extra `remote` is not installed."""
    from importlib.util import find_spec

    if find_spec("asyncssh") is None:
        raise ConfigError("remote runs need the package asyncssh", mend="pip install 'unmask[remote]'")


def load_keys(address: Address, access: Access) -> list[SSHKey] | None:
    """The private keys to offer beside an agent's; None leaves the choice to ~/.ssh/config and the agent.

    A passphrase comes from RUNPOD_PRIVATE_KEY or from a person, and is only asked for when a key was named or there is no agent.
    Raises SshError for a named key that cannot be used.
    """
    import asyncssh

    if access.key is not None:
        return [_read_key(access.key.expanduser(), access)]
    given = os.environ.get(PASSPHRASE_VARIABLE)
    found, paths = [], _usual_keys(address)
    for path in paths:
        with contextlib.suppress(asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError):
            found.append(asyncssh.read_private_key(path, given))
    if not found and not os.environ.get("SSH_AUTH_SOCK") and access.ask_secret is not None:
        return [_read_key(path, access) for path in paths[:1]] or None
    return found or None


def _usual_keys(address: Address) -> list[Path]:
    """Key files that ~/.ssh/config names for the host, else those that OpenSSH takes. Raises SshError for a broken config."""
    import asyncssh

    try:
        named = asyncssh.SSHClientConnectionOptions(host=address.host, client_keys=None).config.get("IdentityFile")
    except (asyncssh.ConfigParseError, OSError) as error:
        raise SshError(f"~/.ssh/config cannot be read ({error})", mend="Correct it") from error
    files = [str(name) for name in named] if isinstance(named, list | tuple) else []
    paths = [Path(name).expanduser() for name in files or [f"~/.ssh/{name}" for name in DEFAULT_KEYS]]
    return [path for path in paths if path.is_file()]


def _read_key(path: Path, access: Access) -> SSHKey:
    import asyncssh

    mend = f"Set {PASSPHRASE_VARIABLE} to the key's passphrase, add the key to an agent (ssh-add), or name another with --key"
    passphrase = os.environ.get(PASSPHRASE_VARIABLE) or None
    try:
        return asyncssh.read_private_key(path, passphrase)
    except OSError as error:
        raise SshError(
            f"key {path} cannot be read ({error.strerror})", mend="Name your private key with --key"
        ) from error
    except asyncssh.KeyEncryptionError as error:
        raise SshError(f"the passphrase of key {path} is wrong", mend=mend) from error
    except asyncssh.KeyImportError as error:
        if "passphrase" not in str(error).lower():
            raise SshError(f"{path} is not a private key ({error})", mend="Name your private key with --key") from error
    if access.ask_secret is None:
        raise SshError(f"key {path} has a passphrase, and there is no terminal to ask for it", mend=mend)
    try:
        return asyncssh.read_private_key(path, access.ask_secret(f"Passphrase of {path}: "))
    except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
        raise SshError(f"the passphrase of key {path} is wrong", mend=mend) from error


async def connect(address: Address, access: Access) -> SSHClientConnection:
    """Open a connection. Raises UnmaskError, in one sentence, for all that may be wrong.

    A host that is not known is called once to see its key, and again once somebody has said yes.
    """
    keys = HostKeys(
        access.known_hosts.expanduser() if access.known_hosts else default_known_hosts(), alias=access.alias
    )
    offered = access.keys(address)
    try:
        return await _open(address, access, keys, offered)
    except HostKeyError as error:
        if keys.shown is None or keys.trusted:
            raise
        if error.what != _UNKNOWN:
            raise
    await asyncio.to_thread(keys.accept, accept_new=access.accept_new, ask=access.ask)
    return await _open(address, access, keys, offered)


_UNKNOWN = "the host is not known"


async def _open(
    address: Address, access: Access, keys: HostKeys, offered: Sequence[SSHKey] | None
) -> SSHClientConnection:
    import asyncssh

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: SSHKey) -> bool:
            keys.shown = key
            return False

    options: dict[str, Any] = {"client_factory": Client, "known_hosts": keys.match}
    if address.user:
        options["username"] = address.user
    if address.port != SSH_PORT:
        options["port"] = address.port
    if offered is not None:
        options["client_keys"] = list(offered)
    try:
        return await asyncssh.connect(
            address.host,
            **options,
            connect_timeout=access.timeout,
            login_timeout=access.timeout,
            keepalive_interval=BEAT_SECONDS,
            keepalive_count_max=BEATS,
            preferred_auth="publickey",
            compression_algs=["none"],  # what is large does not shrink, and what is small is compressed before
        )
    except asyncssh.HostKeyNotVerifiable as error:
        if keys.shown is None:
            raise HostKeyError(f"{address} has no host key that can be trusted ({error.reason})") from error
        raise (keys.changed() if keys.trusted else HostKeyError(_UNKNOWN)) from error
    except (OSError, asyncssh.Error, asyncssh.ConfigParseError, asyncssh.KeyImportError) as error:
        if isinstance(error, asyncssh.KeyExchangeFailed) and keys.trusted:
            raise HostKeyError(
                f"{address} shows no host key of a kind that {keys.file} has for it",
                mend=f"If it is a new machine: ssh-keygen -R '{keys.where}' -f '{keys.file}'",
            ) from error
        raise _sentence(address, access, error) from error


def _sentence(address: Address, access: Access, error: Exception) -> SshError:
    import asyncssh

    if isinstance(error, asyncssh.PermissionDenied):
        return SshError(
            f"{address} refused every key that was offered",
            mend="Put your public key into ~/.ssh/authorized_keys there, or name its private key with --key",
        )
    if isinstance(error, asyncssh.ConnectionLost) and "timeout" not in str(error.reason).lower():
        return SshError(
            f"{address} closed the connection before it was entered", mend="Is that an SSH server? Run it again"
        )
    if isinstance(error, TimeoutError | asyncssh.ConnectionLost):
        return SshError(
            f"{address} did not answer within {access.timeout:g} s", mend="Is it running, and the port right?"
        )
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).splitlines()[0]
        return SshError(f"{address} cannot be reached ({reason})", mend="Is it running, and are host and port right?")
    reason = getattr(error, "reason", None) or str(error)
    return SshError(f"{address} cannot be entered ({reason})", mend="Try `ssh -v` with the same address")
