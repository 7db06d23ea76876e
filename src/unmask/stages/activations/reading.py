"""Reading, a shard a chunk: which response goes into which shard is written down once, before the first is read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from unmask.artifact import link_or_copy, read_json, read_table, write_table
from unmask.collection import CollectionConfig, Recorded
from unmask.devices import device_of, note_devices
from unmask.stage import Inputs, Make, Shard, Told, Work
from unmask.stages.activations.texts import check_masks, read_masks, study_texts
from unmask.store import ActivationStore, shard_name, write_shard
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel
    from unmask.models.passes import Readout, Text

SHARDS = "shard-*.safetensors"
CHUNK = 4
"""Token budgets in a chunk: the unit of reading that a kill costs, and a shard of the store."""
PLAN = pa.schema([("shard", pa.int32()), ("response_id", pa.string()), ("recorded", pa.bool_())])
"""Rows in the order in which a shard holds them. `recorded`: it was read while answering."""

Readers = Callable[[], Mapping[str, "LoadedModel"]]
"""Loads the models that read, by the name that their tensors get."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is to be read: responses with their texts, and what is wanted of them."""

    responses: pd.DataFrame
    texts: list[Text]
    readout: Readout

    @property
    def response_ids(self) -> list[str]:
        return [str(name) for name in self.responses["response_id"]]


class Planned(NamedTuple):
    """A shard of the plan: the responses in it."""

    number: int
    response_ids: list[str]
    recorded: bool


def material_of(config: CollectionConfig, inputs: Inputs, *, writer: str | None = None) -> Material:
    """The responses, of one writer or of both, each behind its prompt as token ids."""
    from unmask.models.collecting import readout_of
    from unmask.models.loading import load_config

    masks = None if config.mask is None else read_masks(inputs.study_folder / config.mask)
    responses, texts = study_texts(
        inputs.folders["responses"], rebuild=f"{inputs.rebuild} responses", writer=writer, masks=masks
    )
    if masks is not None:
        check_masks(masks, responses, called=str(config.mask))
    return Material(responses, texts, readout_of(config, num_layers=int(load_config(inputs.base).num_hidden_layers)))


class Taken(NamedTuple):
    """Sound shards of readings that were taken while the models answered; the kind of device of these, and devices' names."""

    paths: Sequence[Path] = ()
    kind: str | None = None
    names: Sequence[str] = ()


def recorded_shards(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Taken:
    """What was read on the way, as far as it is there."""
    folder = inputs.folders["responses"]
    key = read_json(folder / "manifest.json", rebuild=f"{inputs.rebuild} responses")["key"]
    kept = Recorded(workspace.folder.parent, responses_key=key, collection=config)
    return Taken(kept.shards(folder / "responses.parquet"), *kept.devices)


def plan_of(
    config: CollectionConfig,
    inputs: Inputs,
    workspace: Workspace,
    material: Material,
    *,
    recorded: Callable[[], Taken],
) -> list[Planned]:
    """The shards, as the first who asked planned them. `recorded` gives those that are taken as they are."""
    path = workspace.batches / "plan.parquet"
    if not path.is_file():
        rows = [
            {"shard": shard.number, "response_id": identity, "recorded": shard.recorded}
            for shard in _plan(config, workspace, material, recorded())
            for identity in shard.response_ids
        ]
        write_table(path, rows, schema=PLAN)
    found: dict[int, Planned] = {}
    for number, identity, taken in read_table(path, rebuild=f"{inputs.rebuild} activations").itertuples(index=False):
        found.setdefault(number, Planned(number, [], taken)).response_ids.append(str(identity))
    return list(found.values())


def _plan(config: CollectionConfig, workspace: Workspace, material: Material, recorded: Taken) -> list[Planned]:
    """Shards that an earlier run left, those that were recorded, which are put beside them, and chunks of what is in none.

    Where something is left to be read on another kind of device than the recorded ones are of, none of these is taken.
    """
    from unmask.models.collecting import plan_chunks

    ids = material.response_ids
    present = {path.name: _ids(path) for path in sorted(workspace.batches.glob(SHARDS))}
    shards = [Planned(number_of(name), held, False) for name, held in present.items()]
    taken = {identity for held in present.values() for identity in held}
    free = (number for number in count() if shard_name(number) not in present)
    on_the_way: set[str] = set()
    held_by = {path: _ids(path) for path in recorded.paths}
    reached = taken.union(*held_by.values())
    if device_of(workspace) not in (None, recorded.kind) and recorded.kind and not reached.issuperset(ids):
        held_by = {}
    for path, held in held_by.items():
        on_the_way |= set(held)
        if taken.isdisjoint(held):
            number = next(free)
            link_or_copy(path, workspace.batches / shard_name(number))
            taken |= set(held)
            shards.append(Planned(number, held, True))
    if recorded.kind and any(shard.recorded for shard in shards):
        note_devices(workspace, recorded.kind, recorded.names)
    # Cut as if nothing had been read here yet: whatever is missing of the plan, it is the same plan.
    planned = [row for row in range(len(ids)) if ids[row] not in on_the_way]
    chunks = plan_chunks([material.texts[row] for row in planned], chunk_tokens=CHUNK * config.token_budget)
    left = [[ids[planned[place]] for place in chunk if ids[planned[place]] not in taken] for chunk in chunks]
    return shards + [Planned(next(free), names, False) for names in left if names]


def number_of(name: str) -> int:
    """The number in a shard's name."""
    return int(name.removeprefix("shard-").removesuffix(".safetensors"))


def reading_work(
    config: CollectionConfig,
    workspace: Workspace,
    material: Material,
    plan: list[Planned],
    *,
    readers: Readers,
    called: str,
) -> Work:
    """A shard of the store each. The readers are `called` so where people are told."""
    ids_of = {shard_name(shard.number): shard.response_ids for shard in plan}
    shards = tuple(Shard(name, len(ids), (workspace.batches / name,)) for name, ids in ids_of.items())

    @contextmanager
    def opened() -> Generator[Make]:
        from unmask.models.collecting import shard_tensors, token_offsets
        from unmask.models.reading import read_with_each

        models, readout = readers(), material.readout
        text_of = dict(zip(material.response_ids, material.texts, strict=True))

        def make(shard: Shard, told: Told) -> None:
            ids = ids_of[shard.name]
            texts = [text_of[identity] for identity in ids]
            readings = read_with_each(models, texts, readout, token_budget=config.token_budget)
            write_shard(
                workspace.batches,
                number_of(shard.name),
                shard_tensors(readings, readout, sink_ratio=config.sink_ratio),
                ids,
                token_offsets=token_offsets(readings, readout),
                dtype=config.dtype,
            )
            told(len(ids))

        yield make

    title = "taking what was read while answering" if all(shard.made for shard in shards) else f"reading with {called}"
    return Work(title, shards, opened, given=(workspace.batches / "plan.parquet",))


def _ids(path: Path) -> list[str]:
    return ActivationStore.shard_response_ids(path)
