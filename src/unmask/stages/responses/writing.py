"""Three ways to have the answers written: one model at a time, both reading on the way, and vLLM."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from unmask.artifact import write_table
from unmask.collection import CollectionConfig, Recorded
from unmask.records import READERS, WRITERS, Writer
from unmask.stage import Inputs, Make, Shard, Told, Work
from unmask.stages.responses.config import SCHEMA, ResponsesConfig
from unmask.stages.responses.jobs import (
    Job,
    Plan,
    answered_already,
    batch_path,
    jobs_of,
    prompts_path,
    rows_of,
    waiting_batches,
)
from unmask.store import shard_name, write_shard
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel
    from unmask.models.passes import Readout

VLLM_ANSWERS = 2048
"""Answers given to vLLM at once: what a kill may cost there."""


class Asked(NamedTuple):
    """The prompts, and the answers to be made to them in batches."""

    prompts: pd.DataFrame
    plan: Plan


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


def alone_work(config: ResponsesConfig, inputs: Inputs, workspace: Workspace, asked: Asked) -> Work:
    """A shard is a batch of one model: first all of the base, then all of the organism, so that one is loaded at a time."""
    places = {f"{writer}-{number:05d}": (writer, number) for writer in WRITERS for number in range(len(asked.plan))}
    shards = tuple(
        Shard(name, len(asked.plan[number]), (batch_path(workspace, writer, number),))
        for name, (writer, number) in places.items()
    )

    @contextmanager
    def opened() -> Generator[Make]:
        from unmask.models.answering import answer

        loaded: dict[Writer, LoadedModel] = {}

        def make(shard: Shard, told: Told) -> None:
            writer, number = places[shard.name]
            if writer not in loaded:
                loaded.clear()  # before the other is loaded: memory holds one
                loaded[writer] = load_writer(inputs, writer)
            model, jobs = loaded[writer], jobs_of(config, asked.prompts, asked.plan[number])
            prompts, seeds = [job.prompt_ids for job in jobs], [job.seed for job in jobs]
            answers = answer(model, prompts, sampling=config.sampling, seeds=seeds, rows=config.batch_size)
            write_table(shard.files[0], rows_of(model.tokenizer, writer, jobs, answers), schema=SCHEMA)
            told(len(jobs))

        yield make

    return Work("answering", shards, opened, given=(prompts_path(workspace),))


def reading_work(
    config: ResponsesConfig, inputs: Inputs, workspace: Workspace, asked: Asked, recording: Recording
) -> Work:
    """A shard is a batch of both models, who answer and read."""
    numbers = {f"{number:05d}": number for number in range(len(asked.plan))}
    shards = tuple(
        Shard(
            name,
            units=len(WRITERS) * len(asked.plan[number]),
            files=tuple(batch_path(workspace, writer, number) for writer in WRITERS),
            beside=(recording.recorded.folder / shard_name(number),),
        )
        for name, number in numbers.items()
    )

    @contextmanager
    def opened() -> Generator[Make]:
        from unmask.models.organisms import load_readers, organism_source
        from unmask.models.packed_weights import packed_weights

        source = organism_source(inputs.folders["organism"])
        pair = load_readers(inputs.base, source, one_copy=recording.collection.one_copy, progress=inputs.progress)
        models: dict[Writer, LoadedModel] = dict(zip(WRITERS, pair, strict=True))

        def make(shard: Shard, told: Told) -> None:
            number = numbers[shard.name]
            jobs = jobs_of(config, asked.prompts, asked.plan[number])
            _answer_batch(config, workspace, recording=recording, models=models, jobs=jobs, number=number, told=told)

        with packed_weights(*(loaded.model for loaded in pair)):  # once for all batches
            yield make

    return Work("answering and reading", shards, opened, given=(prompts_path(workspace),))


def _answer_batch(
    config: ResponsesConfig,
    workspace: Workspace,
    *,
    recording: Recording,
    models: Mapping[Writer, LoadedModel],
    jobs: list[Job],
    number: int,
    told: Told,
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
        on_answers=lambda writer: told(len(jobs)),
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


def answer_with_vllm(config: ResponsesConfig, inputs: Inputs, workspace: Workspace, asked: Asked) -> None:
    """vLLM answers what has not been answered yet, several batches at a time: it makes its own."""
    from unmask.models.loading import load_tokenizer
    from unmask.models.organisms import organism_source
    from unmask.models.vllm_engine import VllmEngine

    prompts, plan = asked
    waiting = {writer: waiting_batches(plan, workspace, writer) for writer in WRITERS}
    inputs.progress.begin("answering", total=len(WRITERS) * sum(map(len, plan)), done=answered_already(plan, workspace))
    if not any(waiting.values()):
        inputs.progress.end()
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
    inputs.progress.end()


def load_writer(inputs: Inputs, writer: Writer) -> LoadedModel:
    from unmask.models.loading import load_base
    from unmask.models.organisms import load_organism, organism_source

    if writer == "base":
        return load_base(inputs.base, progress=inputs.progress)
    return load_organism(inputs.base, organism_source(inputs.folders["organism"]))
