"""Workers of a Ray cluster at one errand: each gets a shard when it is ready, and what a lost worker had in hand goes to another.

Ray places the workers, restarts them and notices their death. What is decided here is which shard is given to whom, and when a
shard or a worker is given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import StudyError
from unmask.execution.maker import Errand, Ready
from unmask.progress import Progress
from unmask.stage import Shard

IN_HAND = 2
"""Shards given to a worker at once: one that it makes, one that it finds when that is done."""
DEATHS = 3
"""Workers that a shard may cost, and times that a worker may die while it opens the errand."""
FAILURES = 3
"""Shards that a worker may fail in a row, before it counts as the one that is broken."""
PATIENCE = 300.0
"""Seconds without any worker after which a run gives up; a node of a cluster that grows by itself takes minutes."""
LONG = 1800.0
"""Seconds after which it is told, again and again, what a worker is at: a shard that hangs is not given up, only named."""
TICK = 5.0


@dataclass(slots=True)
class _Worker:
    """An actor, what it has in hand, in the order in which it was given, and since when it is at the first of that.

    `answer` is what it said when it was ready; None where it is not. `told` are times that it was said to take long.
    """

    actor: Any
    in_hand: list[Any] = field(default_factory=list)
    answer: Ready | None = None
    begun: bool = False
    node: str = ""
    placed: bool = False
    failed: list[Shard] = field(default_factory=list)
    since: float = 0.0
    told: int = 0

    def turn(self) -> None:
        """From now on it is at something else."""
        self.since, self.told = time.monotonic(), 0


@dataclass(slots=True)
class Crew:
    """Makes the shards of one errand.

    `accepts` says of a worker why it is not wanted, None where it is; `begins` is told of it before it gets its first shard.
    `arrived` is told of each shard made and says whether its files are there. `died` is what calls on a lost worker raise.
    """

    ray: Any
    actors: Sequence[Any]
    errand: Errand
    progress: Progress
    accepts: Callable[[Ready], str | None]
    begins: Callable[[Ready], None]
    arrived: Callable[[Shard], bool]
    died: tuple[type[Exception], ...]
    failed: dict[str, str] = field(default_factory=dict)
    _todo: deque[Shard] = field(default_factory=deque)
    _hired: list[_Worker] = field(default_factory=list)
    _workers: list[_Worker] = field(default_factory=list)
    _placing: dict[Any, _Worker] = field(default_factory=dict)
    _opening: dict[Any, _Worker] = field(default_factory=dict)
    _making: dict[Any, tuple[_Worker, Shard]] = field(default_factory=dict)
    _deaths: dict[str, int] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)

    def run(self, shards: Sequence[Shard]) -> dict[str, str]:
        """Make the shards. Returns those that could not be made, with the reason. Raises StudyError where no worker is left."""
        self._todo.extend(shards)
        self._hired = [_Worker(actor) for actor in self.actors]
        self._workers = list(self._hired)
        for worker in self._workers:
            self._open(worker)
        last = time.monotonic()
        while self._todo or self._making:
            self._hand_out()
            if not self._opening and not self._making:
                raise self._nobody_left()
            done, _ = self.ray.wait([*self._placing, *self._opening, *self._making], num_returns=1, timeout=TICK)
            for ref in done:
                self._settle(ref)
            self._tell_of_the_long()
            # Models may take their time to load.
            if done or self._making or any(worker.placed for worker in self._workers):
                last = time.monotonic()
            elif time.monotonic() - last > PATIENCE:
                raise StudyError(
                    f"no worker could be placed for {PATIENCE:.0f} s; the cluster has {_told(self.ray.cluster_resources())}",
                    mend="Start nodes, or ask for less with --gpus-per-worker and --cpus-per-worker, and run it again",
                )
        return self.failed

    def placed(self) -> list[tuple[Any, bool]]:
        """Actors that are on a node, and whether each is through with opening: then it does at once what it is told."""
        if self._placing:
            for ref in self.ray.wait([*self._placing], num_returns=len(self._placing), timeout=0)[0]:
                self._settle(ref)
        opening = [worker.actor for worker in self._opening.values()]
        return [(worker.actor, worker.actor not in opening) for worker in self._hired if worker.placed]

    def _open(self, worker: _Worker) -> None:
        worker.answer, worker.begun, worker.placed = None, False, False
        # An actor runs its calls in order: this one is answered before anything is loaded.
        self._placing[worker.actor.here.options(max_task_retries=-1).remote()] = worker
        # Ray starts a worker anew that dies while it opens, and calls again: a finite number of times.
        self._opening[worker.actor.ready.options(max_task_retries=DEATHS - 1).remote(self.errand)] = worker

    def _tell_of_the_long(self) -> None:
        for worker in self._workers:
            minutes = (time.monotonic() - worker.since) / 60
            if not worker.placed or minutes < (worker.told + 1) * LONG / 60:
                continue
            worker.told += 1
            if worker.in_hand:
                shard = self._making[worker.in_hand[0]][1]
                self.progress.note(f"shard {shard.name} has been at work for {minutes:.0f} min on {worker.node}")
            elif worker.answer is None:
                self.progress.note(f"{worker.node} has been opening stage {self.errand.stage} for {minutes:.0f} min")

    def _hand_out(self) -> None:
        for place in range(IN_HAND):
            # The last ones are kept for workers that come free: none should wait in one's hand while another is idle.
            reserve = place * len(self._workers)
            for worker in self._workers:
                if worker.answer is not None and len(worker.in_hand) == place and len(self._todo) > reserve:
                    if not worker.begun:
                        self.begins(worker.answer)
                        worker.begun = True
                    if not worker.in_hand:
                        worker.turn()
                    shard = self._todo.popleft()
                    ref = worker.actor.make.options(max_task_retries=0).remote(self.errand, shard.name)
                    worker.in_hand.append(ref)
                    self._making[ref] = worker, shard

    def _settle(self, ref: Any) -> None:
        if ref in self._placing:
            self._placed(ref, self._placing.pop(ref))
        elif ref in self._opening:
            self._opened(ref, self._opening.pop(ref))
        elif ref in self._making:  # not if its worker was lost in the meantime
            worker, shard = self._making[ref]
            try:
                problem: str | None = self.ray.get(ref)
            except self.died as error:
                self._lost(worker, self._cause(error))
                return
            del self._making[ref]
            worker.in_hand.remove(ref)
            worker.turn()
            self._made(worker, shard, problem)

    def _placed(self, ref: Any, worker: _Worker) -> None:
        try:
            worker.node = self.ray.get(ref)
        except self.died:  # what opens it will tell
            return
        worker.placed = True
        worker.turn()

    def _opened(self, ref: Any, worker: _Worker) -> None:
        try:
            answer: Ready = self.ray.get(ref)
        except self.died as error:
            words = f"its worker died {DEATHS} times while it opened the stage{self._cause(error)}"
            self._refuse(worker, worker.node or "a node", words)
            return
        worker.node = answer.node
        refusal = answer.refusal or self.accepts(answer)
        if refusal is None:
            worker.answer = answer
        else:
            self._refuse(worker, answer.node, refusal)

    def _refuse(self, worker: _Worker, node: str, reason: str) -> None:
        self._workers.remove(worker)
        if node not in self._refused:
            self.progress.note(f"{node} makes no shards: {reason}")
        self._refused[node] = reason

    def _made(self, worker: _Worker, shard: Shard, problem: str | None) -> None:
        if problem is None:
            problem = self._missing(worker, shard)
        if problem is None:
            worker.failed.clear()
            self.progress.advance(shard.units)
            return
        self._fail(shard, problem)
        worker.failed.append(shard)
        if len(worker.failed) >= FAILURES and worker in self._workers:
            worker.answer = None
            for ref in worker.in_hand:  # not yet begun, or in vain
                self._todo.append(self._making.pop(ref)[1])
            worker.in_hand.clear()
            self._refuse(worker, worker.node, f"it failed {FAILURES} shards in a row")

    def _missing(self, worker: _Worker, shard: Shard) -> str | None:
        """Why a shard that is said to be made is not here; None where it is."""
        try:
            if self.arrived(shard):
                return None
        except StudyError as error:
            return str(error)
        return f"{worker.node} says that it is made, but its files are not where the study is. Is that the same path?"

    def _lost(self, worker: _Worker, cause: str) -> None:
        """A worker died: the shard that it was making goes to another, unless it costs every worker its life."""
        given = [self._making.pop(ref)[1] for ref in worker.in_hand]
        worker.in_hand.clear()
        # It may have died behind a shard, unheard. Of one that failed nothing is left then: it is made again, and fails again.
        shards = [shard for shard in given if self._missing(worker, shard) is not None]
        self.progress.advance(sum(shard.units for shard in given) - sum(shard.units for shard in shards))
        self._open(worker)
        if not shards:
            return
        suspect = shards[0]
        self._deaths[suspect.name] = self._deaths.get(suspect.name, 0) + 1
        if self._deaths[suspect.name] >= DEATHS:
            self._fail(suspect, f"its worker died {DEATHS} times{cause}")
            shards = shards[1:]
        else:
            self.progress.note(f"{worker.node} lost a worker{cause}: shard {suspect.name} is made again")
        self._todo.extendleft(reversed(shards))

    def _cause(self, error: Exception) -> str:
        """What can be said of a worker's death, as the end of a sentence; nothing where Ray only guesses, in its text."""
        return ", its node being short of memory" if isinstance(error, self.ray.exceptions.OutOfMemoryError) else ""

    def _fail(self, shard: Shard, problem: str) -> None:
        self.failed[shard.name] = problem
        self.progress.note(f"shard {shard.name} failed: {problem}")

    def _nobody_left(self) -> StudyError:
        reasons = "; ".join(f"{node}: {reason}" for node, reason in list(self._refused.items())[:5])
        failed = f" ({len(self.failed)} shards failed before)" if self.failed else ""
        return StudyError(
            f"no worker is left that can make shards of stage {self.errand.stage}{failed}: {reasons}",
            mend="Mend that and run the same command again: what is made is kept",
        )


def _told(resources: dict[str, float]) -> str:
    shown = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources]
    return " and ".join(shown) or "neither CPU nor GPU left"
