"""How fast this device runs this model, measured in about two seconds, and the time that a plan takes at that speed.

Shapes: B rows, T tokens, D width of the residual stream, H key-value heads, E width of a head.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.packed_weights import packed_weights
from unmask.models.passes import Readout, Text
from unmask.models.planning.architecture import architecture_of
from unmask.models.planning.work import pass_of
from unmask.models.prompt_cache import prefill
from unmask.models.reading import read_texts
from unmask.models.running_batch import RunningBatch, UnsharedBatch
from unmask.models.sites import body, head_logits

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.models.planning.plan import CollectionPlan
    from unmask.models.planning.work import Work
    from unmask.models.planning.workload import Workload

_SHORT = 16
"""Tokens of the short pass that shows what starting a pass costs."""
_POSITIONS = 256
"""Positions whose logits are taken at a time to measure the head."""
_ROOM = 200
"""Steps of answering that are measured at most."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured: seconds to make a model ready for answers (`packed_weights`) and to start a pass, FLOP/s of the
    body's passes and of the head, tokens a second of a large pass.

    `step_seconds` is one step of a full batch of answers, logits and all; None where no answers are to be written.
    """

    device: str
    block_seconds: float
    pass_seconds: float
    body_flops_per_second: float
    head_flops_per_second: float
    tokens_per_second: float
    step_seconds: float | None = None


def expected_seconds(plan: CollectionPlan, speed: Speed) -> float:
    """The sum of `seconds_of` over a plan's work. Loading models, drawing tokens and writing shards are not in it."""
    return sum(seconds_of(work, speed) for work in plan.work)


def seconds_of(work: Work, speed: Speed) -> float:
    """Passes x seconds to start one + FLOPs of the body / its FLOP/s + FLOPs of the head / its FLOP/s. Of answers: blocks x
    seconds to open one + steps x seconds of one.

    Raises ValueError for answers whose step was not measured.
    """
    if work.kind == "answers":
        if speed.step_seconds is None:
            raise ValueError("a step of answering was not measured: calibrate with this very workload")
        return work.blocks * speed.block_seconds + work.passes * speed.step_seconds
    body_seconds = (work.linear_flops + work.attention_flops) / speed.body_flops_per_second
    return work.passes * speed.pass_seconds + body_seconds + work.head_flops / speed.head_flops_per_second


@torch.inference_mode()
def calibrate(
    loaded: LoadedModel, workload: Workload, *, seconds: float = 2.0, trust_remote_code: bool = False
) -> Speed:
    """Measure this model on its device with passes like those of the workload, for about `seconds`; the model is left as it was.

    Texts of random tokens, of the workload's median lengths, are read to the deepest site (to the end where no layer is needed),
    means and all: once short, then in as large a batch as the time allows, and the line through both gives the two numbers of the
    body. Each pass is made once to warm up and then until its share of the time is used; the median counts. Of two readers on one
    copy, give the one with the adapter.

    Raises ValueError for a workload without texts.
    """
    if not workload.texts:
        raise ValueError("there is nothing to read, so nothing to measure")
    architecture = architecture_of(loaded.model.config, trust_remote_code=trust_remote_code)
    deepest = workload.readout.depth(loaded.num_layers)
    depth = deepest or loaded.num_layers
    readout = replace(workload.readout, sites=workload.sites if deepest else (), log_probs=False, tokens=())
    share = seconds / (4 if workload.answering else 3)

    def body_pass(tokens: int) -> tuple[float, int, int]:
        texts = _texts(loaded, workload, tokens)
        length = max(text.length for text in texts)
        work = pass_of(architecture, "texts", depth=depth, rows=len(texts), length=length)
        took = _median_seconds(lambda: _read(loaded, texts, readout), share, device=loaded.device)
        return took, work.flops, work.padded_tokens

    began = time.perf_counter()
    with packed_weights(loaded.model) if workload.answering else nullcontext():
        opening = time.perf_counter() - began
        short = body_pass(_SHORT)
        affordable = int(share / 3 / short[0] * short[2])
        long = body_pass(min(workload.token_budget, max(affordable, 4 * _SHORT)))
        head = _median_seconds(lambda: _log_probs(loaded), share / 2, device=loaded.device)
        step = _step_seconds(loaded, workload, share) if workload.answering else None
    rate = (long[1] - short[1]) / (long[0] - short[0]) if long[0] > short[0] else long[1] / long[0]
    return Speed(
        device=str(loaded.device),
        block_seconds=opening,
        pass_seconds=max(long[0] - long[1] / rate, 0.0),
        body_flops_per_second=rate,
        head_flops_per_second=2 * architecture.hidden * architecture.vocabulary * _POSITIONS / head,
        tokens_per_second=long[2] / long[0],
        step_seconds=step,
    )


