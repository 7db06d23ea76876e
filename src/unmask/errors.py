"""The one root of every error a user can meet.

A message is one sentence that says what is wrong and where, and one that says how to mend it. The CLI prints it and
exits with 2; the library raises it. Nothing else than an `UnmaskError` is meant for a user's eyes.
"""

from __future__ import annotations

from collections.abc import Iterable


class UnmaskError(Exception):
    """Something the user can mend.

    `what` names the value and the place; `mend` names the allowed values or the next command.
    """

    def __init__(self, what: str, *, mend: str = "") -> None:
        self.what = what.rstrip(". ")
        self.mend = mend.rstrip(". ")
        super().__init__(f"{self.what}. {self.mend}." if self.mend else f"{self.what}.")


class ConfigError(UnmaskError):
    """A study file or a command line says something that cannot be done."""


class DataError(UnmaskError):
    """A battery, training set or table does not hold what it should."""


class ModelError(UnmaskError):
    """A model, adapter or site is missing or does not fit."""


class ArtifactError(UnmaskError):
    """A file in a study directory is missing, corrupt or foreign."""


class StudyError(UnmaskError):
    """A study directory cannot be used as it stands."""


def listed(values: Iterable[object]) -> str:
    """Join allowed values for a message: `a, b, c`."""
    return ", ".join(str(value) for value in values)
