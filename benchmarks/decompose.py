"""How fast is the decomposition? Each section measures both sides in one process, in turn, and reports medians of ratios.

    python benchmarks/decompose.py --quick   # under a minute on a machine that is not busy with other things
    python benchmarks/decompose.py

sweep: PCA to 50 components, K-means and silhouette for k = 3, 4, 5, 7, 15, 50, with one seed and one start. The other side is the
reference study's loop: scikit-learn's PCA fitted again for every k, then KMeans and silhouette_score as they come. It is measured
on as many threads as the libraries take, which is what a user sees, and on one, which is what ours takes; on a busy machine
threads that wait for each other make the first many times worse, so the load is printed.

verdict: everything that one layer of the reference study's size is asked, with its planted controls, against the budget of 60 s;
36 layers, decided on once each, against 12 minutes (a second grouping, or a control, is as much again); peak memory against 2 GB.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from unmask.analysis.decision import decide
from unmask.analysis.examination import Examined, Settings, planted_controls
from unmask.analysis.nulls import draw_flips
from unmask.analysis.transport import contrast_tests, transport

KS = (3, 4, 5, 7, 15, 50)
COMPONENTS, SEED = 50, 42
SIZES = {"paper": (885, 2560), "demo": (80, 576)}
"""Questions and width: Qwen3-4B on the whole battery, SmolLM2-135M on the demo's."""

Seconds = dict[str, float]
Timed = tuple[Seconds, list[np.ndarray]]
"""Seconds by part, and the labels for every k."""
Section = Callable[[bool], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--only", choices=sorted(SECTIONS), default=None, help="one section")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            print(f"\n{name}", flush=True)
            ratios |= {f"{name}_{part}": ratio for part, ratio in section(options.quick).items()}
    print(json.dumps({"benchmark": "decompose", "ratios": ratios, "machine": machine()}))


def sweep_section(quick: bool) -> dict[str, float]:
    """Ratios of seconds, the reference study's loop over ours, by size and threads; prints where the time goes."""
    from unmask.analysis.threads import one_thread

    found = {}
    for size, (n, d) in SIZES.items():
        rows_ND = activations(n, d)
        ks = tuple(k for k in KS if k < n / 2)
        print(f"  {size}: {n} questions x {d}, k = {', '.join(map(str, ks))}")
        for threads, limit in (("", nullcontext), ("_one_thread", one_thread)):
            with limit():
                naive_sweep(rows_ND, ks[:1])  # imports and first calls are nobody's time
            our_sweep(rows_ND, ks[:1])
            pairs = []
            started = time.perf_counter()
            while len(pairs) < 3 or (time.perf_counter() - started < (6 if quick else 30) and len(pairs) < 25):
                with limit():
                    naive = naive_sweep(rows_ND, ks)
                pairs.append((naive, our_sweep(rows_ND, ks)))
            found[f"{size}{threads}"] = _told(pairs, "theirs on one thread" if threads else "theirs as it comes")
        _quality(rows_ND, pairs[0][0][1], pairs[0][1][1], ks)
    return found


def _told(pairs: list[tuple[Timed, Timed]], title: str) -> float:
    """Print medians by part; returns the median ratio."""
    ratios = [sum(naive[0].values()) / sum(ours[0].values()) for naive, ours in pairs]
    print(f"    {title}; load {os.getloadavg()[0]:.1f}")
    for part in ("pca", "kmeans", "silhouette"):
        naive, ours = (1e3 * float(np.median([pair[side][0][part] for pair in pairs])) for side in (0, 1))
        print(f"      {part:11}{naive:9.1f} ms {ours:9.1f} ms")
    ratio = float(np.median(ratios))
    print(f"      all: {ratio:.1f} times ({min(ratios):.1f} to {max(ratios):.1f} over {len(pairs)} repeats)")
    return round(ratio, 2)


def _quality(rows_ND: np.ndarray, naive: list[np.ndarray], ours: list[np.ndarray], ks: tuple[int, ...]) -> None:
    """Both sides' clusters by the same measure: their spread in the full space. One start each, so either may be better."""
    shares = [spread(rows_ND, one) / spread(rows_ND, other) for one, other in zip(ours, naive, strict=True)]
    told = ", ".join(f"{share:.3f}" for share in shares)
    print(f"    within-cluster spread in the full space, ours over theirs, k = {', '.join(map(str, ks))}: {told}")


def spread(rows_ND: np.ndarray, labels_N: np.ndarray) -> float:
    parts = (rows_ND[labels_N == label] for label in np.unique(labels_N))
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts))


