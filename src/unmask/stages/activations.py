"""Stages `activations` and `control_activations`: models read responses; activations at sites, persona log-odds.

Base and organism read every response; the control organism, where there is one, reads those that the organism wrote. What was
recorded while answering is taken as it is; the rest is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.artifact import digest_file, link_or_copy, read_json, read_table, write_table
from unmask.battery import read_rows
from unmask.collection import CollectionConfig, Recorded
from unmask.errors import DataError
from unmask.records import READERS
from unmask.stage import Inputs, Result, Stage
from unmask.store import ActivationStore, annotate_index, shard_name, write_index, write_shard
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel
    from unmask.models.passes import Readout, Text

SCHEMA = pa.schema(
    [
        ("response_id", pa.string()),
        ("tokens", pa.int32()),
        ("log_prob_base", pa.float64()),
        ("log_prob_organism", pa.float64()),
        ("log_odds", pa.float64()),
    ]
)
CHUNK = 4
"""Token budgets in a chunk: the unit of reading that a kill costs, and a shard of the store."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be read: responses with their texts, what is wanted of them, and shards that are there already."""

    responses: pd.DataFrame
    texts: list[Text]
    readout: Readout
    recorded: list[Path]

    @property
    def response_ids(self) -> list[str]:
        return [str(name) for name in self.responses["response_id"]]


