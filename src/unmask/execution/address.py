"""Where a machine is reached: user, host and port, as `ssh://user@host:port` says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from unmask.errors import ConfigError

SSH_PORT = 22
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._:%-]*[A-Za-z0-9_])?|::1?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]*")
_MEND = "Write ssh://USER@HOST:PORT; USER and PORT may be left out, as in ssh://gpu.example.org"


@dataclass(frozen=True, slots=True)
class Address:
    """A machine with an SSH server. `user` is empty where the configuration of SSH or the local name decides."""

    user: str
    host: str
    port: int = SSH_PORT

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `ssh://[user@]host[:port]`. Raises ConfigError; a password in the address is refused and not repeated."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError("the address after --on has no valid host or port", mend=_MEND) from error
        if parts.password is not None:
            raise ConfigError("the address after --on holds a password", mend="Use a key: --key FILE, or an agent")
        if parts.scheme != "ssh" or parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(f"--on {text!r} is not an address of a machine", mend=_MEND)
        host, user = parts.hostname or "", parts.username or ""
        if not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)) or port == 0:
            raise ConfigError(f"--on {text!r} is not an address of a machine", mend=_MEND)
        return cls(user=user, host=host, port=SSH_PORT if port is None else port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}:{self.port}"
