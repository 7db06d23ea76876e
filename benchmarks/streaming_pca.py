"""How fast is one exact pass over tokens? Against scikit-learn's IncrementalPCA and the machine's own `dsyrk`, in turn.

    python benchmarks/streaming_pca.py --quick   # under a minute on a machine that is not busy with other things
    python benchmarks/streaming_pca.py
    OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 python benchmarks/streaming_pca.py

Rows per second of `Moments.update` on float32 and on float16 rows, of `dsyrk` alone (float64, the precision that we compute
in; one triangle, added to the one before), and of IncrementalPCA with 50 components on float32 rows. Its batches are of 5 D rows,
its own default, and the one that is timed is a later one, as nearly all are: it computes the first in the rows' precision and the
others in float64. In far smaller batches it may be faster and forgets more: speed and the largest relative error of the
leading variances are printed for both. All sides have the same threads: one, unless the environment says otherwise. Ratios are
of medians. Peak memory is that of a process of its own, at D = 4,096, for few rows and for four times as many. The last line is
one JSON object.
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg.blas import dsyrk, ssyrk
from sklearn.decomposition import IncrementalPCA

from unmask.analysis.reduction import pca as batch_pca
from unmask.analysis.streaming import PANEL, Moments, pca, stream_moments

WIDTHS = (576, 2560)
"""SmolLM2-135M and Qwen3-4B."""

COMPONENTS, BLOCK, SMALL, SEED = 50, 2048, 200, 42
"""BLOCK: rows of a block of the stream; SMALL: of a small batch of IncrementalPCA."""

WIDEST, BUDGET = 4096, 1.5
"""Width at which memory is measured, and its budget in GB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats; errors at the smaller width only")
    parser.add_argument("--memory-of", type=int, default=None, metavar="ROWS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        print(peak_memory(options.memory_of))
        return
    peaks = memory(options.quick)  # first: on Linux a new process's peak starts at that of the one that made it
    ratios: dict[str, float] = {}
    halves: dict[str, float] = {}
    batches: dict[str, dict[str, float]] = {}
    for width in WIDTHS:
        rows_ND = activations(max(12 * (PANEL - 1), SMALL + 5 * width), width)
        print(f"\n{width} wide, {COMPONENTS} components; load {os.getloadavg()[0]:.1f}", flush=True)
        speeds = measured(rows_ND, quick=options.quick)
        ratios |= {
            f"vs_incremental_pca_{width}": told(speeds, "float32", "incremental"),
            f"vs_syrk_{width}": told(speeds, "float32", "dsyrk"),
        }
        halves |= {
            f"vs_incremental_pca_{width}": told(speeds, "float16", "incremental"),
            f"vs_syrk_{width}": told(speeds, "float16", "dsyrk"),
        }
        if width == WIDTHS[0] or not options.quick:
            batches[str(width)] = compared(rows_ND, speeds)
    print(
        json.dumps(
            {
                "benchmark": "streaming_pca",
                "ratios": ratios,
                "float16": halves,
                "batches": batches,
                "peak_gb": peaks,
                "syrk": "float64",
                "machine": machine(),
            }
        )
    )


def measured(rows_ND: np.ndarray, *, quick: bool) -> dict[str, list[float]]:
    """Rows per second of every side, in turn; the slow one has fewer repeats where it takes half a minute."""
    narrow, width = rows_ND.shape[1] < 1000, rows_ND.shape[1]
    panels = min(len(rows_ND) // (PANEL - 1), 12 if narrow or not quick else 4)
    part_ND = rows_ND[: panels * (PANEL - 1)]  # whole panels: none of the work is left for later
    half_ND = part_ND.astype(np.float16)
    work: dict[str, Callable[[], float]] = {
        "float32": lambda: rate(len(part_ND), lambda: one_pass(part_ND)),
        "float16": lambda: rate(len(half_ND), lambda: one_pass(half_ND)),
        "dsyrk": lambda: syrk_rate(width, np.float64),
        "ssyrk": lambda: syrk_rate(width, np.float32),
        "incremental": lambda: incremental_rate(rows_ND),
    }
    repeats = (5 if quick else 15) if narrow else (3 if quick else 5)
    slow = repeats if narrow else (1 if quick else 3)
    one_pass(part_ND[:10])  # imports are nobody's time
    speeds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats):
        for name, run in work.items():
            if name != "incremental" or repeat < slow:
                speeds[name].append(run())
    started = time.perf_counter()
    pca(stream_moments([part_ND[: 2 * COMPONENTS]]), components=COMPONENTS)
    decomposing = time.perf_counter() - started
    for name, values in speeds.items():
        print(
            f"  {name:12}{np.median(values):12,.0f} rows/s ({min(values):,.0f} to {max(values):,.0f}, {len(values)} repeats)"
        )
    share = decomposing * np.median(speeds["float32"]) / 1e6
    print(f"  eigenvectors, once: {decomposing:.2f} s, {share:.1%} more on a pass over a million rows")
    return speeds


def told(speeds: dict[str, list[float]], side: str, other: str) -> float:
    """One side's median speed over the other's; prints it."""
    ratio = float(np.median(speeds[side]) / np.median(speeds[other]))
    print(f"  {side} over {other}: {ratio:.2f}")
    return round(ratio, 3)


def compared(rows_ND: np.ndarray, speeds: dict[str, list[float]]) -> dict[str, float]:
    """Ours over IncrementalPCA in small batches, and largest relative errors of the leading variances, by way; prints them.

    The truth is PCA of all rows in float64. Batches of 5 D rows have an error only where there are several of them.
    """
    exact = batch_pca(rows_ND, components=COMPONENTS)
    variances_C = (exact.scores_NC**2).sum(axis=0) / (len(rows_ND) - 1)

    def error(found_C: np.ndarray) -> float:
        return float(f"{np.abs(found_C / variances_C - 1).max():.1e}")

    small, default = (IncrementalPCA(COMPONENTS, batch_size=size) for size in (SMALL, 5 * rows_ND.shape[1]))
    speed = rate(len(rows_ND), lambda: small.fit(rows_ND))
    times = float(np.median(speeds["float32"]) / speed)
    print(f"  IncrementalPCA in batches of {SMALL}: {speed:,.0f} rows/s; float32 over it: {times:.2f}")
    ours = pca(stream_moments(blocks_of(rows_ND)), components=COMPONENTS)
    errors = {"ours": error(ours.variances_C), f"batches of {SMALL}": error(small.explained_variance_)}
    if len(rows_ND) > 4 * default.batch_size:
        errors[f"batches of {default.batch_size}"] = error(default.fit(rows_ND).explained_variance_)
    for name, value in errors.items():
        print(f"  largest relative error of {COMPONENTS} variances, {name}: {value:.1e}")
    return {f"vs_batches_of_{SMALL}": round(times, 3)} | {f"error, {name}": value for name, value in errors.items()}


def one_pass(rows_ND: np.ndarray) -> None:
    moments = Moments(rows_ND.shape[1])
    for block_ND in blocks_of(rows_ND):
        moments.update(block_ND)


def blocks_of(rows_ND: np.ndarray) -> Iterator[np.ndarray]:
    return (rows_ND[start : start + BLOCK] for start in range(0, len(rows_ND), BLOCK))


def incremental_rate(rows_ND: np.ndarray) -> float:
    """Rows per second of a batch that is not the first."""
    model = IncrementalPCA(COMPONENTS).partial_fit(rows_ND[:SMALL])
    batch_ND = rows_ND[SMALL:][: 5 * rows_ND.shape[1]]
    return rate(len(batch_ND), lambda: model.partial_fit(batch_ND))


def syrk_rate(width: int, dtype: type) -> float:
    """Rows per second of the library's rank-k update, adding to one triangle."""
    rows, times = 2 * BLOCK, 3 if width < 1000 else 1
    rows_ND = np.ones((rows, width), dtype=dtype)
    into_DD = np.zeros((width, width), dtype=dtype, order="F")
    update = dsyrk if dtype is np.float64 else ssyrk

    def work() -> None:
        for _ in range(times):
            update(1.0, rows_ND.T, beta=1.0, c=into_DD, lower=1, overwrite_c=1)

    return rate(times * rows, work)


def rate(rows: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)


def activations(n: int, d: int) -> np.ndarray:
    """Float32 rows like activations: a power-law spectrum, an offset, two massive coordinates."""
    rng = np.random.default_rng(SEED)
    scale_D = np.arange(1, d + 1, dtype=np.float32) ** -0.4
    scale_D[[1, 7]] *= 100
    rows_ND = rng.standard_normal((n, d), dtype=np.float32)
    rows_ND *= rng.permutation(scale_D)
    rows_ND += rng.standard_normal(d, dtype=np.float32)
    return rows_ND


def memory(quick: bool) -> dict[str, float]:
    """Peak memory in GB of whole processes that stream float16 rows of the largest width to principal components."""
    few = 2 * PANEL
    found = {}
    for rows in (few,) if quick else (few, 4 * few):
        command = [sys.executable, __file__, "--memory-of", str(rows)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        found[f"{rows} x {WIDEST}"] = round(float(ended.stdout), 3)
    print("\nmemory", flush=True)
    for name, peak in found.items():
        print(f"  {name}: peak of the process {peak:.2f} GB (budget {BUDGET} GB)")
    return found


def peak_memory(rows: int) -> float:
    """Peak resident memory (GB) of this process after one pass, made of blocks that come and go."""
    source_ND = activations(BLOCK, WIDEST).astype(np.float16)
    moments = stream_moments(source_ND.copy() for _ in range(0, rows, BLOCK))
    pca(moments, components=COMPONENTS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def machine() -> str:
    """Cores, threads and load, as they decide the ratio."""
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    threads = os.environ["OPENBLAS_NUM_THREADS"]
    return f"{cores}, Python {platform.python_version()}, threads {threads}, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