def run(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.loading import backend
    from unmask.models.organisms import load_readers, organism_source

    work = _work(config, inputs, workspace)

    def readers() -> dict[str, LoadedModel]:
        source = organism_source(inputs.folders["organism"])
        pair = load_readers(inputs.base, source, one_copy=config.one_copy, progress=inputs.progress)
        return dict(zip(READERS, pair, strict=True))

    _read_all(config, inputs, workspace, work, readers=readers)
    _seal(config, inputs, workspace, work, excluded={})
    store = ActivationStore.open(workspace.out)
    report = _outlying(config, store, work)
    excluded = {
        site: [each["coordinate"] for each in found["massive_coordinates"]]
        for site, found in report.items()
        if config.exclude_massive
    }
    annotate_index(workspace.out, excluded=excluded, report=report)
    readings = _readings(store, work)
    write_table(workspace.out / "readings.parquet", readings, schema=SCHEMA)
    own = readings.set_index("response_id")["log_odds"]
    writer = work.responses.set_index("response_id")["writer"]
    return Result(
        {
            "readings": len(READERS) * len(work.responses),
            "read_while_answering": len(READERS) * sum(len(_ids(path)) for path in work.recorded),
            "sites": [site.name for site in work.readout.sites],
            **backend(inputs.base),
            "tokens": int(len(READERS) * sum(text.length for text in work.texts)),
            "empty_responses": int((work.responses["tokens"] == 0).sum()),
            "sinks": {site: found["sinks"] for site, found in report.items()},
            "massive_coordinates": {site: len(found["massive_coordinates"]) for site, found in report.items()},
            "mean_log_odds": {w: _mean(own[writer == w]) for w in READERS},
        }
    )


def run_control(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    """The control organism reads the organism's responses. Without one the store is sealed empty."""
    from unmask.models.collecting import sinks_in
    from unmask.models.organisms import load_organism, organism_source

    recipe = read_json(inputs.folders["control"] / "recipe.json", rebuild=f"{inputs.rebuild} control")
    if recipe["kind"] == "none":
        write_index(workspace.out, sites=[], width=0, dtype=config.dtype)
        return Result({"readings": 0, "control": "none"})
    bare = config.model_copy(update={"aggregations": (), "mask": None, "tokens": ()})
    work = _work(bare, inputs, workspace, writer="organism")
    # The same tokens and columns as the other readers, or differences would show those that are left out.
    others = ActivationStore.open(inputs.folders["activations"])
    if config.exclude_sinks:
        marks = sinks_in(others, work.readout.sites)
        marked = [replace(text, sinks=marks[name]) for name, text in zip(work.response_ids, work.texts, strict=True)]
        work = replace(work, texts=marked)
    work = replace(work, readout=replace(work.readout, log_probs=False, sink_ratio=None))

    def readers() -> dict[str, LoadedModel]:
        return {"control": load_organism(inputs.base, organism_source(inputs.folders["control"]))}

    _read_all(config, inputs, workspace, work, readers=readers)
    _seal(config, inputs, workspace, work, excluded=others.excluded)
    return Result(
        {
            "readings": len(work.responses),
            "sites": [site.name for site in work.readout.sites],
            "tokens": int(sum(text.length for text in work.texts)),
        }
    )


def _work(config: CollectionConfig, inputs: Inputs, workspace: Workspace, *, writer: str | None = None) -> _Work:
    """The responses, of one writer or of both, each behind its prompt as token ids, and what was recorded of them."""
    from unmask.models.collecting import readout_of
    from unmask.models.loading import load_config

    rebuild = f"{inputs.rebuild} responses"
    folder = inputs.folders["responses"]
    masks = None if config.mask is None else read_masks(inputs.study_folder / config.mask)
    responses, texts = study_texts(folder, rebuild=rebuild, writer=writer, masks=masks)
    if masks is not None:
        check_masks(masks, responses, called=str(config.mask))
    recorded: list[Path] = []
    if writer is None:
        key = read_json(folder / "manifest.json", rebuild=rebuild)["key"]
        kept = Recorded(workspace.folder.parent, responses_key=key, collection=config)
        recorded = kept.shards(folder / "responses.parquet")
    readout = readout_of(config, num_layers=int(load_config(inputs.base).num_hidden_layers))
    return _Work(responses, texts, readout, recorded)


def study_texts(
    folder: Path, *, rebuild: str, writer: str | None = None, masks: Mapping[str, frozenset[int]] | None = None
) -> tuple[pd.DataFrame, list[Text]]:
    """The responses in a stage's folder, of one writer or of both, and each of them behind its prompt as token ids."""
    responses = read_table(folder / "responses.parquet", rebuild=rebuild)
    prompts = read_table(folder / "prompts.parquet", rebuild=rebuild)
    if writer is not None:
        responses = responses[responses["writer"] == writer].reset_index(drop=True)
    return responses, _texts(responses, prompts, masks)


def read_masks(path: Path) -> dict[str, frozenset[int]]:
    """Response id to the positions of its marked tokens, from a Parquet or JSONL file with `response_id` and `tokens`.

    Raises DataError naming the line that holds something else.
    """
    masks: dict[str, frozenset[int]] = {}
    for number, row in read_rows(path):
        identity, tokens = row.get("response_id"), row.get("tokens")
        positions = list(tokens) if isinstance(tokens, Sequence | np.ndarray) and not isinstance(tokens, str) else None
        if not isinstance(identity, str) or positions is None or not all(_is_position(each) for each in positions):
            raise DataError(
                f"{path}, row {number}: not a response_id with a list of token positions",
                mend='Write rows such as {"response_id": "pc-001/0/organism", "tokens": [0, 1, 2]}',
            )
        if identity in masks:
            raise DataError(
                f"{path}, row {number}: response {identity!r} stands there for the second time",
                mend="Write all tokens that are marked of a response into one row",
            )
        masks[identity] = frozenset(int(each) for each in positions)
    return masks


def check_masks(masks: Mapping[str, frozenset[int]], responses: pd.DataFrame, *, called: str) -> None:
    """Raise DataError for a mask of a response that is not there, or of a token that the response does not have."""
    tokens = dict(zip(responses["response_id"], responses["tokens"], strict=True))
    for identity, positions in masks.items():
        if identity not in tokens:
            raise DataError(f"{called} marks response {identity!r}, which the study lacks", mend="Take that row out")
        if positions and max(positions) >= tokens[identity]:
            raise DataError(
                f"{called} marks token {max(positions)} of response {identity!r}, which has {tokens[identity]} tokens",
                mend="Count positions from 0 at the response's first token",
            )


def _is_position(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0


def _texts(responses: pd.DataFrame, prompts: pd.DataFrame, masks: Mapping[str, frozenset[int]] | None) -> list[Text]:
    from unmask.models.passes import Text
    from unmask.models.prompts import prompt_ids_by_question

    prompt_ids = prompt_ids_by_question(prompts)
    texts = []
    for row in responses[["response_id", "question_id", "token_ids"]].itertuples():
        ids = tuple(int(token) for token in row.token_ids)
        marked = None if masks is None else masks.get(str(row.response_id), frozenset())
        mask = None if marked is None else tuple(position in marked for position in range(len(ids)))
        texts.append(Text(prompt_ids[str(row.question_id)], ids, mask))
    return texts


def _read_all(
    config: CollectionConfig,
    inputs: Inputs,
    workspace: Workspace,
    work: _Work,
    *,
    readers: Callable[[], Mapping[str, LoadedModel]],
) -> None:
    """Take the shards that an earlier run left and those that were recorded; read what is in none, a shard a chunk.

    `readers` loads the models that read, by the name that their tensors get; it is not called when all is read.
    """
    from unmask.models.collecting import plan_chunks, shard_tensors, token_offsets
    from unmask.models.reading import read_with_each

    ids = work.response_ids
    present = {path.name: _ids(path) for path in sorted(workspace.batches.glob(SHARDS))}
    taken = {identity for part in present.values() for identity in part}
    free = (number for number in count() if shard_name(number) not in present)
    recorded = {identity for path in work.recorded for identity in _ids(path)}
    for path in work.recorded:
        if taken.isdisjoint(_ids(path)):
            link_or_copy(path, workspace.batches / shard_name(next(free)))
            taken |= set(_ids(path))
    # Cut as if nothing had been read here yet: whatever is missing of the plan, it is the same plan.
    planned = [row for row in range(len(ids)) if ids[row] not in recorded]
    chunks = plan_chunks([work.texts[row] for row in planned], chunk_tokens=CHUNK * config.token_budget)
    left = [[planned[place] for place in chunk if ids[planned[place]] not in taken] for chunk in chunks]
    missing = [rows for rows in left if rows]
    models = readers() if missing else {}
    title = f"reading with {' and '.join(models)}" if models else "taking what was read while answering"
    inputs.progress.begin(title, total=len(ids), done=len(ids) - sum(map(len, missing)))
    for rows in missing:
        texts = [work.texts[row] for row in rows]
        readings = read_with_each(models, texts, work.readout, token_budget=config.token_budget)
        tensors = shard_tensors(readings, work.readout, sink_ratio=config.sink_ratio)
        write_shard(
            workspace.batches,
            next(free),
            tensors,
            [ids[row] for row in rows],
            token_offsets=token_offsets(readings, work.readout),
            dtype=config.dtype,
        )
        inputs.progress.advance(len(rows))
    inputs.progress.end()
    for path in sorted(workspace.batches.glob(SHARDS)):
        link_or_copy(path, workspace.out / path.name)


def _seal(
    config: CollectionConfig,
    inputs: Inputs,
    workspace: Workspace,
    work: _Work,
    *,
    excluded: Mapping[str, Sequence[int]],
) -> None:
    from unmask.models.loading import load_config
    from unmask.models.sites import site_shape

    model = load_config(inputs.base)
    shapes = {site: site_shape(model, site) for site in work.readout.sites}
    write_index(
        workspace.out,
        sites=[site.name for site in shapes],
        width=int(model.hidden_size),
        dtype=config.dtype,
        heads={site.name: shape.heads for site, shape in shapes.items() if shape.heads is not None},
        excluded=excluded,
    )


def _outlying(config: CollectionConfig, store: ActivationStore, work: _Work) -> dict[str, dict[str, Any]]:
    """What dwarfs the rest at each site: attention sinks among response tokens by reader, massive coordinates of the base."""
    from unmask.models.outlying import massive_coordinates

    found: dict[str, dict[str, Any]] = {}
    for site in work.readout.sites:
        peaks = [store.read(f"{reader}/{site.name}/peak") for reader in READERS]
        largest = [float(np.nanmax(peak)) if np.isfinite(peak).any() else None for peak in peaks]
        massive = massive_coordinates(store.read(f"base/{site.name}"), ratio=config.massive_ratio)
        found[site.name] = {
            "sinks": {r: int(store.read(f"{r}/{site.name}/sinks").sum()) for r in READERS},
            "sinks_excluded": config.exclude_sinks,
            "largest_norm_ratio": dict(zip(READERS, largest, strict=True)),
            "massive_coordinates": [{"coordinate": m.coordinate, "ratio": round(m.ratio, 2)} for m in massive],
        }
    return found


def _mean(values: pd.Series) -> float | None:
    """The mean of what is there; None where nothing is."""
    mean = float(values.mean())
    return round(mean, 4) if isfinite(mean) else None


def _ids(path: Path) -> list[str]:
    return ActivationStore.shard_response_ids(path)


def _readings(store: ActivationStore, work: _Work) -> pd.DataFrame:
    import pandas as pd

    log_probs = {f"log_prob_{reader}": store.read(f"{reader}/log_prob") for reader in READERS}
    table = pd.DataFrame({"response_id": store.response_ids(), **log_probs})
    table["log_odds"] = table["log_prob_organism"] - table["log_prob_base"]
    merged = work.responses[["response_id", "tokens"]].merge(table, on="response_id", how="left", validate="one_to_one")
    return merged[SCHEMA.names]


def external(config: CollectionConfig, study_folder: Path) -> dict[str, str]:
    """The file of masks, where there is one."""
    if config.mask is None:
        return {}
    path = study_folder / config.mask
    if not path.is_file():
        raise DataError(f"activations.mask names {path}, which does not exist", mend="Name a Parquet or JSONL file")
    return {"mask": digest_file(path)}


SHARDS = "shard-*.safetensors"
STAGE = Stage(
    "activations",
    "read activations",
    3,
    CollectionConfig,
    ("organism", "responses"),
    True,
    run,
    external,
    shards=SHARDS,
)
CONTROL = Stage(
    "control_activations",
    "read with the control organism",
    3,
    CollectionConfig,
    ("control", "responses", "activations"),
    True,
    run_control,
    section="activations",
    shards=SHARDS,
)
