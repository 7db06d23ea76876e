"""How fast is the activation store? Against the bare disk, and against one torch file per prompt.

    python benchmarks/store.py --quick   # under a minute
    python benchmarks/store.py           # 1.6 GB of shards, more repeats

Both sides of a ratio do the same in turn, several times, in this process; medians of the ratios are reported. They are ratios of
speeds: 1 is as fast as the other side, 2 twice as fast. Written is what has reached the disk: raw files are written, synced,
renamed and their folder synced as shards are; torch's files are synced once all are written. Raw rows stay as they are stored,
the store's become float32. Cold is what no cache holds (Linux).
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.artifact import sync
from unmask.store import ActivationStore, activation_name, write_index, write_shard
from unmask.store.header import parse_header

WIDTH = 1024
RESPONSES = 32
LENGTH = 128
"""Responses of a shard, and tokens of a response: 4096 token rows."""

SITES = tuple(f"blocks.{layer}.hook_resid_pre" for layer in (4, 8, 12, 16))
READERS = ("base", "organism")
NAMES = tuple(activation_name(reader, site, "tokens") for reader in READERS for site in SITES)
READ = NAMES[2]
ROWS = 4096
DTYPES: Mapping[str, Any] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of both sides, repeat by repeat, for so many bytes."""

    name: str
    size: int
    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(their / our for our, their in zip(self.ours, self.theirs, strict=True))

    def row(self) -> str:
        speeds = (self.size / statistics.median(side) / 1e6 for side in (self.ours, self.theirs))
        ours, theirs = (f"{speed:.0f} MB/s" for speed in speeds)
        return f"| {self.name} | {ours} | {theirs} | {self.ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 shards, 3 repeats")
    parser.add_argument("--shards", type=int, default=None, help="shards of 4096 tokens (12; quick: 4)")
    parser.add_argument("--repeats", type=int, default=None, help="repeats of each side (7; quick: 3)")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; its disk is measured")
    parser.add_argument("--seed", type=int, default=20260505)
    options = parser.parse_args()
    shards, repeats = options.shards or (4 if options.quick else 12), options.repeats or (3 if options.quick else 7)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="unmask-store-", dir=options.folder))
    try:
        material = draw(shards, rng=np.random.default_rng(options.seed))
        readers_sites = f"{len(NAMES)} readers and sites, width {WIDTH}"
        print(f"{shards} shards of {RESPONSES * LENGTH} tokens, {readers_sites}, {repeats} repeats\n")
        found = {**measure_writing(folder, material, repeats), **measure_reading(folder, material, repeats)}
        print("| what | store | other side | ratio |\n|---|---|---|---|")
        for comparison in found.values():
            print(comparison.row())
        opening = measure_opening(folder / "many")
    finally:
        shutil.rmtree(folder)
    print("\n| a store of 10 million token vectors | seconds |\n|---|---|")
    for name, seconds in opening.items():
        print(f"| {name} | {seconds:.4f} |")
    print(
        json.dumps(
            {
                "benchmark": "store",
                "ratios": {key: round(comparison.ratio, 3) for key, comparison in found.items()},
                "seconds": {name: round(seconds, 5) for name, seconds in opening.items()},
                "shards": shards,
                "repeats": repeats,
                "seed": options.seed,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, torch {torch.__version__}",
            }
        )
    )


