"""RunPod's documented shapes, and nothing else: the one place that knows which version of its API is spoken.

- REST v1, https://rest.runpod.io/v1: docs.runpod.io/api-reference/pods/POST/pods, .../GET/pods, .../GET/pods/podId,
  .../billing/GET/billing/pods, and the OpenAPI description in github.com/runpod/docs, api-reference/openapi.json
- GraphQL, for GPU types, prices, stock and the account's public keys, which REST v1 has not:
  docs.runpod.io/sdks/graphql/manage-pods; with the key in a header, as in github.com/runpod/runpodctl, internal/api/graphql.go

All read in November 2026. REST v2 (docs.runpod.io/api-reference-v2) has other names and states, and was documented as beta.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from unmask.errors import UnmaskError
from unmask.execution.address import Address

REST_URL = "https://rest.runpod.io/v1"
GRAPHQL_URL = "https://api.runpod.io/graphql"
CONSOLE_URL = "https://console.runpod.io/pods"
LOOK = f"Look at {CONSOLE_URL} what runs"

RUNNING, EXITED, TERMINATED = "RUNNING", "EXITED", "TERMINATED"
"""`desiredStatus` of a pod: all that REST v1 knows."""

CATALOGUE_QUERY = """query {
  gpuTypes {
    id displayName memoryInGb securePrice communityPrice secureSpotPrice communitySpotPrice
    lowestPrice(input: {gpuCount: 1}) { minimumBidPrice uninterruptablePrice stockStatus }
  }
}"""
PUBLIC_KEYS_QUERY = "query { myself { pubKey } }"

_POD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OUT_OF_STOCK = re.compile(
    r"no (?:longer )?(?:any )?(?:more )?instances|not enough free gpus|out of stock|no gpus? (?:is|are) available"
    r"|could not find any pods with required specifications",
    re.IGNORECASE,
)
"""`There are no longer any instances available with the requested specifications` (github.com/runpod/runpod-python/issues/21) and
its kin; `There are not enough free GPUs on the host machine to start this pod` (.../issues/168)."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API tells of it. `usd_per_hour` is None where the API names no price."""

    id: str
    name: str
    status: str
    gpu: str
    gpu_count: int
    usd_per_hour: float | None
    spot: bool
    image: str
    started: datetime | None
    public_ip: str = ""
    ssh_port: int | None = None
    volume_gb: int = 0
    volume_path: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def address(self) -> Address | None:
        """Where its SSH server is reached; None while RunPod has mapped no port yet, or maps none."""
        if not self.public_ip or self.ssh_port is None:
            return None
        host = f"[{self.public_ip}]" if ":" in self.public_ip else self.public_ip
        return Address.parse(f"ssh://root@{host}:{self.ssh_port}")

    @property
    def uptime_hours(self) -> float | None:
        """Hours since it was last started; None where it does not run or nobody says."""
        if self.status != RUNNING or self.started is None:
            return None
        return max(0.0, (datetime.now(UTC) - self.started).total_seconds() / 3600)


@dataclass(frozen=True, slots=True)
class GpuType:
    """What the catalogue says of one type. Prices in USD per hour and GPU, memory in GB; None where nothing is said."""

    id: str
    display_name: str
    memory_gb: int | None
    usd_per_hour: float | None
    spot_usd_per_hour: float | None
    stock: str | None


def is_pod_id(text: str) -> bool:
    """Whether `text` can stand in a URL and in a shell command as a pod's id."""
    return _POD_ID.fullmatch(text) is not None


def is_out_of_stock(message: str) -> bool:
    return _OUT_OF_STOCK.search(message) is not None


def read_pod(body: Any) -> Pod:
    """A pod from the API's JSON. Raises UnmaskError where that is no pod as documented."""
    if not isinstance(body, dict) or not is_pod_id(str(body.get("id", ""))):
        raise UnmaskError("RunPod's reply holds no pod with an id", mend=LOOK)
    machine, gpu, ports = (_mapping(body.get(name)) for name in ("machine", "gpu", "portMappings"))
    price = _number(body.get("adjustedCostPerHr"))
    ssh_port = _number(ports.get("22"))
    return Pod(
        id=str(body["id"]),
        name=str(body.get("name") or ""),
        status=str(body.get("desiredStatus") or "").upper(),
        gpu=str(machine.get("gpuTypeId") or gpu.get("id") or gpu.get("displayName") or ""),
        gpu_count=int(_number(gpu.get("count")) or _number(body.get("gpuCount")) or 0),
        usd_per_hour=_number(body.get("costPerHr")) if price is None else price,
        spot=bool(body.get("interruptible")),
        image=str(body.get("image") or body.get("imageName") or ""),
        started=read_time(body.get("lastStartedAt")),
        public_ip=str(body.get("publicIp") or ""),
        ssh_port=None if ssh_port is None else int(ssh_port),
        volume_gb=int(_number(body.get("volumeInGb")) or 0),
        volume_path=str(body.get("volumeMountPath") or ""),
        raw=body,
    )


def read_gpu_types(data: Any) -> dict[str, GpuType]:
    """GPU types by id, from the reply to `CATALOGUE_QUERY`."""
    types = {}
    listed = _mapping(data).get("gpuTypes")
    for entry in map(_mapping, listed if isinstance(listed, list) else ()):
        lowest = _mapping(entry.get("lowestPrice"))
        stock = lowest.get("stockStatus")
        found = GpuType(
            id=str(entry.get("id")),
            display_name=str(entry.get("displayName") or entry.get("id")),
            memory_gb=None if (memory := _number(entry.get("memoryInGb"))) is None else int(memory),
            usd_per_hour=_first(entry.get("securePrice"), lowest.get("uninterruptablePrice")),
            spot_usd_per_hour=_first(entry.get("secureSpotPrice"), lowest.get("minimumBidPrice")),
            stock=None if stock is None else str(stock),
        )
        types[found.id] = found
    return types


def read_time(value: Any) -> datetime | None:
    """`2024-07-12T19:14:40.144Z` as documented, or Go's way of writing it; None where it is neither."""
    text = str(value or "").strip().removesuffix(" UTC").replace(" +0000", "+00:00").replace("Z", "+00:00")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def billed_usd(body: Any) -> float | None:
    """USD of all records of `GET /billing/pods`; None where there are none yet."""
    amounts = [_number(_mapping(record).get("amount")) for record in body] if isinstance(body, list) else []
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A number, or one written as text (`costPerHr` is `"0.74"` in the documentation's example)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _first(*values: Any) -> float | None:
    """The first that is a price: RunPod writes null, and at times 0, for what is not offered."""
    return next((number for value in values if (number := _number(value))), None)
