"""Waiting until a pod runs, its SSH port is mapped, and something there speaks SSH."""

from __future__ import annotations

import socket
import time

from unmask.errors import UnmaskError
from unmask.execution.address import Address
from unmask.execution.runpod import wire
from unmask.execution.runpod.client import RunPod
from unmask.progress import Progress

PAUSE = 3.0
"""Seconds between two looks."""
MISSING = ("it does not run", "RunPod maps no port to its SSH server", "its SSH server does not answer")
"""What is missing after so many steps."""
_BANNER = b"SSH-"
"""RFC 4253, 4.2: a server may send lines before its identification, and OpenSSH sends none."""


def wait_for_ssh(client: RunPod, pod_id: str, *, seconds: float, progress: Progress) -> wire.Pod:
    """The pod, once its SSH server answers. Raises UnmaskError where it ends before, or takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    done = 0
    progress.begin(f"pod {pod_id} starts", total=len(MISSING))
    try:
        while True:
            pod, reached = _look(client, pod_id)
            progress.advance(max(0, reached - done))
            done = max(done, reached)
            if reached == len(MISSING):
                return pod
            if time.monotonic() >= deadline:
                raise UnmaskError(
                    f"pod {pod_id} was not ready after {seconds:.0f} s: {MISSING[reached]}",
                    mend="Its logs are in RunPod's console; the image must have an SSH server, and the account your public key",
                )
            time.sleep(min(PAUSE, max(0.05, deadline - time.monotonic())))
    finally:
        progress.end()


def _look(client: RunPod, pod_id: str) -> tuple[wire.Pod, int]:
    """The pod, and how many of the steps it has taken."""
    pod = client.pod(pod_id)
    if pod is None:
        raise UnmaskError(f"pod {pod_id} is gone", mend="Run again to rent another")
    if pod.status == wire.EXITED:
        why = str(pod.raw.get("lastStatusChange") or "nobody says why")
        raise UnmaskError(
            f"pod {pod_id} stopped before it could be used: {why}", mend="Run again to start it or another"
        )
    if pod.status != wire.RUNNING:
        return pod, 0
    if pod.address is None:
        return pod, 1
    return pod, 3 if speaks_ssh(pod.address) else 2


def speaks_ssh(address: Address, *, seconds: float = 5.0) -> bool:
    """Whether an SSH server introduces itself there."""
    try:
        with socket.create_connection((address.host, address.port), timeout=seconds) as connection:
            connection.settimeout(seconds)
            said = b""
            while len(said) < len(_BANNER) and (more := connection.recv(64)):
                said += more
    except OSError:
        return False
    return said.startswith(_BANNER)
