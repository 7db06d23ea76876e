"""Stages `activations` and `control_activations`: models read responses; residual-stream means per site, persona log-odds.

Base and organism read every response; the control organism, where there is one, reads those that the organism wrote.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from unmask.artifact import read_json, read_table, write_table
from unmask.records import READERS, Site
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.store import ActivationStore, shard_name, write_index, write_shard
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel
    from unmask.models.reading import Reading, Text

SCHEMA = pa.schema(
    [
        ("response_id", pa.string()),
        ("tokens", pa.int32()),
        ("log_prob_base", pa.float64()),
        ("log_prob_organism", pa.float64()),
        ("log_odds", pa.float64()),
    ]
)


class ActivationsConfig(StageConfig):
    """What is read, and where."""

    layers: tuple[int, ...] = Field(min_length=1, description="indices of decoder layers")
    point: Literal["resid_pre", "resid_post"] = "resid_pre"
    dtype: Literal["float32", "float16"] = "float32"
    token_budget: int = Field(2048, ge=64, description="padded tokens a batch")

    @property
    def sites(self) -> list[Site]:
        return [Site(layer, self.point) for layer in sorted(set(self.layers))]


def run(config: ActivationsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    from unmask.models.reading import plan_batches

    responses = read_table(inputs.folders["responses"] / "responses.parquet", rebuild=f"{inputs.rebuild} responses")
    prompts = read_table(inputs.folders["responses"] / "prompts.parquet", rebuild=f"{inputs.rebuild} responses")
    texts = _texts(responses, prompts)
    plan = plan_batches([text.length for text in texts], token_budget=config.token_budget)[::-1]
    width = _read_all(config, inputs, workspace, responses=responses, texts=texts, plan=plan)
    for number in range(len(plan)):
        _bring(workspace.batches / shard_name(number), workspace.out / shard_name(number))
    names = [site.name for site in config.sites]
    write_index(workspace.out, sites=names, width=width, dtype=config.dtype)
    readings = _readings(ActivationStore.open(workspace.out), responses)
    write_table(workspace.out / "readings.parquet", readings, schema=SCHEMA)
    own = readings.set_index("response_id")["log_odds"]
    writer = responses.set_index("response_id")["writer"]
    return Result(
        {
            "readings": len(READERS) * len(responses),
            "sites": names,
            "tokens": int(len(READERS) * sum(text.length for text in texts)),
            "empty_responses": int((responses["tokens"] == 0).sum()),
            "mean_log_odds": {w: round(float(own[writer == w].mean()), 4) for w in ("base", "organism")},
        }
    )


def run_control(config: ActivationsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    """The control organism reads the organism's responses. Without one the store is sealed empty."""
    from unmask.models.reading import plan_batches

    names = [site.name for site in config.sites]
    recipe = read_json(inputs.folders["control"] / "recipe.json", rebuild=f"{inputs.rebuild} control")
    if recipe["kind"] == "none":
        write_index(workspace.out, sites=names, width=0, dtype=config.dtype)
        return Result({"readings": 0, "control": "none"})
    responses = read_table(inputs.folders["responses"] / "responses.parquet", rebuild=f"{inputs.rebuild} responses")
    prompts = read_table(inputs.folders["responses"] / "prompts.parquet", rebuild=f"{inputs.rebuild} responses")
    responses = responses[responses["writer"] == "organism"].reset_index(drop=True)
    texts = _texts(responses, prompts)
    plan = plan_batches([text.length for text in texts], token_budget=config.token_budget)[::-1]
    width = _read_with_control(config, inputs, workspace, responses=responses, texts=texts, plan=plan)
    for number in range(len(plan)):
        _bring(workspace.batches / shard_name(number), workspace.out / shard_name(number))
    write_index(workspace.out, sites=names, width=width, dtype=config.dtype)
    return Result({"readings": len(responses), "sites": names, "tokens": int(sum(text.length for text in texts))})


