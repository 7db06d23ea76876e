"""Stages `activations` and `control_activations`: models read responses; residual-stream means per site, persona log-odds.

Base and organism read every response; the control organism, where there is one, reads those that the organism wrote.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
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
    from unmask.models.loading import load_base, load_organism, organism_source
    from unmask.models.sites import check_sites

    responses, texts = _material(inputs)
    base = load_base(inputs.base, progress=inputs.progress)
    check_sites(config.sites, num_layers=base.num_layers, model_name=inputs.base.called)

    def readers() -> dict[str, LoadedModel]:
        organism = load_organism(inputs.base, organism_source(inputs.folders["organism"]))
        return dict(zip(READERS, (base, organism), strict=True))

    _read_all(config, inputs, workspace, responses, texts, readers=readers, width=base.width)
    readings = _readings(ActivationStore.open(workspace.out), responses)
    write_table(workspace.out / "readings.parquet", readings, schema=SCHEMA)
    own = readings.set_index("response_id")["log_odds"]
    writer = responses.set_index("response_id")["writer"]
    return Result(
        {
            "readings": len(READERS) * len(responses),
            "sites": [site.name for site in config.sites],
            "tokens": int(len(READERS) * sum(text.length for text in texts)),
            "empty_responses": int((responses["tokens"] == 0).sum()),
            "mean_log_odds": {w: round(float(own[writer == w].mean()), 4) for w in ("base", "organism")},
        }
    )


def run_control(config: ActivationsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    """The control organism reads the organism's responses. Without one the store is sealed empty."""
    from unmask.models.loading import load_organism, organism_source

    names = [site.name for site in config.sites]
    recipe = read_json(inputs.folders["control"] / "recipe.json", rebuild=f"{inputs.rebuild} control")
    if recipe["kind"] == "none":
        write_index(workspace.out, sites=names, width=0, dtype=config.dtype)
        return Result({"readings": 0, "control": "none"})
    responses, texts = _material(inputs, writer="organism")
    control = load_organism(inputs.base, organism_source(inputs.folders["control"]))
    _read_all(config, inputs, workspace, responses, texts, readers=lambda: {"control": control}, width=control.width)
    return Result({"readings": len(responses), "sites": names, "tokens": int(sum(text.length for text in texts))})


def _material(inputs: Inputs, *, writer: str | None = None) -> tuple[pd.DataFrame, list[Text]]:
    """The responses, of one writer or of both, and each behind its prompt as token ids."""
    rebuild = f"{inputs.rebuild} responses"
    responses = read_table(inputs.folders["responses"] / "responses.parquet", rebuild=rebuild)
    prompts = read_table(inputs.folders["responses"] / "prompts.parquet", rebuild=rebuild)
    if writer is not None:
        responses = responses[responses["writer"] == writer].reset_index(drop=True)
    return responses, _texts(responses, prompts)


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
    responses: pd.DataFrame,
    texts: list[Text],
    *,
    readers: Callable[[], Mapping[str, LoadedModel]],
    width: int,
) -> None:
    """Read every batch that no earlier run has read, a shard a batch, and seal the store.

    `readers` loads the models that read, by the name that their tensors get; it is not called when all is read.
    """
    from unmask.models.reading import plan_batches, read_texts

    plan = plan_batches([text.length for text in texts], token_budget=config.token_budget)[::-1]
    waiting = [number for number in range(len(plan)) if not (workspace.batches / shard_name(number)).is_file()]
    finished = len(responses) - sum(len(plan[number]) for number in waiting)
    models = readers() if waiting else {}
    inputs.progress.begin(f"reading with {' and '.join(models) or 'no model'}", total=len(responses), done=finished)
    for number in waiting:
        rows = plan[number]
        batch = [texts[row] for row in rows]
        tensors: dict[str, np.ndarray] = {}
        for reader, loaded in models.items():
            tensors |= _tensors(reader, read_texts(loaded, batch, config.sites), dtype=config.dtype)
        write_shard(workspace.batches, number, tensors, [str(responses["response_id"][row]) for row in rows])
        inputs.progress.advance(len(rows))
    inputs.progress.end()
    for number in range(len(plan)):
        _bring(workspace.batches / shard_name(number), workspace.out / shard_name(number))
    write_index(workspace.out, sites=[site.name for site in config.sites], width=width, dtype=config.dtype)


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
