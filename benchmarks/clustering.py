"""What does clustering say in worlds whose truth is known? Why it cannot decide, in figures.

    python benchmarks/clustering.py --quick   # under a minute
    python benchmarks/clustering.py --runs 20 # the table of docs/calibration.md

The reference study's procedure on the tuned model's activations (PCA 50, K-means with 4 clusters, agreement with the dimensions),
the same on the base model's and on the shift, a gap statistic on the shift, and a linear probe for the facet on the shift. Each
is called significant where it is beyond 95 % of 39 permutations of the labels (the gap: where it finds more than one cluster).
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import argparse
import json
import platform
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from unmask.analysis.clustering import adjusted_mutual_information, kmeans_labels
from unmask.analysis.preparation import prepare_base
from unmask.analysis.reduction import pca
from unmask.analysis.selection import gap_curve
from unmask.analysis.worlds import draw

WORLDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("no shift at all", "no_shift", {}),
    ("monolithic", "monolithic", {}),
    ("monolithic, unequal gains", "monolithic_hetero_gain", {"facet_gain": 0.8, "noise_ratio": 1.0}),
    ("nested", "nested", {}),
    ("carried by topic", "pass_through_linear", {}),
    ("separable", "separable", {}),
    ("separable, noise 1", "separable", {"noise_ratio": 1.0}),
)
PERMUTATIONS = 39
SHIFT_SHARE = 0.06
"""Spread of the shift over that of the base activations, as in docs/verdict.md."""

COLUMNS = ("tuned", "base", "shift", "gap", "probe")


def one_run(item: tuple[int, int, int]) -> dict[str, float]:
    case, run, seed = item
    _, name, options = WORLDS[case]
    world = draw(name, rng=np.random.default_rng([seed, case, run]), **options)
    rng = np.random.default_rng([seed, case, run, 1])
    base_ND, shift_ND = prepare_base(world.base_ND), world.shift_ND / world.unit_D
    shift_ND = shift_ND * (SHIFT_SHARE * _spread(base_ND) / _spread(shift_ND))
    found: dict[str, float] = {}
    for source, rows_ND in (("tuned", base_ND + shift_ND), ("base", base_ND), ("shift", shift_ND)):
        labels_N, _ = kmeans_labels(pca(rows_ND, components=50).scores_NC, k=4, seed=42, restarts=10)
        found[source] = _beyond_chance(labels_N, world.groups_N, rng)
        found[f"ami_{source}"] = adjusted_mutual_information(labels_N, world.groups_N)
    scores_NC = pca(shift_ND, components=10).scores_NC
    gap = gap_curve(scores_NC, ks=(1, 2, 3, 4, 5, 6), references=10, seed=run)
    found["gap"] = float((gap.chosen or 1) > 1)
    found["probe"] = _probe(pca(shift_ND, components=30).scores_NC, world.facets_N, rng)
    return found


def _spread(rows_ND: np.ndarray) -> float:
    return float(np.sqrt(((rows_ND - rows_ND.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _beyond_chance(labels_N: np.ndarray, groups_N: np.ndarray, rng: np.random.Generator) -> float:
    observed = adjusted_mutual_information(labels_N, groups_N)
    null = [adjusted_mutual_information(labels_N, rng.permutation(groups_N)) for _ in range(PERMUTATIONS)]
    return float(sum(value >= observed for value in null) + 1 <= 0.05 * (PERMUTATIONS + 1))


def _probe(rows_NC: np.ndarray, facets_N: np.ndarray, rng: np.random.Generator) -> float:
    """Ridge to one-hot facets, accuracy over two halves, against permuted facets."""
    codes_N = np.unique(facets_N, return_inverse=True)[1]
    half_N = rng.permutation(len(codes_N)) % 2 == 0
    observed = _accuracy(rows_NC, codes_N, half_N)
    null = [_accuracy(rows_NC, rng.permutation(codes_N), half_N) for _ in range(PERMUTATIONS)]
    return float(sum(value >= observed for value in null) + 1 <= 0.05 * (PERMUTATIONS + 1))


def _accuracy(rows_NC: np.ndarray, codes_N: np.ndarray, half_N: np.ndarray) -> float:
    hot_NF = np.eye(codes_N.max() + 1)[codes_N]
    hits = 0
    for train_N in (half_N, ~half_N):
        mean_C, middle_F = rows_NC[train_N].mean(axis=0), hot_NF[train_N].mean(axis=0)
        x_NC = rows_NC[train_N] - mean_C
        gram_CC = x_NC.T @ x_NC + np.trace(x_NC.T @ x_NC) / x_NC.shape[1] * np.eye(x_NC.shape[1])
        weights_CF = np.linalg.solve(gram_CC, x_NC.T @ (hot_NF[train_N] - middle_F))
        guessed = ((rows_NC[~train_N] - mean_C) @ weights_CF + middle_F).argmax(axis=1)
        hits += int((guessed == codes_N[~train_N]).sum())
    return hits / len(codes_N)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 runs a world")
    parser.add_argument("--runs", type=int, default=None, help="runs a world (40; quick: 4)")
    parser.add_argument("--seed", type=int, default=20260404)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    runs = options.runs or (4 if options.quick else 40)
    work = [(case, run, options.seed) for case in range(len(WORLDS)) for run in range(runs)]
    with ProcessPoolExecutor(max_workers=options.jobs) as pool:
        found = list(pool.map(one_run, work, chunksize=2))
    print(
        f"seed {options.seed}, {runs} runs a world; share called significant, in per cent; mean AMI with the dimensions"
    )
    print(
        "| world | K-means, tuned | K-means, base | K-means, shift | gap, shift | facet probe, shift | AMI tuned | base | shift |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    shares: dict[str, dict[str, float]] = {}
    for index, (name, _, _) in enumerate(WORLDS):
        own = [outcome for item, outcome in zip(work, found, strict=True) if item[0] == index]
        shares[name] = {column: float(np.mean([outcome[column] for outcome in own])) for column in COLUMNS}
        agreement = [float(np.mean([outcome[f"ami_{source}"] for outcome in own])) for source in COLUMNS[:3]]
        cells = [f"{100 * value:.0f}" for value in shares[name].values()] + [f"{value:.2f}" for value in agreement]
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        json.dumps(
            {
                "benchmark": "clustering",
                "ratios": {},
                "significant": shares,
                "runs_per_world": runs,
                "seed": options.seed,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
