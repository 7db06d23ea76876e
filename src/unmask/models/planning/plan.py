"""The plan of a collection: all work and all needs in one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from unmask.models.planning.architecture import Architecture, architecture_of
from unmask.models.planning.needs import Disk, Memory, disk_of, memory_of
from unmask.models.planning.speed import expected_seconds, seconds_of
from unmask.models.planning.work import Work, work_of

if TYPE_CHECKING:
    from unmask.models.planning.speed import Speed
    from unmask.models.planning.workload import Workload


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What a collection will do and need. Times are there once a `speed` was measured.

    `depth` is how many of the layers a pass over response tokens runs.
    """

    architecture: Architecture
    work: tuple[Work, ...]
    memory: Memory
    disk: Disk
    texts: int
    response_tokens: int
    readers: int
    depth: int
    speed: Speed | None = None

    @property
    def flops(self) -> int:
        return sum(work.flops for work in self.work)

    @property
    def bytes_read(self) -> int:
        """Weights, keys and values that have to be fetched from the device's memory."""
        return sum(work.bytes_read for work in self.work)

    @property
    def tokens(self) -> int:
        """Tokens that are run, padding aside, by all readers together."""
        return sum(work.tokens for work in self.work)

    @property
    def padding(self) -> float:
        """Share of the run tokens that only pads batches."""
        padded = sum(work.padded_tokens for work in self.work)
        return 1 - self.tokens / padded if padded else 0.0

    @property
    def seconds(self) -> float | None:
        """Expected time, loading aside; None before a speed was measured."""
        return None if self.speed is None else expected_seconds(self, self.speed)

    def at(self, speed: Speed) -> CollectionPlan:
        """The same plan with times."""
        return replace(self, speed=speed)

    def as_record(self) -> dict[str, Any]:
        """For programs: counts in bytes, FLOPs, tokens and seconds."""
        size = self.architecture
        return {
            "texts": self.texts,
            "readers": self.readers,
            "response_tokens": self.response_tokens,
            "tokens": self.tokens,
            "padding": self.padding,
            "flops": self.flops,
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
            "work": [
                asdict(work)
                | {"flops": work.flops, "bytes_read": work.bytes_read}
                | {"seconds": None if self.speed is None else seconds_of(work, self.speed)}
                for work in self.work
            ],
            "memory_bytes": asdict(self.memory) | {"total": self.memory.total},
            "disk_bytes": asdict(self.disk) | {"total": self.disk.total},
            "layers": {"run": self.depth, "of": len(size.layers)},
            "parameters": {
                "embedding": size.embedding,
                "layers": [layer.parameters for layer in size.layers],
                "head": size.head,
                "head_tied": size.tied,
                "other": size.other,
                "total": size.parameters,
            },
            "speed": None if self.speed is None else asdict(self.speed),
        }


def cost_of(config: Any, workload: Workload, *, trust_remote_code: bool = False) -> CollectionPlan:
    """What a workload costs on a model of that configuration (Hugging Face's). No weights are loaded and nothing is written.

    Formulas: FLOPs and bytes in `Work`, peak memory in `Memory`, disk in `Disk`, parameters in `architecture_of`. Batches are
    those that reading plans itself, so padding is exact for given lengths; where answers are still to be written, their expected
    length stands for all of them. Raises ModelError for an architecture without a stack of decoder layers.
    """
    architecture = architecture_of(config, trust_remote_code=trust_remote_code)
    return CollectionPlan(
        architecture=architecture,
        work=work_of(architecture, workload),
        memory=memory_of(architecture, config, workload),
        disk=disk_of(config, workload),
        texts=workload.texts,
        response_tokens=workload.response_tokens,
        readers=workload.readers,
        depth=workload.reading_depth(len(architecture.layers)),
    )


def together(plans: Sequence[CollectionPlan]) -> CollectionPlan:
    """Plans of one model that are carried out one after the other, as one: work and disk add up, the higher peak stays.

    The first plan's speed, where it has one, serves all; raises ValueError without plans.
    """
    if not plans:
        raise ValueError("nothing is planned")
    whole, *others = plans
    for plan in others:
        works = {work.kind: work for work in whole.work}
        for work in plan.work:
            works[work.kind] = works[work.kind] + work if work.kind in works else work
        whole = replace(
            whole,
            work=tuple(works.values()),
            memory=whole.memory.larger(plan.memory),
            disk=whole.disk + plan.disk,
            texts=whole.texts + plan.texts,
            response_tokens=whole.response_tokens + plan.response_tokens,
            readers=max(whole.readers, plan.readers),
            depth=max(whole.depth, plan.depth),
        )
    return whole
