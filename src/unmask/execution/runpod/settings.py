"""What to rent, for how much, and what becomes of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

After = Literal["stop", "terminate", "keep"]

GPUS = ("NVIDIA GeForce RTX 4090", "NVIDIA RTX A5000", "NVIDIA A40", "NVIDIA L40S", "NVIDIA RTX A6000")
"""24 GB and more, the cheap first where a cheap one will do (ids and memory: docs.runpod.io/references/gpu-types)."""
IMAGE = "runpod/pytorch:2.8.0-py3.11-cuda12.8.1-cudnn-devel-ubuntu22.04"
"""RunPod's own image with Python 3.11 and an SSH server (docs.runpod.io/pods/manage-pods); torch comes with the study."""
VOLUME_PATH = "/workspace"
"""The default of RunPod's `volumeMountPath`: what lies there survives a stop, all else is wiped."""


Limited = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
"""Money or hours. A century is no limit, and no timer counts to infinity."""


class RentSettings(BaseModel):
    """What to rent, for how much, and what becomes of it afterwards. Disks in GB, money in USD."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field("", description="the study's name: part of the pod's name, so that a second run finds its pod")
    gpu: tuple[str, ...] = Field(
        GPUS, min_length=1, description="GPU types in order of preference, by id or by short name"
    )
    gpu_count: int = Field(1, ge=1)
    image: str = Field(IMAGE, min_length=1)
    disk_gb: int = Field(30, ge=5, description="container disk, wiped when the pod stops")
    volume_gb: int = Field(60, ge=0, description="volume at /workspace, kept and paid for while the pod is stopped")
    spot: bool = Field(False, description="interruptible: cheaper, taken away at any time with 5 s of warning")
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    cuda: tuple[str, ...] = Field(
        ("13.0",), description="CUDA versions that the machine's driver must be for; empty for any"
    )
    max_usd_per_hour: Limited | None = None
    max_usd: Limited | None = Field(None, description="stops the pod once this run has cost as much")
    max_hours: Limited | None = Field(None, description="stops the pod after this many hours")
    after: After = Field("stop", description="what becomes of the pod once the run is over")
    key_file: Path | None = Field(None, description="the private key; FILE.pub beside it is let in on pods made here")
    user: str = Field("root", pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]*", description="whom the pod's SSH server lets in")
    wait_seconds: float = Field(
        900, gt=0, allow_inf_nan=False, description="how long a pod may take until its SSH server answers"
    )

    @property
    def limited(self) -> bool:
        return self.max_usd is not None or self.max_hours is not None

    def seconds_allowed(self, usd_per_hour: float | None) -> float | None:
        """Seconds until one of the limits is reached at that price; None without a limit."""
        seconds = [] if self.max_hours is None else [self.max_hours * 3600]
        if self.max_usd is not None and usd_per_hour:
            seconds.append(self.max_usd / usd_per_hour * 3600)
        return min(seconds, default=None)
