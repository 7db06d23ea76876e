"""The Ray engine on a real cluster of two nodes: the same bytes as one process, whatever dies on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import unmask
from ray_cluster import Cluster, Node
from small_study import changed, copied, files_of, small_config, write_study
from unmask.errors import ConfigError, StudyError
from unmask.execution import crew
from unmask.execution import ray as ray_module
from unmask.execution.maker import Errand, Maker
from unmask.execution.ray import RayConfig, RayEngine
from unmask.pipeline import STAGE_NAMES, ray_engine
from unmask.progress import Silent
from unmask.stages import responses

pytestmark = pytest.mark.slow
POISONED = "ray_poison:open_task"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head, which has one CPU; tests that need a second node add one."""
    # Not under pytest's folder: the path of a socket may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "nodes").mkdir()
        found = Cluster(Path(folder) / "nodes", environment={"UNMASK_CACHE": f"{folder}/cache"})  # replies of its own
        yield found
        found.stop()


@pytest.fixture(scope="module")
def second(cluster: Cluster) -> Node:
    return cluster.add()


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_adapter: Path, make_adapter: Callable[..., Path]
) -> Path:
    """A study whose organism and control are done; they lie in its folder."""
    folder = tmp_path_factory.mktemp("ray-studies") / "begun"
    for name, source in (("base", tiny_llama), ("one", tiny_adapter), ("two", make_adapter(tiny_llama, r=2))):
        shutil.copytree(source, folder / "models" / name)
    config = small_config(Path("models/base"), Path("models/one"), Path("models/two"))
    config["responses"]["batch_size"] = 3
    config["scores"] = {"other_judges": [f"hf/{folder}/models/base"]}
    write_study(folder, config)
    unmask.open(folder).run(until="control")
    return folder


@pytest.fixture(scope="module")
def whole(begun: Path) -> Path:
    """The same, run by one process. Its judge's replies are its own."""
    folder = copied(begun, begun.parent / "whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unmask.judges.asking.replies_path", lambda: begun.parent / "replies.sqlite")
        unmask.open(folder).run()
    return folder


class Telling(Silent):
    """Keeps what is noted, and calls `on_shard` once, when the first shard is made; `on_end` at each end of a step; `on_note`
    at each note.
    """

    def __init__(self, on_shard: Callable[[], None] = lambda: None) -> None:
        self.notes: list[str] = []
        self.on_note: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.on_shard: Callable[[], None] | None = on_shard

    def advance(self, units: int = 1) -> None:
        if self.on_shard is not None:
            self.on_shard, call = None, self.on_shard
            call()

    def end(self) -> None:
        self.on_end()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.on_note()


def poison(folder: Path, **plan: object) -> None:
    (folder.parent / "poison.json").write_text(json.dumps(plan))


