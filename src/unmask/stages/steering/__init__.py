"""Stage `steering`: models answer while directions are added or taken out, and the study's judge reads what they say.

The dose-response in words, beside the teacher-forced one of the stage `effects`: the base under added directions, the organism
with a direction's component taken out, both also unsteered and under random directions. At the coefficient that `effects` chose
every dimension's direction meets every dimension's questions once more: do judged answers rank these cells as log-odds do?
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.artifact import read_json, read_table, write_json, write_table
from unmask.judges.scoring import digest_judging
from unmask.records import Site
from unmask.stage import Inputs, Result, Stage, Work
from unmask.stages.steering.answering import answered, answering_work, judged
from unmask.stages.steering.config import ANSWERS, CONFIRMATION, DOSES, TRAITS, UNSTEERED, SteeringConfig
from unmask.stages.steering.confirmation import (
    agreement_of_cells,
    agreement_of_doses,
    confirmation_rows,
    selectivity,
)
from unmask.stages.steering.directions import CONTROLS, RANDOM, Chosen, choose_directions
from unmask.stages.steering.points import (
    Asked,
    Point,
    check_questions,
    choose_confirming,
    choose_questions,
    confirmation_points,
    dose_points,
)
from unmask.stages.steering.summary import coherent_window, dose_rows
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ANSWERS", "STAGE", "SteeringConfig", "check_questions", "choose_questions", "external", "run"]


def external(config: SteeringConfig, study_folder: Path) -> dict[str, str]:
    return {"judging": digest_judging(config.scores)}


@dataclass(frozen=True, slots=True)
class _Planned:
    """Every answer that is to be made, and what it is made from."""

    site: Site
    typical_norm: float
    questions: pd.DataFrame
    chosen: Chosen
    points: list[Point]
    dosed: int
    coefficient: float | None
    reason: str | None


def _planned(config: SteeringConfig, inputs: Inputs) -> _Planned:
    from unmask.models.prompts import prompt_ids_by_question

    folders, rebuild = inputs.folders, inputs.rebuild
    extracted = read_json(folders["directions"] / "summary.json", rebuild=f"{rebuild} directions")
    site, typical_norm = Site.parse(extracted["site"]), float(extracted["typical_norm"])
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    prompts = read_table(folders["responses"] / "prompts.parquet", rebuild=f"{rebuild} responses")
    chosen = choose_directions(config, inputs)
    given = {"questions": questions, "ids_of": prompt_ids_by_question(prompts)}
    asked = Asked.of(config, "dose", choose_questions(config, questions, askable=chosen.askable), **given)
    points = dose_points(config, chosen.directions, asked, typical_norm=typical_norm)
    coefficient, reason = confirmed_at(config, inputs, chosen)
    if coefficient is not None:
        confirming = Asked.of(config, "confirmation", choose_confirming(config, questions, chosen), **given)
        points += confirmation_points(chosen, confirming, coefficient=coefficient, typical_norm=typical_norm)
    return _Planned(site, typical_norm, questions, chosen, points, len(asked.questions), coefficient, reason)


def work(config: SteeringConfig, inputs: Inputs, workspace: Workspace) -> Work:
    """Batches of answers under interventions."""
    return _work(config, inputs, workspace, _planned(config, inputs))


def _work(config: SteeringConfig, inputs: Inputs, workspace: Workspace, asked: _Planned) -> Work:
    return answering_work(
        config, inputs, workspace, points=asked.points, site=asked.site, typical_norm=asked.typical_norm
    )


def run(config: SteeringConfig, inputs: Inputs, workspace: Workspace) -> Result:
    folders, rebuild = inputs.folders, inputs.rebuild
    asked = _planned(config, inputs)
    chosen = asked.chosen
    shared = _work(config, inputs, workspace, asked)
    shared.finish(inputs.progress)
    answers = answered(shared.shards, asked.points, rebuild=f"{rebuild} steering")
    answers, traits = judged(config, inputs, answers, asked.questions)
    dosed, confirmed = (answers[answers["part"] == part] for part in ("dose", "confirmation"))
    rows = dose_rows(dosed, chosen.directions, coherent_above=config.coherent_above, seed=config.seed)
    cells, confirmation = _confirmation(
        config, inputs, chosen, confirmed, coefficient=asked.coefficient, reason=asked.reason
    )
    write_table(workspace.out / "answers.parquet", answers, schema=ANSWERS)
    write_table(workspace.out / "traits.parquet", traits, schema=TRAITS)
    write_table(workspace.out / "doses.parquet", rows, schema=DOSES)
    write_table(workspace.out / "confirmation.parquet", cells, schema=CONFIRMATION)
    log_prob = read_table(folders["effects"] / "doses.parquet", rebuild=f"{rebuild} effects")
    summary = {
        "site": asked.site.name,
        "typical_norm": asked.typical_norm,
        "units": config.units,
        "positions": config.positions,
        "coefficients": list(config.coefficients),
        "removals": list(config.removals),
        "questions": asked.dosed,
        "judge": config.scores.judge,
        **_by_target(config, rows),
        "window": coherent_window(rows),
        "coherent_above": config.coherent_above,
        "confirmation": confirmation,
        "agreement": agreement_of_cells(cells, seed=config.seed),
        "agreement_of_doses": agreement_of_doses(
            rows, log_prob[: 0 if config.units == "raw" else None], seed=config.seed
        ),
        "notes": list(chosen.notes),
    }
    write_json(workspace.out / "summary.json", summary)
    return Result(_told(summary, answers, chosen))


def confirmed_at(config: SteeringConfig, inputs: Inputs, chosen: Chosen) -> tuple[float | None, str | None]:
    """The coefficient, in typical norms, at which judged answers are to confirm the log-odds; None with the reason."""
    if not config.confirm_per_group:
        return None, "switched off (steering.confirm_per_group is 0)"
    if not chosen.dimensions:
        return None, "the stage directions made none of dimensions"
    window = read_json(inputs.folders["effects"] / "summary.json", rebuild=f"{inputs.rebuild} effects")["window"]
    coefficient = (window.get("base") or {}).get("chosen")
    if not coefficient:
        return None, "the stage effects found no coefficient at which answers stay coherent"
    return float(coefficient), None


def _confirmation(
    config: SteeringConfig,
    inputs: Inputs,
    chosen: Chosen,
    answers: pd.DataFrame,
    *,
    coefficient: float | None,
    reason: str | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of CONFIRMATION, and the record of the confirmation."""
    record: dict[str, Any] = {"coefficient": coefficient, "reason": reason, "questions": 0, "selectivity": None}
    if coefficient is None:
        return [], record
    matrix = read_table(inputs.folders["effects"] / "matrix.parquet", rebuild=f"{inputs.rebuild} effects")
    cells = confirmation_rows(answers, chosen.dimensions, matrix, coefficient=coefficient, seed=config.seed)
    record["questions"] = int(answers["question_id"].nunique())
    record["selectivity"] = selectivity(answers, chosen.dimensions, seed=config.seed)
    return cells, record


