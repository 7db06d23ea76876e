"""Which devices made a stage's batches: the kind, of which there is one only, and the names of those that took part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unmask.artifact import write_text
from unmask.study import Workspace

KINDS = ("cuda", "mps", "cpu")
"""Kinds of device that models run on."""
_DEVICE = "device"
_TOOK_PART = "took-part-{kind}"


def device_of(workspace: Workspace) -> str | None:
    """The kind of device that batches were made on; None where none is noted."""
    mark = workspace.folder / _DEVICE
    return mark.read_text(encoding="utf-8") if mark.is_file() else None


def devices_of(workspace: Workspace) -> list[str]:
    """Names of the devices that took part in the batches, as far as they are known: the kind stands for the others."""
    kind = device_of(workspace)
    return [] if kind is None else _devices(workspace, kind)


def _devices(workspace: Workspace, kind: str) -> list[str]:
    noted = workspace.folder / _TOOK_PART.format(kind=kind)
    if noted.is_file():
        return noted.read_text(encoding="utf-8").splitlines()
    return [kind] if device_of(workspace) == kind else []


def devices_note(workspace: Workspace) -> Path | None:
    """The file that names them, which goes along where batches go to another machine; None where there is none."""
    noted = workspace.folder / _TOOK_PART.format(kind=device_of(workspace))
    return noted if noted.is_file() else None


def note_devices(workspace: Workspace, kind: str, names: Iterable[str]) -> None:
    """Note the kind of device that batches are made on, and which take part, before they do.

    So that none is missing where a process is killed behind its first batch.
    """
    found = dict.fromkeys([*_devices(workspace, kind), *names])
    write_text(workspace.folder / _TOOK_PART.format(kind=kind), "".join(f"{name}\n" for name in found))
    write_text(workspace.folder / _DEVICE, kind)


def kind_of(names: str) -> str:
    """The kind of the devices that a manifest names: all are of one."""
    return names if names in ("cpu", "mps") else "cuda"
