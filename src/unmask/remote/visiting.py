"""Short visits to a host: its log, what it has finished, an end to the run."""

from __future__ import annotations

import asyncio

from unmask.execution.address import Address
from unmask.execution.arrival import entered
from unmask.execution.host import printable
from unmask.execution.ssh import Access, require_asyncssh
from unmask.pipeline import StudyPipeline
from unmask.remote.ledger import Ledger
from unmask.remote.looking import follow_request, look, stages_there
from unmask.remote.order import RemoteOrder, Voice
from unmask.remote.returning import Incoming, forced_from
from unmask.study import Study


def show_log(
    study: Study, address: Address, access: Access, *, root: str, python: str | None, follow: bool, voice: Voice
) -> None:
    """Show what the last run there said, and says while it goes on."""
    require_asyncssh()

    async def session() -> None:
        async with entered(address, access, root=root, python=python) as host:
            places = Ledger.of(study).places(host.root)
            async for message in host.stream("follow", follow_request(places, 0, once=not follow, files=False)):
                if isinstance(message.get("log"), str):
                    voice.log(printable(message["log"]))
                elif "end" in message or "going" in message:
                    return

    asyncio.run(session())


def fetch(opened: StudyPipeline, address: Address, access: Access, order: RemoteOrder) -> tuple[int, int]:
    """Bring back what the host has finished. Returns files and bytes that came."""
    require_asyncssh()

    async def session() -> tuple[int, int]:
        async with entered(address, access, root=order.root, python=order.python) as host:
            ledger = Ledger.of(opened.study)
            places, last = ledger.places(host.root), ledger.last
            forced = frozenset[str]()
            if last is not None and last["on"] == str(address):
                forced = forced_from(ledger.forced(str(last.get("id"))))
            incoming = Incoming(opened, host, places.study, most_bytes=int(order.max_gb * 1e9), forced=forced)
            state = await look(host, places)
            for name, told in stages_there(state).items():
                await incoming.stage(name, told)
            await incoming.batches(state.get("batches", []))
            incoming.tidy()
            return incoming.files, incoming.came

    with opened.study.lock():
        return asyncio.run(session())


def stop(study: Study, address: Address, access: Access, *, root: str, python: str | None) -> int | None:
    """End the run of this study there. Returns its process, or None where nothing runs."""
    require_asyncssh()

    async def session() -> int | None:
        async with entered(address, access, root=root, python=python) as host:
            answer = await host.ask("end", {"run": str(Ledger.of(study).places(host.root).run)})
            return answer["stopped"] if isinstance(answer.get("stopped"), int) else None

    return asyncio.run(session())