def _log_probs(loaded: LoadedModel) -> torch.Tensor:
    hidden_ND = torch.zeros(_POSITIONS, loaded.width, device=loaded.device, dtype=loaded.model.dtype)
    return torch.logsumexp(head_logits(loaded.model, hidden_ND), dim=1)


def _read(loaded: LoadedModel, texts: list[Text], readout: Readout) -> None:
    if readout.sites:
        everything = sum(text.length for text in texts)
        read_texts(loaded, texts, readout, token_budget=everything, share_prompts=False)
        return
    ids_BT = torch.tensor([[*text.prompt_ids, *text.response_ids] for text in texts], device=loaded.device)
    with loaded.active():
        body(loaded.model)(input_ids=ids_BT, use_cache=False)


def _texts(loaded: LoadedModel, workload: Workload, tokens: int) -> list[Text]:
    """Texts of random tokens that have about so many together, each as long as the workload's median text, or shorter."""
    prompt = int(np.median(np.concatenate([chunk.prompt_tokens_P for chunk in workload.chunks])))
    response = int(np.median(np.concatenate([chunk.response_tokens_N for chunk in workload.chunks])))
    length = min(prompt + response, tokens)
    prompt = min(prompt, length // 2)
    rows = max(1, tokens // length)
    ids_BT = np.random.default_rng(0).integers(0, loaded.model.config.get_text_config().vocab_size, (rows, length))
    return [Text(tuple(row[:prompt]), tuple(row[prompt:])) for row in ids_BT.tolist()]


def _step_seconds(loaded: LoadedModel, workload: Workload, share: float) -> float:
    """One step of answering as `generation` makes it: a token of every row of a batch, behind a past of the mean length."""
    chunk = workload.chunks[0]
    rows = int((chunk.writer_N == 0).sum())
    past = int(chunk.prompt_tokens_P.max() + chunk.response_tokens_N.max() // 2)
    ids_B = torch.zeros(rows, dtype=torch.long, device=loaded.device)
    prompt = [0] * max(past, 1)
    with loaded.active(), packed_weights(loaded.model):
        if keeps_keys_and_values(loaded.model.config):
            cache = prefill(loaded, [prompt], token_budget=max(past, 1))
            batch = RunningBatch(loaded, cache, rows=rows, room=_ROOM, refilled=False)
            batch.admit(np.arange(rows), np.zeros(rows, dtype=np.int64))
        else:
            batch = UnsharedBatch(loaded, [prompt] * rows)
            batch.start()
        return _median_seconds(
            lambda: head_logits(loaded.model, batch.step(ids_B)).argmax(dim=-1), share, device=loaded.device, most=_ROOM
        )


def _median_seconds(run: Callable[[], object], share: float, *, device: torch.device, most: int = 1000) -> float:
    """Median time of a run: one to warm up, then one to `most`, until `share` seconds have passed since the start.

    Where the first alone takes longer than that, it is what counts.
    """
    began = time.perf_counter()
    taken: list[float] = []
    for number in range(most):
        started = time.perf_counter()
        run()
        _wait(device)
        ended = time.perf_counter()
        if number > 0 or ended - began > share:
            taken.append(ended - started)
        if taken and ended - began > share:
            break
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
