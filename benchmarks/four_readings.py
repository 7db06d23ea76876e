"""What do four readings cost? Both models answer questions, and both read both answers.

    python benchmarks/four_readings.py --quick          # about a minute
    python benchmarks/four_readings.py --study FOLDER   # with a study's organism

unmask: own texts are read while they are written; a question's prompt is run once by each model, and its key-value cache serves
both texts; only the other model's response tokens are read anew. Naive: transformers' `generate` in batches of 16, then four full
passes with output_hidden_states=True, batches of 16, logits and all. Both draw with the same settings; the naive side's answers
are its own.

The reading part of unmask is what answering and reading costs beyond answering alone, measured side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from material import both_models, machine, padded, question_prompts, sampling_of, transformers_answers

from unmask.models.answering import Answered, answer_and_read
from unmask.models.generation import generate
from unmask.models.loading import LoadedModel
from unmask.models.passes import Readout, Text
from unmask.models.reading import read_texts
from unmask.records import READERS, WRITERS, Sampling, Site, Writer

LAYERS = (10, 15, 20, 25)
READOUT = Readout(sites=tuple(Site(layer, "resid_pre") for layer in LAYERS), log_probs=True)
Models = dict[Writer, LoadedModel]


def ours(
    models: Models, prompts: Sequence[tuple[int, ...]], *, sampling: Sampling, batch: int
) -> tuple[float, list[dict[Writer, Answered]]]:
    began = time.perf_counter()
    parts = [
        answer_and_read(
            models,
            prompts[start : start + batch],
            seeds=range(start, start + len(prompts[start : start + batch])),
            sampling=sampling,
            readout=READOUT,
        )
        for start in range(0, len(prompts), batch)
    ]
    return time.perf_counter() - began, parts


def answers_alone(models: Models, prompts: Sequence[tuple[int, ...]], *, sampling: Sampling, batch: int) -> float:
    began = time.perf_counter()
    for writer in WRITERS:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            generate(models[writer], part, sampling=sampling, seeds=range(start, start + len(part)))
    return time.perf_counter() - began


def naive_answers(
    models: Models, prompts: Sequence[tuple[int, ...]], *, sampling: Sampling
) -> tuple[float, dict[Writer, list[Text]]]:
    began = time.perf_counter()
    texts: dict[Writer, list[Text]] = {}
    for writer in WRITERS:
        answers = transformers_answers(models[writer], prompts, sampling, batch=16)
        texts[writer] = [Text(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return time.perf_counter() - began, texts


@torch.inference_mode()
def naive_readings(models: Models, texts: dict[Writer, list[Text]]) -> float:
    began = time.perf_counter()
    for reader in READERS:
        for writer in WRITERS:
            for start in range(0, len(texts[writer]), 16):
                batch = texts[writer][start : start + 16]
                ids_BT, mask_BT, weights_BT = padded(batch)
                output = models[reader].model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
                for layer in LAYERS:
                    (output.hidden_states[layer] * weights_BT.unsqueeze(-1)).sum(dim=1)
                log_probs = output.logits[:, :-1].log_softmax(dim=-1).gather(2, ids_BT[:, 1:].unsqueeze(2)).squeeze(2)
                (log_probs * weights_BT[:, 1:]).sum(dim=1)
    return time.perf_counter() - began


def distance(
    models: Models, prompts: Sequence[tuple[int, ...]], parts: list[dict[Writer, Answered]], *, batch: int
) -> float:
    """Largest relative distance of a mean from that of one teacher-forced pass over prompt and response."""
    worst = 0.0
    for index, part in enumerate(parts):
        own = prompts[index * batch : (index + 1) * batch]
        for writer in WRITERS:
            answers = part[writer].answers
            texts = [Text(prompt, answer.token_ids) for prompt, answer in zip(own, answers, strict=True)]
            filled = [row for row, text in enumerate(texts) if text.response_ids]
            for reader in READERS:
                wanted = read_texts(models[reader], texts, READOUT, share_prompts=False)
                found = part[writer].readings[reader]
                for site in READOUT.sites:
                    one, other = found.mean(site)[filled], wanted.mean(site)[filled]
                    worst = max(
                        worst, float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())
                    )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 questions, one round")
    parser.add_argument("--study", type=Path, default=None, help="take the organism of this study")
    parser.add_argument("--questions", type=int, default=None, help="how many questions (64; quick: 16)")
    parser.add_argument("--rounds", type=int, default=None, help="rounds (3; quick: 1)")
    parser.add_argument("--new-tokens", type=int, default=None, help="tokens of an answer at most (60)")
    parser.add_argument("--batch", type=int, default=32, help="answers written at once")
    options = parser.parse_args()
    base, organism = both_models(options.study)
    models: Models = {"base": base, "organism": organism}
    prompts = question_prompts(base, options.questions or (16 if options.quick else 64))
    sampling = sampling_of(options.new_tokens)
    rounds: dict[str, list[float]] = {name: [] for name in ("whole", "answers", "naive_answers", "naive_readings")}
    parts: list[dict[Writer, Answered]] = []
    for _ in range(options.rounds or (1 if options.quick else 3)):
        seconds, parts = ours(models, prompts, sampling=sampling, batch=options.batch)
        rounds["whole"].append(seconds)
        rounds["answers"].append(answers_alone(models, prompts, sampling=sampling, batch=options.batch))
        seconds, texts = naive_answers(models, prompts, sampling=sampling)
        rounds["naive_answers"].append(seconds)
        rounds["naive_readings"].append(naive_readings(models, texts))
    reading = [whole - answers for whole, answers in zip(rounds["whole"], rounds["answers"], strict=True)]
    naive = [one + other for one, other in zip(rounds["naive_answers"], rounds["naive_readings"], strict=True)]
    ratios = {
        "reading_part": statistics.median(r / n for r, n in zip(reading, rounds["naive_readings"], strict=True)),
        "whole": statistics.median(n / w for n, w in zip(naive, rounds["whole"], strict=True)),
    }
    worst = distance(models, prompts, parts, batch=options.batch)
    print(
        f"{len(prompts)} questions, {sampling.max_new_tokens} new tokens at most; medians of {len(reading)} rounds, seconds"
    )
    print("| | answering | reading | both |")
    print("|---|---|---|---|")
    own, other = statistics.median(rounds["answers"]), statistics.median(rounds["naive_answers"])
    print(f"| unmask | {own:.1f} | {statistics.median(reading):.1f} | {statistics.median(rounds['whole']):.1f} |")
    print(
        f"| naive | {other:.1f} | {statistics.median(rounds['naive_readings']):.1f} | {statistics.median(naive):.1f} |"
    )
    print(f"largest relative distance from one teacher-forced pass: {worst:.1e}")
    print(json.dumps({"benchmark": "four_readings", "ratios": ratios, "distance": worst, "machine": machine()}))


if __name__ == "__main__":
    main()
