"""Is the score-bearing part of the shift separable? Error rates of the test of Cov(shift, score | group).

python benchmarks/score_gradient.py --quick   # under a minute
python benchmarks/score_gradient.py           # the table of docs/calibration.md
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import argparse
import json
import platform
from typing import Any

import numpy as np

from unmask.analysis.nulls import draw_flips
from unmask.analysis.score_gradient import LEAST_SCORED, score_bearing
from unmask.analysis.worlds import draw

ALPHA = 0.05
CASES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("no shift, no score", "no_shift", {}, "none"),
    ("monolithic, score unrelated", "monolithic", {"score": "none"}, "none"),
    ("separable, score unrelated", "separable", {"score": "none"}, "none"),
    ("pass-through, score unrelated", "pass_through_linear", {"score": "none"}, "none"),
    ("monolithic, shared score direction", "monolithic", {}, "one"),
    ("monolithic with drift, shared", "monolithic_drift", {}, "one"),
    ("separable, score rises with shared and own parts", "separable", {}, "several"),
    ("pass-through, shared", "pass_through_linear", {}, "one"),
    ("unequal groups, shared", "monolithic_unequal", {"questions": 420}, "one"),
    ("outliers, shared", "monolithic_outliers", {}, "one"),
    ("separable score directions", "separable", {"score": "separable"}, "several"),
    ("separable score directions, n = 600", "separable", {"score": "separable", "questions": 600}, "several"),
    ("separable score directions, noise 1", "separable", {"score": "separable", "noise_ratio": 1.0}, "several"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 runs a world")
    parser.add_argument("--runs", type=int, default=None, help="runs a world (100; quick: 10)")
    parser.add_argument("--seed", type=int, default=20260303)
    options = parser.parse_args()
    runs = options.runs or (10 if options.quick else 100)
    print(f"seed {options.seed}, {runs} runs a world, level {ALPHA}")
    print("| world | score directions | any found | more than one found |\n|---|---|---|---|")
    wrong: list[float] = []
    for index, (name, world, changes, truth) in enumerate(CASES):
        any_found = several = 0
        for run in range(runs):
            drawn = draw(world, rng=np.random.default_rng([options.seed, index, run]), **changes)
            found = score_bearing(
                drawn.shift_ND,
                drawn.scores_N,
                drawn.groups_N,
                signs_BN=draw_flips(len(drawn.shift_ND), flips=199, rng=np.random.default_rng([run, 0])),
                alpha=ALPHA,
                least_in_group=LEAST_SCORED,
                rng=np.random.default_rng([run, 6]),
            )
            assert found is not None
            any_found += found.shift.p <= ALPHA
            several += found.shift.p <= ALPHA and found.ranks.tests[0].p <= ALPHA
        if truth != "several":
            wrong.append((any_found if truth == "none" else several) / runs)
        print(f"| {name} | {truth} | {100 * any_found / runs:.0f} % | {100 * several / runs:.0f} % |")
    print(
        json.dumps(
            {
                "benchmark": "score_gradient",
                "ratios": {},
                "largest_false_positive_rate": max(wrong),
                "mean_false_positive_rate": float(np.mean(wrong)),
                "runs_per_world": runs,
                "seed": options.seed,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
