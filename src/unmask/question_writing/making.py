"""Making questions in rounds: write for cells that lack, drop repeats, check, keep; until all are full or none gains.

A round's requests follow from the task and the replies of earlier rounds alone, and every reply is kept: a run that was
killed asks for nothing that it has, and ends in the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from unmask.artifact import digest_json
from unmask.llm.addresses import ModelAddress
from unmask.llm.replies import Request
from unmask.progress import Progress, Silent
from unmask.question_writing.asking import Asking, Heard, label
from unmask.question_writing.descriptions import AGREE, DISAGREE, Description, Facet
from unmask.question_writing.likeness import Encode, Pool
from unmask.question_writing.prompts import Slot, checking_request, prompt_hash, slots, writing_request
from unmask.question_writing.quotas import Cell, Numbering, cells_to_fill
from unmask.question_writing.reading import Check, read_check, read_texts
from unmask.question_writing.selecting import Candidate, Selection
from unmask.records import Question

BATCH = 8
"""Questions per request: few enough that a model keeps them apart."""
BATCHES = 4
"""Requests per facet and round: later ones are told what the earlier ones brought."""
OVER, LEAST = 1.25, 4
"""Texts asked for: so many per question that lacks, since some will be dropped, and at least so many per cell. Each
round without a gain doubles them."""
AVOIDED = 10
"""Texts that a request says exist already."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be written and by whom. `existing` is the battery added to, `known` are texts not to be repeated."""

    descriptions: tuple[Description, ...]
    counts: dict[tuple[str, str], int]
    writer: ModelAddress
    checker: ModelAddress
    existing: tuple[Question, ...] = ()
    known: tuple[str, ...] = ()
    seed: int = 0

    @property
    def cells(self) -> dict[Cell, int]:
        return cells_to_fill(self.descriptions, self.counts, self.existing)

    @property
    def stream(self) -> str:
        """What the prompts' random choices follow from: the seed and the battery added to."""
        ids = [(question.question_id, question.text) for question in self.existing]
        return digest_json({"seed": self.seed, "existing": ids})

    @property
    def run(self) -> str:
        """Names the run in what it writes: the same task, the same name."""
        described = [description.model_dump() for description in self.descriptions]
        counts = [[*facet, count] for facet, count in sorted(self.counts.items())]
        models = [label(self.writer), label(self.checker)]
        return digest_json([described, counts, models, self.stream])[:12]


@dataclass(frozen=True, slots=True)
class Made:
    """A run's questions as lines of a battery, what was dropped and why, and what lacks."""

    lines: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    lacking: dict[Cell, int]
    rounds: int


class _Batch(NamedTuple):
    description: Description
    facet: Facet
    slots: list[Slot]
    request: Request


class _Scenes:
    """A facet's scenes in turn, in an order of its own, and its random choices."""

    def __init__(self, stream: str, description: Description, facet: Facet) -> None:
        digest = digest_json([stream, description.dimension, facet.name])
        self.rng = np.random.default_rng(int(digest[:16], 16))
        self._first_repeat = int(digest[:8], 16) * 10_000
        self._asked = 0
        self._order = [facet.settings[place] for place in self.rng.permutation(len(facet.settings))]
        self._next = 0

    def take(self, count: int) -> list[str]:
        taken = [self._order[(self._next + place) % len(self._order)] for place in range(count)]
        self._next += count
        return taken

    def repeat(self) -> int:
        """A number for each request, so that a run never takes another's reply for its own."""
        self._asked += 1
        return self._first_repeat + self._asked


def make_questions(task: Task, asking: Asking, encode: Encode, *, progress: Progress | None = None) -> Made:
    """Write, screen and check until every cell has its count, or brought nothing in three rounds in a row.

    Raises as `Asking.ask` does; every reply that came is kept.
    """
    progress = progress or Silent()
    told = [text for description in task.descriptions for text in description.told_texts]
    pool = Pool(encode, [*(question.text for question in task.existing), *task.known, *told])
    selection = Selection(task.cells, pool)
    scenes = {
        (description.dimension, facet.name): _Scenes(task.stream, description, facet)
        for description in task.descriptions
        for facet in description.facets
    }
    progress.begin("questions", total=sum(selection.wanted.values()))
    rounds = 0
    while opened := selection.open_cells():
        rounds += 1
        batches = _batches(task, selection, scenes)
        heard = asking.ask(task.writer, [batch.request for batch in batches]) if batches else []
        selection.screen(_candidates(batches, heard, selection, model=label(task.writer)))
        while candidates := selection.next_to_check():
            selection.decide(_checked(task, candidates, asking))
        gained = selection.end_round(opened)
        progress.advance(gained)
        progress.note(f"round {rounds}: {gained} kept, {len(selection.dropped)} dropped so far, {asking.usd:.4f} USD")
    progress.end()
    selection.close()
    dropped = [{**each, "run": task.run} for each in selection.dropped]
    return Made(_lines(task, selection), dropped, selection.lacking(), rounds)


