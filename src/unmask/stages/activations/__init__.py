"""Stages `activations` and `control_activations`: models read responses; activations at sites, persona log-odds.

Base and organism read every response; the control organism, where there is one, reads those that the organism wrote. What was
recorded while answering is taken as it is; the rest is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.artifact import digest_file, link_or_copy, read_json, write_table
from unmask.collection import CollectionConfig
from unmask.devices import device_of
from unmask.errors import DataError
from unmask.records import READERS
from unmask.stage import Inputs, Result, Stage, Work
from unmask.stages.activations.reading import (
    CHUNK,
    SHARDS,
    Material,
    Planned,
    Taken,
    material_of,
    plan_of,
    reading_work,
    recorded_shards,
)
from unmask.stages.activations.texts import check_masks, read_masks, study_texts
from unmask.store import ActivationStore, annotate_index, write_index
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel

__all__ = [
    "CHUNK",
    "CONTROL",
    "SCHEMA",
    "SHARDS",
    "STAGE",
    "check_masks",
    "read_masks",
    "run",
    "run_control",
    "study_texts",
]

SCHEMA = pa.schema(
    [
        ("response_id", pa.string()),
        ("tokens", pa.int32()),
        ("log_prob_base", pa.float64()),
        ("log_prob_organism", pa.float64()),
        ("log_odds", pa.float64()),
    ]
)


def run(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.loading import backend

    material, plan = _planned(config, inputs, workspace)
    _finish(_work(config, inputs, workspace, material, plan), inputs, workspace)
    _seal(config, inputs, workspace, material, excluded={})
    store = ActivationStore.open(workspace.out)
    report = _outlying(config, store, material)
    excluded = {
        site: [each["coordinate"] for each in found["massive_coordinates"]]
        for site, found in report.items()
        if config.exclude_massive
    }
    annotate_index(workspace.out, excluded=excluded, report=report)
    readings = _readings(store, material)
    write_table(workspace.out / "readings.parquet", readings, schema=SCHEMA)
    own = readings.set_index("response_id")["log_odds"]
    writer = material.responses.set_index("response_id")["writer"]
    return Result(
        {
            "readings": len(READERS) * len(material.responses),
            "read_while_answering": len(READERS) * sum(len(shard.response_ids) for shard in plan if shard.recorded),
            "sites": [site.name for site in material.readout.sites],
            **backend(inputs.base, made_on=device_of(workspace)),
            "tokens": int(len(READERS) * sum(text.length for text in material.texts)),
            "empty_responses": int((material.responses["tokens"] == 0).sum()),
            "sinks": {site: found["sinks"] for site, found in report.items()},
            "massive_coordinates": {site: len(found["massive_coordinates"]) for site, found in report.items()},
            "mean_log_odds": {w: _mean(own[writer == w]) for w in READERS},
        }
    )


def work(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Work:
    """Chunks of responses to be read by base and organism."""
    return _work(config, inputs, workspace, *_planned(config, inputs, workspace))


def _planned(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> tuple[Material, list[Planned]]:
    material = material_of(config, inputs)
    recorded = partial(recorded_shards, config, inputs, workspace)
    return material, plan_of(config, inputs, workspace, material, recorded=recorded)


def _work(
    config: CollectionConfig, inputs: Inputs, workspace: Workspace, material: Material, plan: list[Planned]
) -> Work:
    from unmask.models.organisms import load_readers, organism_source

    def readers() -> dict[str, LoadedModel]:
        source = organism_source(inputs.folders["organism"])
        pair = load_readers(inputs.base, source, one_copy=config.one_copy, progress=inputs.progress)
        return dict(zip(READERS, pair, strict=True))

    return reading_work(config, workspace, material, plan, readers=readers, called=" and ".join(READERS))


def run_control(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    """The control organism reads the organism's responses. Without one the store is sealed empty."""
    if not _has_control(inputs):
        write_index(workspace.out, sites=[], width=0, dtype=config.dtype)
        return Result({"readings": 0, "control": "none"})
    material, shared = _control_work(config, inputs, workspace)
    _finish(shared, inputs, workspace)
    # The same tokens and columns as the other readers, or differences would show those that are left out.
    _seal(config, inputs, workspace, material, excluded=ActivationStore.open(inputs.folders["activations"]).excluded)
    return Result(
        {
            "readings": len(material.responses),
            "sites": [site.name for site in material.readout.sites],
            "tokens": int(sum(text.length for text in material.texts)),
        }
    )


