"""Shards made on a Ray cluster, by workers that load the models once; gathering stays in this process.

Workers get the study's path, or a depot's URL, and the names of shards: nothing of this process is pickled but these words.
"""

from __future__ import annotations

import math
import os
import socket
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from unmask.errors import ConfigError, StudyError
from unmask.execution.crew import Crew
from unmask.execution.depot import Depot
from unmask.execution.maker import Errand, Maker, Ready
from unmask.execution.sharing import claim_device, join, refuse_failed
from unmask.execution.shipping import bring_shard, send_needs
from unmask.execution.task import Task
from unmask.progress import Progress
from unmask.stage import Shard, Work
from unmask.study import Study

ANSWER_SECONDS = 10.0
"""How long a cluster's head may take to accept a connection."""
CLOSE_SECONDS = 10.0
"""How long is waited for idle workers to let their models go: it takes them milliseconds."""


class RayConfig(BaseModel):
    """Where the cluster is, and what a worker takes of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(
        None,
        description="auto, HOST:PORT or ray://HOST:PORT; None: a cluster that is found here, else one of this machine",
    )
    workers: int | None = Field(None, ge=1, description="None: as many as the cluster has room for now")
    gpus_per_worker: float | None = Field(None, ge=0, description="None: 1 where the cluster has GPUs, else 0")
    cpus_per_worker: float = Field(1, gt=0)
    store: str | None = Field(None, description="URL that all machines reach, where they do not see the study's path")

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_less(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a share of one GPU (0.5), or a whole number of them")
        return value


class RayEngine:
    """Connects with the first stage that has shards to make, and lets the workers go when it is left."""

    def __init__(self, config: RayConfig, *, opener: str) -> None:
        self._config = config
        self._opener = opener
        self._ray: Any = None
        self._connected_before = False
        self._actors: list[Any] = []
        self._gpus = 0.0

    def __enter__(self) -> RayEngine:
        if find_spec("ray") is None:
            raise ConfigError(
                "--engine ray needs the package ray, which is not installed", mend="pip install 'unmask[ray]'"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ray is None:
            return
        self._dismiss()
        if not self._connected_before:
            self._ray.shutdown()
        self._ray = None

    def _dismiss(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def make(self, task: Task, *, progress: Progress) -> None:
        """Make what waits of the task's shards. Raises StudyError naming those that could not be made; the others are kept."""
        work = join(task, progress=progress)
        if work is None:
            return
        depot = None if self._config.store is None else Depot.at(self._config.store)
        if depot is not None:
            _bring_left(task, work, depot)
        waiting = work.waiting()
        if not waiting:
            return
        if depot is not None:
            send_needs(task, work, depot)
        actors = self._crew(len(waiting), progress, on_device=task.stage.on_device)
        done = sum(shard.units for shard in work.shards if shard.made)
        progress.begin(
            f"{work.title}, {len(actors)} workers", total=done + sum(shard.units for shard in waiting), done=done
        )
        failed = self._run(task, work, waiting, actors=actors, depot=depot, progress=progress)
        progress.end()
        refuse_failed(task, failed)

    def _run(
        self,
        task: Task,
        work: Work,
        waiting: list[Shard],
        *,
        actors: list[Any],
        depot: Depot | None,
        progress: Progress,
    ) -> dict[str, str]:
        def accepts(answer: Ready) -> str | None:
            if task.stage.on_device:
                try:
                    claim_device(task.workspace, answer.device)
                except StudyError as error:
                    return str(error)
            return None

        def begins(answer: Ready) -> None:
            if task.stage.on_device:
                claim_device(task.workspace, answer.device, name=answer.device_name)

        def arrived(shard: Shard) -> bool:
            return shard.made if depot is None else bring_shard(task, shard, depot)

        errand = Errand(
            study=self._seen(task.study),
            stage=task.stage.name,
            key=task.key,
            inputs=dict(task.input_digests),
            opener=self._opener,
            store=self._config.store,
        )
        raised = self._ray.exceptions
        died = (
            *(raised.RayActorError, raised.NodeDiedError, raised.WorkerCrashedError),
            *(raised.OutOfMemoryError, raised.ObjectLostError),
        )
        crew = Crew(self._ray, actors, errand, progress, accepts, begins, arrived, died)
        failed = crew.run(waiting)
        self._let_go(actors, crew.placed())
        return failed

    def _let_go(self, actors: list[Any], placed: list[tuple[Any, bool]]) -> None:
        """Workers let their models and mirrors go: this process may want the GPU next, and a node its disk.

        One that is still opening does so later, and none waits for it; one that waits for a node is not needed any more.
        """
        closing = {actor: actor.close.options(max_task_retries=0).remote() for actor, _ in placed}
        idle = [closing[actor] for actor, through in placed if through]
        if idle:
            self._ray.wait(idle, num_returns=len(idle), timeout=CLOSE_SECONDS)
        for actor in actors:
            if actor not in closing:
                self._ray.kill(actor)
                self._actors.remove(actor)

    def _seen(self, study: Study) -> str:
        """Where a worker looks for the study: under the path that it has here."""
        return str(study.folder.resolve())

    def _crew(self, shards: int, progress: Progress, *, on_device: bool) -> list[Any]:
        """As many workers as there are shards for, at most as the config says. They stay for the next stage that wants such.

        Where no model runs (not `on_device`) they take no GPU: there may be as many as there are CPUs.
        """
        ray = self._connect(progress)
        cluster = ray.cluster_resources()
        gpus = self._config.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if cluster.get("GPU", 0) >= 1 else 0.0
        if not on_device:
            gpus = 0.0
        if gpus != self._gpus:
            self._dismiss()
            self._gpus = gpus
        wanted = self._config.workers or _room(cluster, cpus=self._config.cpus_per_worker, gpus=gpus)
        options = {
            "num_cpus": self._config.cpus_per_worker,
            "num_gpus": gpus,
            "max_restarts": -1,
            "max_task_retries": -1,
        }
        while len(self._actors) < min(wanted, shards):
            self._actors.append(ray.remote(Maker).options(**options).remote())
        return self._actors[: min(wanted, shards)]

    def _connect(self, progress: Progress) -> Any:
        if self._ray is not None:
            return self._ray
        address = self._config.address
        if address is not None and address.startswith("ray://") and find_spec("grpc") is None:
            raise ConfigError(f"--address {address} needs Ray's client", mend="pip install 'ray[client]'")
        if address is not None:
            _check_answers(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # for a cluster that is started here
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault(
            "RAY_DEDUP_LOGS_SKIP_REGEX", ".*"
        )  # a lost worker is told by us; Ray's page goes to stdout
        import ray

        self._connected_before = ray.is_initialized()
        if not self._connected_before:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
            try:
                ray.init(address, **quiet) if address else ray.init(include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise _not_reached(address, next(iter(str(error).splitlines()), type(error).__name__)) from error
        self._ray = ray
        nodes = [node for node in ray.nodes() if node.get("Alive")]
        progress.note(f"Ray: {len(nodes)} nodes, {ray.cluster_resources().get('CPU', 0):g} CPUs")
        return ray


def _check_answers(address: str) -> None:
    """Raise ConfigError where nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _not_reached(address, str(error)) from error


def _not_reached(address: str | None, reason: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster is reached at {address or 'this machine'} ({reason})",
        mend="Start one with `ray start --head`, name it with --address HOST:PORT, or leave --address out",
    )


def _bring_left(task: Task, work: Work, depot: Depot) -> None:
    """Bring what an earlier run's workers sent and nobody brought. What does not come whole is made anew."""
    for shard in work.waiting():
        try:
            bring_shard(task, shard, depot)
        except StudyError:
            continue


def _room(cluster: dict[str, float], *, cpus: float, gpus: float) -> int:
    """Workers that fit into a cluster's resources, at least one: where none fits, Ray says what it waits for."""
    fits = [cluster.get("CPU", 0) / cpus]
    if gpus > 0:
        fits.append(cluster.get("GPU", 0) / gpus)
    return max(1, math.floor(min(fits) + 1e-9))
