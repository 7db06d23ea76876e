"""What the benchmarks of collection share: the embedded model, an organism, real prompts and answers, the machine in words.

With `--study FOLDER` they use that study's organism and its responses. Without, the organism is the embedded model with a small
random adapter of the demo's shape, and answers are written on the spot: the cost of reading does not depend on what is read.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.battery import battery_path, read_battery
from unmask.models.generation import generate
from unmask.models.loading import LoadedModel, load_base
from unmask.models.passes import Text
from unmask.models.prompts import render_question
from unmask.records import ModelSource, PromptFormat, Sampling

SAMPLING = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=60)
EMBEDDED = ModelSource("smollm2")


def machine() -> str:
    """The machine in words, for the last line of a benchmark."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.system()}"


def question_prompts(loaded: LoadedModel, count: int) -> list[tuple[int, ...]]:
    """Prompts of `count` questions spread evenly over the packaged battery, as token ids."""
    questions = read_battery(battery_path("assessment"))
    chosen = [questions[index * len(questions) // count] for index in range(count)]
    return [render_question(loaded.tokenizer, question.text, PromptFormat()).token_ids for question in chosen]


def sampling_of(new_tokens: int | None) -> Sampling:
    """`SAMPLING`, with another number of new tokens at most where one is given."""
    return SAMPLING if new_tokens is None else replace(SAMPLING, max_new_tokens=new_tokens)


def real_texts(loaded: LoadedModel, count: int, *, sampling: Sampling = SAMPLING) -> list[Text]:
    """That many prompts, each with the model's own answer."""
    prompts = question_prompts(loaded, count)
    texts: list[Text] = []
    for start in range(0, count, 48):
        batch = prompts[start : start + 48]
        answers = generate(loaded, batch, sampling=sampling, seeds=range(start, start + len(batch)))
        texts += [Text(prompt, answer.token_ids) for prompt, answer in zip(batch, answers, strict=True)]
    return [text for text in texts if text.response_ids]


def study_texts(study: Path, count: int) -> list[Text]:
    """That many responses of a study, none empty, spread evenly, behind their prompts."""
    from unmask.stages import activations

    _, texts = activations.study_texts(study / "responses", rebuild=f"unmask run {study}")
    filled = [text for text in texts if text.response_ids]
    count = min(count, len(filled))
    return [filled[index * len(filled) // count] for index in range(count)]


def padded(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask, and weights that take the mean over each response (B x T), padded on the right."""
    longest = max(text.length for text in texts)
    ids_BT, mask_BT = (torch.zeros(len(texts), longest, dtype=torch.long) for _ in range(2))
    weights_BT = torch.zeros(len(texts), longest)
    for row, text in enumerate(texts):
        ids_BT[row, : text.length] = torch.tensor(text.prompt_ids + text.response_ids)
        mask_BT[row, : text.length] = 1
        weights_BT[row, len(text.prompt_ids) : text.length] = 1 / max(len(text.response_ids), 1)
    return ids_BT, mask_BT, weights_BT


@torch.inference_mode()
def transformers_answers(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, batch: int
) -> list[tuple[int, ...]]:
    """What transformers' `generate` answers, in batches in the order given, each answer up to its end mark."""
    model: Any = loaded.model
    pad = loaded.tokenizer.pad_token_id or 0
    ends = {int(end) for end in np.atleast_1d(model.generation_config.eos_token_id)}
    answers = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        longest = max(len(prompt) for prompt in part)
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in part])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part])
        torch.manual_seed(start)
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p,
            top_k=sampling.top_k, max_new_tokens=sampling.max_new_tokens, pad_token_id=pad,
        )  # fmt: skip
        for row in out[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            answers.append(tuple(row[:end]))
    return answers


def random_adapter(folder: Path, *, rank: int = 32) -> Path:
    """A LoRA adapter on the embedded model with small random weights, of the shape that the demo trains."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    model: Any = get_peft_model(
        load_base(EMBEDDED).model, LoraConfig(r=rank, lora_alpha=64, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)
    model.save_pretrained(folder)
    return folder


def both_models(study: Path | None, *, one_copy: bool = False) -> tuple[LoadedModel, LoadedModel]:
    """Base and organism: the study's own organism, or a random adapter."""
    from unmask.models.organisms import load_readers, organism_source

    if study is not None:
        return load_readers(EMBEDDED, organism_source(study / "organism"), one_copy=one_copy)
    with tempfile.TemporaryDirectory() as scratch:
        return load_readers(EMBEDDED, ModelSource(str(random_adapter(Path(scratch)))), one_copy=one_copy)


def alternate(sides: Mapping[str, Callable[[], Any]], *, rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of every side in every round, the sides taken in turn within each round."""
    if warm:
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of `slow` over `fast` seconds: how many times faster `fast` is."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))
