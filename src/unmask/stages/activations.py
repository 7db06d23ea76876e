"""Stage `activations`: both models read every response; residual-stream means per site, and the persona log-odds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from unmask.artifact import read_table, write_table
from unmask.records import READERS, Site
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.store import ActivationStore, shard_name, write_index, write_shard
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

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
    from unmask.models.reading import read_texts
    from unmask.models.sites import check_sites

    waiting = [number for number in range(len(plan)) if not (workspace.batches / shard_name(number)).is_file()]
    finished = len(responses) - sum(len(plan[number]) for number in waiting)
    inputs.progress.begin("reading with both models", total=len(responses), done=finished)
    base = load_base(inputs.base, progress=inputs.progress)
    check_sites(config.sites, num_layers=base.num_layers, model_name=inputs.base.called)
    organism = load_organism(inputs.base, organism_source(inputs.folders["organism"])) if waiting else base
    for number in waiting:
        rows = plan[number]
        batch = [texts[row] for row in rows]
        tensors: dict[str, np.ndarray] = {}
        for reader, loaded in zip(READERS, (base, organism), strict=True):
            reading = read_texts(loaded, batch, config.sites)
            tensors |= _tensors(reader, reading, dtype=config.dtype)
        write_shard(workspace.batches, number, tensors, [str(responses["response_id"][row]) for row in rows])
        inputs.progress.advance(len(rows))
    inputs.progress.end()
    return base.width


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
