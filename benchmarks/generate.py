"""How fast are answers written? SmolLM2 on packaged questions, sampled, against transformers' `generate` and against the floor.

    python benchmarks/generate.py --quick    # under two minutes
    python benchmarks/generate.py            # the figures of docs/benchmarks.md

Sides, in alternation on the same prompts: unmask with recording off and on (the residual stream at four layers, and
log-probabilities), transformers in batches of 16, 32 and 64 (the best one counts) and one prompt at a time. Tokens are those
before an end mark; the time is that of prompts and answers.

The floor of one step: the FLOPs of all linear layers for that many rows, at the rate at which this machine multiplies just those
matrices (packed or not, whichever is faster), or one read of all weights at the measured bandwidth of memory: what takes longer.
It is compared with decoding alone, prompts run before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from material import EMBEDDED, alternate, machine, question_prompts, transformers_answers

from unmask.models.generation import generate
from unmask.models.loading import LoadedModel, load_base
from unmask.models.packed_weights import packed_weights
from unmask.models.passes import Readout
from unmask.models.reading import run_prompts
from unmask.records import Sampling, Site

READOUT = Readout(sites=tuple(Site(layer, "resid_pre") for layer in (10, 15, 20, 25)), log_probs=True)


class Count:
    """Tokens that a side wrote in its last run."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}

    def counted(self, name: str, run: Callable[[], int]) -> Callable[[], None]:
        def side() -> None:
            self.tokens[name] = run()

        return side


def ours(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, recording: bool) -> int:
    pool = READOUT.pool(loaded, len(prompts)) if recording else None
    answers = generate(
        loaded, prompts, sampling=sampling, seeds=range(len(prompts)), recorder=pool, rows=min(64, len(prompts))
    )
    if pool is not None:
        pool.finish()
    return sum(len(answer.token_ids) for answer in answers)


def theirs(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, batch: int) -> int:
    return sum(len(answer) for answer in transformers_answers(loaded, prompts, sampling, batch=batch))


def floor_of_a_step(loaded: LoadedModel, rows: int) -> tuple[float, str, float]:
    """Seconds, which bound binds, and the rate in GFLOP/s of the linear layers alone for that many rows."""
    layers: list[Any] = [module for module in loaded.model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, 1, layer.in_features) for layer in layers}
    weights = sum(layer.weight.numel() for layer in layers)

    def once() -> float:
        began = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        return time.perf_counter() - began

    with torch.inference_mode():
        plain = statistics.median(once() for _ in range(9))
        with packed_weights(loaded.model):
            packed = statistics.median(once() for _ in range(9))
    multiplying = min(plain, packed)
    source = torch.randn(64_000_000)  # 256 MB: no cache holds it
    reads = []
    for _ in range(5):
        began = time.perf_counter()
        source.sum()
        reads.append(time.perf_counter() - began)
    bandwidth = source.numel() * 4 / min(reads)
    reading = weights * 4 / bandwidth
    bound = "multiplying" if multiplying >= reading else "reading weights"
    return max(multiplying, reading), bound, 2 * weights * rows / multiplying / 1e9


def decoding(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling) -> float:
    """Tokens a second of decoding alone."""
    ready = run_prompts(loaded, list(dict.fromkeys(prompts)), Readout((), log_probs=False))
    rows = [ready.row_of[prompt] for prompt in prompts]
    rates = []
    with packed_weights(loaded.model):
        for _ in range(4):
            began = time.perf_counter()
            answers = generate(
                loaded,
                prompts,
                sampling=sampling,
                seeds=range(len(prompts)),
                prompt_cache=ready.cache,
                prompt_rows=rows,
            )
            rates.append(sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 prompts, 16 new tokens, one round")
    parser.add_argument("--prompts", type=int, default=None, help="how many prompts (64; quick: 32)")
    parser.add_argument("--new-tokens", type=int, default=None, help="new tokens at most (32; quick: 16)")
    parser.add_argument("--rounds", type=int, default=None, help="rounds (3; quick: 1)")
    options = parser.parse_args()
    loaded = load_base(EMBEDDED)
    prompts = question_prompts(loaded, options.prompts or (32 if options.quick else 64))
    sampling = Sampling(0.7, 0.8, 20, options.new_tokens or (16 if options.quick else 32))
    count = Count()
    batches = [batch for batch in (16, 32, 64) if batch <= len(prompts)]
    few = prompts[:: max(1, len(prompts) // 4)][:4]
    sides = {
        "unmask": count.counted("unmask", lambda: ours(loaded, prompts, sampling, recording=False)),
        "unmask, recording": count.counted(
            "unmask, recording", lambda: ours(loaded, prompts, sampling, recording=True)
        ),
        "transformers, one at a time": count.counted(
            "transformers, one at a time", lambda: theirs(loaded, few, sampling, batch=1)
        ),
    }
    for batch in batches:
        name = f"transformers, {batch}"
        sides[name] = count.counted(name, lambda batch=batch: theirs(loaded, prompts, sampling, batch=batch))
    seconds = alternate(sides, rounds=options.rounds or (1 if options.quick else 3), warm=not options.quick)
    rates = {name: [count.tokens[name] / taken for taken in seconds[name]] for name in sides}
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    best = max((f"transformers, {batch}" for batch in batches), key=lambda name: middle[name])
    rows = min(64, len(prompts))
    step, bound, gflops = floor_of_a_step(loaded, rows)
    alone = decoding(loaded, prompts, sampling)

    def against(name: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(rates[name], rates[other], strict=True))

    ratios = {
        "recording_vs_off": against("unmask, recording", "unmask"),
        "vs_transformers_best": against("unmask", best),
        "vs_one_at_a_time": against("unmask", "transformers, one at a time"),
        "vs_floor": alone / (rows / step),
    }
    print(f"{len(prompts)} prompts, {sampling.max_new_tokens} new tokens at most, float32; medians over rounds")
    print("| side | tokens/s |")
    print("|---|---|")
    for name, rate in middle.items():
        print(f"| {name} | {rate:.0f} |")
    print(f"| unmask, decoding alone, {rows} rows | {alone:.0f} |")
    print(f"| floor, {rows} rows ({bound} binds: {gflops:.0f} GFLOP/s) | {rows / step:.0f} |")
    last = {"benchmark": "generate", "ratios": ratios, "best_batch": best, "floor": bound, "machine": machine()}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
