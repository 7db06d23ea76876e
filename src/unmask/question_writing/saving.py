"""The files of a run: the battery, its earlier lines the same to the byte, and beside it what was dropped and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.artifact import atomic_path
from unmask.battery import battery_path, read_battery, read_rows
from unmask.errors import ConfigError, DataError
from unmask.records import Question


@dataclass(frozen=True, slots=True)
class Existing:
    """The battery that is added to: where it lies, its bytes, its questions. Empty for a new one."""

    path: Path | None = None
    content: bytes = b""
    questions: tuple[Question, ...] = ()


def read_existing(name: str | None) -> Existing:
    """The battery to add to, a packaged one by name or a JSONL file. Raises DataError as `read_battery` does."""
    if name is None:
        return Existing()
    path = battery_path(name)
    if path.suffix != ".jsonl":
        raise DataError(f"{path} is no .jsonl file", mend="Unpack or convert it: lines are added to plain JSON lines")
    return Existing(path, path.read_bytes(), tuple(read_battery(path)))


def dropped_path(out: Path) -> Path:
    """Where a run writes what it dropped: `mine.dropped.jsonl` beside `mine.jsonl`."""
    return out.with_suffix(".dropped.jsonl")


def check_target(out: Path, existing: Existing, *, run: str) -> None:
    """Raise ConfigError where `out` is no .jsonl file, or neither the battery added to nor this run's outcome."""
    if out.suffix != ".jsonl" or out.stem.endswith(".dropped"):
        raise ConfigError(f"{out} is no place for a battery", mend="Give --out a name that ends in .jsonl")
    if not out.exists() or _is_same(out, existing):
        return
    if not _ends_with_run(out, run):
        raise ConfigError(
            f"{out} exists already and is of another run", mend="Name another file, or add to it with --add-to"
        )


def _ends_with_run(out: Path, run: str) -> bool:
    try:
        rows = [row for _, row in read_rows(out)]
    except DataError:
        return False
    return bool(rows) and rows[-1].get("run") == run


def save(
    out: Path, existing: Existing, lines: Iterable[Mapping[str, Any]], dropped: Iterable[Mapping[str, Any]], *, run: str
) -> None:
    """Write what was dropped, then the battery, each whole. A battery without any new question is not written.

    What other runs dropped stays in the file. Raises DataError where that file is not JSON lines, and ConfigError where
    `out` was changed by somebody else, during the run or after an earlier end of it.
    """
    before, added = existing.content, _as_bytes(lines)
    content = before + (b"\n" if before and not before.endswith(b"\n") else b"") + added
    if out.exists() and out.read_bytes() != (before if _is_same(out, existing) else content):
        raise ConfigError(
            f"{out} was changed by another hand and is left as it is",
            mend="Give --out another name: every reply is kept, and nothing is asked anew",
        )
    aside = dropped_path(out)
    others = [row for _, row in read_rows(aside) if row.get("run") != run] if aside.exists() else []
    _write(aside, _as_bytes([*others, *dropped]))
    if added:
        _write(out, content)


def _is_same(out: Path, existing: Existing) -> bool:
    return existing.path is not None and out.resolve() == existing.path.resolve()


def _as_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines in UTF-8; a lone surrogate, which a model may write and UTF-8 lacks, stays an escape."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
