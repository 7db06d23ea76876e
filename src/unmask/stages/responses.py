"""Stage `responses`: both models answer every question behind the identical prompt, with the same seeds and sampling."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import Field

from unmask.artifact import read_table, write_table
from unmask.records import WRITERS, Response, Sampling, Writer
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel

SCHEMA = pa.schema(
    [
        ("response_id", pa.string()),
        ("question_id", pa.string()),
        ("sample", pa.int32()),
        ("writer", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("stop_reason", pa.string()),
        ("seed", pa.int64()),
    ]
)
PROMPT_SCHEMA = pa.schema([("question_id", pa.string()), ("text", pa.string()), ("token_ids", pa.list_(pa.int32()))])


class ResponsesConfig(StageConfig):
    """How answers are drawn. Defaults: the Qwen3 non-thinking settings that the reference study used."""

    samples: int = Field(1, ge=1, description="responses per question and model")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(0.8, gt=0, le=1)
    top_k: int = Field(20, ge=0, description="0 switches the filter off")
    max_new_tokens: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1)
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)


def sample_seed(seed: int, question_id: str, sample: int) -> int:
    """The seed of one answer: the same for both models, independent of which other questions are asked."""
    digest = hashlib.sha256(f"{seed}/{question_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def run(config: ResponsesConfig, inputs: Inputs, workspace: Workspace) -> Result:
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{inputs.rebuild} questions")
    kept = workspace.batches / "prompts.parquet"  # rendered once: a run that goes on asks what the first one asked
    if not kept.is_file():
        write_table(kept, _render(inputs, questions), schema=PROMPT_SCHEMA)
    prompts = read_table(kept, rebuild=f"{inputs.rebuild} responses")
    plan = _plan(config, prompts)
    inputs.progress.begin("answering", total=len(WRITERS) * config.samples * len(prompts), done=_done(plan, workspace))
    for writer in WRITERS:
        _answer(config, inputs, workspace, writer=writer, prompts=prompts, plan=plan)
    inputs.progress.end()
    responses = _collect(
        workspace, plan, order={identity: index for index, identity in enumerate(prompts["question_id"])}
    )
    write_table(workspace.out / "responses.parquet", responses, schema=SCHEMA)
    write_table(workspace.out / "prompts.parquet", prompts, schema=PROMPT_SCHEMA)
    cut = responses["stop_reason"] == "length"
    return Result(
        {
            "responses": len(responses),
            "median_tokens": {w: int(responses.loc[responses["writer"] == w, "tokens"].median()) for w in WRITERS},
            "cut_at_limit": {w: int((cut & (responses["writer"] == w)).sum()) for w in WRITERS},
        }
    )


def _render(inputs: Inputs, questions: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    from unmask.models.loading import load_tokenizer
    from unmask.models.prompts import render_question

    tokenizer = load_tokenizer(inputs.base)
    rendered = [render_question(tokenizer, text, inputs.prompt_format) for text in questions["text"]]
    return pd.DataFrame(
        {
            "question_id": questions["question_id"],
            "text": [prompt.text for prompt in rendered],
            "token_ids": [list(prompt.token_ids) for prompt in rendered],
        }
    )


def _plan(config: ResponsesConfig, prompts: pd.DataFrame) -> list[list[tuple[int, int]]]:
    """Batches of (row of `prompts`, sample), by falling length: the slowest first, so that an ETA errs on the long side."""
    jobs = [(row, sample) for row in range(len(prompts)) for sample in range(config.samples)]
    lengths = [len(ids) for ids in prompts["token_ids"]]
    jobs.sort(key=lambda job: (-lengths[job[0]], job))
    return [jobs[start : start + config.batch_size] for start in range(0, len(jobs), config.batch_size)]


def _batch_path(workspace: Workspace, writer: Writer, number: int) -> Path:
    return workspace.batches / f"{writer}-{number:05d}.parquet"


def _done(plan: list[list[tuple[int, int]]], workspace: Workspace) -> int:
    return sum(
        len(batch) for w in WRITERS for number, batch in enumerate(plan) if _batch_path(workspace, w, number).is_file()
    )


def _answer(
    config: ResponsesConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    writer: Writer,
    prompts: pd.DataFrame,
    plan: list[list[tuple[int, int]]],
) -> None:
    from unmask.models.generation import generate

    waiting = [number for number in range(len(plan)) if not _batch_path(workspace, writer, number).is_file()]
    if not waiting:
        return
    loaded = _load(inputs, writer)
    for number in waiting:
        batch = plan[number]
        seeds = [sample_seed(config.seed, str(prompts["question_id"][row]), sample) for row, sample in batch]
        answers = generate(
            loaded, [list(prompts["token_ids"][row]) for row, _ in batch], sampling=config.sampling, seeds=seeds
        )
        rows = []
        for (row, sample), seed, answer in zip(batch, seeds, answers, strict=True):
            identity = str(prompts["question_id"][row])
            response = Response(
                response_id=f"{identity}/{sample}/{writer}",
                question_id=identity,
                sample=sample,
                writer=writer,
                text=str(loaded.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)).strip(),
                token_ids=answer.token_ids,
                stop_reason=answer.stop_reason,
                seed=seed,
            )
            rows.append(
                {name: getattr(response, name) for name in SCHEMA.names if name != "tokens"}
                | {"token_ids": list(response.token_ids), "tokens": len(response.token_ids)}
            )
        write_table(_batch_path(workspace, writer, number), rows, schema=SCHEMA)
        inputs.progress.advance(len(batch))


def _load(inputs: Inputs, writer: Writer) -> LoadedModel:
    from unmask.models.loading import load_base, load_organism, organism_source

    if writer == "base":
        return load_base(inputs.base, progress=inputs.progress)
    return load_organism(inputs.base, organism_source(inputs.folders["organism"]))


def _collect(workspace: Workspace, plan: list[list[tuple[int, int]]], *, order: dict[str, int]) -> pd.DataFrame:
    import pandas as pd

    parts = [
        read_table(_batch_path(workspace, writer, number), rebuild="unmask run STUDY --force responses")
        for writer in WRITERS
        for number in range(len(plan))
    ]
    responses = pd.concat(parts, ignore_index=True)
    responses["_order"] = responses["question_id"].map(order)
    return responses.sort_values(["_order", "sample", "writer"], ignore_index=True).drop(columns="_order")


STAGE = Stage("responses", "answer the questions", 1, ResponsesConfig, ("questions", "organism"), True, run)
