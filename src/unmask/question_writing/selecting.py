"""What a run has found: questions kept by cell, texts that wait for their check, texts that were dropped and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unmask.question_writing.likeness import Pool, Twin
from unmask.question_writing.quotas import Cell
from unmask.question_writing.reading import Check

DRY_ROUNDS = 3
"""Rounds in a row without a gain after which a cell is given up."""

Reason = Literal["repeat", "near_repeat", "surplus"]
"""Why a text is dropped here; the other reasons are those of `reading`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text as a model wrote it: for which cell, by which model, on which prompt (hash), when."""

    cell: Cell
    text: str
    model: str
    prompt_sha256: str
    made_at: str

    def as_record(self) -> dict[str, Any]:
        origin = {"model": self.model, "prompt_sha256": self.prompt_sha256, "made_at": self.made_at}
        return {**self.cell._asdict(), "text": self.text, **origin}


@dataclass(slots=True)
class Selection:
    """Fills cells with the first texts that are new and stand their check, in the order in which they come."""

    wanted: Mapping[Cell, int]
    pool: Pool
    kept: dict[Cell, list[Candidate]] = field(default_factory=lambda: defaultdict(list))
    waiting: dict[Cell, list[Candidate]] = field(default_factory=lambda: defaultdict(list))
    dropped: list[dict[str, Any]] = field(default_factory=list)
    twins: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    """Texts that candidates of a facet repeated, in the order in which they did."""
    _dry: Counter[Cell] = field(default_factory=Counter)

    def lacking(self) -> dict[Cell, int]:
        """Questions that each cell still needs."""
        lacks = {cell: count - len(self.kept[cell]) for cell, count in self.wanted.items()}
        return {cell: count for cell, count in lacks.items() if count}

    def open_cells(self) -> dict[Cell, int]:
        """`lacking` without the cells that were given up."""
        return {cell: count for cell, count in self.lacking().items() if self._dry[cell] < DRY_ROUNDS}

    def dry_rounds(self, cell: Cell) -> int:
        """Rounds in a row that gave this cell nothing."""
        return self._dry[cell]

    def drop(self, candidate: Candidate, reason: str, **more: Any) -> None:
        self.dropped.append({"reason": reason, **candidate.as_record(), **more})

    def screen(self, candidates: Sequence[Candidate]) -> None:
        """Let new texts wait for their check; drop those that repeat one that was seen before."""
        found = self.pool.add([candidate.text for candidate in candidates])
        for candidate, twin in zip(candidates, found, strict=True):
            if twin is None:
                self.waiting[candidate.cell].append(candidate)
            else:
                self._drop_twin(candidate, twin)

    def _drop_twin(self, candidate: Candidate, twin: Twin) -> None:
        reason: Reason = "repeat" if twin.cosine == 1 else "near_repeat"
        self.drop(candidate, reason, repeats=twin.text, cosine=round(twin.cosine, 4))
        self.twins[candidate.cell.dimension, candidate.cell.facet].append(twin.text)

    def next_to_check(self) -> list[Candidate]:
        """As many waiting texts of each open cell as it needs, taken out of the queue."""
        taken = []
        for cell, count in self.open_cells().items():
            taken += self.waiting[cell][:count]
            del self.waiting[cell][:count]
        return taken

    def decide(self, checked: Sequence[tuple[Candidate, Check, str]]) -> None:
        """Keep or drop texts by their checks, each with its checker's name."""
        for candidate, check, checker in checked:
            objection = check.objection(facet=candidate.cell.facet, polarity=candidate.cell.polarity)
            if objection is None:
                self.kept[candidate.cell].append(candidate)
            else:
                self.drop(candidate, objection, checker=checker, why=check.failure or check.why)

    def end_round(self, lacked: Mapping[Cell, int]) -> int:
        """Note which cells gained nothing since they lacked so many; gives the number of questions gained."""
        lacks = self.lacking()
        gained = {cell: count - lacks.get(cell, 0) for cell, count in lacked.items()}
        for cell, count in gained.items():
            self._dry[cell] = 0 if count else self._dry[cell] + 1
        return sum(gained.values())

    def close(self) -> None:
        """Drop what still waits: their cells are full."""
        for candidates in self.waiting.values():
            for candidate in candidates:
                self.drop(candidate, "surplus")
            candidates.clear()
