"""All artifacts of a study, loaded once and checked: what every part of the report reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import read_json, read_table
from unmask.errors import ArtifactError, listed
from unmask.records import NEUTRAL
from unmask.study import Study

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("questions", "organism", "responses", "activations", "scores", "decomposition", "steering")
"""The stages that the report reads."""

NOT_SHOWN = ("platform", "device", "threads")
"""Parts of a manifest's environment left out of the page: a study's report is the same wherever it is made."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "questions/questions.parquet": ("question_id", "dimension", "facet", "polarity", "text"),
    "organism/loss.parquet": ("step", "loss"),
    "responses/responses.parquet": ("response_id", "question_id", "sample", "writer", "text", "tokens", "stop_reason"),
    "scores/scores.parquet": (
        *("response_id", "question_id", "dimension", "facet", "writer"),
        *("misalignment", "coherence", "log_odds", "missing_reason"),
    ),
    "decomposition/metrics.parquet": (
        *("source", "site", "space", "components", "k", "silhouette"),
        *("ami_dimension", "ami_facet", "smallest", "largest_share"),
    ),
    "decomposition/clusters.parquet": ("source", "site", "k", "question_id", "cluster"),
    "decomposition/cluster_summary.parquet": (
        *("source", "site", "k", "cluster", "size", "outlier", "top_dimension", "top_dimension_share"),
        *("composition", "facets", "mean_misalignment", "sd_misalignment", "n_scored", "mean_log_odds"),
    ),
    "decomposition/coordinates.parquet": ("source", "site", "question_id", "pc1", "pc2", "pc3"),
    "decomposition/variance.parquet": ("source", "site", "component", "ratio"),
    "steering/steered.parquet": ("direction_id", "kind", "coefficient", "added_norm", "question_id", "misalignment"),
}
"""The columns that the report reads, by table."""

FIELDS: dict[str, tuple[str, ...]] = {
    "organism/recipe.json": ("base", "kind", "name", "method"),
    "scores/judge.json": ("judge", "auc", "auc_by_dimension", "auc_interval", "note"),
    "scores/summary.json": ("by_dimension", "overall", "effect_text"),
    "decomposition/summary.json": ("primary_site", "sites", "k", "primary_k", "questions", "shift_norm"),
    "steering/summary.json": ("target", "site", "units", "rows", "unsteered"),
}
"""The fields that the report cannot do without, by record."""


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
    metrics: pd.DataFrame
    clusters: pd.DataFrame
    cluster_summary: pd.DataFrame
    coordinates: pd.DataFrame
    variance: pd.DataFrame
    decomposition: Mapping[str, Any]
    steered: pd.DataFrame
    steering: Mapping[str, Any]
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
    def samples(self) -> int:
        """Responses per question and model."""
        return int(self.responses["sample"].nunique())


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
    return Evidence(
        questions=_table(folder, "questions/questions.parquet"),
        recipe=_record(folder, "organism/recipe.json"),
        loss=_table(folder, "organism/loss.parquet") if trained else None,
        responses=_table(folder, "responses/responses.parquet"),
        scores=_table(folder, "scores/scores.parquet"),
        judge=_record(folder, "scores/judge.json"),
        score_summary=_record(folder, "scores/summary.json"),
        metrics=_table(folder, "decomposition/metrics.parquet"),
        clusters=_table(folder, "decomposition/clusters.parquet"),
        cluster_summary=_table(folder, "decomposition/cluster_summary.parquet"),
        coordinates=_table(folder, "decomposition/coordinates.parquet"),
        variance=_table(folder, "decomposition/variance.parquet"),
        decomposition=_record(folder, "decomposition/summary.json"),
        steered=_table(folder, "steering/steered.parquet"),
        steering=_record(folder, "steering/summary.json"),
        configs={stage: record.config for stage, record in records.items()},
        stage_versions={stage: record.version for stage, record in records.items()},
        environment=_environment([record.environment for record in records.values()]),
    )


def _table(folder: Path, name: str) -> pd.DataFrame:
    rebuild = _rebuild(folder, name)
    table = read_table(folder / name, rebuild=rebuild)
    lacking = [column for column in COLUMNS[name] if column not in table.columns]
    if lacking:
        raise ArtifactError(f"{folder / name} lacks the columns {listed(lacking)}", mend=f"Rebuild it with `{rebuild}`")
    return table


def _record(folder: Path, name: str) -> Mapping[str, Any]:
    rebuild = _rebuild(folder, name)
    record = read_json(folder / name, rebuild=rebuild)
    lacking = [field for field in FIELDS[name] if not isinstance(record, dict) or field not in record]
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