def naive_sweep(rows_ND: np.ndarray, ks: tuple[int, ...]) -> Timed:
    """The reference study's loop."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    spent: Seconds = defaultdict(float)
    found = []
    for k in ks:
        scores_NC = timed(spent, "pca", lambda: PCA(_components(rows_ND), random_state=SEED).fit_transform(rows_ND))
        fitted = timed(spent, "kmeans", lambda k=k, x=scores_NC: KMeans(n_clusters=k, random_state=SEED).fit(x))
        timed(spent, "silhouette", lambda x=scores_NC, labels=fitted.labels_: silhouette_score(x, labels))
        found.append(fitted.labels_)
    return spent, found


def our_sweep(rows_ND: np.ndarray, ks: tuple[int, ...]) -> Timed:
    """The same of ours: one exact eigendecomposition, one distance matrix, one thread."""
    from unmask.analysis.clustering import kmeans_labels, silhouettes
    from unmask.analysis.reduction import centred_gram, coordinates
    from unmask.analysis.threads import one_thread

    spent: Seconds = defaultdict(float)
    found = []
    with one_thread():
        scores_NC = timed(
            spent, "pca", lambda: coordinates(centred_gram(rows_ND), components=_components(rows_ND)).scores_NC
        )
        for k in ks:
            labels_N, _ = timed(spent, "kmeans", lambda k=k: kmeans_labels(scores_NC, k=k, seed=SEED, restarts="auto"))
            found.append(labels_N)
        timed(spent, "silhouette", lambda: silhouettes(scores_NC, found))
    return spent, found


def activations(n: int, d: int) -> np.ndarray:
    """Rows like activations: a power-law spectrum, seven topics, a constant offset."""
    rng = np.random.default_rng(SEED)
    topics = 0.15 * rng.standard_normal((7, d))[rng.integers(7, size=n)]
    return topics + rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.4 + rng.standard_normal(d)


def timed(spent: Seconds, part: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    spent[part] += time.perf_counter() - started
    return result


def machine() -> str:
    """Cores, threads and load, as they decide the ratio."""
    threads = os.environ.get("OMP_NUM_THREADS", "as the libraries choose")
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{cores}, Python {platform.python_version()}, threads {threads}, load {os.getloadavg()[0]:.1f}"


def _components(rows_ND: np.ndarray) -> int:
    return min(COMPONENTS, len(rows_ND) - 1)


def verdict_section(quick: bool) -> dict[str, float]:
    """Budgets over what was taken: one layer with all planted runs (60 s), 36 layers (12 minutes; not in quick mode), memory.

    And seconds of a planted run made and tested by itself over ours, which share their flips.
    """
    from unmask.analysis.threads import one_thread

    with one_thread():  # as the stage does
        return _verdict(quick)


def _verdict(quick: bool) -> dict[str, float]:
    import resource

    from unmask.analysis.site_map import SiteData, map_sites
    from unmask.analysis.worlds import draw

    questions, width = SIZES["paper"]
    world = draw("pass_through_linear", rng=np.random.default_rng(SEED), questions=questions, width=width)
    data = SiteData(world.shift_ND, world.base_ND, world.replicates_NSD)
    settings, groupings = Settings(), {"dimension": world.groups_N}
    found: dict[str, float] = {}
    started = time.perf_counter()
    decision = decide(
        data.shift_ND, data.base_ND, world.groups_N, replicates_NSD=data.replicates_NSD, seed=SEED, full=True
    )
    spent = time.perf_counter() - started
    found["one_layer_budget"] = round(60 / spent, 2)
    effects = len(settings.planted_effects)
    print(
        f"  one layer, {effects} effects x 2 kinds x {settings.planted_runs} planted runs: {spent:.1f} s (budget 60 s)"
    )
    if decision.examined is not None:
        found["planted"] = _planted_ratio(decision.examined, 3 if quick else 10)
    if not quick:
        started = time.perf_counter()
        sites = [(f"blocks.{layer}.hook_resid_pre", lambda: data) for layer in range(36)]
        map_sites(sites, groupings, primary=sites[18][0], seed=SEED, settings=settings)
        spent = time.perf_counter() - started
        found["layers_36_budget"] = round(720 / spent, 2)
        print(
            f"  36 layers by dimension, two responses, no control, effects planted at one layer: {spent:.0f} s (budget 720 s)"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  peak memory of the process {peak:.2f} GB (budget 2 GB)")
    return found | {"memory_budget": round(2 / peak, 2)}


def _planted_ratio(examined: Examined, runs: int) -> float:
    """Seconds of a planted run built and tested by itself over those of ours, in which all runs share their flips."""
    settings = Settings(planted_effects=(1.0,))
    started = time.perf_counter()
    planted_controls(examined, k_star=2, seed=SEED, settings=settings)
    ours = (time.perf_counter() - started) / (3 * settings.planted_runs)
    model, groups, rng = examined.transport, examined.groups, np.random.default_rng(SEED)
    inverse_NN = np.linalg.inv(model.whitener_NN)
    started = time.perf_counter()
    for _ in range(runs):
        signs_N = rng.choice([-1.0, 1.0], size=len(inverse_NN))
        rows_NC = inverse_NN @ (signs_N[:, None] * model.residual_NC)
        kernels = examined.pass_through.kernels
        again = transport(
            rows_NC, examined.geometry.shared_C, kernels, groups, gamma=model.gamma, components_K=model.components_K
        )
        contrast_tests(again, draw_flips(len(rows_NC), flips=settings.planted_flips, rng=rng), alpha=0.05)
    theirs = (time.perf_counter() - started) / runs
    print(
        f"  a planted run: {1e3 * theirs:.0f} ms one by one, {1e3 * ours:.1f} ms with shared flips, {theirs / ours:.0f} times"
    )
    return round(theirs / ours, 2)


SECTIONS: dict[str, Section] = {"sweep": sweep_section, "verdict": verdict_section}

if __name__ == "__main__":
    main()
