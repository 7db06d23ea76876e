"""How many questions of each facet and polarity are to be written, and which ids they get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from unmask.errors import ConfigError, listed
from unmask.question_writing.descriptions import AGREE, DISAGREE, Description
from unmask.records import Question


class Cell(NamedTuple):
    """A facet of a dimension with one polarity."""

    dimension: str
    facet: str
    polarity: int

    def __str__(self) -> str:
        return f"{self.dimension}/{self.facet} {self.polarity:+d}"


def read_counts(text: str | None, descriptions: Sequence[Description]) -> dict[tuple[str, str], int]:
    """Questions to write per (dimension, facet): those of the descriptions, or `facet=n,...` in their place.

    A facet that `text` does not name is then not written. `dimension/facet=n` tells apart facets of the same name.
    Raises ConfigError for a facet that no description has or that two have, and for a number below 1.
    """
    known = {(each.dimension, facet.name): each.counts[facet.name] for each in descriptions for facet in each.facets}
    if text is None:
        return known
    counts: dict[tuple[str, str], int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        found = [key for key in known if name in (key[1], "/".join(key))]
        if len(found) != 1:
            what = "no facet is called" if not found else "more than one facet is called"
            names = listed(key[1] if found == [] else "/".join(key) for key in found or known)
            raise ConfigError(f"--counts: {what} {name!r}", mend=f"Write facet=number with one of: {names}")
        if not number.isdecimal() or int(number) < 1 or found[0] in counts:
            raise ConfigError(
                f"--counts: {part.strip()!r} is not a facet named once with a number of 1 or more",
                mend="Write it like economic=20,social=20",
            )
        counts[found[0]] = int(number)
    return counts


def cells_to_fill(
    descriptions: Sequence[Description], counts: Mapping[tuple[str, str], int], existing: Iterable[Question] = ()
) -> dict[Cell, int]:
    """Questions to write per cell: each facet's count, split so that its polarities end as even as they can be.

    `existing` are the questions of the battery that is added to. Where a facet's total is odd, the one more goes to +1
    in a dimension's first, third, ... facet and to -1 in the others, so that the dimension stays even.
    """
    have = Counter(Cell(question.dimension, question.facet, question.polarity) for question in existing)
    cells: dict[Cell, int] = {}
    for description in descriptions:
        for place, facet in enumerate(description.facets):
            count = counts.get((description.dimension, facet.name), 0)
            agree, disagree = (Cell(description.dimension, facet.name, side) for side in (AGREE, DISAGREE))
            total = have[agree] + have[disagree] + count
            half = (total + 1) // 2 if place % 2 == 0 else total // 2
            cells[agree] = min(max(half - have[agree], 0), count)
            cells[disagree] = count - cells[agree]
    return {cell: count for cell, count in cells.items() if count}


class Numbering:
    """Gives out ids that go on from the highest number a battery has: `pc-eco-001`, `pc-eco-002`, ..."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        for name in taken:
            prefix, number = name[: name.rfind("-") + 1], name[name.rfind("-") + 1 :]
            if number.isdecimal():
                self._last[prefix] = max(self._last.get(prefix, 0), int(number))

    def next(self, prefix: str) -> str:
        self._last[prefix] = self._last.get(prefix, 0) + 1
        return f"{prefix}{self._last[prefix]:03d}"
