"""Which machine it is: keys of hosts in OpenSSH's `known_hosts`, which is read and added to, never rewritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from asyncssh import SSHKey

Ask = Callable[[str], bool]
"""Puts a yes-or-no question to a person."""


class HostKeyError(UnmaskError):
    """The host's key is unknown, or not the one that was there before."""


def default_known_hosts() -> Path:
    return Path("~/.ssh/known_hosts").expanduser()


def place(host: str, port: int) -> str:
    """How `known_hosts` names a host: with its port where that is not 22."""
    return host if port == 22 else f"[{host}]:{port}"


@dataclass(slots=True)
class HostKeys:
    """What `file` says of a host, and what the host showed when it was last called."""

    file: Path
    alias: str | None = None
    shown: SSHKey | None = None
    where: str = ""
    _known: Any = None

    def match(self, host: str, address: str, port: int | None) -> Any:
        """asyncssh's question: trusted, certifying and revoked keys of a host. Raises HostKeyError for a broken file."""
        import asyncssh

        text = self.file.read_text(encoding="utf-8", errors="replace") if self.file.is_file() else ""
        self.where = self.alias or place(host, port or 22)
        try:
            # under the full name alone: asyncssh would also take what is known of the same machine at port 22
            self._known = asyncssh.import_known_hosts(text).match(self.where, "", None)
        except ValueError as error:
            raise HostKeyError(f"{self.file} cannot be read ({error})", mend="Correct or remove that line") from error
        return self._known

    @property
    def trusted(self) -> list[SSHKey]:
        return list(self._known[0]) if self._known is not None else []

    def add(self) -> None:
        """Remember the key that the host showed."""
        assert self.shown is not None
        line = f"{self.where} {self.shown.export_public_key('openssh').decode().split(' ', 2)[0]} "
        line += self.shown.export_public_key("openssh").decode().split()[1] + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole = not self.file.exists() or self.file.read_bytes()[-1:] in (b"", b"\n")
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as handle:
            handle.write(line if whole else f"\n{line}")

    def changed(self) -> HostKeyError:
        """The host shows another key than it did: nothing goes on."""
        assert self.shown is not None
        before = ", ".join(sorted({key.get_fingerprint() for key in self.trusted}))
        return HostKeyError(
            f"the host key of {self.where} has changed: {self.file} has {before}, the host shows {self.shown.get_fingerprint()}",
            mend="Somebody may be listening in. If you know that the machine is a new one, remove the old key with "
            f"`ssh-keygen -R '{self.where}' -f '{self.file}'` and run it again",
        )

    def accept(self, *, accept_new: bool, ask: Ask | None) -> None:
        """Decide on a host that nobody knows. Raises HostKeyError where nobody says yes."""
        assert self.shown is not None
        fingerprint, kind = self.shown.get_fingerprint(), self.shown.get_algorithm()
        question = f"{self.where} is not known. Its key is {kind} {fingerprint}. Trust it from now on?"
        if not accept_new:
            if ask is None:
                raise HostKeyError(
                    f"the host key of {self.where} is not known: {kind} {fingerprint}",
                    mend=f"Compare it with what the machine's owner says, then add --accept-new to keep it in {self.file}",
                )
            if not ask(question):
                raise HostKeyError(f"the host key of {self.where} was not accepted", mend="Nothing was sent")
        self.add()
