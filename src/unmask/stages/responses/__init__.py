"""Stage `responses`: both models answer every question behind the identical prompt, with the same seeds and sampling.

Where what the study collects can be read on the way, both models read both answers in the same
breath: see `collection.Recorded`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.artifact import read_table, write_table
from unmask.devices import device_of, devices_of
from unmask.records import WRITERS
from unmask.stage import Inputs, Result, Stage, Work
from unmask.stages.responses.config import PROMPT_SCHEMA, SCHEMA, ResponsesConfig
from unmask.stages.responses.jobs import gathered, plan_jobs, prompts_path, sample_seed
from unmask.stages.responses.writing import Asked, Recording, alone_work, answer_with_vllm, reading_work, recording_of
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROMPT_SCHEMA", "SCHEMA", "STAGE", "ResponsesConfig", "run", "sample_seed"]


def run(config: ResponsesConfig, inputs: Inputs, workspace: Workspace) -> Result:
    asked, recording = _asked(config, inputs, workspace)
    if config.engine == "vllm":
        answer_with_vllm(config, inputs, workspace, asked)
    else:
        _work(config, inputs, workspace, asked, recording).finish(inputs.progress)
    prompts, plan = asked
    responses = gathered(
        workspace, plan, order={identity: index for index, identity in enumerate(prompts["question_id"])}
    )
    write_table(workspace.out / "responses.parquet", responses, schema=SCHEMA)
    write_table(workspace.out / "prompts.parquet", prompts, schema=PROMPT_SCHEMA)
    if recording is not None:
        recording.recorded.finish(
            workspace.out / "responses.parquet", device=device_of(workspace), devices=devices_of(workspace)
        )
    cut = responses["stop_reason"] == "length"
    return Result(
        {
            "responses": len(responses),
            "median_tokens": {w: int(responses.loc[responses["writer"] == w, "tokens"].median()) for w in WRITERS},
            "cut_at_limit": {w: int((cut & (responses["writer"] == w)).sum()) for w in WRITERS},
        }
    )


def work(config: ResponsesConfig, inputs: Inputs, workspace: Workspace) -> Work | None:
    """Batches of answers; None with vLLM, which makes its own."""
    return None if config.engine == "vllm" else _work(config, inputs, workspace, *_asked(config, inputs, workspace))


def _work(
    config: ResponsesConfig, inputs: Inputs, workspace: Workspace, asked: Asked, recording: Recording | None
) -> Work:
    if recording is None:
        return alone_work(config, inputs, workspace, asked)
    return reading_work(config, inputs, workspace, asked, recording)


def _asked(config: ResponsesConfig, inputs: Inputs, workspace: Workspace) -> tuple[Asked, Recording | None]:
    """Prompts, batches and what is read on the way. The first who asks renders the prompts; from then on answers are made."""
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{inputs.rebuild} questions")
    kept = prompts_path(workspace)
    recording = recording_of(config, inputs, workspace, anew=not kept.is_file())
    if not kept.is_file():
        write_table(kept, render(inputs, questions), schema=PROMPT_SCHEMA)
    prompts = read_table(kept, rebuild=f"{inputs.rebuild} responses")
    plan = plan_jobs(config, prompts, dict(zip(questions["question_id"], questions["dimension"], strict=True)))
    return Asked(prompts, plan), recording


def render(inputs: Inputs, questions: pd.DataFrame) -> pd.DataFrame:
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


STAGE = Stage("responses", "answer the questions", 3, ResponsesConfig, ("questions", "organism"), True, run, work=work)