def control_work(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> Work | None:
    """Chunks of the organism's responses, to be read by the control; None without one."""
    return _control_work(config, inputs, workspace)[1] if _has_control(inputs) else None


def _has_control(inputs: Inputs) -> bool:
    return read_json(inputs.folders["control"] / "recipe.json", rebuild=f"{inputs.rebuild} control")["kind"] != "none"


def _control_work(config: CollectionConfig, inputs: Inputs, workspace: Workspace) -> tuple[Material, Work]:
    from unmask.models.collecting import sinks_in
    from unmask.models.organisms import load_organism, organism_source

    bare = config.model_copy(update={"aggregations": (), "mask": None, "tokens": ()})
    material = material_of(bare, inputs, writer="organism")
    if config.exclude_sinks:
        marks = sinks_in(ActivationStore.open(inputs.folders["activations"]), material.readout.sites)
        named = zip(material.response_ids, material.texts, strict=True)
        material = replace(material, texts=[replace(text, sinks=marks[name]) for name, text in named])
    material = replace(material, readout=replace(material.readout, log_probs=False, sink_ratio=None))
    plan = plan_of(config, inputs, workspace, material, recorded=Taken)

    def readers() -> dict[str, LoadedModel]:
        return {"control": load_organism(inputs.base, organism_source(inputs.folders["control"]))}

    found = reading_work(config, workspace, material, plan, readers=readers, called="control")
    return material, found if config.exclude_sinks else replace(found, unread=("activations",))


def _finish(shared: Work, inputs: Inputs, workspace: Workspace) -> None:
    """Make what is not made and put all of it where the stage's files are."""
    shared.finish(inputs.progress)
    for shard in shared.shards:
        for path in shard.files:
            link_or_copy(path, workspace.out / path.name)


def _seal(
    config: CollectionConfig,
    inputs: Inputs,
    workspace: Workspace,
    material: Material,
    *,
    excluded: Mapping[str, Sequence[int]],
) -> None:
    from unmask.models.loading import load_config
    from unmask.models.sites import site_shape

    model = load_config(inputs.base)
    shapes = {site: site_shape(model, site) for site in material.readout.sites}
    write_index(
        workspace.out,
        sites=[site.name for site in shapes],
        width=int(model.hidden_size),
        dtype=config.dtype,
        heads={site.name: shape.heads for site, shape in shapes.items() if shape.heads is not None},
        excluded=excluded,
    )


def _outlying(config: CollectionConfig, store: ActivationStore, material: Material) -> dict[str, dict[str, Any]]:
    """What dwarfs the rest at each site: attention sinks among response tokens by reader, massive coordinates of the base."""
    from unmask.models.outlying import massive_coordinates

    found: dict[str, dict[str, Any]] = {}
    for site in material.readout.sites:
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


def _readings(store: ActivationStore, material: Material) -> pd.DataFrame:
    import pandas as pd

    log_probs = {f"log_prob_{reader}": store.read(f"{reader}/log_prob") for reader in READERS}
    table = pd.DataFrame({"response_id": store.response_ids(), **log_probs})
    table["log_odds"] = table["log_prob_organism"] - table["log_prob_base"]
    merged = material.responses[["response_id", "tokens"]].merge(
        table, on="response_id", how="left", validate="one_to_one"
    )
    return merged[SCHEMA.names]


def external(config: CollectionConfig, study_folder: Path) -> dict[str, str]:
    """The file of masks, where there is one."""
    if config.mask is None:
        return {}
    path = study_folder / config.mask
    if not path.is_file():
        raise DataError(f"activations.mask names {path}, which does not exist", mend="Name a Parquet or JSONL file")
    return {"mask": digest_file(path)}


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
    work=work,
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
    work=control_work,
)
