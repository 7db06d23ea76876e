"""Stage `questions`: choose the questions of this study from a battery, balanced over facets and polarities."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from unmask.artifact import digest_file, write_table
from unmask.battery import battery_path, read_battery
from unmask.errors import ConfigError, listed
from unmask.records import NEUTRAL, Question
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import Workspace

SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dimension", pa.string()),
        ("facet", pa.string()),
        ("polarity", pa.int8()),
        ("text", pa.string()),
    ]
)


class QuestionsConfig(StageConfig):
    """Which questions are asked."""

    battery: str = Field("assessment", description="packaged battery or path of a JSONL file")
    neutral_battery: str | None = Field("neutral", description="asked and scored, never decomposed; null for none")
    dimensions: tuple[str, ...] | None = Field(None, description="only these dimensions; null for all")
    per_dimension: int | None = Field(None, ge=1, description="questions per dimension; null for all")
    neutral_count: int | None = Field(None, ge=0, description="questions of the neutral battery; null for all")
    seed: int = 0


def resolve(name: str, study_folder: Path) -> Path:
    """A battery's path: packaged, relative to the study, or relative to the working directory."""
    inside = study_folder / name
    return inside if inside.is_file() else battery_path(name)


def external(config: QuestionsConfig, study_folder: Path) -> dict[str, str]:
    names = [config.battery, *([config.neutral_battery] if config.neutral_battery else [])]
    return {f"battery:{index}": digest_file(resolve(name, study_folder)) for index, name in enumerate(names)}


def select(config: QuestionsConfig, study_folder: Path) -> list[Question]:
    """The questions that `config` chooses, in the battery's order.

    Raises ConfigError when a dimension is unknown or holds fewer questions than asked for, or when the neutral battery
    does not go with the battery.
    """
    questions = read_battery(resolve(config.battery, study_folder))
    known = list(dict.fromkeys(question.dimension for question in questions))
    wanted = config.dimensions or tuple(known)
    for dimension in wanted:
        if dimension not in known:
            raise ConfigError(
                f"questions.dimensions names {dimension!r}, which battery {config.battery!r} lacks",
                mend=f"Choose from: {listed(known)}",
            )
    rng = np.random.default_rng(config.seed)
    taken: set[Question] = set()
    for dimension in known:
        if dimension in wanted:
            pool = [question for question in questions if question.dimension == dimension]
            taken.update(pool if config.per_dimension is None else balanced(pool, config.per_dimension, rng))
    chosen = [question for question in questions if question in taken]
    if config.neutral_battery and config.neutral_count != 0:
        neutral = read_battery(resolve(config.neutral_battery, study_folder))
        _check_neutral(config, questions, neutral)
        chosen += neutral if config.neutral_count is None else balanced(neutral, config.neutral_count, rng)
    return chosen


def _check_neutral(config: QuestionsConfig, questions: list[Question], neutral: list[Question]) -> None:
    """Raises ConfigError when a neutral question would be decomposed, or has the id of another question."""
    for question in neutral:
        if question.dimension != NEUTRAL:
            raise ConfigError(
                f"question {question.question_id!r} of neutral battery {config.neutral_battery!r} has dimension "
                f"{question.dimension!r}",
                mend=f"Write dimension {NEUTRAL!r} there, or ask it as a part of questions.battery",
            )
    shared = {question.question_id for question in questions} & {question.question_id for question in neutral}
    if shared:
        raise ConfigError(
            f"batteries {config.battery!r} and {config.neutral_battery!r} both have a question {min(shared)!r}",
            mend="Give every question its own id, or set questions.neutral_battery to null",
        )


def balanced(pool: list[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """`count` questions of `pool`, spread evenly over facets and, within a facet, over polarities, at random within those.

    Raises ConfigError when the pool is smaller than `count`.
    """
    if count > len(pool):
        raise ConfigError(
            f"{count} questions are asked of dimension {pool[0].dimension!r}, which has {len(pool)}",
            mend="Lower questions.per_dimension (or neutral_count), or set it to null for all",
        )
    cells: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index in rng.permutation(len(pool)):
        cells[pool[index].facet, pool[index].polarity].append(int(index))
    taken: list[int] = []
    of_facet: Counter[str] = Counter()
    of_cell: Counter[tuple[str, int]] = Counter()
    while len(taken) < count:
        open_cells = [cell for cell in cells if cells[cell]]
        cell = min(open_cells, key=lambda cell: (of_facet[cell[0]], of_cell[cell], -cell[1], cell[0]))
        taken.append(cells[cell].pop())
        of_facet[cell[0]] += 1
        of_cell[cell] += 1
    return [pool[index] for index in sorted(taken)]


def run(config: QuestionsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    questions = select(config, inputs.study_folder)
    rows = [{name: getattr(question, name) for name in SCHEMA.names} for question in questions]
    write_table(workspace.out / "questions.parquet", rows, schema=SCHEMA)
    counts = Counter(question.dimension for question in questions)
    neutral = counts.pop(NEUTRAL, 0)
    return Result({"questions": sum(counts.values()), "neutral": neutral, "by_dimension": dict(sorted(counts.items()))})


STAGE = Stage("questions", "choose questions", 1, QuestionsConfig, (), False, run, external)