def _by_target(config: SteeringConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Doses of the first target as `rows`, those of any other beside, and the unsteered answers of each."""
    plain = {row["target"]: row for row in rows if row["kind"] == UNSTEERED}
    steered = {
        target: [row for row in rows if row["target"] == target and row is not plain[target]] for target in plain
    }
    first = config.targets[0]
    return {
        "target": first,
        "targets": list(config.targets),
        "rows": steered[first],
        "other_rows": {target: found for target, found in steered.items() if target != first},
        "unsteered": plain[first],
        "unsteered_by_target": plain,
    }


def _told(summary: dict[str, Any], answers: pd.DataFrame, chosen: Chosen) -> dict[str, Any]:
    """For the printed summary: misalignment by target, over all directions and over all random ones at each dose."""
    told: dict[str, Any] = {
        "site": summary["site"],
        "directions": len(chosen.directions),
        "steered_answers": len(answers),
        "judge": summary["judge"],
    }
    for target, plain in summary["unsteered_by_target"].items():
        told[f"misalignment of the {target}, unsteered"] = _rounded([plain["misalignment"]])
        rows = summary["rows"] if target == summary["target"] else summary["other_rows"][target]
        done = "with {:g} of a direction taken out" if target == "organism" else "at coefficient {:g}"
        for coefficient in sorted({row["coefficient"] for row in rows}):
            at = [row for row in rows if row["coefficient"] == coefficient]
            told[f"misalignment of the {target} {done.format(coefficient)}"] = {
                "directions": _rounded([row["misalignment"] for row in at if row["kind"] not in CONTROLS]),
                "random": _rounded([row["misalignment"] for row in at if row["kind"] in RANDOM]),
            }
    told["coherent up to coefficient"] = {name: one["chosen"] for name, one in summary["window"].items()}
    if summary["confirmation"]["reason"] is not None:
        told["not confirmed by judged answers"] = summary["confirmation"]["reason"]
    else:
        told["rank correlation of judged answers and log-odds"] = _rounded([summary["agreement"]["spearman"]], 2)
    if summary["notes"]:
        told["left out"] = "; ".join(summary["notes"])
    return told


def _rounded(values: list[float | None], digits: int = 1) -> float | None:
    present = [value for value in values if value is not None]
    return round(float(np.mean(present)), digits) if present else None


STAGE = Stage(
    "steering",
    "steer with directions",
    2,
    SteeringConfig,
    ("questions", "organism", "responses", "scores", "decomposition", "directions", "effects"),
    True,
    run,
    external,
    work=work,
)
