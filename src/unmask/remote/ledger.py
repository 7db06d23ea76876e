"""Where a study ran: `remote.json` in its folder, part of no stage and of no key."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unmask.artifact import digest_bytes, read_json, write_json, write_text
from unmask.errors import StudyError
from unmask.execution.address import Address
from unmask.models.embedded import cache_folder
from unmask.remote.needs import mirrored
from unmask.study import Study

FILE = "remote.json"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things of a study lie below the root on a host."""

    root: PurePosixPath
    tree: PurePosixPath
    study: PurePosixPath
    cwd: PurePosixPath
    run: PurePosixPath


@dataclass(slots=True)
class Ledger:
    """The record of a study's remote runs. `client` tells this machine's mirrored tree from another's on the same host."""

    study: Study
    content: dict[str, Any]

    @classmethod
    def of(cls, study: Study) -> Ledger:
        path = study.folder / FILE
        if path.is_file():
            content = read_json(path, rebuild=f"rm {path}")
            if (
                isinstance(content, dict)
                and isinstance(content.get("runs"), list)
                and isinstance(content.get("client"), str)
            ):
                return cls(study, content)
            raise StudyError(f"{path} does not say where the study ran", mend="Remove it, or put an older one back")
        return cls(study, {"client": _client(), "runs": []})

    def places(self, root: PurePosixPath) -> Places:
        tree = root / "tree" / str(self.content["client"])
        study = mirrored(self.study.folder)
        name = f"{self.study.folder.resolve().name}-{digest_bytes(str(study).encode())[:8]}-{self.content['client']}"
        return Places(root, tree, tree / study, tree / mirrored(Path()), root / "runs" / name)

    @property
    def last(self) -> dict[str, Any] | None:
        """The last run that was on a machine: one that was rented and never entered has a cost, and no place."""
        return next((entry for entry in reversed(self.content["runs"]) if _is_placed(entry)), None)

    def forced(self, run: str) -> tuple[str, ...]:
        """Stages that a run was told to run anew."""
        found = (entry.get("force") for entry in self.content["runs"] if _is_placed(entry) and entry.get("id") == run)
        return tuple(str(stage) for stage in next(found, None) or ())

    def note(self, run: str, **values: Any) -> None:
        """Add to what is known of a run, which is begun where it is not known yet.

        What a machine cost before (`rented`) is kept, in `rented_before`: a run may be attached to from several.
        """
        entries: list[dict[str, Any]] = self.content["runs"]
        found: dict[str, Any] | None = next((entry for entry in entries if entry.get("id") == run), None)
        if found is None:
            found = {"id": run}
            entries.append(found)
        if "rented" in values and "rented" in found:
            found["rented_before"] = [*found.get("rented_before", ()), found["rented"]]
        found.update(values)
        write_json(self.study.folder / FILE, self.content)


def last_pod(study: Study) -> str | None:
    """The rented pod that a study ran on last; None where that was another machine, or none."""
    last = Ledger.of(study).last
    pod = None if last is None else last.get("pod")
    return pod if isinstance(pod, str) else None


def last_address(study: Study) -> tuple[Address, str]:
    """Where a study ran last, and below which root. Raises StudyError where it never ran on another machine."""
    last = Ledger.of(study).last
    if last is None:
        raise StudyError(
            f"{study.folder} has not run on another machine",
            mend=f"unmask remote run {study.folder} --on ssh://USER@HOST:PORT",
        )
    return Address.parse(str(last["on"])), str(last["root"])


def _is_placed(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("on"), str) and isinstance(entry.get("root"), str)


def _client() -> str:
    """A name for this machine's user, drawn once."""
    path = cache_folder() / "remote-client"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8").strip()
