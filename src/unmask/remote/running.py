"""A remote run from first to last: what the host finished comes back, what it lacks is sent, it is started and followed.

The work goes on without us. A cut connection is opened again; whoever runs the command anew attaches to what is going on.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from unmask.errors import ArtifactError, ConfigError, ModelError, StudyError
from unmask.execution.address import Address
from unmask.execution.arrival import entered
from unmask.execution.host import Host, HostError, printable
from unmask.execution.ssh import Access, ConnectionCut, SshError, require_asyncssh
from unmask.pipeline import STAGE_NAMES, StudyPipeline
from unmask.remote.ledger import Ledger, Places
from unmask.remote.looking import follow_request, look, stages_there
from unmask.remote.order import RemoteOrder, Voice
from unmask.remote.returning import Incoming, Untrusted, forced_from
from unmask.remote.sending import begin, busy, send

LONGEST_WAIT = 30.0
_IDENTITY = re.compile(r"[A-Za-z0-9-]{1,64}")
QUEUE_LIMIT = 10_000
"""Messages about files that may wait: a run says at most a few in a second, and each file is fetched once."""


class LeftRunning(Protocol):
    """A rented machine that can be told not to end, since work goes on there."""

    def leave_running(self, why: str) -> None: ...


@dataclass(slots=True)
class RemoteRun:
    """One run of a study on one host, over as many connections as it takes."""

    opened: StudyPipeline
    address: Address
    access: Access
    order: RemoteOrder
    voice: Voice
    timer: Callable[[], str | None] | None = None
    rented: LeftRunning | None = None
    pod: str | None = None
    identity: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    first_wait: float = 1.0
    entered: bool = False
    begun: bool = False
    armed: bool = False
    offset: int = 0
    tail: str = ""
    sent_bytes: int = 0
    came_bytes: int = 0

    def run(self) -> None:
        """Run the study there and bring all of it back. Raises UnmaskError, with the run's own words where it failed."""
        with self.opened.study.lock():
            self.run_locked()

    def run_locked(self) -> None:
        """`run`, for a caller that holds the study's lock already."""
        require_asyncssh()
        self.order.keys()
        _known(self.order)
        if not self._going() and is_done(self.opened, self.order):
            self.voice.note("All of it is done here already: nothing was sent or run")
            return
        if not self._going():
            check_here(self.opened)
        try:
            end = asyncio.run(self._through_cuts(self._session))
        except SshError:
            self._leave()
            raise
        self._conclude(end)

    def note_cost(self, record: dict[str, Any]) -> None:
        """Keep what a rented machine cost."""
        Ledger.of(self.opened.study).note(self.identity, rented=record)

    def _going(self) -> bool:
        """Whether a run is on record here that nobody saw the end of."""
        last = Ledger.of(self.opened.study).last
        return last is not None and "ended" not in last and last.get("on") == str(self.address)

    async def _through_cuts(self, session: Callable[[Host], Any]) -> Any:
        tries = 0
        while True:
            before = (self.offset, self.came_bytes, self.sent_bytes)
            try:
                async with entered(self.address, self.access, root=self.order.root, python=self.order.python) as host:
                    self.entered = True
                    try:
                        return await session(host)
                    finally:
                        self.sent_bytes += host.sent
                        self.came_bytes += host.came
            except SshError as error:
                first = not self.entered and not isinstance(error, ConnectionCut)
                tries = 1 if (self.offset, self.came_bytes, self.sent_bytes) != before else tries + 1
                if first or tries > self.order.retries:
                    raise self._lost(error) from error
                wait = min(self.first_wait * 2.0 ** (tries - 1), LONGEST_WAIT)
                self.voice.note(f"{error.what}; trying again in {wait:g} s")
                await asyncio.sleep(wait)

    def _lost(self, error: SshError) -> SshError:
        if not self.begun:
            return error
        return SshError(
            f"{error.what}; the work there goes on if the machine does",
            mend=f"`unmask remote run {self.opened.study.folder} --on {self.address}` attaches again; on another "
            "host it goes on from what came back",
        )

    async def _session(self, host: Host) -> dict[str, Any]:
        ledger = Ledger.of(self.opened.study)
        places = ledger.places(host.root)
        state = await look(host, places)
        fresh = not self.begun and not self._attach(state, host)
        incoming = self._incoming(host, places)  # once it is known which run it is of
        if fresh:
            await self._bring_finished(incoming, state)
            package = await send(host, places, self.opened, await look(host, places), voice=self.voice)
            timer = self._timer()
            await begin(host, places, self.opened, self.order, identity=self.identity, timer=timer, package=package)
            self.begun, self.armed = True, timer is not None
            ledger.note(self.identity, **self._place(host), started=_now(), force=list(self.order.force))
            self.voice.note(f"Running on {self.address} (run {self.identity})")
        else:
            ledger.note(self.identity, **self._place(host))
            await self._arm(host)
        return await self._follow(host, places, incoming)

    def _place(self, host: Host) -> dict[str, str]:
        """Where the run is, for the ledger."""
        pod = {} if self.pod is None else {"pod": self.pod}
        return {"on": str(self.address), "root": str(host.root), **pod}

    def _timer(self) -> str | None:
        """The rented machine's own timer as a line of shell, for what is left of its limit now."""
        return None if self.timer is None else self.timer()

    def _leave(self) -> None:
        """The connection is lost for good: a rented machine goes on where it ends by itself, and only there."""
        if self.begun and self.armed and self.rented is not None:
            self.rented.leave_running("the connection is lost, and its own timer ends it")

    async def _arm(self, host: Host) -> None:
        """A run that is attached to, or whose beginning was cut off, may have no timer, or one of an earlier limit."""
        timer = None if self.armed else self._timer()
        if timer is None:
            return
        try:
            await host.ask("arm", {"timer": timer})
        except HostError as problem:  # the limit still holds from here
            self.voice.note(f"{problem.what}: only this side keeps the limit")
        else:
            self.armed = True

    def _attach(self, state: dict[str, Any], host: Host) -> bool:
        """Whether a run of this study is there to be followed. Raises StudyError where it is not ours to follow."""
        going, ended = state.get("running"), state.get("ended")
        if isinstance(ended, dict) and ended.get("id") == self.identity:  # over, in the time of a cut connection
            self.begun = True
        elif isinstance(going, dict):
            identity, pid = going.get("id"), going.get("pid")
            if not (isinstance(identity, str) and _IDENTITY.fullmatch(identity) and isinstance(pid, int)):
                raise HostError(f"{self.address} does not say which run is going on", mend="Do not trust it")
            if identity != self.identity:
                if self.order.force or self.order.until:
                    raise busy(host, self.opened, pid)
                self.voice.note(f"A run of this study (process {pid}) is going on there: following it")
                self.identity = identity
            self.begun = True
        elif isinstance(state.get("holder"), int):
            raise busy(host, self.opened, state["holder"])
        return self.begun

    def _incoming(self, host: Host, places: Places) -> Incoming:
        left = int(self.order.max_gb * 1e9) - self.came_bytes
        forced = forced_from((*self.order.force, *Ledger.of(self.opened.study).forced(self.identity)))
        return Incoming(self.opened, host, places.study, most_bytes=left, forced=forced)

    async def _bring_finished(self, incoming: Incoming, state: dict[str, Any]) -> None:
        """Before anything is sent: what the host has finished, and this side has not."""
        stages = stages_there(state)
        for status in self.opened.status():
            told = stages.get(status.stage)
            here = status.record.key if status.record is not None else None
            if status.state != "done" and isinstance(told, dict) and told.get("key") != here:
                with contextlib.suppress(FileNotFoundError):
                    await incoming.stage(status.stage, told)
                    self.voice.note(f"Back from an earlier run: {status.stage}")
        await incoming.batches(state.get("batches", []))

    async def _follow(self, host: Host, places: Places, incoming: Incoming) -> dict[str, Any]:
        """Log and results until the run ends. Returns how it ended."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        worker = asyncio.create_task(self._take(queue, incoming))
        try:
            async for message in host.stream("follow", follow_request(places, self.offset)):
                if "log" in message:
                    self._say(message)
                elif "stage" in message or "files" in message:
                    queue.put_nowait(message)
                    if queue.qsize() > QUEUE_LIMIT:
                        raise Untrusted(f"{self.address} announces files without end", mend="Do not trust it")
                elif "end" in message:
                    queue.put_nowait(None)
                    await worker
                    await self._last_look(host, places, incoming)
                    return message["end"] if isinstance(message["end"], dict) else {}
                if worker.done():
                    await worker
        finally:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await worker
        raise ConnectionCut(f"the connection to {self.address} was cut", mend="Run it again")

    def _say(self, message: dict[str, Any]) -> None:
        text, offset = message.get("log"), message.get("offset")
        if not isinstance(text, str) or not isinstance(offset, int):
            raise HostError(f"{self.address} says what is no message", mend="Do not trust it")
        self.offset = offset
        shown = printable(text)
        self.tail = (self.tail + shown)[-20_000:]
        self.voice.log(shown)

    async def _take(self, queue: asyncio.Queue[dict[str, Any] | None], incoming: Incoming) -> None:
        while (message := await queue.get()) is not None:
            with contextlib.suppress(
                FileNotFoundError, ArtifactError
            ):  # changed meanwhile: announced again, or looked at last
                if "stage" in message:
                    await incoming.stage(message["stage"], message)
                else:
                    await incoming.batches(message["files"])

    async def _last_look(self, host: Host, places: Places, incoming: Incoming) -> None:
        """After the run's end nothing changes: what does not fit now is an error."""
        state = await look(host, places)
        for name, told in stages_there(state).items():
            await incoming.stage(name, told)
        await incoming.batches(state.get("batches", []))
        incoming.tidy()

    def _conclude(self, end: dict[str, Any]) -> None:
        """Raises StudyError, with what the run said last, for a run that did not end well."""
        code = end.get("code")
        ledger = Ledger.of(self.opened.study)
        ledger.note(
            self.identity,
            ended=_now(),
            code=code if isinstance(code, int) else None,
            came_bytes=self.came_bytes,
            sent_bytes=self.sent_bytes,
        )
        again = f"unmask remote run {self.opened.study.folder} --on {self.address}"
        if end.get("stopped"):
            raise StudyError(f"the run on {self.address} was stopped", mend=f"Go on with `{again}`")
        if not isinstance(code, int):
            raise StudyError(f"the run on {self.address} was killed", mend=f"Short of memory? Go on with `{again}`")
        if code != 0:
            errors = [line for line in self.tail.splitlines() if line.startswith("error:")]
            said = errors[-1].removeprefix("error:").strip() if errors else f"it ended with code {code}"
            raise StudyError(f"the run on {self.address} failed: {said}", mend=f"Mend that, then `{again}`")
        for status in self.opened.status():
            if status.state != "done":
                self.voice.note(f"{status.stage} is not done here: {status.reason}")
            if status.stage == self.order.until:
                break


def _known(order: RemoteOrder) -> None:
    for name in (order.until, *order.force):
        if name is not None and name not in STAGE_NAMES:
            raise ConfigError(f"no stage is called {name!r}", mend=f"Choose from: {', '.join(STAGE_NAMES)}")


def check_here(opened: StudyPipeline) -> None:
    """What is wrong with the study file, found before anything is sent or rented. Raises UnmaskError.

    A model that is not to be had here may well be there: that is left to the host.
    """
    with contextlib.suppress(ModelError):
        opened.check()


def is_done(opened: StudyPipeline, order: RemoteOrder) -> bool:
    """Whether nothing of what is asked is left to be run. Raises ConfigError for a stage that is not known."""
    _known(order)
    if order.even_if_done or order.force:
        return False
    statuses = opened.status()
    last = len(statuses) if order.until is None else STAGE_NAMES.index(order.until) + 1
    return all(status.state == "done" for status in statuses[:last])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
