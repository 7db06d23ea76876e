"""What is asked of a remote run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unmask.errors import ConfigError

ROOT = "~/.unmask-remote"


class RemoteOrder(BaseModel):
    """How a study is run on a host. Names of keys only: their values are read when they are sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str = ROOT
    python: str | None = Field(None, description="the host's Python, 3.11 or newer")
    env: str | None = Field(None, description="Python of an environment there that has the versions already")
    until: str | None = None
    force: tuple[str, ...] = ()
    send_keys: tuple[str, ...] = Field((), description="environment variables whose values the run may see")
    max_gb: float = Field(100.0, gt=0, le=1e12, allow_inf_nan=False)
    retries: int = Field(6, ge=0, description="times in a row that a cut connection is opened again")
    even_if_done: bool = Field(False, description="go there although nothing is left to be run")

    def keys(self) -> dict[str, str]:
        """The variables to be sent. Raises ConfigError for one that is not set."""
        found = {}
        for name in self.send_keys:
            value = os.environ.get(name)
            if not value:
                raise ConfigError(
                    f"--send-key {name}: no such variable is set here", mend="Set it, or put it into .env"
                )
            found[name] = value
        return found


Asked = TypeVar("Asked", bound=BaseModel)


def from_options(model: type[Asked], values: Mapping[str, Any]) -> Asked:
    """What is asked for, from options by the names of its fields. Raises ConfigError, naming the option."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{name} is {first['input']!r}: {first['msg']}", mend="Correct it") from error


class Voice(Protocol):
    """Tells a person what happens."""

    def note(self, text: str) -> None:
        """A line of our own."""
        ...

    def log(self, text: str) -> None:
        """Some of what the run on the host says, as it comes."""
        ...


class Quiet:
    """Tells nobody."""

    def note(self, text: str) -> None:
        return

    def log(self, text: str) -> None:
        return
