"""How often is the verdict right? Confusion matrix over simulated studies whose truth is known.

    python benchmarks/calibration.py --quick           # under a minute: a few worlds, 6 runs each
    python benchmarks/calibration.py --runs 24         # the tables of docs/calibration.md: all worlds; 16 minutes on 2 cores
    python benchmarks/calibration.py --only separable  # worlds whose name holds the word

Run r of world w is drawn from numpy's default_rng([SEED, index of w, r]); every figure follows from the printed seed. The last
line is one JSON object.
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")  # parallel by process

import argparse
import json
import platform
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from calibration_cases import CONTROL, NEW, QUICK, REAL, REFERENCE, RIGHT, Case
from scipy.stats import beta

from unmask.analysis.decision import decide
from unmask.analysis.examination import Settings
from unmask.analysis.worlds import World, draw

CASES = [*REFERENCE, *NEW, *CONTROL, *REAL]
STRONG = 0.15
"""rho from which a separable world must be found."""


SETTINGS = Settings(planted_effects=(1.0,))
"""The defaults; of the planted effects, the rule looks at the smallest one of interest only."""
QUICK_SETTINGS = replace(SETTINGS, permutations=39)
"""T4 takes four fifths of the time; 39 permutations keep its level, and p = 1/40 is within alpha."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: what was said of a world."""

    case: int
    run: int
    verdict: str
    qualifier: str | None
    rho: float
    persona_rho: float
    numbers: dict[str, float | None]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few worlds, few runs, fewer permutations in T4")
    parser.add_argument("--runs", type=int, default=None, help="runs a world (40; quick: 6)")
    parser.add_argument("--only", default=None, help="worlds whose name or family holds this word")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=None, help="write every run's numbers to this JSON Lines file")
    options = parser.parse_args()
    chosen = [i for i, case in enumerate(CASES) if _wanted(case, quick=options.quick, only=options.only)]
    if not chosen:
        parser.error(f"no world is called like {options.only!r}; there are: {', '.join(case.name for case in CASES)}")
    runs = options.runs or (6 if options.quick else 40)
    print(f"seed {options.seed}, {runs} runs each of {len(chosen)} worlds, {options.jobs} processes")
    started = time.perf_counter()
    if any(CASES[index].family == "real" for index in chosen):
        from calibration_real import prepare

        prepare()
    settings = QUICK_SETTINGS if options.quick else SETTINGS
    outcomes = run_all(chosen, runs=runs, seed=options.seed, jobs=options.jobs, settings=settings)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(_row(o)) + "\n" for o in outcomes), encoding="utf-8")
    print(table(chosen, outcomes))
    print(f"\n{rates_table(chosen, outcomes)}\n")
    print(totals_text(totals(outcomes)))
    print(
        json.dumps(
            {
                "benchmark": "calibration",
                "ratios": {},
                **totals(outcomes),
                "seed": options.seed,
                "runs_per_world": runs,
                "worlds": len(chosen),
                "seconds": round(time.perf_counter() - started),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
            }
        )
    )


def _wanted(case: Case, *, quick: bool, only: str | None) -> bool:
    if only is not None:
        return only in case.name or only == case.family
    return case.name in QUICK if quick else True


def run_all(chosen: list[int], *, runs: int, seed: int, jobs: int, settings: Settings) -> list[Outcome]:
    """Every run of every chosen world, in order, over processes."""
    work = [(case, run, seed, settings) for case in chosen for run in range(runs)]
    if jobs == 1:
        return [one_run(item) for item in work]
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        done = []
        for outcome in pool.map(one_run, work):
            done.append(outcome)
            if len(done) % 100 == 0:
                print(f"{len(done)} of {len(work)} runs", file=sys.stderr, flush=True)
        return done


def one_run(item: tuple[int, int, int, Settings]) -> Outcome:
    index, run, seed, settings = item
    case = CASES[index]
    started = time.perf_counter()
    world = draw_case(case, np.random.default_rng([seed, index, run]))
    decision = decide(
        world.shift_ND,
        world.base_ND,
        world.groups_N,
        replicates_NSD=world.replicates_NSD,
        control_ND=world.control_ND,
        polarity_N=world.polarity_N,
        seed=run,
        settings=settings,
    )
    seconds = time.perf_counter() - started
    return Outcome(
        index, run, decision.verdict, decision.qualifier, world.rho, world.persona_rho, decision.numbers, seconds
    )


def draw_case(case: Case, rng: np.random.Generator) -> World:
    if case.family != "real":
        return draw(case.world, rng=rng, **case.options)
    from calibration_real import plant_on_embedded

    return plant_on_embedded(case, rng=rng)


@lru_cache(maxsize=1)
def _verdicts() -> tuple[str, ...]:
    return ("no-shift", "monolithic", "entangled", "separable", "inconclusive")


