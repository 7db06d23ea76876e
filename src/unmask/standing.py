"""Where the stages of a study stand, and in words why one would run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.study import StageRecord, StageState


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Where a stage stands: done, stale (with the reason) or missing."""

    stage: str
    state: StageState
    reason: str
    folder: Path
    record: StageRecord | None


def why_stale(
    record: StageRecord, config: Mapping[str, Any], inputs: Mapping[str, str], version: int, *, section: str
) -> str:
    """In words, what differs between a finished stage and what that section of the study file asks for now."""
    changes = [
        f"{section}.{name} changed from {record.config.get(name)!r} to {value!r}"
        for name, value in config.items()
        if record.config.get(name) != value
    ]
    changes += [
        f"{name.removeprefix('stage:')} changed" for name, digest in inputs.items() if record.inputs.get(name) != digest
    ]
    if record.version != version:
        changes.append(f"made by version {record.version} of the stage, this is {version}")
    return "; ".join(changes) or "its inputs changed"


def status_rows(statuses: Sequence[StageStatus]) -> list[dict[str, Any]]:
    """Statuses as plain values, for `--json`."""
    rows = []
    for status in statuses:
        row = {name: value for name, value in asdict(status).items() if name != "record"}
        row["folder"] = str(status.folder)
        if status.record is not None:
            row |= {
                "summary": status.record.summary,
                "seconds": status.record.seconds,
                "started": status.record.started,
            }
        rows.append(row)
    return rows