def draw(shards: int, *, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Token rows by tensor name, one dict a shard."""
    shape = (RESPONSES * LENGTH, WIDTH)
    return [{name: rng.standard_normal(shape, dtype=np.float32) for name in NAMES} for _ in range(shards)]


def measure_writing(folder: Path, material: Sequence[dict[str, np.ndarray]], repeats: int) -> dict[str, Comparison]:
    """One shard at a time, so that a disk that tires meets both sides alike. The stores (named by dtype) stay for reading."""
    one, found = material[:1], {}
    scratch, other = folder / "scratch", folder / "other"
    for dtype in DTYPES:
        write_store(folder / dtype, material, dtype=dtype)
        content = next((folder / dtype).glob("shard-*")).read_bytes()
        suffix = "" if dtype == "float32" else f"_{dtype}"
        found[f"write_vs_raw{suffix}"] = compare(
            f"write {dtype}: raw files",
            len(content),
            lambda dtype=dtype: write_store(scratch, one, dtype=dtype, seal=False),
            lambda content=content: write_raw(other, [content]),
            repeats=3 * repeats,
            before=lambda: clear(scratch, other),
        )
    for dtype in ("float32", "bfloat16"):
        suffix = "" if dtype == "bfloat16" else f"_{dtype}"
        found[f"write_vs_torch_save{suffix}"] = compare(
            f"write {dtype}: torch.save per prompt",
            sum(array.nbytes for array in one[0].values()) // (1 if dtype == "float32" else 2),
            lambda dtype=dtype: write_store(scratch, one, dtype=dtype, seal=False),
            lambda dtype=dtype: write_torch(other, one, dtype=DTYPES[dtype]),
            repeats=3 * repeats,
            before=lambda: clear(scratch, other),
        )
    clear(scratch, other)
    write_torch(folder / "torch", material, dtype=torch.bfloat16)
    return found


def measure_reading(folder: Path, material: Sequence[dict[str, np.ndarray]], repeats: int) -> dict[str, Comparison]:
    rows = len(material) * RESPONSES * LENGTH
    wanted = np.random.default_rng(1).integers(0, rows, ROWS)
    few, found = wanted[: ROWS // 64], {}
    for dtype in DTYPES:
        size, suffix = ROWS * WIDTH * (4 if dtype == "float32" else 2), "" if dtype == "float32" else f"_{dtype}"
        found[f"read_few_rows_cold_vs_raw{suffix}"] = compare(
            f"{len(few)} random rows, {dtype}, cold: raw memory maps",
            size // 64,
            lambda dtype=dtype: ActivationStore.open(folder / dtype).rows(READ, few),
            lambda dtype=dtype: take_rows(raw_tables(folder / dtype), few),
            repeats=repeats,
            before=lambda dtype=dtype: forget(folder / dtype),
        )
        store, tables = ActivationStore.open(folder / dtype), raw_tables(folder / dtype)
        found[f"read_rows_vs_raw{suffix}"] = compare(
            f"{ROWS} random rows, {dtype}: raw memory maps",
            size,
            lambda store=store: store.rows(READ, wanted),
            lambda tables=tables: take_rows(tables, wanted),
            repeats=5 * repeats,
        )
        del store, tables  # what is mapped is not dropped from the cache
    layer = rows * WIDTH * 2
    for state, before in (("", None), ("cold", lambda: (forget(folder / "bfloat16"), forget(folder / "torch")))):
        for mapped in (False, True):
            found["_".join(filter(None, ("read_layer", state, "vs_torch_save", "mmap" if mapped else "")))] = compare(
                f"one layer, bfloat16 to float32{', cold' if state else ''}: torch.load{' (mmap)' if mapped else ''} per prompt",
                layer,
                lambda: ActivationStore.open(folder / "bfloat16").read(READ),
                lambda mapped=mapped: read_torch(folder / "torch", mapped=mapped),
                repeats=repeats,
                before=before,
            )
    return found


def compare(
    name: str,
    size: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    repeats: int,
    before: Callable[[], object] | None = None,
) -> Comparison:
    """Time both sides in turn, after one round that does not count."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for repeat in range(repeats + 1):
        for side in (ours, theirs) if repeat % 2 else (theirs, ours):
            if before is not None:
                before()
            started = time.perf_counter()
            side()
            if repeat:
                seconds[side].append(time.perf_counter() - started)
    return Comparison(name, size, seconds[ours], seconds[theirs])


def write_store(folder: Path, material: Sequence[dict[str, np.ndarray]], *, dtype: Any, seal: bool = True) -> None:
    offsets = np.arange(RESPONSES + 1) * LENGTH
    for number, tensors in enumerate(material):
        ids = [f"q{number}-{row}/0/organism" for row in range(RESPONSES)]
        write_shard(folder, number, tensors, ids, token_offsets=offsets, dtype=dtype)
    if seal:
        write_index(folder, sites=SITES, width=WIDTH, dtype=dtype)


def write_raw(folder: Path, contents: Sequence[bytes]) -> None:
    """The same bytes, as dd would write them, as safe from a power cut as a shard is."""
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        temporary = folder / f".{number}"
        with temporary.open("wb", buffering=0) as handle:
            left = memoryview(content)
            while left:
                left = left[handle.write(left) :]
            os.fsync(handle.fileno())
        temporary.rename(folder / f"{number}.bin")
        sync(folder)


def write_torch(folder: Path, material: Sequence[dict[str, np.ndarray]], *, dtype: torch.dtype) -> None:
    """One file per prompt, with all its tensors."""
    folder.mkdir(exist_ok=True)
    for number, tensors in enumerate(material):
        for row in range(RESPONSES):
            part = slice(row * LENGTH, (row + 1) * LENGTH)
            own = {name: torch.from_numpy(array[part]).to(dtype, copy=True) for name, array in tensors.items()}
            torch.save(own, folder / f"{number:05d}-{row:05d}.pt")
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def read_torch(folder: Path, *, mapped: bool) -> torch.Tensor:
    parts = [torch.load(path, weights_only=True, mmap=mapped)[READ] for path in sorted(folder.iterdir())]
    return torch.cat(parts).float()


def raw_tables(folder: Path) -> list[np.ndarray]:
    """A memory map of the tensor in each shard, as someone who knows where it is would make it."""
    tables = []
    for path in sorted(folder.glob("shard-*")):
        with path.open("rb") as handle:
            place = parse_header(handle.read(1 << 16), size=path.stat().st_size).tensors[READ]
        dtype = "<u2" if place.dtype == "bfloat16" else place.dtype
        tables.append(np.memmap(path, mode="r", dtype=dtype, offset=place.start, shape=place.shape))
    return tables


def take_rows(tables: Sequence[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    out = np.empty((len(wanted), WIDTH), dtype=tables[0].dtype)
    shard_N, row_N = np.divmod(wanted, RESPONSES * LENGTH)
    for number, table in enumerate(tables):
        here = np.flatnonzero(shard_N == number)
        out[here] = table[row_N[here]]
    return out


def clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its cache; what is mapped stays."""
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_opening(folder: Path, *, shards: int = 200, width: int = 8) -> dict[str, float]:
    """Seconds until a store of 10 million token vectors is open, until a row has come, and until the first response has."""
    rows = TOKENS // shards
    offsets = np.arange(0, rows + 1, 100)
    tokens = np.random.default_rng(2).standard_normal((rows, width), dtype=np.float32)
    for number in range(shards):
        ids = [f"q{number}-{row}/0/organism" for row in range(len(offsets) - 1)]
        write_shard(folder, number, {READ: tokens}, ids, token_offsets=offsets, dtype="float16")
    write_index(folder, sites=SITES, width=width, dtype="float16")
    steps: dict[str, Callable[[ActivationStore], object]] = {
        "open": lambda store: store,
        "open and read a row": lambda store: store.rows(READ, [TOKENS - 1]),
        "open and read a response by its id": lambda store: store.tokens(READERS[0], SITES[2], "q7-7/0/organism"),
    }
    found = {}
    for name, step in steps.items():
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            step(ActivationStore.open(folder))
            seconds.append(time.perf_counter() - started)
        found[name] = statistics.median(seconds)
    return found


if __name__ == "__main__":
    main()
