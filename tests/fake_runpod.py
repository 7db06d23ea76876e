"""A fake of RunPod's API, which is a paid boundary: it holds state and fails as the API is documented, or known, to fail.

It follows docs.runpod.io/api-reference/pods/{POST/pods,GET/pods,GET/pods/podId} and .../billing/GET/billing/pods for REST v1,
docs.runpod.io/sdks/graphql/manage-pods for GraphQL. A pod goes from created to running with an address after some looks at it, to
stopped, to gone. Nobody has compared it with RunPod itself.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "rpa_fake_key_of_nobody_0123456789"
NONE_LEFT = "create pod: There are no longer any instances available with the requested specifications."
DOCUMENTED_INPUT = {
    "allowedCudaVersions", "cloudType", "computeType", "containerDiskInGb", "env", "gpuCount", "gpuTypeIds", "imageName",
    "interruptible", "name", "ports", "supportPublicIp", "volumeInGb", "volumeMountPath",
}  # fmt: skip
"""Those fields of `PodCreateInput` that are used: an unknown one is refused."""


@dataclass
class FakePod:
    """A pod's state; `looks` counts how often it was asked for since it was started."""

    id: str
    asked: dict[str, Any]
    usd_per_hour: float
    status: str = "RUNNING"
    looks: int = 0
    why: str = "Rented by User"
    started: str = ""


