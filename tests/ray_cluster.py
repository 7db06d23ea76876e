"""A real Ray cluster on this machine: nodes of one CPU each, every one started by a `ray start` of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # on loopback; else a token left in the home folder decides who reaches whom
CHANCES = 3
"""Ports that are tried: between looking and starting somebody else may take one."""


def free_port() -> int:
    """A free port outside those that Ray gives to its workers (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10002 <= port <= 19999:
            return port


class Node:
    """One `ray start --block` with all that it starts."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str]) -> None:
        folder.mkdir()
        self.process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "ray.scripts.scripts",
                    "start",
                    "--block",
                    "--num-cpus=1",
                    "--disable-usage-stats",
                ),
                # Ports that are free when a worker takes them: other nodes of this machine would choose from the same range.
                *("--min-worker-port=0", "--max-worker-port=0"),
                *("--node-ip-address=127.0.0.1", f"--temp-dir={folder}", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=(folder / "said").open("w"),
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parent),  # where `ray_poison` is
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_health_check_initial_delay_ms": "2000",
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_failure_threshold": "3",
                **environment,
            },
        )
        self.said = folder / "said"

    def wait(self) -> bool:
        """Whether the node came up."""
        for _ in range(1200):
            if "Ray runtime started" in self.said.read_text():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.1)
        return False

    def kill(self) -> None:
        """SIGKILL for the node and all its processes, as when a machine is switched off."""
        for pid in [*_below(self.process.pid), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _below(pid: int) -> list[int]:
    """All processes that a process started, and those they started; the youngest last."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except (OSError, IndexError):  # it ended meanwhile
            continue
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


class Cluster:
    """A head and as many nodes beside it as are added; `environment` is what their workers see beside ours."""

    def __init__(self, folder: Path, *, environment: dict[str, str] | None = None) -> None:
        self._folder, self._environment = folder, environment or {}
        self.nodes: list[Node] = []
        for _ in range(CHANCES):
            self.address = f"127.0.0.1:{free_port()}"
            port = self.address.rpartition(":")[2]
            head = self._started("--head", f"--port={port}", "--include-dashboard=false")
            if head is not None:
                return
        raise RuntimeError("no Ray head could be started")

    def add(self) -> Node:
        """One more node."""
        for _ in range(CHANCES):
            node = self._started(f"--address={self.address}")
            if node is not None:
                return node
        raise RuntimeError(f"no Ray node could be started: {self._folder}")

    def _started(self, *arguments: str) -> Node | None:
        place = self._folder / f"n{len(list(self._folder.iterdir()))}"
        node = Node(place, *arguments, environment=self._environment)
        if not node.wait():
            node.kill()
            return None
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            node.kill()