def _batches(task: Task, selection: Selection, scenes: dict[tuple[str, str], _Scenes]) -> list[_Batch]:
    """This round's requests: for each facet, texts of the polarities that lack."""
    wanted_texts = {cell: _texts_to_ask(selection, cell, count) for cell, count in selection.open_cells().items()}
    batches = []
    for description in task.descriptions:
        for facet in description.facets:
            own = scenes[description.dimension, facet.name]
            polarities = _interleaved(
                *(wanted_texts.get(Cell(description.dimension, facet.name, side), 0) for side in (AGREE, DISAGREE))
            )
            for start in range(0, min(len(polarities), BATCH * BATCHES), BATCH):
                part = polarities[start : start + BATCH]
                wanted = slots(part, own.take(len(part)))
                avoid = _to_avoid(task, selection, description, facet, own.rng)
                request = writing_request(description, facet, wanted, avoid=avoid, repeat=own.repeat())
                batches.append(_Batch(description, facet, wanted, request))
    return batches


def _texts_to_ask(selection: Selection, cell: Cell, lacks: int) -> int:
    missing = lacks - len(selection.waiting[cell])
    return 0 if missing <= 0 else max(LEAST, math.ceil(missing * OVER)) * 2 ** selection.dry_rounds(cell)


def _interleaved(agree: int, disagree: int) -> list[int]:
    """Both polarities in turn for as long as there are both."""
    both = min(agree, disagree)
    return [AGREE, DISAGREE] * both + [AGREE] * (agree - both) + [DISAGREE] * (disagree - both)


def _to_avoid(
    task: Task, selection: Selection, description: Description, facet: Facet, rng: np.random.Generator
) -> list[str]:
    """Texts of the facet that exist: half of them the last that were repeated, the rest any."""
    name = (description.dimension, facet.name)
    repeated = list(dict.fromkeys(reversed(selection.twins[name])))[: AVOIDED // 2]
    there = [question.text for question in task.existing if (question.dimension, question.facet) == name]
    there += [each.text for side in (AGREE, DISAGREE) for each in selection.kept[Cell(*name, side)]]
    others = [text for text in there if text not in repeated]
    chosen = rng.permutation(len(others))[: AVOIDED - len(repeated)]
    return [*repeated, *(others[place] for place in sorted(chosen))]


def _candidates(
    batches: Sequence[_Batch], heard: Sequence[Heard], selection: Selection, *, model: str
) -> list[Candidate]:
    """The texts of a round's replies; what cannot be used is dropped, with the reason, at once."""
    candidates = []
    for batch, (reply, at) in zip(batches, heard, strict=True):
        dimension, facet = batch.description.dimension, batch.facet.name
        origin = {"model": model, "prompt_sha256": prompt_hash(batch.request), "made_at": at or None}
        written, lost = read_texts(reply, batch.slots)
        if lost is not None:
            where = {"dimension": dimension, "facet": facet, "polarity": None, "text": None, "texts": len(batch.slots)}
            selection.dropped.append({"reason": lost, **where, **origin})
        for slot, text, reason in written:
            cell = Cell(dimension, facet, slot.polarity)
            if text is None or reason is not None:
                selection.dropped.append({"reason": reason, **cell._asdict(), "text": text, **origin})
            else:
                candidates.append(Candidate(cell, text, model, prompt_hash(batch.request), at))
    return candidates


def _checked(task: Task, candidates: Sequence[Candidate], asking: Asking) -> list[tuple[Candidate, Check, str]]:
    described = {description.dimension: description for description in task.descriptions}
    of = [described[candidate.cell.dimension] for candidate in candidates]
    requests = [checking_request(description, each.text) for description, each in zip(of, candidates, strict=True)]
    heard = asking.ask(task.checker, requests)
    checks = [read_check(reply, description) for (reply, _), description in zip(heard, of, strict=True)]
    return [(each, check, label(task.checker)) for each, check in zip(candidates, checks, strict=True)]


def _lines(task: Task, selection: Selection) -> list[dict[str, Any]]:
    """What was kept as lines of a battery: facet by facet, polarities in turn, ids going on from those that exist."""
    numbering = Numbering(question.question_id for question in task.existing)
    lines = []
    for description in task.descriptions:
        for facet in description.facets:
            agree, disagree = (
                selection.kept[Cell(description.dimension, facet.name, side)] for side in (AGREE, DISAGREE)
            )
            turns = _interleaved(len(agree), len(disagree))
            queues = {AGREE: iter(agree), DISAGREE: iter(disagree)}
            for polarity in turns:
                name = numbering.next(description.id_prefix_of(facet))
                record = next(queues[polarity]).as_record()
                lines.append({"id": name, **record, "checker": label(task.checker), "run": task.run})
    return lines
