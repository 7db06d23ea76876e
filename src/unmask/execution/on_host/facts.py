"""What this machine is: Python, GPUs, free disk, clock."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

_CUDA = "import torch; print(torch.__version__, torch.cuda.is_available(), torch.version.cuda)"


def about(root: Path, *, python: str | None) -> dict[str, Any]:
    """Facts for a person who wants to run a study here. `python` is that of an environment with torch, if there is one."""
    return {
        "time": time.time(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "gpus": _gpus(),
        "free": free_bytes(root),
        "torch": None if python is None else _torch(python),
    }


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds, or will hold, `folder`."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _gpus() -> list[dict[str, Any]]:
    query = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for row in asked.stdout.splitlines():
        fields = [field.strip() for field in row.split(",")]
        if len(fields) == 4 and fields[1].isdigit() and fields[2].isdigit():
            free, total = int(fields[1]) * 2**20, int(fields[2]) * 2**20
            found.append({"name": fields[0], "free": free, "total": total, "driver": fields[3]})
    return found


def _torch(python: str) -> dict[str, Any] | None:
    try:
        asked = subprocess.run([python, "-c", _CUDA], capture_output=True, text=True, check=True, timeout=120)
        version, cuda, built_for = asked.stdout.split()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return {"version": version, "cuda": cuda == "True", "built_for": built_for}
