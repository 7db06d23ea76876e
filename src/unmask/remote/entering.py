"""From a person's words to a machine: its address, and how it is entered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unmask.errors import UnmaskError
from unmask.execution.address import Address
from unmask.execution.ssh import Access
from unmask.remote.ledger import last_address
from unmask.remote.order import ROOT
from unmask.study import Study


def access_of(
    *,
    key: Path | None,
    known_hosts: Path | None,
    accept_new: bool,
    alias: str | None = None,
    ask: Callable[[str], bool] | None,
    ask_secret: Callable[[str], str] | None,
) -> Access:
    """How a machine is entered. `alias` is its name in `known_hosts`, where its address says little.

    `ask` and `ask_secret` are None where there is no person to ask.
    """
    return Access(key=key, known_hosts=known_hosts, accept_new=accept_new, alias=alias, ask=ask, ask_secret=ask_secret)


def place_of(study: Study, *, on: str | None, root: str | None) -> tuple[Address, str]:
    """The machine that `--on` names, or where the study ran last; and the folder there. Raises UnmaskError."""
    if on is not None:
        try:
            last, kept = last_address(study)
        except UnmaskError:
            last, kept = None, ROOT
        address = Address.parse(on)
        return address, root or (kept if address == last else ROOT)
    address, kept = last_address(study)
    return address, root or kept
