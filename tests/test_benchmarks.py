"""The benchmarks run and end in one JSON object; the quick calibration is right; readings agree with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forked import Forked

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


def last_line(name: str, *arguments: str) -> dict[str, Any]:
    ended = Forked([FOLDER / f"{name}.py", *arguments]).result(timeout=500)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["benchmark"] == name
    assert {"ratios", "machine"} <= set(found)
    return found


def test_quick_calibration_meets_its_goals() -> None:
    """Drawn from a fixed seed: the same counts on every machine, but for the last digits of a linear algebra library."""
    found = last_line("calibration", "--quick", "--jobs", "1")
    assert found["false_separable_count"] == 0
    assert found["monolithic_right_count"] >= found["monolithic_right_of"] - 1
    assert found["separable_right_count"] >= found["separable_right_of"] - 1
    assert found["monolithic_right_of"] == 12
    assert found["separable_right_of"] == 12


def test_ways_of_removing_the_fingerprint_are_compared() -> None:
    found = last_line("fingerprint", "--runs", "1", "--jobs", "1", "--only", "drift, poor control")
    assert found["runs"] == 2
    assert set(found["false_separable"]) == {"none", "mean", "mean, k* = 1", "question", "kernel"}


def test_the_score_gradient_is_calibrated() -> None:
    found = last_line("score_gradient", "--runs", "2")
    assert found["runs_per_world"] == 2
    assert 0 <= found["mean_false_positive_rate"] <= 1


def test_clustering_is_put_to_the_same_worlds() -> None:
    found = last_line("clustering", "--runs", "1", "--jobs", "1")
    assert all(0 <= share <= 1 for shares in found["significant"].values() for share in shares.values())


def test_one_reading_is_put_beside_the_floor() -> None:
    found = last_line("collect", "--quick", "--texts-count", "3", "--new-tokens", "12", "--rounds", "1")
    assert set(found["ratios"]) == {"vs_floor", "vs_transformers", "memory_vs_transformers"}
    assert all(value > 0 for value in found["ratios"].values())


def test_four_readings_agree_with_teacher_forcing() -> None:
    found = last_line("four_readings", "--quick", "--questions", "4", "--new-tokens", "12")
    assert found["distance"] < 1e-3
    assert set(found["ratios"]) == {"reading_part", "whole"}


def test_the_stores_throughput_is_put_beside_the_disks() -> None:
    assert {"write_vs_raw", "read_rows_vs_raw"} <= set(
        last_line("store", "--quick", "--shards", "2", "--repeats", "1")["ratios"]
    )


def test_answers_are_put_beside_those_of_transformers() -> None:
    found = last_line("generate", "--quick", "--prompts", "16", "--new-tokens", "4")
    assert {"recording_vs_off", "vs_transformers_best", "vs_one_at_a_time", "vs_floor"} == set(found["ratios"])


def test_judging_survives_faults_and_kills() -> None:
    found = last_line("judge", "--quick")
    ratios = found["ratios"]
    assert found["kills"] == 3
    assert (ratios["imputed"], ratios["lost"], ratios["asked_twice"]) == (0, 0, 0)
    assert ratios["vs_ideal"] > 0


def test_steering_is_put_beside_its_peers_and_the_matrix_beside_whole_passes() -> None:
    sizes = ("--prompts", "4", "--new-tokens", "3", "--items", "1", "--directions", "2", "--controls", "2")
    found = last_line("steer", "--quick", *sizes)
    expected = {"vs_plain", "vs_repeng", "vs_steering_vectors", "goal_over_time", "vs_whole_passes", "time_over_floor"}
    assert expected == set(found["ratios"])
    assert all(value > 0 for value in found["ratios"].values())
    assert found["measured_items"] == 1
