"""The answers to be made, cut into batches that survive a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unmask.artifact import read_table
from unmask.records import WRITERS, Response, Writer
from unmask.stages.responses.config import SCHEMA, ResponsesConfig
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.generation import Generated

Plan = list[list[tuple[int, int]]]
"""Batches of jobs: (row of the prompts, sample)."""


class Job(NamedTuple):
    """One answer to be made."""

    question_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    seed: int

    def response_id(self, writer: Writer) -> str:
        return f"{self.question_id}/{self.sample}/{writer}"


def sample_seed(seed: int, question_id: str, sample: int) -> int:
    """The seed of one answer: the same for both models, independent of which other questions are asked."""
    digest = hashlib.sha256(f"{seed}/{question_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def plan_jobs(config: ResponsesConfig, prompts: pd.DataFrame, dimension_of: Mapping[str, str]) -> Plan:
    """Batches of (row of `prompts`, sample), by falling length: the slowest first, so that an ETA errs on the long side."""
    samples = [config.samples_of(dimension_of[identity]) for identity in prompts["question_id"]]
    jobs = [(row, sample) for row, count in enumerate(samples) for sample in range(count)]
    lengths = [len(ids) for ids in prompts["token_ids"]]
    jobs.sort(key=lambda job: (-lengths[job[0]], job))
    return [jobs[start : start + config.batch_size] for start in range(0, len(jobs), config.batch_size)]


def prompts_path(workspace: Workspace) -> Path:
    """Where the prompts are kept that were rendered once: a run that goes on asks what the first one asked."""
    return workspace.batches / "prompts.parquet"


def batch_path(workspace: Workspace, writer: Writer, number: int) -> Path:
    return workspace.batches / f"{writer}-{number:05d}.parquet"


def answered_already(plan: Plan, workspace: Workspace) -> int:
    return sum(
        len(batch) for w in WRITERS for number, batch in enumerate(plan) if batch_path(workspace, w, number).is_file()
    )


def waiting_batches(plan: Plan, workspace: Workspace, *writers: Writer) -> list[int]:
    """Batches that one of the writers has not answered yet."""
    return [
        number
        for number in range(len(plan))
        if not all(batch_path(workspace, writer, number).is_file() for writer in writers)
    ]


def jobs_of(config: ResponsesConfig, prompts: pd.DataFrame, batch: list[tuple[int, int]]) -> list[Job]:
    found = []
    for row, sample in batch:
        identity = str(prompts["question_id"][row])
        ids = tuple(int(token) for token in prompts["token_ids"][row])
        found.append(Job(identity, sample, ids, sample_seed(config.seed, identity, sample)))
    return found


def rows_of(tokenizer: Any, writer: Writer, jobs: list[Job], answers: list[Generated]) -> list[dict[str, Any]]:
    rows = []
    for job, answer in zip(jobs, answers, strict=True):
        response = Response(
            response_id=job.response_id(writer),
            question_id=job.question_id,
            sample=job.sample,
            writer=writer,
            text=str(tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)).strip(),
            token_ids=answer.token_ids,
            stop_reason=answer.stop_reason,
            seed=job.seed,
        )
        rows.append(
            {name: getattr(response, name) for name in SCHEMA.names if name != "tokens"}
            | {"token_ids": list(response.token_ids), "tokens": len(response.token_ids)}
        )
    return rows


def gathered(workspace: Workspace, plan: Plan, *, order: dict[str, int]) -> pd.DataFrame:
    import pandas as pd

    parts = [
        read_table(batch_path(workspace, writer, number), rebuild="unmask run STUDY --force responses")
        for writer in WRITERS
        for number in range(len(plan))
    ]
    responses = pd.concat(parts, ignore_index=True)
    responses["_order"] = responses["question_id"].map(order)
    return responses.sort_values(["_order", "sample", "writer"], ignore_index=True).drop(columns="_order")
