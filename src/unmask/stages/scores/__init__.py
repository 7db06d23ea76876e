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
from unmask.errors import ConfigError, listed
from unmask.judges.agreement import agreement_record
from unmask.judges.asking import JUDGEMENTS, Asking, judge_table, open_client, usage_text
from unmask.judges.labels import read_labels
from unmask.judges.local import PREFIX
from unmask.judges.offline import (
    OFFLINE_JUDGE,
    describe_offline,
    judge_offline,
    labelled_path,
    reference_quality,
    train_judge,
    write_offline_judge,
)
from unmask.judges.reference import reference_path
from unmask.llm.client import Prices
from unmask.records import WRITERS
from unmask.rubrics import Rubric, read_rubric
from unmask.stage import Inputs, Result, Stage
from unmask.stages.scores.config import MISALIGNMENT_RUBRICS, OFFLINE, ScoresConfig
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


def rubrics_of(config: ScoresConfig) -> list[Rubric]:
    """The rubrics of model judges, with the subject of the tuning filled in.

    Raises ConfigError where misalignment or coherence would go unscored, for two of one name, and for one that needs a subject
    and has none.
    """
    rubrics = [read_rubric(name) for name in config.rubrics]
    names = [rubric.name for rubric in rubrics]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"two of scores.rubrics are named {twice[0]!r}", mend="Name one of them anew in its file")
    if sum(name in MISALIGNMENT_RUBRICS for name in names) != 1 or "coherence" not in names:
        raise ConfigError(
            f"scores.rubrics is {listed(names)}, and every study needs misalignment and coherence",
            mend=f"Give exactly one of {listed(MISALIGNMENT_RUBRICS)}, and coherence, beside any others",
        )
    if open_ones := [rubric.name for rubric in rubrics if rubric.needs_domain and config.subject is None]:
        raise ConfigError(
            f"rubric {open_ones[0]!r} needs to know what the tuning was about",
            mend="Set scores.subject in the study file, for example: financial advice",
        )
    return [rubric.about(config.subject or "") for rubric in rubrics]


def labels_path(config: ScoresConfig) -> Path:
    """The sheet of people's scores. Raises ConfigError where there is no such file."""
    path = Path(config.human_labels or "").expanduser()
    if not path.is_file():
        raise ConfigError(
            f"scores.human_labels is {config.human_labels}, and there is no such file",
            mend="Name the sheet, or make one: unmask judge STUDY --export-labels FILE.csv",
        )
    return path


def asking_of(config: ScoresConfig) -> Asking:
    prices = None if config.prices is None else Prices(config.prices.prompt, config.prices.completion)
    return Asking(config.readout, config.concurrency, config.max_usd, prices)


def external(config: ScoresConfig, study_folder: Path) -> dict[str, str]:
    found = {"labelled_answers": digest_file(labelled_path()), "reference_answers": digest_file(reference_path())}
    if config.models:
        found["rubrics"] = digest_json([rubric.model_dump(mode="json") for rubric in map(read_rubric, config.rubrics)])
    if config.human_labels is not None:
        found["human_labels"] = digest_file(labels_path(config))
    return found


def run(config: ScoresConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.encoder import load_encoder

    table = _join(inputs)
    rng = np.random.default_rng(config.seed)
    inputs.progress.begin("judging offline", total=2)
    encoder = load_encoder()
    fit, quality, labels = train_judge(encoder, inverse_penalty=config.inverse_penalty, rng=rng)
    inputs.progress.advance()
    answers = table["question"].tolist(), table["text"].tolist()
    offline = judge_offline(fit, encoder, *answers, table["perplexity"].tolist())
    inputs.progress.advance()
    inputs.progress.end()
    own = table.assign(
        misalignment=[j.misalignment for j in offline],
        coherence=[j.coherence for j in offline],
        missing_reason=[j.missing_reason for j in offline],
    )
    judgements, usage = _all_judgements(config, inputs, own)
    scores = (own if config.judge == OFFLINE else _of_judge(config, own, judgements))[SCHEMA.names]
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
    judged = f"{OFFLINE_JUDGE}, AUC {quality.auc:.2f} with whole dimensions held out"
    return Result(
        {
            "judge": judged if config.judge == OFFLINE else config.judge,
            **usage,
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


def _join(inputs: Inputs) -> pd.DataFrame:
    """One row per response: its question, text, log-odds and perplexity under the base model."""
    table = answers_of(inputs.folders, rebuild=inputs.rebuild)
    readings = read_table(inputs.folders["activations"] / "readings.parquet", rebuild=f"{inputs.rebuild} activations")
    table = table.merge(readings.drop(columns="tokens"), on="response_id", validate="one_to_one")
    return table.assign(perplexity=np.exp(-table["log_prob_base"]))


def _all_judgements(config: ScoresConfig, inputs: Inputs, own: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every judge's judgements, the offline one's first, and what asking came to."""
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "response_id": own["response_id"],
                "judge": OFFLINE_JUDGE,
                "rubric": rubric,
                "score": own[rubric].astype(float),
                "readout": readout,
                "missing_reason": own["missing_reason"],
                "raw": None,
            }
        )
        for rubric, readout in (("misalignment", "classifier"), ("coherence", "heuristic"))
    ]
    usage: dict[str, str] = {}
    for name in config.models:
        with open_client(name, asking_of(config)) as client:
            parts.append(
                judge_table(
                    client,
                    rubrics_of(config),
                    own,
                    asking=asking_of(config),
                    seed=config.seed,
                    progress=inputs.progress,
                )
            )
            usage[f"requests to {name}"] = usage_text(client.meter)
    if config.human_labels is not None:
        rows = read_labels(labels_path(config), own["response_id"].tolist())
        parts.append(rows.assign(readout="person", missing_reason=None, raw=None))
    return pd.concat(parts, ignore_index=True)[JUDGEMENTS.names], usage


def _alike(judgements: pd.DataFrame) -> pd.DataFrame:
    """Scores of `alignment`, turned round already, beside those of `misalignment`."""
    return judgements.replace({"rubric": dict.fromkeys(MISALIGNMENT_RUBRICS, MISALIGNMENT_RUBRICS[0])})


def _of_judge(config: ScoresConfig, own: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """The table of scores with those of the judge that counts."""
    part = judgements[judgements["judge"] == config.judge]
    bad = part[part["rubric"].isin(MISALIGNMENT_RUBRICS)].set_index("response_id")
    clear = part[part["rubric"] == "coherence"].set_index("response_id")
    order = own["response_id"]
    return own.assign(
        misalignment=bad["score"].reindex(order).to_numpy(),
        coherence=clear["score"].reindex(order).to_numpy(),
        missing_reason=bad["missing_reason"].reindex(order).to_numpy(),
    )


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
    "scores", "judge the responses", 2, ScoresConfig, ("questions", "responses", "activations"), False, run, external
)
