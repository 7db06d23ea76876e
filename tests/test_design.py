"""The power of a design: planted effects are found the more the larger they are, and nothing is found where nothing is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from forked import Forked
from unmask.analysis.design import Design, DesignPoint, design_power, detectable, question_share
from unmask.analysis.examination import Settings

FEW = Settings(flips=99, resamples=100, permutations=49)


def point(rho: float, separable: int, runs: int = 10) -> DesignPoint:
    return DesignPoint(rho, rho, rho, runs, separable, separable, separable, runs - separable)


def test_more_is_found_of_more_and_nothing_of_nothing() -> None:
    told: list[int] = []
    points = design_power(
        Design((40, 40, 40), noise=0.8), runs=6, effects=(0.0, 0.4), settings=FEW, told=lambda: told.append(1)
    )
    assert len(told) == 12
    nothing, much = points
    assert nothing.separable == 0
    assert nothing.monolithic >= 5
    assert much.separable >= 5
    assert much.second_direction >= much.separable
    assert nothing.rho_seen < 0.02 < much.rho_seen < 0.4  # the fingerprint is in what the report prints


def test_the_same_seed_simulates_the_same_studies() -> None:
    design = Design((12, 12), noise=0.5)
    one, other = (design_power(design, runs=2, effects=(0.2,), settings=FEW, seed=3) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("responses", [1, 2, 5])
def test_a_world_has_the_noise_that_the_design_names(responses: int) -> None:
    """One response: noise over the mean shift; of the mean of S only the question's share stays, the rest falls with S."""
    design = Design((50, 50), responses=responses, noise=0.7, question_share=0.3, fingerprint=2.0)
    world = design.world(0.1)
    mean_shift = np.hypot(1.0, world.drift)
    assert (world.noise_ratio / mean_shift) ** 2 == pytest.approx(0.49 * (0.3 + 0.7 / responses))
    assert world.question_share == pytest.approx(0.3 / (0.3 + 0.7 / responses))


@pytest.mark.parametrize("half", [1, 2, 3])
def test_question_share_undoes_spearman_and_brown(half: int) -> None:
    share = 0.4
    reliability = share / (share + (1 - share) / half)
    assert question_share(reliability, half=half) == pytest.approx(share)


def test_the_detectable_effect_lies_between_the_points_around_power_80() -> None:
    assert detectable([point(0.1, 6), point(0.2, 10), point(0.0, 0)]) == pytest.approx(0.15)
    assert detectable([point(0.0, 0), point(0.2, 7)]) is None
    assert detectable([point(0.05, 9)]) == 0.05


@pytest.mark.parametrize(
    "made", [{"sizes": (40,)}, {"sizes": (3, 40)}, {"sizes": (4, 4)}, {"sizes": (20, 20), "noise": 0.0}]
)
def test_a_design_that_cannot_be_tested_is_refused(made: dict) -> None:
    with pytest.raises(ValueError, match="a design needs"):
        Design(**made)


def unmask(*arguments: object) -> subprocess.CompletedProcess[str]:
    return Forked.unmask(*arguments).result()


def test_the_command_takes_a_design_or_a_study(tmp_path: Path) -> None:
    told = unmask("decompose", "--power", "--groups", "16,16", "--runs", 1, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["design"]["sizes"] == [16, 16]
    unmask("init", tmp_path / "s", "--preset", "demo")
    told = unmask("decompose", tmp_path / "s", "--power", "--runs", 1, "--responses", 3)
    assert told.returncode == 0, told.stderr
    assert "80 questions in groups of 20, 20, 20, 20; 3 response(s) each" in told.stdout
    assert "with control organism" in told.stdout
    assert not (tmp_path / "s" / "questions").exists()  # nothing is collected


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--power",), "no design was given"),
        (("--power", "--groups", "20,many"), "whole numbers"),
        (("--power", "--groups", "20"), "a design needs 2 groups"),
        (("--groups", "20,20"), "without --power"),
        ((), "no study was named"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: tuple[str, ...], wanted: str) -> None:
    told = unmask("decompose", *arguments)
    assert told.returncode == 2
    assert wanted in told.stderr
    assert "Traceback" not in told.stderr
