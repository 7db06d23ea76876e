"""Whether a study could run on a host: what is there against what it needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from unmask.errors import UnmaskError
from unmask.execution.address import Address
from unmask.execution.arrival import LEAST_PYTHON, entered
from unmask.execution.hearsay import number_from_host, printable
from unmask.execution.host import Host, HostError
from unmask.execution.ssh import Access, require_asyncssh
from unmask.execution.wheel import pins
from unmask.pipeline import StudyPipeline
from unmask.remote.ledger import Ledger
from unmask.remote.looking import look
from unmask.remote.order import RemoteOrder
from unmask.remote.sending import environment_folder

ENVIRONMENT_BYTES = 9_000_000_000
"""Disk of an environment with the CUDA build of torch (its wheels unpacked, and uv's cache of them)."""
SPARE_BYTES = 1_000_000_000
CLOCK_SECONDS = 120.0

Judgement = Literal["ok", "no", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the table: `no` means that the study cannot run there, `note` is worth knowing."""

    what: str
    judgement: Judgement
    detail: str


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a study needs: its models' weights in a device's memory, and on disk all that it fetches and makes."""

    weights: int
    disk: int


def needs_of(opened: StudyPipeline) -> Needs | None:
    """From the plan of its collection; None where the model's configuration is not to be had here."""
    from unmask.collection_plan import plan_collection

    try:
        plan = plan_collection(opened.config, opened.study, opened.base, done=(), seconds=None)
    except (UnmaskError, OSError, ValueError):
        return None
    if plan is None:
        return None
    return Needs(plan.memory.weights, 2 * plan.memory.weights + 2 * plan.disk.total + SPARE_BYTES)


def check(opened: StudyPipeline, address: Address, access: Access, order: RemoteOrder) -> list[Finding]:
    """The table. Raises UnmaskError where the machine cannot be entered at all."""
    require_asyncssh()
    return asyncio.run(_check(opened, address, access, order))


async def _check(opened: StudyPipeline, address: Address, access: Access, order: RemoteOrder) -> list[Finding]:
    began = time.perf_counter()
    try:
        async with entered(address, access, root=order.root, python=order.python) as host:
            found = [
                Finding("reachable", "ok", f"{address}, entered in {time.perf_counter() - began:.1f} s"),
                _host_key(host),
            ]
            return found + await _machine(host, opened, order)
    except HostError as error:
        if "no Python" not in error.what:
            raise
        return [Finding("reachable", "ok", str(address)), Finding("python", "no", f"{error.what}. {error.mend}")]


def _host_key(host: Host) -> Finding:
    key = host.connection.get_server_host_key()
    return Finding(
        "host key", "ok", "known" if key is None else f"known: {key.get_algorithm()} {key.get_fingerprint()}"
    )


async def _machine(host: Host, opened: StudyPipeline, order: RemoteOrder) -> list[Finding]:
    places = Ledger.of(opened.study).places(host.root)
    wanted = pins()
    request = {"environment": str(environment_folder(host, places)), "python": order.env, "pins": wanted}
    asked = time.time()
    facts = await host.ask("facts", request)
    clock = (asked + time.time()) / 2
    needs = needs_of(opened)
    state = await look(host, places)
    going = state.get("running")
    return [
        Finding(
            "python",
            "ok",
            f"{host.python_version} at {printable(host.python)} (needs {'.'.join(map(str, LEAST_PYTHON))})",
        ),
        *_guarded(facts, lambda: _system(facts)),
        *_guarded(facts, lambda: _gpu(facts, needs)),
        *_guarded(facts, lambda: _environment(facts, order)),
        *_guarded(facts, lambda: _cuda(facts)),
        *_guarded(facts, lambda: _disk(facts, needs, host)),
        *_guarded(facts, lambda: _clock(_number(facts["time"]) - clock)),
        Finding(
            "this study there",
            "note" if isinstance(going, dict) else "ok",
            printable(f"running (process {str(going.get('pid'))[:20]}): `unmask remote logs -f` shows it")
            if isinstance(going, dict)
            else "not running",
        ),
    ]


def _guarded(facts: dict[str, Any], judge: Callable[[], Finding]) -> list[Finding]:
    """A finding from what the host says of itself, which may be anything."""
    try:
        return [judge()]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HostError("the host does not describe itself as it should", mend="Do not trust it") from error


def _number(value: object) -> float:
    """Raises ValueError for what is none that a machine could mean."""
    if (number := number_from_host(value)) is None:
        raise ValueError("no number")
    return number


def _system(facts: dict[str, Any]) -> Finding:
    memory = "" if facts["memory"] is None else f", {_size(facts['memory'])} of memory"
    return Finding("system", "ok", printable(f"{facts['system']}, {facts['cpus']} CPUs{memory}"[:500]))


def _gpu(facts: dict[str, Any], needs: Needs | None) -> Finding:
    gpus = facts["gpus"]
    if not gpus:
        return Finding("GPU", "note", "none that nvidia-smi shows: the study would run on the CPU")
    words = ", ".join(printable(f"{gpu['name']} ({_size(gpu['free'])} free of {_size(gpu['total'])})") for gpu in gpus)
    most = max(_number(gpu["free"]) for gpu in gpus)
    if needs is not None and needs.weights > most:
        return Finding("GPU", "no", f"{words}; the models' weights take {_size(needs.weights)}")
    return Finding("GPU", "ok", words if needs is None else f"{words}; the models' weights take {_size(needs.weights)}")


def _environment(facts: dict[str, Any], order: RemoteOrder) -> Finding:
    differences = [printable(str(word)) for word in facts["differences"]]
    if facts["environment"] is None:
        return Finding("environment", "ok", "to be made by the first run")
    if differences and order.env is not None:
        return Finding("environment", "no", f"{order.env}: {', '.join(differences[:8])}")
    return Finding("environment", "ok", printable(f"the same versions as here: {facts['environment']}"))


def _cuda(facts: dict[str, Any]) -> Finding:
    torch = facts["torch"]
    if torch is None:
        return Finding("CUDA for torch", "note", "not known before there is an environment")
    if torch["cuda"]:
        return Finding(
            "CUDA for torch", "ok", printable(f"torch {torch['version']} sees the GPU (CUDA {torch['built_for']})")
        )
    if facts["gpus"]:
        return Finding(
            "CUDA for torch",
            "no",
            printable(
                f"torch {torch['version']} sees no GPU: its build (CUDA {torch['built_for']}) and the driver differ"
            ),
        )
    return Finding("CUDA for torch", "note", printable(f"torch {torch['version']} sees no GPU"))


def _disk(facts: dict[str, Any], needs: Needs | None, host: Host) -> Finding:
    free = _number(facts["free"])
    made = facts["environment"] is not None
    wanted = (0 if made else ENVIRONMENT_BYTES) + (SPARE_BYTES if needs is None else needs.disk)
    words = f"{_size(free)} free at {host.root}; about {_size(wanted)} are needed"
    words += "" if made else f", {_size(ENVIRONMENT_BYTES)} of it for the environment"
    words += "" if needs is not None else " beside the models, whose size is not known here"
    return Finding("disk", "ok" if free >= wanted else "no", words)


def _clock(seconds: float) -> Finding:
    if abs(seconds) <= CLOCK_SECONDS:
        return Finding("clock", "ok", f"{seconds:+.1f} s from here")
    return Finding("clock", "note", f"{seconds:+.0f} s from here: times in manifests will be off, results not")


def _size(amount: object) -> str:
    return f"{_number(amount) / 1e9:.1f} GB"
