"""Stage `responses`: both models answer every question behind the identical prompt, with the same seeds and sampling.

Where what the study collects can be read on the way, both models read both answers in the same
breath: see `collection.Recorded`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.artifact import read_table, write_table
from unmask.records import WRITERS
from unmask.stage import Inputs, Result, Stage
from unmask.stages.responses.config import PROMPT_SCHEMA, SCHEMA, ResponsesConfig
from unmask.stages.responses.jobs import answered_already, gathered, plan_jobs, sample_seed
from unmask.stages.responses.writing import answer_alone, answer_and_read_all, answer_with_vllm, recording_of
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROMPT_SCHEMA", "SCHEMA", "STAGE", "ResponsesConfig", "run", "sample_seed"]


def run(config: ResponsesConfig, inputs: Inputs, workspace: Workspace) -> Result:
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{inputs.rebuild} questions")
    kept = workspace.batches / "prompts.parquet"  # rendered once: a run that goes on asks what the first one asked
    if not kept.is_file():
        write_table(kept, render(inputs, questions), schema=PROMPT_SCHEMA)
    prompts = read_table(kept, rebuild=f"{inputs.rebuild} responses")
    plan = plan_jobs(config, prompts, dict(zip(questions["question_id"], questions["dimension"], strict=True)))
    recording = recording_of(config, inputs, workspace, anew=not answered_already(plan, workspace))
    title = "answering" if recording is None else "answering and reading"
    inputs.progress.begin(title, total=len(WRITERS) * sum(map(len, plan)), done=answered_already(plan, workspace))
    if config.engine == "vllm":
        answer_with_vllm(config, inputs, workspace, prompts=prompts, plan=plan)
    elif recording is None:
        for writer in WRITERS:
            answer_alone(config, inputs, workspace, writer=writer, prompts=prompts, plan=plan)
    else:
        answer_and_read_all(config, inputs, workspace, recording=recording, prompts=prompts, plan=plan)
    inputs.progress.end()
    responses = gathered(
        workspace, plan, order={identity: index for index, identity in enumerate(prompts["question_id"])}
    )
    write_table(workspace.out / "responses.parquet", responses, schema=SCHEMA)
    write_table(workspace.out / "prompts.parquet", prompts, schema=PROMPT_SCHEMA)
    if recording is not None:
        recording.recorded.finish(workspace.out / "responses.parquet")
    cut = responses["stop_reason"] == "length"
    return Result(
        {
            "responses": len(responses),
            "median_tokens": {w: int(responses.loc[responses["writer"] == w, "tokens"].median()) for w in WRITERS},
            "cut_at_limit": {w: int((cut & (responses["writer"] == w)).sum()) for w in WRITERS},
        }
    )


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


STAGE = Stage("responses", "answer the questions", 3, ResponsesConfig, ("questions", "organism"), True, run)