def table(chosen: list[int], outcomes: list[Outcome]) -> str:
    """Markdown: a line per world with its confusion, in per cent of its runs."""
    lines = [
        "| world | truth | true rho | no-shift | monolithic | entangled | separable | inconclusive | right | known limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for index in chosen:
        own = [o for o in outcomes if o.case == index]
        counts = Counter(o.verdict for o in own)
        cells = [f"{100 * counts[name] / len(own):.0f}" if counts[name] else "" for name in _verdicts()]
        right = sum(is_right(o) for o in own)
        rho = float(np.median([o.rho for o in own])) if own else float("nan")
        shown = "-" if np.isnan(rho) else f"{rho:.2f}"
        lines.append(
            f"| {CASES[index].name} | {CASES[index].truth} | {shown} | {' | '.join(cells)} | {right} of {len(own)} "
            f"| {CASES[index].limit or ''} |"
        )
    return "\n".join(lines)


def rates_table(chosen: list[int], outcomes: list[Outcome]) -> str:
    """Markdown: how often each test rejects at its level, in per cent, and the median planted power where it was asked."""
    lines = [
        "| world | T1 | T2, rank 1 | k_adj >= 1 | k_adj >= k* | T4 | planted power |",
        "|---|---|---|---|---|---|---|",
    ]
    alpha = SETTINGS.thresholds.alpha
    for index in chosen:
        own = [o.numbers for o in outcomes if o.case == index and o.numbers.get("p_shift") is not None]
        hits = (
            [(n["p_shift"] or 0.0) <= alpha for n in own],
            [(n["p_rank"] or 0.0) <= alpha for n in own],
            [(n["k_adj"] or 0) >= 1 for n in own],
            [(n["k_adj"] or 0) >= (n["k_star"] or 2) for n in own],
            [n["replicate_dimensions"] >= 1 for n in own if n["replicate_dimensions"] is not None],
        )
        cells = [f"{100 * np.mean(hit):.0f}" if hit else "-" for hit in hits]
        powers = [n["power_at_interest"] for n in own if n["power_at_interest"] is not None]
        power = f"{np.median(powers):.2f}" if powers else "-"
        lines.append(f"| {CASES[index].name} | {' | '.join(cells)} | {power} |")
    return "\n".join(lines)


def is_right(outcome: Outcome) -> bool:
    """Right by the truth; and `monolithic` where neither the shift nor the persona has as much outside one direction as the rule
    says matters."""
    truth = CASES[outcome.case].truth
    small = max(outcome.rho, outcome.persona_rho) < SETTINGS.thresholds.rho
    if outcome.verdict == "monolithic" and small and truth != "nested":
        return True
    return outcome.verdict in RIGHT[truth]


def totals(outcomes: list[Outcome]) -> dict[str, object]:
    """The three figures of merit with their counts and exact 95 % bounds (Clopper & Pearson 1934)."""
    not_separable = [o for o in outcomes if CASES[o.case].truth != "separable"]
    claimed = [o for o in outcomes if CASES[o.case].limit is None]
    monolithic = [o for o in claimed if CASES[o.case].truth == "monolithic"]
    strong = [o for o in claimed if CASES[o.case].truth == "separable" and o.rho >= STRONG - 1e-9]
    found: dict[str, object] = {}
    for name, group, hit in (
        ("false_separable", not_separable, lambda o: o.verdict == "separable"),
        ("monolithic_right", monolithic, is_right),
        ("separable_right", strong, is_right),
    ):
        hits, count = sum(hit(o) for o in group), len(group)
        low, high = exact_interval(hits, count)
        found[name] = round(hits / count, 4) if count else None
        found[f"{name}_count"], found[f"{name}_of"] = hits, count
        found[f"{name}_95"] = [round(low, 4), round(high, 4)] if count else None
    for truth in ("monolithic", "separable"):
        beyond = [o for o in outcomes if CASES[o.case].limit is not None and CASES[o.case].truth == truth]
        found[f"{truth}_right_beyond_limits"] = [sum(is_right(o) for o in beyond), len(beyond)]
    by_world = Counter(o.case for o in not_separable if o.verdict == "separable")
    sizes = Counter(o.case for o in not_separable)
    worst = max(sizes, key=lambda case: by_world[case] / sizes[case], default=None)
    if worst is not None:
        found["worst_false_separable"] = [CASES[worst].name, by_world[worst], sizes[worst]]
    return found


def exact_interval(hits: int, count: int) -> tuple[float, float]:
    if count == 0:
        return float("nan"), float("nan")
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(0.975, hits + 1, count - hits))
    return low, high


def totals_text(found: dict[str, object]) -> str:
    lines = []
    for name in ("false_separable", "monolithic_right", "separable_right"):
        if found[f"{name}_of"]:
            low, high = found[f"{name}_95"]  # ty: ignore[not-iterable]
            lines.append(
                f"{name}: {found[f'{name}_count']} of {found[f'{name}_of']} (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
            )
    return "\n".join(lines)


def _row(outcome: Outcome) -> dict[str, object]:
    case = CASES[outcome.case]
    return {
        "world": case.name,
        "truth": case.truth,
        "run": outcome.run,
        "verdict": outcome.verdict,
        "qualifier": outcome.qualifier,
        "true_rho": None if np.isnan(outcome.rho) else outcome.rho,
        "seconds": round(outcome.seconds, 2),
        **outcome.numbers,
    }


if __name__ == "__main__":
    main()
