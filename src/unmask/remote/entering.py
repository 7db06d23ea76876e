"""From a person's words to a machine: its address, how it is entered, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from unmask.errors import ConfigError, UnmaskError
from unmask.execution.address import Address
from unmask.execution.ssh import Access
from unmask.pipeline import StudyPipeline, open_study
from unmask.remote.ledger import last_address, last_pod
from unmask.remote.order import ROOT, RemoteOrder, from_options
from unmask.remote.renting import is_rented
from unmask.study import Study


def access_of(
    *,
    key: Path | None,
    known_hosts: Path | None,
    accept_new: bool,
    pod: str | None = None,
    ask: Callable[[str], bool] | None,
    ask_secret: Callable[[str], str] | None,
) -> Access:
    """How a machine is entered. `pod` names it in `known_hosts` where it is rented: its address is another machine's tomorrow.

    `ask` and `ask_secret` are None where there is no person to ask.
    """
    alias = None if pod is None else f"runpod-{pod}"
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


class Errand(NamedTuple):
    """A study, what is asked, and the machine that it is asked of: `pod` is its id, where it is rented."""

    opened: StudyPipeline
    order: RemoteOrder
    address: Address
    pod: str | None


def errand(folder: Path, on: str | None, root: str | None, **chosen: Any) -> Errand:
    """What is asked of a machine that is there: a rented one (`runpod`) is the pod where the study ran last.

    `chosen` are fields of the order. Raises UnmaskError.
    """
    opened = open_study(folder)
    named = None if on is None or is_rented(on) else on
    address, place = place_of(opened.study, on=named, root=root)
    pod = last_pod(opened.study) if named is None else None
    wanted = None if on is None or named is not None else on.partition(":")[2]
    if wanted is not None and (pod is None or wanted not in ("", pod)):
        raise ConfigError(
            f"{opened.study.folder} ran last on {address}, which is {'no rented pod' if pod is None else f'pod {pod}'}",
            mend="Leave --on out to ask that one, or name another by its address: --on ssh://root@HOST:PORT",
        )
    return Errand(opened, from_options(RemoteOrder, {"root": place, **chosen}), address, pod)