def test_two_nodes_make_the_bytes_of_one_process(
    cluster: Cluster, second: Node, whole: Path, begun: Path, tmp_path: Path
) -> None:
    """Through the command line, as a user does it."""
    folder = copied(begun, tmp_path / "spread")
    command = [sys.executable, "-m", "unmask", "run", folder, "--engine", "ray"]
    done = subprocess.run(
        [*command, "--address", cluster.address, "--json"], capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "answering and reading, 2 workers" in done.stderr
    assert {row["stage"]: row["ran"] for row in json.loads(done.stdout)}[
        "responses"
    ]  # nothing of Ray's stands in between
    shared = (
        "answering and reading",
        "reading",
        "judging by models here",
        "decomposing",
        "effects",
        "testing",
        "steering",
    )
    for title in shared:
        assert any(title in line and "2 workers" in line for line in done.stderr.splitlines()), title
    for stage in STAGE_NAMES:
        assert files_of(folder, stage) == files_of(whole, stage), stage
    record = unmask.open(folder).study.record("responses")
    assert record is not None
    assert record.environment["device"] == "cpu"
    assert "threads" not in record.environment, "of the workers nobody knows"


def test_a_bad_shard_fails_alone_and_one_that_lost_its_worker_is_made_elsewhere(
    cluster: Cluster, whole: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(begun, tmp_path / "study")
    # Before each that kills comes one that is made: of one that failed a worker's last words may be lost with it.
    poison(folder, **{"raise": ["00004"], "kill": {"00003": 1, "00006": 9}, "hold": {"00001": "told-twice"}})
    monkeypatch.setattr(crew, "LONG", 1.0)
    monkeypatch.setattr(crew, "TICK", 0.3)
    config = RayConfig(address=cluster.address, workers=1)
    progress = Telling()

    def long() -> list[str]:
        return [note for note in progress.notes if note.startswith("shard 00001 has been at work for 0 min on node ")]

    progress.on_note = lambda: (tmp_path / "told-twice").touch() if len(long()) >= 2 else None
    monkeypatch.setattr(crew, "DEATHS", 2)
    with pytest.raises(StudyError, match="2 shards of stage responses could not be made") as caught:
        unmask.open(folder).run(until="responses", engine=RayEngine(config, opener=POISONED), progress=progress)
    said = str(caught.value)
    assert "00004 (ValueError: a bad shard" in said
    assert "00006 (its worker died 2 times)" in said
    assert any("lost a worker: shard 00003 is made again" in note for note in progress.notes)
    assert len(long()) >= 2, "after one second, and after two"
    work = unmask.open(folder).task(responses.STAGE).work(Silent())
    assert work is not None
    assert [shard.name for shard in work.waiting()] == ["00004", "00006"]
    unmask.open(folder).run(until="activations")  # here, alone
    for stage in ("responses", "activations"):
        assert files_of(folder, stage) == files_of(whole, stage)


def test_a_worker_that_sees_no_path_gets_and_gives_all_through_the_store(
    cluster: Cluster, whole: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is told a path that is not there, which is all that it could tell from another machine."""
    folder, depot = copied(begun, tmp_path / "study"), tmp_path / "depot"
    monkeypatch.setattr(RayEngine, "_seen", lambda self, study: "/nowhere/study")
    engine = ray_engine(address=cluster.address, workers=1, store=f"file://{depot}")
    unmask.open(folder).run(until="steering", engine=engine)
    for stage in STAGE_NAMES[: STAGE_NAMES.index("report")]:
        assert files_of(folder, stage) == files_of(whole, stage), stage
    assert sorted(path.name for path in depot.glob("*/shards/*")) == []  # brought, and removed


def test_where_no_model_runs_no_gpu_is_asked_for(cluster: Cluster, whole: Path, tmp_path: Path) -> None:
    """The cluster has none: a worker that wants one would never be placed."""
    folder = copied(whole, tmp_path / "study")
    engine = ray_engine(address=cluster.address, workers=1, gpus_per_worker=1)
    unmask.open(folder).run(until="decomposition", force=["decomposition"], engine=engine)
    assert files_of(folder, "decomposition") == files_of(whole, "decomposition")


def test_a_death_is_laid_to_memory_only_where_ray_itself_ended_the_worker(begun: Path) -> None:
    """Of any worker that crashed its text says that memory may have run out."""
    import ray
    from ray.exceptions import ActorDiedErrorContext

    told = ActorDiedErrorContext(actor_id=bytes(16), error_message="(1) the OOM killer, due to high memory usage")
    died = ray.exceptions.ActorDiedError(told)
    assert "memory" in str(died)
    crew_of_none = crew.Crew(ray, [], errand_of(begun), Silent(), *[lambda _: None] * 2, lambda _: True, ())
    assert crew_of_none._cause(died) == ""
    short = ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")
    assert crew_of_none._cause(short) == ", its node being short of memory"


def errand_of(folder: Path, **changes: Any) -> Errand:
    task = unmask.open(folder).task(responses.STAGE)
    errand = Errand(str(folder), "responses", task.key, dict(task.input_digests), "unmask.pipeline:open_task")
    return dataclasses.replace(errand, **changes)


def test_a_worker_says_why_it_cannot_work(begun: Path, tmp_path: Path) -> None:
    """As the driver hears it, each with the node's name; the worker's own class, in this process."""
    maker = Maker()
    other = changed(copied(begun, tmp_path / "other"), responses={"seed": 3})
    moved = copied(begun, tmp_path / "moved")
    weights = moved / "models" / "base" / "generation_config.json"
    weights.write_text(weights.read_text() + " ")
    said = {
        "is not seen there": errand_of(begun, study="/nowhere/study"),
        "its unmask is of another version, or the study file was changed": errand_of(begun, study=str(other)),
        "its base model is not the driver's": errand_of(begun, study=str(moved)),
        "holds nothing for stage responses": errand_of(begun, store=f"file://{tmp_path}/empty"),
    }
    for words, errand in said.items():
        answer = maker.ready(errand)
        assert answer.refusal is not None
        assert words in answer.refusal
        assert answer.node == f"node {os.uname().nodename}"
    assert "--store URL" in str(maker.ready(errand_of(begun, study="/nowhere/study")).refusal)


def test_a_cluster_that_is_not_there_is_named() -> None:
    from ray_cluster import free_port

    with pytest.raises(ConfigError, match=r"no Ray cluster is reached at 127\.0\.0\.1"):
        ray_engine(address=f"127.0.0.1:{free_port()}")._connect(Silent())


def test_a_worker_that_fails_everything_is_the_broken_one(cluster: Cluster, begun: Path, tmp_path: Path) -> None:
    """Three shards in a row are its fault: the others are not burnt on it."""
    folder = copied(begun, tmp_path / "study")
    poison(folder, **{"raise": [f"{number:05d}" for number in range(99)]})
    config = RayConfig(address=cluster.address, workers=1)
    with pytest.raises(StudyError, match=r"no worker is left.*\(3 shards failed before\).*failed 3 shards in a row"):
        unmask.open(folder).run(until="responses", engine=RayEngine(config, opener=POISONED))


def test_a_node_that_is_lost_in_mid_run_costs_what_it_had_in_hand(
    cluster: Cluster, second: Node, whole: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody waits at the end for a worker that no node has room for any more."""
    folder = copied(begun, tmp_path / "lost")
    poison(folder, meet=2)  # each has a shard in hand
    monkeypatch.setattr(ray_module, "CLOSE_SECONDS", 3600.0)
    progress, kept = Telling(on_shard=second.kill), []
    engine = RayEngine(RayConfig(address=cluster.address, workers=2), opener=POISONED)
    progress.on_end = lambda: kept.append(len(engine._actors))
    unmask.open(folder).run(until="responses", engine=engine, progress=progress)
    assert kept[0] == 1
    assert files_of(folder, "responses") == files_of(whole, "responses")
