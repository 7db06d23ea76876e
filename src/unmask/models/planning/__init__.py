"""What a collection will cost, before any of it is run: FLOPs, bytes, memory, disk, and after two seconds of measuring, time.

workload = Workload.of_texts(texts, readout, token_budget=2048, chunk_tokens=8192)
plan = cost_of(load_config(source), workload)
plan = plan.at(calibrate(loaded, workload))
"""

from unmask.models.planning.architecture import Architecture, architecture_of
from unmask.models.planning.needs import Disk, Memory
from unmask.models.planning.plan import CollectionPlan, cost_of, together
from unmask.models.planning.speed import Speed, calibrate, expected_seconds
from unmask.models.planning.work import Work
from unmask.models.planning.workload import Workload

__all__ = [
    "Architecture",
    "CollectionPlan",
    "Disk",
    "Memory",
    "Speed",
    "Work",
    "Workload",
    "architecture_of",
    "calibrate",
    "cost_of",
    "expected_seconds",
    "together",
]
