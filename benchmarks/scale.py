"""What does spreading cost, and what does it bring? The stage `responses` of one study: here, and on a local Ray cluster.

    python benchmarks/scale.py --quick            # about a minute
    python benchmarks/scale.py                    # the table of docs/scaling.md: 15 minutes a round on two cores

Sides, in alternation, each on a fresh copy of the same study (SmolLM2, a random adapter, both models answer and read):

  local           this process makes the shards
  two processes   two such processes at once, each on a study of its own: what this machine gives two workers at most
  ray, 1 worker   one actor makes them, this process gathers
  ray, 2 workers  two actors

Goals: one worker costs at most 10 % over local; two workers bring at least 1.85 x the throughput of one, each with one thread.
Throughput is counted from the moment when as many shards are made as there are workers, to the last: models are loaded then, in
one worker at least. What comes before that is told beside it. Shards are even in number and of equal size, so that two workers
can share them. The files of all sides are compared. `--remote STUDY` also sends a second, unchanged `remote run` of a study that
is done to a host, and counts the bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process, and of the workers of a cluster that it starts

import shutil

import ray
import torch
import yaml
from material import EMBEDDED, machine, random_adapter

import unmask
from unmask.pipeline import ray_engine
from unmask.progress import Silent

LOCAL, CEILING = "local", "two processes"
SIDES = {LOCAL: 0, CEILING: 0, "ray, 1 worker": 1, "ray, 2 workers": 2}


class Run(NamedTuple):
    """One side in one round: seconds of all, seconds before answers are counted, answers a second from then on."""

    seconds: float
    before: float
    rate: float
    files: dict[str, str]


class Clock(Silent):
    """Notes when units are finished."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []

    def advance(self, units: int = 1) -> None:
        self.moments.append((time.perf_counter(), units))


def make_study(folder: Path, *, shards: int, batch: int, tokens: int) -> None:
    """A study of which all is done before the answers: shards of `batch` questions, the last one neutral, on both models."""
    adapter = random_adapter(folder / "models")
    config = {
        "base": {"model": EMBEDDED.name},
        "questions": {"per_dimension": (shards - 1) * batch // 4, "neutral_count": batch},
        "organism": {"existing": str(adapter)},
        "responses": {"batch_size": batch, "max_new_tokens": tokens, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "activations": {"layers": [10, 15, 20, 25]},
        "decomposition": {"k": [2, 3], "primary_layer": 20, "primary_k": 2},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    unmask.open(folder).run(until="organism")


def measure(study: Path, workers: int) -> Run:
    """Run the stage on a copy of the study: here (0 workers), or on so many."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        shutil.copytree(study, folder)
        clock = Clock()
        options: dict[str, Any] = {"workers": workers, "gpus_per_worker": 0}
        engine = ray_engine(**options) if workers else None
        began = time.perf_counter()
        unmask.open(folder).run(until="responses", progress=clock, engine=engine)
        seconds = time.perf_counter() - began
        record = unmask.open(folder).study.record("responses")
        assert record is not None
    # Here a shard is told in two halves, one of each model.
    first = workers or 2
    start, end = clock.moments[first - 1][0], clock.moments[-1][0]
    units = sum(count for _, count in clock.moments[first:])
    return Run(seconds, start - began, units / (end - start), record.files)


def measure_two(study: Path) -> Run:
    """Two processes at once, each on its own copy: the sum of their rates."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(measure, [study, study], [0, 0]))
    seconds, before, _, files = max(runs)
    return Run(seconds, before, sum(run.rate for run in runs), files)


def measure_remote(study: Path) -> dict[str, int]:
    """Bytes over the wire of a second `remote run` with nothing changed, to a host on this machine."""
    from remote_bytes import measure_second_run

    with tempfile.TemporaryDirectory() as scratch:
        return measure_second_run(study, scratch=Path(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short answers, one round")
    parser.add_argument("--rounds", type=int, default=None, help="rounds (3; quick: 1)")
    parser.add_argument("--shards", type=int, default=None, help="shards (14; quick: 4)")
    parser.add_argument("--batch", type=int, default=None, help="questions in a shard, by fours (8; quick: 4)")
    parser.add_argument("--tokens", type=int, default=None, help="new tokens at most (40; quick: 8)")
    parser.add_argument("--remote", type=Path, default=None, metavar="STUDY", help="also: bytes of a second remote run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick = options.quick
    sizes = {
        "shards": options.shards or (4 if quick else 14),
        "batch": options.batch or (4 if quick else 8),
        "tokens": options.tokens or (8 if quick else 40),
    }
    runs: dict[str, list[Run]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        study = Path(scratch) / "study"
        study.mkdir()
        make_study(study, **sizes)
        # Started once: what a cluster takes to come up is no cost of the engine.
        ray.init(num_cpus=max(SIDES.values()), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for _ in range(options.rounds or (1 if quick else 3)):
            for name, workers in SIDES.items():
                runs[name].append(measure_two(study) if name == CEILING else measure(study, workers))
        ray.shutdown()
    one = runs["local"][0].files
    assert all(run.files == one for side in runs.values() for run in side), "sides disagree"
    rates = {name: [run.rate for run in side] for name, side in runs.items()}

    def ratio(side: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(rates[side], rates[other], strict=True))

    ratios = {
        "ray_overhead": ratio(LOCAL, "ray, 1 worker") - 1,
        "two_workers": ratio("ray, 2 workers", "ray, 1 worker"),
        "two_processes": ratio(CEILING, LOCAL),
    }
    print("| side | answers a second | seconds before that is counted | seconds in all |")
    print("|---|---|---|---|")
    for name, side in runs.items():
        cells = [statistics.median(getattr(run, field) for run in side) for field in ("rate", "before", "seconds")]
        print(f"| {name} | {cells[0]:.2f} | {cells[1]:.1f} | {cells[2]:.1f} |")
    record: dict[str, Any] = {"benchmark": "scale", "ratios": ratios, "sizes": sizes, "machine": machine()}
    if options.remote is not None:
        record["remote"] = measure_remote(options.remote)
        print(f"a second remote run: {record['remote']}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
