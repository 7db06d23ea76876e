"""Stage `report`: one page and its figures from all that the study holds."""

from __future__ import annotations

from pydantic import Field

from unmask.report.evidence import STAGES
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import Workspace


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


STAGE = Stage("report", "write report", 1, ReportConfig, STAGES, False, run)
