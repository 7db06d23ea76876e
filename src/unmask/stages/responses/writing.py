"""Three ways to have the answers written: one model at a time, both reading on the way, and vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from unmask.artifact import write_table
from unmask.collection import CollectionConfig, Recorded
from unmask.records import READERS, WRITERS, Writer
from unmask.stage import Inputs
from unmask.stages.responses.config import SCHEMA, ResponsesConfig
from unmask.stages.responses.jobs import Job, Plan, batch_path, jobs_of, rows_of, waiting_batches
from unmask.store import write_shard
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel
    from unmask.models.passes import Readout

VLLM_ANSWERS = 2048
"""Answers given to vLLM at once: what a kill may cost there."""


class Recording(NamedTuple):
    """What is read while answering, and where it is put."""

    readout: Readout
    collection: CollectionConfig
    recorded: Recorded


def recording_of(config: ResponsesConfig, inputs: Inputs, workspace: Workspace, *, anew: bool) -> Recording | None:
    """What to read on the way; None where nothing is wanted, or where it needs whole answers.

    What an earlier run recorded goes where the answers are written `anew`, or without being read.
    """
    readout = _wanted(config, inputs)
    if anew or readout is None:
        Recorded.drop(workspace.folder.parent)
    if config.collection is None or readout is None:
        return None
    recorded = Recorded(workspace.folder.parent, responses_key=workspace.key, collection=config.collection)
    recorded.begin()
    return Recording(readout, config.collection, recorded)


def _wanted(config: ResponsesConfig, inputs: Inputs) -> Readout | None:
    from unmask.models.collecting import readout_of
    from unmask.models.loading import load_config

    if config.collection is None:
        return None
    model = load_config(inputs.base)
    readout = readout_of(config.collection, num_layers=int(model.num_hidden_layers))
    return readout if config.reads_while_answering(readout, model) else None


def answer_alone(
    config: ResponsesConfig, inputs: Inputs, workspace: Workspace, *, writer: Writer, prompts: pd.DataFrame, plan: Plan
) -> None:
    """One model answers what it has not answered yet."""
    from unmask.models.answering import answer

    waiting = waiting_batches(plan, workspace, writer)
    loaded = load_writer(inputs, writer) if waiting else None
    for number in waiting:
        assert loaded is not None
        jobs = jobs_of(config, prompts, plan[number])
        answers = answer(
            loaded,
            [job.prompt_ids for job in jobs],
            sampling=config.sampling,
            seeds=[job.seed for job in jobs],
            rows=config.batch_size,
        )
        write_table(
            batch_path(workspace, writer, number), rows_of(loaded.tokenizer, writer, jobs, answers), schema=SCHEMA
        )
        inputs.progress.advance(len(jobs))


def answer_and_read_all(
    config: ResponsesConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    recording: Recording,
    prompts: pd.DataFrame,
    plan: Plan,
) -> None:
    """Both models answer and read, batch by batch."""
    from unmask.models.organisms import load_readers, organism_source
    from unmask.models.packed_weights import packed_weights

    waiting = waiting_batches(plan, workspace, *WRITERS)
    if waiting:
        source = organism_source(inputs.folders["organism"])
        pair = load_readers(inputs.base, source, one_copy=recording.collection.one_copy, progress=inputs.progress)
        models: dict[Writer, LoadedModel] = dict(zip(WRITERS, pair, strict=True))
        with packed_weights(*(loaded.model for loaded in pair)):  # once for all batches
            for number in waiting:
                jobs = jobs_of(config, prompts, plan[number])
                _answer_batch(config, inputs, workspace, recording=recording, models=models, jobs=jobs, number=number)


def _answer_batch(
    config: ResponsesConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    recording: Recording,
    models: Mapping[Writer, LoadedModel],
    jobs: list[Job],
    number: int,
) -> None:
    """One batch of both models: the readings are put away first, then the answers."""
    from unmask.models.answering import answer_and_read
    from unmask.models.collecting import shard_tensors, token_offsets
    from unmask.models.pooling import joined

    collection, readout = recording.collection, recording.readout
    answered = answer_and_read(
        models,
        [job.prompt_ids for job in jobs],
        seeds=[job.seed for job in jobs],
        sampling=config.sampling,
        readout=readout,
        rows=config.batch_size,
        token_budget=collection.token_budget,
        on_answers=lambda writer: inputs.progress.advance(len(jobs)),
    )
    places = {writer: range(index * len(jobs), (index + 1) * len(jobs)) for index, writer in enumerate(WRITERS)}
    readings = {
        reader: joined([(places[w], answered[w].readings[reader]) for w in WRITERS], rows=len(WRITERS) * len(jobs))
        for reader in READERS
    }
    write_shard(
        recording.recorded.folder,
        number,
        shard_tensors(readings, readout, sink_ratio=collection.sink_ratio),
        [job.response_id(writer) for writer in WRITERS for job in jobs],
        token_offsets=token_offsets(readings, readout),
        dtype=collection.dtype,
    )
    for writer in WRITERS:
        rows = rows_of(models[writer].tokenizer, writer, jobs, answered[writer].answers)
        write_table(batch_path(workspace, writer, number), rows, schema=SCHEMA)


def answer_with_vllm(
    config: ResponsesConfig, inputs: Inputs, workspace: Workspace, *, prompts: pd.DataFrame, plan: Plan
) -> None:
    """vLLM answers what has not been answered yet, several batches at a time: it makes its own."""
    from unmask.models.loading import load_tokenizer
    from unmask.models.organisms import organism_source
    from unmask.models.vllm_engine import VllmEngine

    waiting = {writer: waiting_batches(plan, workspace, writer) for writer in WRITERS}
    if not any(waiting.values()):
        return
    tokenizer = load_tokenizer(inputs.base)
    at_once = max(1, VLLM_ANSWERS // config.batch_size)
    with VllmEngine(
        inputs.base,
        organism_source(inputs.folders["organism"]),
        longest_prompt=max(len(ids) for ids in prompts["token_ids"]),
        max_new_tokens=config.max_new_tokens,
    ) as engine:
        for writer in WRITERS:
            for start in range(0, len(waiting[writer]), at_once):
                numbers = waiting[writer][start : start + at_once]
                batches = [jobs_of(config, prompts, plan[number]) for number in numbers]
                jobs = [job for batch in batches for job in batch]
                answers = iter(
                    engine.answer(
                        [job.prompt_ids for job in jobs],
                        writer=writer,
                        sampling=config.sampling,
                        seeds=[job.seed for job in jobs],
                    )
                )
                for number, batch in zip(numbers, batches, strict=True):
                    rows = rows_of(tokenizer, writer, batch, list(islice(answers, len(batch))))
                    write_table(batch_path(workspace, writer, number), rows, schema=SCHEMA)
                    inputs.progress.advance(len(batch))


def load_writer(inputs: Inputs, writer: Writer) -> LoadedModel:
    from unmask.models.loading import load_base
    from unmask.models.organisms import load_organism, organism_source

    if writer == "base":
        return load_base(inputs.base, progress=inputs.progress)
    return load_organism(inputs.base, organism_source(inputs.folders["organism"]))
