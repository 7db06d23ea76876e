"""Both models answer questions and read both answers, at the least cost: four readings for two generations and a bit.

Each model runs a question's prompt once. Its own answer is read while it is written; behind the same cached prompt it then reads
the other model's answer, of which only the response tokens are run.

Shapes: N jobs (a question and a seed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.models.generation import generate
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.passes import Readout, Text
from unmask.models.pooling import Reading
from unmask.models.reading import Prompts, halved, read_behind, run_prompts
from unmask.records import WRITERS, Writer

if TYPE_CHECKING:
    from unmask.models.generation import Generated
    from unmask.models.loading import LoadedModel
    from unmask.records import Sampling


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's answers (one a job), and what each reader saw in them, by the reader's name."""

    answers: list[Generated]
    readings: dict[Writer, Reading]


def can_read_while_answering(readout: Readout, config: Any) -> bool:
    """Whether all that is wanted can be taken while a model of that configuration (Hugging Face's) writes.

    Attention patterns, a user's mask and the exclusion of sinks need the whole answer; so does a model whose prompts cannot be
    shared.
    """
    if not keeps_keys_and_values(config):
        return False
    return not (readout.needs_whole_texts or "mask" in readout.aggregations or readout.sink_ratio is not None)


def answer(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], *, sampling: Sampling, seeds: Sequence[int], rows: int
) -> list[Generated]:
    """Let one model answer, `rows` at a time; where the device's memory does not hold so many, again with half of them."""
    return halved(
        lambda at_once: generate(loaded, prompts, sampling=sampling, seeds=seeds, rows=at_once),
        min(rows, len(prompts)),
    )


def answer_and_read(
    models: Mapping[Writer, LoadedModel],
    prompts: Sequence[tuple[int, ...]],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
    readout: Readout,
    rows: int = 64,
    token_budget: int = 2048,
    on_answers: Callable[[Writer], None] = lambda writer: None,
) -> dict[Writer, Answered]:
    """Let both models answer `prompts` (one a job, equal ones share their cache), `rows` at a time, and read both answers.

    Where the device's memory does not hold so many rows, a model begins again with half of them.
    Agrees with reading the same answers in one pass each to rounding (1e-3 relative in float32 is tested). Raises ValueError
    for a readout, or models, for which that cannot be done.
    """
    if not all(can_read_while_answering(readout, loaded.model.config) for loaded in models.values()):
        raise ValueError("this readout needs whole answers: read them with read_texts")
    unique = list(dict.fromkeys(prompts))
    answers: dict[Writer, list[Generated]] = {}
    own: dict[Writer, Reading] = {}
    ready: dict[Writer, Prompts] = {}
    for writer in WRITERS:
        loaded = models[writer]
        ready[writer] = run_prompts(loaded, unique, readout, token_budget=token_budget)
        answers[writer], own[writer] = _answered(
            loaded, ready[writer], prompts, readout, sampling=sampling, seeds=seeds, rows=rows
        )
        on_answers(writer)

    def read(reader: Writer, writer: Writer) -> Reading:
        if reader == writer:
            return own[writer]
        texts = [Text(prompt, answer.token_ids) for prompt, answer in zip(prompts, answers[writer], strict=True)]
        return read_behind(models[reader], ready[reader], texts, readout, token_budget=token_budget)

    return {
        writer: Answered(answers[writer], {reader: read(reader, writer) for reader in WRITERS}) for writer in WRITERS
    }


def _answered(
    loaded: LoadedModel,
    ready: Prompts,
    prompts: Sequence[tuple[int, ...]],
    readout: Readout,
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    rows: int,
) -> tuple[list[Generated], Reading]:
    """One model's answers, and what it saw while it wrote them."""
    rows_N = [ready.row_of[prompt] for prompt in prompts]

    def run(at_once: int) -> tuple[list[Generated], Reading]:
        pool = readout.without("prompt_last").pool(loaded, len(prompts))
        written = generate(
            loaded, prompts, sampling=sampling, seeds=seeds, recorder=pool, prompt_cache=ready.cache,
            prompt_rows=rows_N, rows=at_once,
        )  # fmt: skip
        return written, pool.finish()

    answers, own = halved(run, min(rows, len(prompts)))
    return answers, own.with_prompt_lasts(ready.pool, rows_N) if "prompt_last" in readout.aggregations else own