def _read_with_control(
    config: ActivationsConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    responses: pd.DataFrame,
    texts: list[Text],
    plan: list[list[int]],
) -> int:
    from unmask.models.loading import load_organism, organism_source

    control = load_organism(inputs.base, organism_source(inputs.folders["control"]))
    _read_batches(
        {"control": control},
        config,
        inputs,
        workspace,
        responses=responses,
        texts=texts,
        plan=plan,
        title="reading with the control organism",
    )
    return control.width


def _texts(responses: pd.DataFrame, prompts: pd.DataFrame) -> list[Text]:
    from unmask.models.prompts import prompt_ids_by_question
    from unmask.models.reading import Text

    prompt_ids = prompt_ids_by_question(prompts)
    return [
        Text(prompt_ids[question_id], tuple(int(token) for token in token_ids))
        for question_id, token_ids in zip(responses["question_id"], responses["token_ids"], strict=True)
    ]


def _read_all(
    config: ActivationsConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    responses: pd.DataFrame,
    texts: list[Text],
    plan: list[list[int]],
) -> int:
    """Read every batch that no earlier run has read. Returns the width of the residual stream."""
    from unmask.models.loading import load_base, load_organism, organism_source
    from unmask.models.sites import check_sites

    base = load_base(inputs.base, progress=inputs.progress)
    check_sites(config.sites, num_layers=base.num_layers, model_name=inputs.base.called)
    organism = base
    if any(not (workspace.batches / shard_name(number)).is_file() for number in range(len(plan))):
        organism = load_organism(inputs.base, organism_source(inputs.folders["organism"]))
    _read_batches(
        dict(zip(READERS, (base, organism), strict=True)),
        config,
        inputs,
        workspace,
        responses=responses,
        texts=texts,
        plan=plan,
        title="reading with both models",
    )
    return base.width


def _read_batches(
    readers: Mapping[str, LoadedModel],
    config: ActivationsConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    responses: pd.DataFrame,
    texts: list[Text],
    plan: list[list[int]],
    title: str,
) -> None:
    """Read the batches that are not there yet with each reader, a shard a batch."""
    from unmask.models.reading import read_texts

    waiting = [number for number in range(len(plan)) if not (workspace.batches / shard_name(number)).is_file()]
    finished = len(responses) - sum(len(plan[number]) for number in waiting)
    inputs.progress.begin(title, total=len(responses), done=finished)
    for number in waiting:
        rows = plan[number]
        batch = [texts[row] for row in rows]
        tensors: dict[str, np.ndarray] = {}
        for reader, loaded in readers.items():
            tensors |= _tensors(reader, read_texts(loaded, batch, config.sites), dtype=config.dtype)
        write_shard(workspace.batches, number, tensors, [str(responses["response_id"][row]) for row in rows])
        inputs.progress.advance(len(rows))
    inputs.progress.end()


def _tensors(reader: str, reading: Reading, *, dtype: str) -> dict[str, np.ndarray]:
    tensors = {f"{reader}/{site.name}": array.astype(dtype) for site, array in reading.means_BD.items()}
    tensors |= {f"{reader}/{site.name}/norm": array for site, array in reading.norms_B.items()}
    return tensors | {f"{reader}/log_prob": reading.log_prob_B}


def _bring(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _readings(store: ActivationStore, responses: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(
        {
            "response_id": store.response_ids(),
            "log_prob_base": store.read("base/log_prob"),
            "log_prob_organism": store.read("organism/log_prob"),
        }
    )
    table["log_odds"] = table["log_prob_organism"] - table["log_prob_base"]
    merged = responses[["response_id", "tokens"]].merge(table, on="response_id", how="left", validate="one_to_one")
    return merged[SCHEMA.names]


STAGE = Stage("activations", "read activations", 1, ActivationsConfig, ("organism", "responses"), True, run)
CONTROL = Stage(
    "control_activations",
    "read with the control organism",
    1,
    ActivationsConfig,
    ("control", "responses"),
    True,
    run_control,
    section="activations",
)
