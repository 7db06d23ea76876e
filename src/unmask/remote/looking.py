"""What a host is asked about a study there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unmask.execution.host import Host, HostError
from unmask.pipeline import STAGE_NAMES
from unmask.remote.ledger import Places
from unmask.remote.needs import BATCH_SUFFIXES, Need


async def look(host: Host, places: Places, files: Sequence[Need] = ()) -> dict[str, Any]:
    """How far the study is on the host."""
    request = {
        "study": str(places.study),
        "run": str(places.run),
        "stages": STAGE_NAMES,
        "suffixes": BATCH_SUFFIXES,
        "files": [[str(places.tree / item.target), item.size, item.digest] for item in files],
    }
    return await host.ask("state", request)


def stages_there(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the host says it has finished. Raises HostError for what is no such thing."""
    found = state.get("stages")
    if not isinstance(found, dict) or not all(isinstance(told, dict) for told in found.values()):
        raise HostError("the host does not say what it has finished", mend="Do not trust it")
    return found


def devices_there(state: dict[str, Any]) -> dict[str, str]:
    """Digest of the mark of the device, by the scratch folder that has one. Raises HostError for a list that is none."""
    found = state.get("batches")
    if not isinstance(found, list):
        raise HostError("the host does not say which batches it has", mend="Do not trust it")
    devices = {}
    for entry in found:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            raise HostError("the host does not say which batches it has", mend="Do not trust it")
        *_, folder, name = ["", "", *entry[0].split("/")]
        if name == "device":
            devices[folder] = str(entry[2])
    return devices


def follow_request(places: Places, offset: int, *, once: bool = False, files: bool = True) -> dict[str, Any]:
    """The request for a run\'s log from byte `offset` on, its results, its end; `once`: only what is there now."""
    return {
        "run": str(places.run),
        "study": str(places.study),
        "stages": STAGE_NAMES,
        "suffixes": BATCH_SUFFIXES,
        "offset": offset,
        "files": files,
        "once": once,
    }
