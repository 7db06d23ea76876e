"""Stage `report`: one page and its figures from all that the study holds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from unmask.artifact import digest_json
from unmask.report.evidence import NOT_SHOWN, STAGES
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import Study, Workspace


class ReportConfig(StageConfig):
    """What the page shows."""

    examples: int = Field(6, ge=0, description="pairs of answers shown per dimension")
    title: str | None = Field(None, description="heading of the page; null for organism and base by name")


def run(config: ReportConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.report import read_evidence, write_report

    inputs.progress.begin("writing the report", total=1)
    evidence = read_evidence(inputs.study_folder)
    paths = write_report(evidence, workspace.out, shown=config.examples, title=config.title)
    inputs.progress.advance()
    inputs.progress.end()
    return Result({"page": "report.html", "figures": len(paths) - 1})


def external(config: ReportConfig, study_folder: Path) -> dict[str, str]:
    """The page prints each stage's settings and the software, which the digests of outputs do not hold."""
    study, shown = Study(study_folder), {}
    for name in STAGES:
        record = study.record(name)
        if record is not None:
            software = {key: value for key, value in record.environment.items() if key not in NOT_SHOWN}
            shown[name] = [record.config, record.version, software]
    return {"settings shown": digest_json(shown)}


STAGE = Stage("report", "write the report", 5, ReportConfig, STAGES, False, run, external)
