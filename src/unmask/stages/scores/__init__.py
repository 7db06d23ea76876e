"""Stage `scores`: judges read every response of both models; persona log-odds stand beside their scores.

The offline judge always reads; model judges and people's labels join it where the study file names them. The scores that count
are those of `scores.judge`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.artifact import digest_file, digest_json, read_table, write_json, write_table
from unmask.judges.agreement import agreement_record
from unmask.judges.asking import JUDGEMENTS, open_client
from unmask.judges.local import PREFIX
from unmask.judges.offline import (
    OFFLINE_JUDGE,
    describe_offline,
    labelled_path,
    reference_quality,
    train_judge,
    write_offline_judge,
)
from unmask.judges.reference import reference_path
from unmask.judges.scoring import asking_of, labels_path, rubrics_of, score_answers
from unmask.judges.settings import MISALIGNMENT_RUBRICS, OFFLINE, ScoresConfig
from unmask.records import WRITERS
from unmask.rubrics import read_rubric
from unmask.stage import Inputs, Result, Stage, Work
from unmask.stages.scores.judging import judged, judges_here, judging_work, parts_of
from unmask.stages.scores.summary import summarise
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = pa.schema(
    [
        ("response_id", pa.string()),
        ("question_id", pa.string()),
        ("dimension", pa.string()),
        ("facet", pa.string()),
        ("writer", pa.string()),
        ("misalignment", pa.float64()),
        ("coherence", pa.float64()),
        ("log_odds", pa.float64()),
        ("perplexity", pa.float64()),
        ("missing_reason", pa.string()),
    ]
)
MODEL_NOTE = (
    "The judge is a language model: `unmask judge --validate` measures it on labelled answers. How well it judges this "
    "study's own answers only people's labels can tell."
)


def check(config: ScoresConfig) -> None:
    """Find out what is wrong with the judges before anything runs. Raises ConfigError for a missing key, too."""
    rubrics_of(config)
    if config.human_labels is not None:
        labels_path(config)
    for name in config.models:
        with open_client(name, asking_of(config)):
            pass


def external(config: ScoresConfig, study_folder: Path) -> dict[str, str]:
    found = {"labelled_answers": digest_file(labelled_path()), "reference_answers": digest_file(reference_path())}
    if config.models:
        found["rubrics"] = digest_json([rubric.model_dump(mode="json") for rubric in map(read_rubric, config.rubrics)])
    if config.human_labels is not None:
        found["human_labels"] = digest_file(labels_path(config))
    return found


def work(config: ScoresConfig, inputs: Inputs, workspace: Workspace) -> Work | None:
    """Chunks of answers before each judge in this process; None where there is no such judge."""
    if not judges_here(config):
        return None
    answers = answers_of(inputs.folders, rebuild=inputs.rebuild)
    return judging_work(config, parts_of(config, answers, workspace))


def run(config: ScoresConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.encoder import load_encoder

    answers = answers_of(inputs.folders, rebuild=inputs.rebuild)
    table = _with_readings(answers, inputs)
    parts = parts_of(config, answers, workspace)
    shared = judging_work(config, parts)
    if shared is not None:
        shared.finish(inputs.progress)
    of_shards = judged(config, parts, order=table["response_id"])
    rng = np.random.default_rng(config.seed)
    inputs.progress.begin("training the offline judge", total=1)
    encoder = load_encoder()
    fit, quality, labels = train_judge(encoder, inverse_penalty=config.inverse_penalty, rng=rng)
    inputs.progress.advance()
    inputs.progress.end()
    scored = score_answers(config, table, fit=fit, encoder=encoder, progress=inputs.progress, judged=of_shards)
    scores, judgements = scored.scores[SCHEMA.names], scored.judgements
    write_table(workspace.out / "scores.parquet", scores, schema=SCHEMA)
    write_table(workspace.out / "judgements.parquet", judgements, schema=JUDGEMENTS)
    write_json(workspace.out / "agreement.json", agreement_record(_alike(judgements), table))
    write_offline_judge(workspace.out, fit)
    offline_record = describe_offline(quality, labels, reference_quality(fit, encoder))
    write_json(
        workspace.out / "judge.json",
        offline_record if config.judge == OFFLINE else _describe_model(config, offline_record),
    )
    summary = summarise(scores, config, rng, judgements=judgements)
    write_json(workspace.out / "summary.json", summary)
    overall = summary["overall"]
    by_offline = f"{OFFLINE_JUDGE}, AUC {quality.auc:.2f} with whole dimensions held out"
    return Result(
        {
            "judge": by_offline if config.judge == OFFLINE else config.judge,
            **scored.usage,
            "misalignment": {w: _round(overall[f"{w}_mean"]) for w in WRITERS},
            "difference": None
            if overall["difference"] is None
            else {k: _round(v) for k, v in overall["difference"].items()},
            "missing": {w: overall[f"missing_{w}"] for w in WRITERS},
            "effect": summary["effect_text"],
        }
    )


def answers_of(folders: Any, *, rebuild: str) -> pd.DataFrame:
    """Every response with its question: response_id, question_id, dimension, facet, question, writer, text."""
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    named = questions.rename(columns={"text": "question"})[["question_id", "dimension", "facet", "question"]]
    return responses.merge(named, on="question_id", validate="many_to_one")


def _with_readings(answers: pd.DataFrame, inputs: Inputs) -> pd.DataFrame:
    """The answers with log-odds and perplexity under the base model."""
    readings = read_table(inputs.folders["activations"] / "readings.parquet", rebuild=f"{inputs.rebuild} activations")
    table = answers.merge(readings.drop(columns="tokens"), on="response_id", validate="one_to_one")
    return table.assign(perplexity=np.exp(-table["log_prob_base"]))


def _alike(judgements: pd.DataFrame) -> pd.DataFrame:
    """Scores of `alignment`, turned round already, beside those of `misalignment`."""
    return judgements.replace({"rubric": dict.fromkeys(MISALIGNMENT_RUBRICS, MISALIGNMENT_RUBRICS[0])})


def _describe_model(config: ScoresConfig, offline: dict[str, Any]) -> dict[str, Any]:
    rubrics = rubrics_of(config)
    return {
        "judge": config.judge,
        "labels": None,
        "auc": None,
        "auc_interval": None,
        "auc_by_dimension": {},
        "readout": "choice" if config.judge.startswith(PREFIX) else config.readout,
        "rubrics": [{"name": rubric.name, "version": rubric.version} for rubric in rubrics],
        "note": MODEL_NOTE,
        "offline": offline,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


STAGE = Stage(
    "scores",
    "judge the responses",
    3,
    ScoresConfig,
    ("questions", "responses", "activations"),
    False,
    run,
    external,
    work=work,
    runs_models=True,
)
