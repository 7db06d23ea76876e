"""All artifacts of a study, loaded once and checked: what every part of the report reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import read_json, read_table
from unmask.errors import ArtifactError, listed
from unmask.records import NEUTRAL
from unmask.report.causal_evidence import TABLES as CAUSAL_TABLES
from unmask.report.causal_evidence import CausalEvidence
from unmask.report.schemas import COLUMNS, FIELDS, LISTS, OPTIONAL
from unmask.report.verdict_evidence import VerdictEvidence
from unmask.study import Study

if TYPE_CHECKING:
    import pandas as pd

STAGES = (
    *("questions", "organism", "control", "responses", "activations", "scores"),
    *("decomposition", "directions", "effects", "verdict", "cards", "steering"),
)
"""The stages that the report reads."""

NOT_SHOWN = ("platform", "device", "threads")
"""Parts of a manifest's environment left out of the page: a study's report is the same wherever it is made."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a study has found, as its stages wrote it. `loss` is None for an organism that was not tuned here."""

    questions: pd.DataFrame
    recipe: Mapping[str, Any]
    loss: pd.DataFrame | None
    responses: pd.DataFrame
    scores: pd.DataFrame
    judge: Mapping[str, Any]
    score_summary: Mapping[str, Any]
    agreement: list[dict[str, Any]]
    metrics: pd.DataFrame
    clusters: pd.DataFrame
    cluster_summary: pd.DataFrame
    coordinates: pd.DataFrame
    variance: pd.DataFrame
    decomposition: Mapping[str, Any]
    described: Mapping[str, pd.DataFrame]
    """The tables of `OPTIONAL` that the study holds, by name."""
    control: Mapping[str, Any]
    verdict: VerdictEvidence
    cards: Sequence[Mapping[str, Any]]
    causal: CausalEvidence
    configs: Mapping[str, Mapping[str, Any]]
    stage_versions: Mapping[str, int]
    environment: Mapping[str, str]

    @property
    def dimensions(self) -> list[str]:
        """Dimensions in the battery's order, the neutral battery last."""
        names = list(dict.fromkeys(self.questions["dimension"]))
        return [name for name in names if name != NEUTRAL] + [name for name in names if name == NEUTRAL]

    @property
    def site(self) -> str:
        """The site that the study calls primary."""
        return str(self.decomposition["primary_site"])

    @property
    def k(self) -> int:
        """The number of clusters that the study calls primary."""
        return int(self.decomposition["primary_k"])

    @property
    def has_control(self) -> bool:
        """Whether a control organism was tuned."""
        return str(self.control["kind"]) != "none"

    @property
    def samples(self) -> int:
        """Responses per question and model, neutral ones apart."""
        neutral = self.questions.loc[self.questions["dimension"] == NEUTRAL, "question_id"]
        return int(self.responses.loc[~self.responses["question_id"].isin(neutral), "sample"].nunique())


def read_evidence(folder: Path) -> Evidence:
    """Read every artifact of the study at `folder`.

    Raises ArtifactError, naming the file and the command that rebuilds it, when one is missing, broken or incomplete.
    """
    records = {}
    for stage in STAGES:
        record = Study(folder).record(stage)
        if record is None:
            raise ArtifactError(f"stage {stage!r} of {folder} has not been run", mend=f"Run `unmask run {folder}`")
        records[stage] = record
    trained = (folder / "organism" / "loss.parquet").is_file()
    causal = _causal(folder)
    return Evidence(
        questions=_table(folder, "questions/questions.parquet"),
        recipe=_record(folder, "organism/recipe.json"),
        loss=_table(folder, "organism/loss.parquet") if trained else None,
        responses=_table(folder, "responses/responses.parquet"),
        scores=_table(folder, "scores/scores.parquet"),
        judge=_record(folder, "scores/judge.json"),
        score_summary=_record(folder, "scores/summary.json"),
        agreement=_record(folder, "scores/agreement.json"),
        metrics=_table(folder, "decomposition/metrics.parquet"),
        clusters=_table(folder, "decomposition/clusters.parquet"),
        cluster_summary=_table(folder, "decomposition/cluster_summary.parquet"),
        coordinates=_table(folder, "decomposition/coordinates.parquet"),
        variance=_table(folder, "decomposition/variance.parquet"),
        decomposition=_record(folder, "decomposition/summary.json"),
        described={
            name: _table(folder, f"decomposition/{name}.parquet")
            for name in OPTIONAL
            if (folder / "decomposition" / f"{name}.parquet").is_file()
        },
        control=_record(folder, "control/recipe.json"),
        verdict=_verdict(folder, causal),
        cards=_record(folder, "cards/cards.json"),
        causal=causal,
        configs={stage: record.config for stage, record in records.items()},
        stage_versions={stage: record.version for stage, record in records.items()},
        environment=_environment([record.environment for record in records.values()]),
    )


def _causal(folder: Path) -> CausalEvidence:
    """Directions, their effects, and steered answers."""
    return CausalEvidence(
        **{name: _table(folder, path) for name, path in CAUSAL_TABLES.items()},
        directed=_record(folder, "directions/summary.json"),
        summary=_record(folder, "effects/summary.json"),
        steering=_record(folder, "steering/summary.json"),
    )


def _verdict(folder: Path, causal: CausalEvidence) -> VerdictEvidence:
    """The verdict and its tables. Raises ArtifactError where the record and the tables, or T5's, are not of one piece."""
    names = ("sites", "geometry", "tests", "power", "sensitivity")
    record = _record(folder, "verdict/verdict.json")
    found = VerdictEvidence(record, **{name: _table(folder, f"verdict/{name}.parquet") for name in names})
    wrong = found.fault()
    if wrong is None and record["causal"] != causal.summary["causal"]:
        wrong = "and effects/summary.json differ on the causal test"
    if wrong is not None:
        mend = f"Rebuild it with `{_rebuild(folder, 'verdict/verdict.json')}`"
        raise ArtifactError(f"{folder / 'verdict' / 'verdict.json'} {wrong}", mend=mend)
    return found


def _table(folder: Path, name: str) -> pd.DataFrame:
    rebuild = _rebuild(folder, name)
    table = read_table(folder / name, rebuild=rebuild)
    lacking = [column for column in COLUMNS[name] if column not in table.columns]
    if lacking:
        raise ArtifactError(f"{folder / name} lacks the columns {listed(lacking)}", mend=f"Rebuild it with `{rebuild}`")
    return table


def _record(folder: Path, name: str) -> Any:
    rebuild = _rebuild(folder, name)
    record = read_json(folder / name, rebuild=rebuild)
    each = record if name in LISTS and isinstance(record, list) else [record]
    lacking = [field for field in FIELDS[name] if any(not isinstance(one, dict) or field not in one for one in each)]
    if lacking:
        raise ArtifactError(f"{folder / name} lacks the fields {listed(lacking)}", mend=f"Rebuild it with `{rebuild}`")
    return record


def _rebuild(folder: Path, name: str) -> str:
    return f"unmask run {folder} --force {name.split('/', maxsplit=1)[0]}"


def _environment(environments: list[dict[str, str]]) -> dict[str, str]:
    """One value per key; where stages ran under different versions, all of them, in the order of the stages."""
    keys = sorted({key for environment in environments for key in environment} - set(NOT_SHOWN))
    return {
        key: ", then ".join(dict.fromkeys(str(environment[key]) for environment in environments if key in environment))
        for key in keys
    }