@dataclass
class FakeRunPod:
    """The account. `prices` names the GPU types that are in stock; `faults` are taken one a request, in order."""

    url: str = ""
    prices: dict[str, float] = field(default_factory=lambda: {"NVIDIA A40": 0.40, "NVIDIA GeForce RTX 4090": 0.69})
    out_of_stock: set[str] = field(default_factory=set)
    ssh_port: int | None = None
    """Where the pods' port 22 is mapped to, on this machine; None: it never is."""
    looks_to_start: int = 2
    public_key: str = "ssh-ed25519 AAAAfake account"
    pods: dict[str, FakePod] = field(default_factory=dict)
    billed: float | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(`METHOD /path` as a regular expression, what happens): `302`, `401`, `429:SECONDS`, `500`, `cut` (nothing is done, no
    reply), `lost` (done, no reply), `500-done` (done, and 500 all the same)."""
    calls: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    on_call: Callable[[str], None] = lambda call: None

    def add(self, pod_id: str, *, name: str, gpu: str = "NVIDIA A40", status: str = "RUNNING", **asked: Any) -> FakePod:
        """A pod that was there before."""
        asked = {"name": name, "gpuTypeIds": [gpu], "gpuCount": 1, "imageName": "an/image", "volumeInGb": 20, **asked}
        pod = FakePod(pod_id, asked, self.prices.get(gpu, 1.0), status, looks=self.looks_to_start)
        pod.started = _now()
        self.pods[pod_id] = pod
        return pod

    def take_away(self, pod_id: str) -> None:
        """What happens to a spot pod when somebody pays more."""
        self.pods[pod_id].status, self.pods[pod_id].why = "EXITED", "Exited by Runpod: outbid"

    def count(self, pattern: str) -> int:
        return sum(re.fullmatch(pattern, call) is not None for call in self.calls)

    def created(self) -> list[FakePod]:
        return [pod for pod in self.pods.values() if pod.id.startswith("new")]

    def _shown(self, pod: FakePod) -> dict[str, Any]:
        up = pod.status == "RUNNING" and pod.looks >= self.looks_to_start and self.ssh_port is not None
        return {
            "id": pod.id,
            "name": pod.asked["name"],
            "desiredStatus": pod.status,
            "costPerHr": str(pod.usd_per_hour),
            "image": pod.asked["imageName"],
            "interruptible": pod.asked.get("interruptible", False),
            "gpu": {"id": pod.asked["gpuTypeIds"][0], "count": pod.asked["gpuCount"], "displayName": "a GPU"},
            "machine": {"gpuTypeId": pod.asked["gpuTypeIds"][0]},
            "volumeInGb": pod.asked.get("volumeInGb", 0),
            "volumeMountPath": pod.asked.get("volumeMountPath", "/workspace"),
            "lastStartedAt": pod.started,
            "lastStatusChange": pod.why,
            "publicIp": "127.0.0.1" if up else "",
            "portMappings": {"22": self.ssh_port} if up else {},
        }

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """What the API does and says. Called with the lock held."""
        if path == "/graphql":
            return self._graphql(body["query"])
        if path == "/v1/billing/pods":
            amounts = (
                [] if self.billed is None else [{"amount": self.billed, "podId": query.get("podId"), "timeBilledMs": 1}]
            )
            return 200, amounts
        if path == "/v1/pods":
            if method == "POST":
                return self._create(body)
            name = query.get("name")
            return 200, [self._shown(pod) for pod in self.pods.values() if name in (None, pod.asked["name"])]
        found = re.fullmatch(r"/v1/pods/([\w-]+)(?:/(start|stop))?", path)
        pod = self.pods.get(found[1]) if found else None
        if found is None or pod is None:
            return 404, {"error": "pod not found", "status": 404}
        return self._of_pod(method, found[2], pod)

    def _of_pod(self, method: str, verb: str | None, pod: FakePod) -> tuple[int, Any]:
        if method == "DELETE":
            del self.pods[pod.id]
            return 204, None
        if verb == "start":
            if pod.status == "RUNNING":
                return 400, {"error": "pod is already running"}
            if pod.asked["gpuTypeIds"][0] in self.out_of_stock:
                return 500, {"error": "There are not enough free GPUs on the host machine to start this pod."}
            pod.status, pod.looks, pod.started = "RUNNING", 0, _now()
        elif verb == "stop":
            if pod.status != "RUNNING":
                return 400, {"error": "pod is not running"}
            pod.status, pod.why = "EXITED", "Exited by User"
        else:
            pod.looks += 1
        return 200, self._shown(pod)

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        if unknown := set(body) - DOCUMENTED_INPUT:
            return 400, {"error": f"unknown fields {sorted(unknown)}"}
        gpu = body["gpuTypeIds"][0]
        if gpu in self.out_of_stock or gpu not in self.prices:
            return 500, {"error": NONE_LEFT, "status": 500}
        pod = FakePod(f"new{len(self.calls):04d}pod", body, self.prices[gpu], started=_now())
        self.pods[pod.id] = pod
        return 201, self._shown(pod)

    def _graphql(self, query: str) -> tuple[int, Any]:
        if "pubKey" in query:
            return 200, {"data": {"myself": {"pubKey": self.public_key}}}
        types = [
            {
                "id": gpu,
                "displayName": gpu.removeprefix("NVIDIA ").removeprefix("GeForce "),
                "memoryInGb": 48,
                "securePrice": price,
                "secureSpotPrice": price / 2,
                "lowestPrice": {"stockStatus": None if gpu in self.out_of_stock else "High"},
            }
            for gpu, price in self.prices.items()
        ]
        return 200, {"data": {"gpuTypes": types}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def serve_runpod(**state: Any) -> Generator[FakeRunPod]:
    """The fake at work on loopback; `url` is what UNMASK_RUNPOD_URL wants."""
    fake = FakeRunPod(**state)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def handle_one(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            call = f"{self.command} {parts.path}"
            with fake.lock:
                fake.calls.append(call)
                fake.headers.append({name.lower(): value for name, value in self.headers.items()} | {"url": self.path})
                fault = self.fault(call)
                kind, _, seconds = fault.partition(":")
                if self.headers.get("authorization") != f"Bearer {KEY}":
                    kind = "401"
                status, body = 0, None
                if kind not in ("302", "401", "429", "500", "cut"):
                    status, body = fake.answer(self.command, parts.path, query, json.loads(raw) if raw else None)
            fake.on_call(call)
            match kind:
                case "302":
                    self.reply(302, None, {"Location": f"{fake.url}/v1/elsewhere"})
                case "401":
                    self.reply(401, {"error": f"unauthorized: {self.headers.get('authorization')}"})
                case "429":
                    self.reply(429, {"error": "too many requests"}, {"Retry-After": seconds})
                case "500" | "500-done":
                    self.reply(500, {"error": "internal server error"})
                case "cut" | "lost":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                case _:
                    self.reply(status, body)

        do_GET = do_POST = do_DELETE = handle_one

        def fault(self, call: str) -> str:
            for place, (pattern, what) in enumerate(fake.faults):
                if re.fullmatch(pattern, call):
                    del fake.faults[place]
                    return what
            return ""

        def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serve_banner(banner: bytes = b"SSH-2.0-OpenSSH_9.2\r\n") -> Generator[int]:
    """A port that introduces itself as an SSH server does, and no more."""
    server = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(banner)

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
