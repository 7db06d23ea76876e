"""A run as it goes on: its log, the batches and stages that it finishes, its end; one line of JSON each."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.execution.on_host.listing import Digests, batches, stages
from unmask.execution.on_host.supervising import ending, running
from unmask.execution.on_host.wire import line, send

LOG_EVERY, LOOK_EVERY, BEAT_EVERY = 0.3, 2.0, 10.0
"""Seconds between looks at the log and at the files, and between signs of life."""
CHUNK = 65_536


class _Log:
    """The log from a byte on, in whole characters."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._offset = path, offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def tell(self) -> bool:
        """Send what is new, at most a chunk. Whether there was any."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._offset)
                data = handle.read(CHUNK)
        except OSError:
            return False
        if data:
            self._offset += len(data)
            text = self._decoder.decode(data)
            pending = len(self._decoder.getstate()[0])  # the first bytes of a character that is not all there
            send(line({"log": text, "offset": self._offset - pending}))
        return bool(data)


def follow(run: Path, study: Path, request: dict[str, Any], digests: Digests) -> None:
    """Tell what happens until the run ends; at once all there is where `request["once"]`."""
    log = _Log(run / "log", int(request["offset"]))
    names, suffixes = request["stages"], request["suffixes"]
    told: dict[str, object] = {}
    looked = beaten = 0.0
    while True:
        over = running(run) is None  # asked first: what comes after it is all there is
        while log.tell():
            pass
        if over or time.monotonic() - looked >= LOOK_EVERY:
            looked = time.monotonic()
            if request["files"]:
                _tell_files(study, names, suffixes, digests, told)
        if over or request["once"]:
            send(line({"end": ending(run)} if over else {"going": True}))
            return
        if time.monotonic() - beaten >= BEAT_EVERY:
            beaten = time.monotonic()
            send(line({"beat": True}))
        time.sleep(LOG_EVERY)


def _tell_files(
    study: Path, names: Sequence[str], suffixes: Sequence[str], digests: Digests, told: dict[str, object]
) -> None:
    for name, found in stages(study, names, digests).items():
        if told.get(name) != found:
            told[name] = found
            send(line({"stage": name, **found}))
    fresh = [entry for entry in batches(study, suffixes, digests) if told.get(entry[0]) != entry]
    told.update({entry[0]: entry for entry in fresh})
    for first in range(0, len(fresh), 100):
        send(line({"files": fresh[first : first + 100]}))
    digests.save()
