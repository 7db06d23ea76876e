"""Getting a host ready: what it lacks is sent, compared, and the run started there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from unmask.artifact import digest_bytes, digest_json
from unmask.errors import StudyError
from unmask.execution.hearsay import number_from_host, printable
from unmask.execution.host import Host, HostError
from unmask.execution.wheel import pins, wheel
from unmask.pipeline import StudyPipeline
from unmask.remote.ledger import Places
from unmask.remote.looking import devices_there
from unmask.remote.needs import batches, finished, referred
from unmask.remote.order import RemoteOrder, Voice

SPARE_BYTES = 300_000_000
"""Free space that a host must have beyond what is sent."""


async def send(
    host: Host, places: Places, opened: StudyPipeline, state: dict[str, Any], *, voice: Voice
) -> PurePosixPath:
    """Send what the host lacks of the package and of the study. Returns the wheel's place there.

    Raises HostError where its disk is too full, or a file arrived otherwise than it left.
    """
    _, package = wheel()
    package_digest = digest_bytes(package)
    package_target = places.root / "wheels" / f"{package_digest[:16]}.whl"
    there = {name: (str(found.get("key")), str(found.get("files"))) for name, found in _table(state, "stages").items()}
    needs = [*referred(opened), *finished(opened, there=there), *batches(opened, devices=devices_there(state))]
    wanted = [(places.tree / item.target, item.size, item.digest, item.source) for item in needs]
    listed = [
        [str(package_target), len(package), package_digest],
        *([str(path), size, sha] for path, size, sha, _ in wanted),
    ]
    answer = await host.ask("compare", {"files": listed})
    missing = _missing(answer, len(listed))
    amount = sum(int(listed[place][1]) for place in missing)
    free = number_from_host(answer.get("free"))
    if free is None:
        raise HostError(f"{host.address} does not say how much room it has", mend="Do not trust it")
    if free < amount + SPARE_BYTES:
        raise HostError(
            f"{host.address} has {free / 1e6:.0f} MB left on the disk of {places.root}; {amount / 1e6:.0f} MB are to be "
            f"sent, and a run wants {SPARE_BYTES / 1e6:.0f} MB",
            mend="Free some space there, or name another folder with --root",
        )
    if missing:
        voice.note(f"Sending {len(missing)} files, {amount / 1e6:.1f} MB")
    for place in missing:
        if place == 0:
            await host.send(package, package_target, digest=package_digest)
        else:
            path, _, digest, source = wanted[place - 1]
            await host.send(source, path, digest=digest)
    if missing:
        left = _missing(await host.ask("compare", {"files": [listed[place] for place in missing]}), len(missing))
        if left:
            raise HostError(
                f"{listed[missing[left[0]]][0]} did not arrive on {host.address} as it was sent", mend="Run it again"
            )
    return package_target


async def begin(
    host: Host,
    places: Places,
    opened: StudyPipeline,
    order: RemoteOrder,
    *,
    identity: str,
    timer: str | None,
    package: PurePosixPath,
) -> None:
    """Start the run. Raises StudyError, naming the process, where the study is being worked on there."""
    code = places.root / "code" / package.stem
    await host.ask("unpack", {"wheel": str(package), "target": str(code)})
    wanted = pins()
    if order.env is not None:
        await check_environment(host, order.env, wanted)
    arguments = ["run", str(places.study)]
    arguments += ["--until", order.until] if order.until else []
    for stage in order.force:
        arguments += ["--force", stage]
    answer = await host.ask(
        "begin",
        {
            "study": str(places.study),
            "run": str(places.run),
            "cwd": str(places.cwd),
            "code": str(code),
            "id": identity,
            "arguments": arguments,
            "variables": order.keys(),
            "environment": {"folder": str(environment_folder(host, places)), "python": order.env, "pins": wanted},
            "timer": timer,
        },
    )
    if "busy" in answer:
        raise busy(host, opened, answer["busy"])


def busy(host: Host, opened: StudyPipeline, pid: object) -> StudyError:
    who = f"process {int(pid)}" if isinstance(pid, int) and pid else "another process"
    folder = opened.study.folder
    return StudyError(
        f"{who} on {host.address} is working on {folder} already",
        mend=f"Follow it with `unmask remote logs {folder} -f`, or end it with `unmask remote stop {folder}`",
    )


def environment_folder(host: Host, places: Places) -> PurePosixPath:
    """The environment of these versions: one for every list of them, and version of Python."""
    return places.root / "envs" / digest_json([pins(), host.python_version])[:12]


async def check_environment(host: Host, python: str, wanted: Sequence[str]) -> None:
    """Raises HostError for an environment on the host whose versions differ from those here."""
    words = (await host.ask("versions", {"python": python, "pins": list(wanted)})).get("differences")
    if not isinstance(words, list):
        raise HostError(f"{host.address} does not say which versions it has", mend="Do not trust it")
    if words:
        shown = ", ".join(printable(str(word)[:200]) for word in words[:8])
        rest = f", and {len(words) - 8} more" if len(words) > 8 else ""
        raise HostError(
            f"the environment of {python} on {host.address} is not as here: {shown}{rest}",
            mend="Leave --env out, and one with the same versions is made there",
        )


def _table(state: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    found = state.get(name)
    return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _missing(answer: dict[str, Any], count: int) -> list[int]:
    found = answer.get("missing")
    if not isinstance(found, list) or not all(isinstance(place, int) and 0 <= place < count for place in found):
        raise HostError("the host does not say what it lacks", mend="Do not trust it")
    return found
