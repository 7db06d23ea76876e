"""What does an intervention cost, and the whole cross-talk matrix? SmolLM2 on packaged questions, residual stream at layer 20.

    python benchmarks/steer.py --quick    # under two minutes
    python benchmarks/steer.py            # the figures of docs/benchmarks.md: some 20 minutes

1. Writing answers, sides in alternation on the same distinct prompts: unmask without and under an intervention (one direction
   added at all positions, every row its own dose), and repeng and steering-vectors steering transformers' `generate` in batches
   of 32, all rows at one dose, which is all that they can do. Tokens a second, prompts included.
2. The matrix: `--directions` directions and `--controls` random ones, at `--coefficients` doses (0, the plain model, is one of
   five), on `--facets` x `--per-facet` questions with two answers of `--answer-tokens` tokens each; log-probabilities,
   teacher-forced, response positions. The measured time is compared with the goal of 15 minutes (`goal_over_time`: at least 1),
   with whole passes under hooks on a part of the same work (`vs_whole_passes`), and with the floor: the FLOPs of the layers from
   the site on and of the output head, at the rate at which this machine multiplies just those matrices.

repeng 0.4 asks for a name that NumPy 2 dropped; it is given one.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from material import EMBEDDED, alternate, machine, question_prompts, transformers_answers

from unmask.models.forcing import Forcing
from unmask.models.generation import generate
from unmask.models.intervening import Add, intervene
from unmask.models.loading import LoadedModel, load_base
from unmask.models.packed_weights import packed_weights
from unmask.models.sites import decoder_layers, head_logits
from unmask.records import Sampling, Site

SITE = Site(20, "resid_pre")
GOAL = 15 * 60
AT_ONCE = 4
"""Items forced at once, as in the stage `effects`."""


def unit_rows(count: int, width: int, *, seed: int) -> np.ndarray:
    rows_VD = np.random.default_rng(seed).standard_normal((count, width))
    return (rows_VD / np.linalg.norm(rows_VD, axis=1, keepdims=True)).astype(np.float32)


def typical_norm(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> float:
    from unmask.models.recording import observe

    norms: list[float] = []
    with (
        torch.inference_mode(),
        observe(loaded.model, [SITE], lambda _, hidden: norms.append(float(hidden[0, 1:].norm(dim=1).median()))),
    ):
        for prompt in prompts[:8]:
            loaded.model(torch.tensor([prompt]))
    return statistics.median(norms)


def writing(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, rounds: int
) -> dict[str, list[float]]:
    """Tokens a second of every side in every round."""
    direction_D = unit_rows(1, loaded.width, seed=0)[0] * 0.25 * typical_norm(loaded, prompts)
    doses_B1 = np.linspace(0.1, 1.0, len(prompts), dtype=np.float32)[:, None]
    tokens: dict[str, int] = {}

    def counted(name: str, answers: Callable[[], Sequence[Sequence[int]]]) -> Callable[[], None]:
        def side() -> None:
            tokens[name] = sum(map(len, answers()))

        return side

    def ours(steering: list[Add] | None) -> list[tuple[int, ...]]:
        found = generate(loaded, prompts, sampling=sampling, seeds=range(len(prompts)), steering=steering)
        return [answer.token_ids for answer in found]

    def steering_vectors() -> list[tuple[int, ...]]:
        from steering_vectors import SteeringVector

        vector = SteeringVector({SITE.layer - 1: torch.from_numpy(direction_D)}, "decoder_block")
        with vector.apply(loaded.model, multiplier=1.0):
            return transformers_answers(loaded, prompts, sampling, batch=32)

    wrapped = with_repeng(loaded, direction_D)
    sides = {
        "unmask, plain": counted("unmask, plain", lambda: ours(None)),
        "unmask, steered": counted("unmask, steered", lambda: ours([Add(SITE, doses_B1 * direction_D)])),
        "repeng": counted("repeng", lambda: transformers_answers(wrapped, prompts, sampling, batch=32)),
        "steering-vectors": counted("steering-vectors", steering_vectors),
    }
    seconds = alternate(sides, rounds=rounds)
    return {name: [tokens[name] / taken for taken in seconds[name]] for name in sides}


@dataclass(frozen=True)
class Wrapped:
    """A repeng ControlModel where `transformers_answers` expects a loaded model."""

    model: Any
    tokenizer: Any


def with_repeng(loaded: LoadedModel, direction_D: np.ndarray) -> Any:
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]
    from repeng import ControlModel, ControlVector

    assert SITE.layer is not None
    control: Any = ControlModel(copy.deepcopy(loaded.model), [SITE.layer - 1])
    control.set_control(ControlVector("llama", {SITE.layer - 1: direction_D}), 1.0, normalize=False)
    return Wrapped(control.model, loaded.tokenizer)


def items_of(loaded: LoadedModel, count: int, tokens: int) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """Prompts, and two answers of the model to each, cut."""
    prompts = question_prompts(loaded, count)
    sampling = Sampling(1.0, 1.0, 0, tokens)
    answers: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    for sample in range(2):
        seeds = range(sample * count, (sample + 1) * count)
        for own, answer in zip(answers, generate(loaded, prompts, sampling=sampling, seeds=seeds), strict=True):
            own.append(answer.token_ids or prompts[0][:1])
    return prompts, answers


def whole_passes(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[Sequence[tuple[int, ...]]],
    delta_VD: np.ndarray,
) -> float:
    """Seconds that items under these additions take in whole passes under hooks, eight rows at a time."""
    rows = [(n, v, a) for v in range(len(delta_VD)) for n in range(len(prompts)) for a in range(2)]
    rows.sort(key=lambda row: len(prompts[row[0]]) + len(answers[row[0]][row[2]]))
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(rows), 16):
            here = rows[start : start + 16]
            texts = [(*prompts[n], *answers[n][a]) for n, _, a in here]
            longest = max(map(len, texts))
            ids_BT = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
            starts = torch.tensor([len(prompts[n]) - 1 for n, _, _ in here])
            response_BT = torch.arange(longest) >= starts[:, None]
            with intervene(
                loaded.model,
                [Add(SITE, delta_VD[[v for _, v, _ in here]], positions="response")],
                response_BT=response_BT,
            ):
                hidden_BTD = loaded.model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
            for row, (n, _, a) in enumerate(here):
                first, answer = len(prompts[n]) - 1, answers[n][a]
                logits_TV = head_logits(loaded.model, hidden_BTD[row, first : first + len(answer)])
                logits_TV.log_softmax(dim=1).gather(1, torch.tensor(answer)[:, None]).mean()
    return time.perf_counter() - began


def forced(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[Sequence[tuple[int, ...]]],
    delta_VD: np.ndarray,
) -> float:
    """Seconds that the same takes as the stage `effects` does it."""
    began = time.perf_counter()
    with packed_weights(loaded.model):
        for start in range(0, len(prompts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            with Forcing(loaded, SITE, prompts[part], answers[part]) as forcing:
                rows = [(n, v) for n in range(len(prompts[part])) for v in range(len(delta_VD))]
                forcing.under(Add(SITE, delta_VD, positions="response"), rows)
    return time.perf_counter() - began


def floor(loaded: LoadedModel, tokens: float, *, rows: int) -> float:
    """Seconds that the multiplications alone of that many tokens take: layers from the site on, and the output head.

    Measured on `rows` tokens at a time: with few, a machine multiplies more slowly.
    """
    assert SITE.layer is not None
    layers = [module for layer in list(decoder_layers(loaded.model))[SITE.layer :] for module in layer.modules()]
    matrices = [module for module in (*layers, loaded.model.lm_head) if isinstance(module, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features) for layer in matrices}

    def once() -> float:
        began = time.perf_counter()
        for layer in matrices:
            layer(inputs[layer.in_features])
        return time.perf_counter() - began

    with torch.inference_mode():
        plain = statistics.median(once() for _ in range(5))
        with packed_weights(loaded.model):
            once()
            packed = statistics.median(once() for _ in range(5))
    return min(plain, packed) * tokens / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer of everything; the matrix's time is scaled up")
    parser.add_argument("--prompts", type=int, default=None, help="prompts answered (64; quick: 16)")
    parser.add_argument("--new-tokens", type=int, default=None, help="new tokens at most (32; quick: 8)")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of writing (3; quick: 1)")
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--coefficients", type=int, default=5, help="with 0, the plain model")
    parser.add_argument("--facets", type=int, default=10)
    parser.add_argument("--per-facet", type=int, default=20, help="as in the preset `laptop`")
    parser.add_argument("--answer-tokens", type=int, default=16, help="as in the preset `laptop`")
    parser.add_argument("--items", type=int, default=None, help="measure on so many items and scale up (quick: 4)")
    options = parser.parse_args()
    quick = options.quick
    loaded = load_base(EMBEDDED)
    sampling = Sampling(0.7, 0.8, 20, options.new_tokens or (8 if quick else 32))
    prompts = question_prompts(loaded, options.prompts or (16 if quick else 64))
    rates = writing(loaded, prompts, sampling, rounds=options.rounds or (1 if quick else 3))

    count = options.facets * options.per_facet
    measured = min(options.items or (4 if quick else count), count)
    variants = (options.directions + options.controls) * (options.coefficients - 1)
    prompts, answers = items_of(loaded, measured, options.answer_tokens)
    delta_VD = unit_rows(variants, loaded.width, seed=1) * np.float32(0.25 * typical_norm(loaded, prompts))
    taken = forced(loaded, prompts, answers, delta_VD)
    part = slice(0, min(4, measured))
    few_VD = delta_VD[:8]
    slow = whole_passes(loaded, prompts[part], answers[part], few_VD)
    fast = forced(loaded, prompts[part], answers[part], few_VD)
    tokens = variants * sum(len(answer) for own in answers for answer in own)
    whole = taken * count / measured

    def by_round(name: str, other: str) -> list[float]:
        return [one / two for one, two in zip(rates[name], rates[other], strict=True)]

    def against(name: str, other: str) -> float:
        return statistics.median(by_round(name, other))

    ratios = {
        "vs_plain": against("unmask, steered", "unmask, plain"),
        "vs_repeng": against("unmask, steered", "repeng"),
        "vs_steering_vectors": against("unmask, steered", "steering-vectors"),
        "goal_over_time": GOAL / whole,
        "vs_whole_passes": slow / fast,
        "time_over_floor": taken / floor(loaded, tokens, rows=128 if quick else 1024),
    }
    print(f"{len(rates['repeng'])} rounds, {sampling.max_new_tokens} new tokens at most, float32; medians over rounds")
    print("| side | tokens/s |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {statistics.median(rate):.0f} |")
    told = ", ".join(f"{ratio:.2f}" for ratio in sorted(by_round("unmask, steered", "unmask, plain")))
    print(f"steered over plain, round by round, in order of size: {told}")
    print(
        f"matrix of {options.directions} directions and {options.controls} random ones, {options.facets} facets of "
        f"{options.per_facet} questions, {options.coefficients} coefficients: {whole / 60:.1f} minutes"
        + ("" if measured == count else f" (scaled up from {measured} of {count} questions)")
        + f", {60 * variants * measured / taken:,.0f} pairs of answers a minute"
    )
    print(
        json.dumps(
            {
                "benchmark": "steer",
                "ratios": ratios,
                "minutes": whole / 60,
                "measured_items": measured,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
