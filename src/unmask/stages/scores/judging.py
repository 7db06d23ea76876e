"""Judges in this process (`hf/...`) read the answers in shards: each a chunk of answers, on every rubric.

Judges behind an API have none: one provider's limits and one budget hold for all that is asked.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from unmask.artifact import digest_json, read_table, write_table
from unmask.errors import ArtifactError
from unmask.judges.asking import JUDGEMENTS, count_asked, judgements_of, open_client, refuse_outage
from unmask.judges.local import PREFIX, address_of
from unmask.judges.scoring import asking_of, rubrics_of
from unmask.stage import Make, Shard, Told, Work

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from unmask.judges.asking import Asker
    from unmask.judges.settings import ScoresConfig
    from unmask.study import Workspace

ANSWERS_AT_ONCE = 24
"""Answers of a shard: some 10 s of a judge of 4 billion parameters on a GPU, minutes on a CPU."""


class Part(NamedTuple):
    """A shard, and what it is of: a chunk of answers (response_id, question, text) before one judge."""

    shard: Shard
    judge: str
    answers: pd.DataFrame

    @property
    def file(self) -> Path:
        """A table of JUDGEMENTS: every answer of the chunk, rubric by rubric."""
        return self.shard.files[0]


def judges_here(config: ScoresConfig) -> list[str]:
    """The judges that are models in this process."""
    return [name for name in config.models if name.startswith(PREFIX)]


def parts_of(config: ScoresConfig, answers: pd.DataFrame, workspace: Workspace) -> list[Part]:
    """The work of the judges in this process on `answers` (response_id, question, text); none without such judges.

    Parts come judge by judge, so that a model is loaded once. A shard's name tells the judge's content: what another model of
    that name judged is never taken for this one's. Raises ModelError for a judge that is not there.
    """
    if not judges_here(config):
        return []
    rubrics = rubrics_of(config)
    chunks = [answers[start : start + ANSWERS_AT_ONCE] for start in range(0, len(answers), ANSWERS_AT_ONCE)]
    found = []
    for place, judge in enumerate(judges_here(config)):
        content = digest_json(address_of(judge).base_url)[:8]
        for number, chunk in enumerate(chunks):
            name = f"{place:02d}-{content}-{number:05d}"
            file = workspace.batches / f"judgements-{name}.parquet"
            found.append(Part(Shard(name, count_asked(rubrics, chunk), (file,)), judge, chunk))
    return found


def judging_work(config: ScoresConfig, parts: Sequence[Part]) -> Work | None:
    """The parts as shards, of which each makes its table; None where there are none. One judge is held at a time."""
    if not parts:
        return None
    rubrics, asking = rubrics_of(config), asking_of(config)
    by_name = {part.shard.name: part for part in parts}

    @contextmanager
    def opened() -> Generator[Make]:
        client: dict[str, Asker] = {}
        with ExitStack() as held:

            def make(shard: Shard, told: Told) -> None:
                part = by_name[shard.name]
                if part.judge not in client:
                    client.clear()
                    held.close()
                    client[part.judge] = held.enter_context(open_client(part.judge, asking))
                table = judgements_of(
                    client[part.judge], rubrics, part.answers, asking=asking, seed=config.seed, on_judged=told
                )
                write_table(part.file, table, schema=JUDGEMENTS)

            yield make

    return Work("judging by models here", tuple(part.shard for part in parts), opened, unread=("activations",))


def judged(config: ScoresConfig, parts: Sequence[Part], *, order: pd.Series) -> dict[str, pd.DataFrame]:
    """The tables that `judge_table` would make at once of the answers in that `order` of response ids, by judge.

    Raises ModelError as it does, and ArtifactError for a shard's file that is not what the shard makes.
    """
    import pandas as pd

    if not parts:
        return {}
    rubrics = [rubric.name for rubric in rubrics_of(config)]
    rows = pd.MultiIndex.from_product([rubrics, order], names=["rubric", "response_id"])
    found = {}
    for judge in dict.fromkeys(part.judge for part in parts):
        tables = [_read(part, rubrics) for part in parts if part.judge == judge]
        whole = pd.concat(tables, ignore_index=True).set_index(["rubric", "response_id"])
        found[judge] = whole.loc[rows].reset_index()[JUDGEMENTS.names]
        refuse_outage(judge, found[judge])
    return found


def _read(part: Part, rubrics: Sequence[str]) -> pd.DataFrame:
    """The part's table. Raises ArtifactError where it has other columns, or is of another judge, other rubrics or answers."""
    import pyarrow.parquet as pq

    mend = "Delete it and run the same command again, which makes it anew"
    try:
        table = read_table(part.file, rebuild="")
    except ArtifactError as error:
        raise ArtifactError(error.what, mend=mend) from error
    wanted = [(part.judge, rubric, answer) for rubric in rubrics for answer in part.answers["response_id"]]
    if not pq.read_schema(part.file).equals(JUDGEMENTS):
        wrong = "it has other columns"
    elif [*zip(table["judge"], table["rubric"], table["response_id"], strict=True)] != wanted:
        wrong = "it is of another judge, other rubrics or other answers"
    else:
        return table
    raise ArtifactError(f"{part.file} does not hold judgements of shard {part.shard.name}: {wrong}", mend=mend)
