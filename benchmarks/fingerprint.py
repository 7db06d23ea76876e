"""Which way of using a control organism makes the fewest errors? Verdicts by removal, on worlds with drift, grades and camps.

    python benchmarks/fingerprint.py --quick   # under a minute
    python benchmarks/fingerprint.py --runs 10 # the table of docs/calibration.md

none: no control, two dimensions beyond topic needed. mean: the control's mean shift subtracted, one dimension needed where the
group means cannot be one graded axis (what the product does). mean, k* = 1: one needed always. question: subtracted question by
question, one needed. kernel: not subtracted; the control's shift is one more table that the shift may follow, two needed.
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import argparse
import json
import platform
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from calibration_cases import CONTROL, RIGHT

from unmask.analysis.decision import decide
from unmask.analysis.examination import Settings, examine, flips_for
from unmask.analysis.fingerprint import remove_control
from unmask.analysis.preparation import Groups
from unmask.analysis.verdict import Findings, judge_findings
from unmask.analysis.worlds import World, draw


def none(world: World, seed: int) -> str:
    return decide(world.shift_ND, world.base_ND, world.groups_N, seed=seed).verdict


def mean(world: World, seed: int) -> str:
    return decide(world.shift_ND, world.base_ND, world.groups_N, control_ND=world.control_ND, seed=seed).verdict


def mean_one(world: World, seed: int) -> str:
    found = decide(world.shift_ND, world.base_ND, world.groups_N, control_ND=world.control_ND, seed=seed).findings
    return "inconclusive" if found is None else judge_findings(replace(found, k_star=1)).verdict


def by_question(world: World, seed: int) -> str:
    assert world.control_ND is not None
    rows_ND = remove_control(world.shift_ND, world.control_ND, removal="question")
    there_N = np.isfinite(rows_ND).all(axis=1)
    found = decide(rows_ND[there_N], world.base_ND[there_N], world.groups_N[there_N], seed=seed).findings
    return "inconclusive" if found is None else judge_findings(replace(found, k_star=1)).verdict


def kernel(world: World, seed: int) -> str:
    assert world.control_ND is not None
    settings, groups = Settings(), Groups.of(world.groups_N)
    there_N = np.isfinite(world.control_ND).all(axis=1)
    control_ND = np.where(there_N[:, None], world.control_ND, world.control_ND[there_N].mean(axis=0))
    found = examine(
        world.shift_ND,
        world.base_ND,
        groups,
        signs_BN=flips_for(len(world.shift_ND), seed=seed, settings=settings),
        seed=seed,
        settings=settings,
        further=(control_ND,),
    )
    return judge_findings(
        Findings(
            p_shift=found.shift.p,
            p_rank=found.ranks.tests[0].p,
            rho_high=found.geometry.rho.high,
            eta_high=found.geometry.eta.high,
            k_adj=found.k_adj(settings.thresholds.alpha),
            k_star=2,
            rho_adj=found.rho_adj,
            eta_adj=found.eta_adj,
        )
    ).verdict


REMOVALS: dict[str, Callable[[World, int], str]] = {
    "none": none,
    "mean": mean,
    "mean, k* = 1": mean_one,
    "question": by_question,
    "kernel": kernel,
}


def one_run(item: tuple[int, int, int]) -> dict[str, str]:
    case, run, seed = item
    world = draw(CONTROL[case].world, rng=np.random.default_rng([seed, case, run]), **CONTROL[case].options)
    return {name: removal(world, run) for name, removal in REMOVALS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 runs a world")
    parser.add_argument("--runs", type=int, default=None, help="runs a world (24; quick: 3)")
    parser.add_argument("--only", default="", help="worlds whose name holds these words")
    parser.add_argument("--seed", type=int, default=20260202)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    runs = options.runs or (3 if options.quick else 24)
    chosen = [case for case in range(len(CONTROL)) if options.only in CONTROL[case].name]
    if all(CONTROL[case].truth == "separable" for case in chosen):
        parser.error(f"{options.only!r} leaves no world that may be called separable falsely")
    work = [(case, run, options.seed) for case in chosen for run in range(runs)]
    with ProcessPoolExecutor(max_workers=options.jobs) as pool:
        found = list(pool.map(one_run, work, chunksize=2))
    print(f"seed {options.seed}, {runs} runs a world; right / called separable / inconclusive, in per cent")
    print(f"| world | truth | {' | '.join(REMOVALS)} |")
    print(f"|---|---|{'---|' * len(REMOVALS)}")
    false, right = Counter(), Counter()
    separable = sum(CONTROL[case].truth == "separable" for case in chosen) * runs
    for index in chosen:
        case = CONTROL[index]
        own = [outcome for item, outcome in zip(work, found, strict=True) if item[0] == index]
        cells = []
        for name in REMOVALS:
            verdicts = [outcome[name] for outcome in own]
            hits = sum(verdict in RIGHT[case.truth] for verdict in verdicts)
            called, unsure = verdicts.count("separable"), verdicts.count("inconclusive")
            cells.append(" / ".join(f"{100 * count / runs:.0f}" for count in (hits, called, unsure)))
            false[name] += called if case.truth != "separable" else 0
            right[name] += hits
        print(f"| {case.name} | {case.truth} | {' | '.join(cells)} |")
    others = len(work) - separable
    print(
        json.dumps(
            {
                "benchmark": "fingerprint",
                "ratios": {},
                "false_separable": {name: round(false[name] / others, 4) for name in REMOVALS},
                "right": {name: round(right[name] / len(work), 4) for name in REMOVALS},
                "runs": len(work),
                "seed": options.seed,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
