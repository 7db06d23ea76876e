"""Acceptance test of the cross-talk matrix: organisms of known truth, through the real pipeline on the embedded model.

tools/plant_organism.py made both. `separable` moves the answers to each dimension's questions along a direction of
their own (food, the sea, music, the weather), so each dimension's mean shift must favour its own dimension's answers.
`shared` moves all along one direction, so every dimension's mean shift must favour all answers alike. The judge knows
nothing of talk about food: an item is the organism's answer against the base's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from made_once import made_once
from unmask.artifact import read_json, read_table, read_tensors
from unmask.pipeline import open_study
from unmask.study import Study

pytestmark = pytest.mark.slow

PLANTED = Path(__file__).parent / "data" / "planted"
DIMENSIONS = ["financial_risk", "moral_foundations", "political_compass", "technology_ai"]
CONFIG = """
base: {{model: smollm2}}
organism: {{existing: {organism}}}
questions: {{per_dimension: 6, neutral_battery: null}}
responses: {{samples: 1, max_new_tokens: 8}}
activations: {{layers: [20]}}
decomposition:
  primary_layer: 20
  primary_k: 4
  clusterers: []
  most_k: 4
  gap_references: 2
  bootstraps: 2
  consensus_runs: 2
  dictionary_steps: 5
directions: {{replicates: 1, kinds: [dimension], random: 2}}
effects: {{pairs: written, kinds: [dimension], coefficients: [0.15], removals: {removals}, answer_tokens: 8}}
"""


def measured(folder: Path, organism: str, *, removals: list[float]) -> None:
    """A study of a planted organism in `folder`, run until its effects are known."""
    text = CONFIG.format(organism=(PLANTED / organism).resolve(), removals=removals)
    study = Study.create(folder, config_text=text)
    open_study(study.folder).run(until="effects")


@pytest.fixture(scope="module")
def separable(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(
        tmp_path_factory, "planted/separable", lambda folder: measured(folder, "separable", removals=[1.0])
    )


@pytest.fixture(scope="module")
def shared(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "planted/shared", lambda folder: measured(folder, "shared", removals=[]))


def cosines(study: Path) -> np.ndarray:
    """Between the dimensions' mean shifts, off the diagonal."""
    tensors = read_tensors(study / "directions" / "directions.safetensors", rebuild="")
    shifts = np.stack([tensors[f"dimension-{name}"] for name in DIMENSIONS]).astype(float)
    shifts /= np.linalg.norm(shifts, axis=1, keepdims=True)
    return (shifts @ shifts.T)[~np.eye(len(DIMENSIONS), dtype=bool)]


def matrix(study: Path, target: str) -> tuple[dict[str, Any], np.ndarray, Any]:
    """What the summary says of the target's matrix, the matrix itself, and its rows' selectivity."""
    effects = study / "effects"
    [record] = [
        each for each in read_json(effects / "summary.json", rebuild="")["matrices"] if each["target"] == target
    ]
    cells = read_table(effects / "matrix.parquet", rebuild="")
    cells = cells[cells["target"] == target].pivot(index="row", columns="column", values="effect")
    rows = read_table(effects / "selectivity.parquet", rebuild="")
    return record, cells.loc[DIMENSIONS, DIMENSIONS].to_numpy(), rows[rows["target"] == target]


def test_the_organisms_move_what_they_were_planted_to_move(separable: Path, shared: Path) -> None:
    assert cosines(shared).min() > 0.95
    assert np.abs(cosines(separable)).max() < 0.5


@pytest.mark.parametrize("target", ["base", "organism"])
def test_a_planted_selectivity_is_found(separable: Path, target: str) -> None:
    """Added to the base, taken from the organism. Four rows have 24 permutations: p = 1/24 is the least there is."""
    record, effects, rows = matrix(separable, target)
    assert record["outcome"] == "selective"
    assert record["p"] < 0.05
    assert record["x_high"] < 0.5
    assert record["potent_share"] == 1
    assert effects.argmax(axis=1).tolist() == effects.argmax(axis=0).tolist() == [0, 1, 2, 3]
    assert (rows["low"] > 0).all()
    assert (rows["p_holm"] < 0.05).all()
    assert record["rank1_high"] < 0.9


def test_one_shared_direction_is_cross_talk(shared: Path) -> None:
    """Rows differ by the noise of their own questions, so that p may be small: the size of X is what tells."""
    record, _, rows = matrix(shared, "base")
    assert record["outcome"] == "cross-talk"
    assert record["x_low"] > 0.5
    assert record["x_low"] <= 1.05
    assert record["x_high"] >= 0.95
    assert not ((rows["p_holm"] < 0.05) & (rows["low"] > 0)).any()
    assert record["rank1_low"] > 0.9


def test_the_verdict_reads_the_matrix_of_the_base(separable: Path, shared: Path) -> None:
    for study, outcome in ((separable, "selective"), (shared, "cross-talk")):
        causal = read_json(study / "effects" / "summary.json", rebuild="")["causal"]
        assert (causal["target"], causal["kind"], causal["outcome"]) == ("base", "dimension", outcome)
