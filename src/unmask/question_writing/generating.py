"""From descriptions and a model's name to a battery on disk: what `unmask questions generate` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.battery import BATTERIES, battery_path, read_battery
from unmask.errors import listed
from unmask.llm.addresses import ModelAddress, find_model
from unmask.llm.replies import ReplyStore
from unmask.progress import Progress
from unmask.question_writing.asking import Asking, Limits
from unmask.question_writing.descriptions import Description
from unmask.question_writing.hearing import Hearing
from unmask.question_writing.likeness import Encode
from unmask.question_writing.making import Made, Task, make_questions
from unmask.question_writing.quotas import Cell, read_counts
from unmask.question_writing.saving import Existing, check_target, dropped_path, read_existing, save
from unmask.question_writing.selecting import DRY_ROUNDS


@dataclass(frozen=True, slots=True)
class Order:
    """What a user asks for. `counts` None takes the descriptions' own; `checker` None lets the writer check itself."""

    descriptions: tuple[Description, ...]
    model: str
    out: Path
    checker: str | None = None
    counts: str | None = None
    add_to: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run wrote, what lacks, and what asking came to."""

    out: Path
    run: str
    asked: dict[Cell, int]
    made: Made
    usage: dict[str, dict[str, Any]]

    @property
    def dropped(self) -> dict[str, int]:
        """Texts and replies that were dropped, by reason, the most frequent first."""
        return dict(Counter(each["reason"] for each in self.made.dropped).most_common())

    @property
    def lack(self) -> str | None:
        """A sentence on what could not be written; None where all was."""
        if not self.made.lacking:
            return None
        lacks = listed(f"{cell} lacks {count} of {self.asked[cell]}" for cell, count in self.made.lacking.items())
        kept = f"{len(self.made.lines)} new questions are in {self.out}" if self.made.lines else "nothing was written"
        return (
            f"{lacks}: {DRY_ROUNDS} rounds in a row brought none that could be kept; {kept}, "
            f"and {dropped_path(self.out)} says why the others were dropped."
        )

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lacking = self.made.lacking
        cells = [
            {**cell._asdict(), "asked": count, "written": count - lacking.get(cell, 0)}
            for cell, count in self.asked.items()
        ]
        return {
            "out": str(self.out) if self.made.lines else None,
            "dropped_file": str(dropped_path(self.out)),
            "run": self.run,
            "complete": not lacking,
            "written": len(self.made.lines),
            "cells": cells,
            "dropped": self.dropped,
            "rounds": self.made.rounds,
            "usage": self.usage,
        }


def generate(
    order: Order, *, store: Path, encode: Encode, limits: Limits | None = None, progress: Progress | None = None
) -> Outcome:
    """Write the questions that are ordered and save them; `store` is the file that keeps every reply.

    Raises ConfigError for an order that cannot be filled as it stands (a model's name or key, counts, `out` taken
    already), DataError for a battery that cannot be read, and as `Asking.ask` where the provider fails: then nothing is
    written, and the same order goes on from the replies that are kept.
    """
    existing = read_existing(order.add_to)
    task = _task(order, existing)
    check_target(order.out, existing, run=task.run)
    with ReplyStore(store) as replies, Hearing(store) as hearing:
        asking = Asking(replies, hearing, limits or Limits())
        for address in (task.writer, task.checker):
            asking.check(address)
        made = make_questions(task, asking, encode, progress=progress)
    save(order.out, existing, made.lines, made.dropped, run=task.run)
    return Outcome(order.out, task.run, task.cells, made, asking.usage())


def _task(order: Order, existing: Existing) -> Task:
    writer = find_model(order.model)
    checker: ModelAddress = writer if order.checker is None else find_model(order.checker)
    return Task(
        descriptions=order.descriptions,
        counts=read_counts(order.counts, order.descriptions),
        writer=writer,
        checker=checker,
        existing=existing.questions,
        known=tuple(packaged_texts()),
        seed=order.seed,
    )


def packaged_texts() -> Sequence[str]:
    """Every question of the packaged batteries: a new battery repeats none."""
    return [question.text for name in BATTERIES for question in read_battery(battery_path(name))]
