"""The operations, by name: each takes one request and gives one answer, or a stream of them."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmask.execution.on_host.environment import COMPLETE, EnvironmentError_, differences, make
from unmask.execution.on_host.facts import about, free_bytes
from unmask.execution.on_host.following import follow
from unmask.execution.on_host.listing import Digests, batches, differing, stages
from unmask.execution.on_host.supervising import (
    Supervisor,
    ending,
    lock_holder,
    python_environment,
    running,
    set_timer,
    start,
    stop,
)
from unmask.execution.on_host.wire import MARK, packed, send, unpacked

REQUEST_LIMIT = 256_000_000
INTERRUPTED = 130


def _memory(request: dict[str, Any]) -> Digests:
    root = Path(request["root"])
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Digests(root / "digests.json")


def state(request: dict[str, Any]) -> dict[str, Any]:
    """What is here of what a run needs, and how far the study is."""
    digests = _memory(request)
    study, run = Path(request["study"]), Path(request["run"])
    answer = {
        "missing": differing(request["files"], digests),
        "stages": stages(study, request["stages"], digests),
        "batches": batches(study, request["suffixes"], digests),
        "running": running(run),
        "ended": ending(run),
        "holder": lock_holder(study / ".lock") if study.is_dir() else None,
        "free": free_bytes(Path(request["root"])),
    }
    digests.save()
    return answer


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Which of some files are not here, or differ."""
    digests = _memory(request)
    missing = differing(request["files"], digests)
    digests.save()
    return {"missing": missing, "free": free_bytes(Path(request["root"]))}


def unpack(request: dict[str, Any]) -> dict[str, Any]:
    """Unpack a wheel, which was made by the client from its own installation, into its own folder, by one rename."""
    target, wheel = Path(request["target"]), Path(request["wheel"])
    if not target.is_dir():
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(beside)
        beside.rename(target)
    return {}


def begin(request: dict[str, Any]) -> dict[str, Any]:
    """Start a run that outlives the connection."""
    study, run, code = Path(request["study"]), Path(request["run"]), request["code"]
    folder, python = Path(request["environment"]["folder"]), request["environment"].get("python")

    def work(supervisor: Supervisor) -> int:
        nonlocal python
        if python is None:
            asked = request["environment"]
            python = make(folder, python=sys.executable, pins=asked["pins"], supervisor=supervisor)
        if supervisor.stopped:
            return INTERRUPTED
        environment = python_environment([code], request["variables"])
        return supervisor.call(
            [python, "-m", "unmask", *request["arguments"]], cwd=Path(request["cwd"]), environment=environment
        )

    Path(request["cwd"]).mkdir(parents=True, exist_ok=True)
    return start(run, study, identity=request["id"], work=work, timer=request.get("timer"))


def versions(request: dict[str, Any]) -> dict[str, Any]:
    """How an environment that is there differs from what the client has."""
    return {"differences": differences(request["python"], request["pins"])}


def facts(request: dict[str, Any]) -> dict[str, Any]:
    root, python = Path(request["root"]), request.get("python")
    made = Path(request["environment"])
    if python is None and (made / COMPLETE).is_file():
        python = str(made / "bin" / "python")
    answer = about(root, python=python)
    answer["environment"] = python
    answer["differences"] = [] if python is None else differences(python, request["pins"])
    return answer


def arm(request: dict[str, Any]) -> dict[str, Any]:
    """Set the machine's timer for a run that goes on already: it replaces an earlier one."""
    set_timer(request["timer"])
    return {}


def end(request: dict[str, Any]) -> dict[str, Any]:
    return stop(Path(request["run"]))


OPERATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "state": state,
    "compare": compare,
    "unpack": unpack,
    "begin": begin,
    "versions": versions,
    "facts": facts,
    "arm": arm,
    "end": end,
}


def main() -> None:
    os.umask(0o077)
    operation = sys.argv[1]
    request = unpacked(sys.stdin.buffer.read(), limit=REQUEST_LIMIT)
    send(MARK)
    if operation == "follow":
        follow(Path(request["run"]), Path(request["study"]), request, _memory(request))
        return
    try:
        answer = OPERATIONS[operation](request)
    except (OSError, EnvironmentError_) as error:
        answer = {"error": str(error)}
    send(packed(answer))


if __name__ == "__main__":
    main()
