"""The design of a study, as its study file and what is done of it say: how many questions, in which groups, with which noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from unmask.artifact import read_json, read_table
from unmask.records import NEUTRAL
from unmask.stages import questions
from unmask.study import Study
from unmask.study_file import StudyConfig

if TYPE_CHECKING:
    from unmask.analysis.design import Design


def design_of(config: StudyConfig, study: Study, *, decided: bool) -> tuple[Design, str]:
    """What the study file would collect, for `design_power`, and in words where its noise comes from.

    Noise is the study's own where its verdict is done (`decided`). Raises UnmaskError for a battery that cannot be read,
    ValueError for groups that are too small.
    """
    from unmask.analysis.design import Design, question_share
    from unmask.analysis.examination import LEAST_IN_GROUP

    asked = questions.select(config.questions, study.folder)
    sizes = Counter(question.dimension for question in asked if question.dimension != NEUTRAL)
    samples = config.responses.samples
    tested = tuple(size for size in sizes.values() if size >= LEAST_IN_GROUP)
    design = Design(tested, responses=samples, control=config.control.wanted)
    if not decided:
        return design, "noise as expected"
    rebuild = f"unmask run {study.folder} --force verdict"
    sites = read_table(study.stage_folder("verdict") / "sites.parquet", rebuild=rebuild)
    raw = sites[sites["primary"] & (sites["grouping"] == "dimension") & (sites["correction"] == "none")].iloc[0]
    numbers = read_json(study.stage_folder("verdict") / "verdict.json", rebuild=rebuild)["numbers"]
    ratio, repeated = raw["noise_ratio"], numbers.get("replicate_reliability")
    if not ratio > 0:  # NaN where nothing could be tested
        return design, "noise as expected (the verdict measured none)"
    share = 0.5 if repeated is None else question_share(max(0.0, repeated), half=samples // 2)
    noise = float(ratio / (share + (1 - share) / samples)) ** 0.5
    return replace(design, noise=noise, question_share=share), "noise as measured"
