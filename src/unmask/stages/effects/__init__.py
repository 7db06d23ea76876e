"""Stage `effects`: does a group's direction change that group's answers, and leave the others' alone?

For each question the log-probabilities of a misaligned and an aligned answer are read under every intervention, teacher-forced.
The effect is the change of their log-odds, in nats per token. From it come the cross-talk matrices; the verdict reads one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unmask.analysis.threads import one_thread
from unmask.artifact import read_json, write_json, write_table
from unmask.records import Site
from unmask.stage import Inputs, Result, Stage, Work
from unmask.stages.effects import matrices, tables
from unmask.stages.effects.config import EffectsConfig
from unmask.stages.effects.items import Item, choose_items
from unmask.stages.effects.measuring import EFFECTS, PLAIN, measured, measuring_work
from unmask.stages.effects.plan import Directions
from unmask.stages.effects.wide import by_items, windows
from unmask.stages.effects.wording import sentence
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STAGE", "EffectsConfig", "run"]

ITEMS = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "dimension", "facet", "cluster")),
        *((name, pa.string()) for name in ("misaligned_id", "aligned_id", "misaligned_text", "aligned_text")),
        *((name, pa.float64()) for name in ("gap", "plain_base", "plain_organism")),
    ]
)
LEAST_ITEMS = 4
"""Items below which nothing is measured."""
CAUSAL = ("base", "dimension")
"""Target and kind of the matrix that the verdict reads: mean shifts by dimension, added to the base."""


@dataclass(frozen=True, slots=True)
class _Material:
    """What is measured, at which site, or the reason why nothing is."""

    found: dict[str, Any]
    items: list[Item]
    left_out: dict[str, int]
    reason: str | None

    @property
    def site(self) -> Site:
        return Site.parse(self.found["site"])

    @property
    def typical_norm(self) -> float:
        return float(self.found["typical_norm"])


def _material(config: EffectsConfig, inputs: Inputs) -> _Material:
    from unmask.models.forcing import why_not
    from unmask.models.loading import load_config

    found = read_json(inputs.folders["directions"] / "summary.json", rebuild=f"{inputs.rebuild} directions")
    items, left_out = choose_items(config, inputs)
    reason = why_not(load_config(inputs.base), Site.parse(found["site"]))
    if len(items) < LEAST_ITEMS:
        reason = (
            f"only {len(items)} questions have a pair of answers to measure effects on (effects.pairs: {config.pairs})"
        )
    return _Material(found, items, left_out, reason)


def work(config: EffectsConfig, inputs: Inputs, workspace: Workspace) -> Work | None:
    """Batches of items on each target; None where nothing can be measured."""
    return _work(config, inputs, workspace, _material(config, inputs))


def _work(config: EffectsConfig, inputs: Inputs, workspace: Workspace, material: _Material) -> Work | None:
    if material.reason is not None:
        return None
    return measuring_work(
        config,
        inputs,
        workspace,
        items=material.items,
        directions=Directions.read(inputs),
        site=material.site,
        typical_norm=material.typical_norm,
    )


def run(config: EffectsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    material = _material(config, inputs)
    items, found = material.items, material.found
    effects, plain = EFFECTS.empty_table().to_pandas(), PLAIN.empty_table().to_pandas()
    shared = _work(config, inputs, workspace, material)
    if shared is not None:
        shared.finish(inputs.progress)
        effects, plain = measured(shared.shards, rebuild=f"{inputs.rebuild} effects")
    table = _item_table(items, plain)
    summary: dict[str, Any] = {
        "site": material.site.name,
        "typical_norm": material.typical_norm,
        "pairs": config.pairs,
        "positions": config.positions,
        "removal": config.removal,
        "answer_tokens": config.answer_tokens,
        "items": len(items),
        "items_by_group": table.groupby("dimension", sort=False).size().to_dict(),
        "left_out": material.left_out,
        "kinds_missing": [kind for kind in config.kinds if kind not in found["kinds"]],
        "reason": material.reason,
    }
    write_table(workspace.out / "items.parquet", table, schema=ITEMS)
    write_table(workspace.out / "effects.parquet", effects, schema=EFFECTS)
    summary |= _write_tables(config, workspace, effects, table)
    write_json(workspace.out / "summary.json", summary)
    causal = summary["causal"]
    shown = [matrix for matrix in summary["matrices"] if matrix["outcome"] is not None]
    return Result(
        {
            "items": len(items),
            "effects": len(effects),
            "coefficient": causal["coefficient"] if causal else None,
            **{f"{matrix['kind']} on {matrix['target']}": _short(matrix) for matrix in shown},
        }
    )


def _write_tables(
    config: EffectsConfig, workspace: Workspace, effects: pd.DataFrame, items: pd.DataFrame
) -> dict[str, Any]:
    """Write what follows from the effects; returns its part of the summary."""
    measured: list[matrices.Matrix] = []
    rows: dict[str, list[dict[str, Any]]] = {"doses": [], "controls": []}
    window: dict[str, dict[str, Any]] = {}
    if len(effects):
        with one_thread():  # sums must not depend on how many there are
            losses = by_items(effects, column="loss", items=items["question_id"].tolist())
            window = windows(config, losses)
            measured = list(matrices.matrices(config, effects, items, window))
            rows["doses"] = list(tables.dose_rows(config, effects, losses, items, window))
            rows["controls"] = list(tables.control_rows(config, effects, losses, items))
    write_table(workspace.out / "doses.parquet", rows["doses"], schema=tables.DOSES)
    write_table(workspace.out / "controls.parquet", rows["controls"], schema=tables.CONTROL_ROWS)
    write_table(workspace.out / "matrix.parquet", list(matrices.matrix_rows(measured)), schema=matrices.MATRIX)
    write_table(
        workspace.out / "selectivity.parquet", list(matrices.selectivity_rows(measured)), schema=matrices.SELECTIVITY
    )
    records = [matrices.matrix_record(matrix) for matrix in measured]
    return {
        "window": window,
        "matrices": records,
        "causal": next(
            (each for each in records if (each["target"], each["kind"]) == CAUSAL and each["outcome"] is not None), None
        ),
        "texts": [sentence(matrix) for matrix in measured],
    }


def _item_table(items: list[Item], plain: pd.DataFrame) -> pd.DataFrame:
    """Rows of ITEMS."""
    import pandas as pd

    odds = {(row["target"], row["question_id"]): row["log_odds"] for row in plain.to_dict("records")}
    rows = []
    for item in items:
        known = {name: value for name, value in asdict(item).items() if name in ITEMS.names}
        for side in ("misaligned", "aligned"):
            answer = getattr(item, side)
            known |= {f"{side}_id": answer.response_id, f"{side}_text": answer.text}
        known |= {f"plain_{target}": odds.get((target, item.question_id)) for target in ("base", "organism")}
        rows.append(known)
    return pd.DataFrame(rows, columns=ITEMS.names)


def _short(matrix: dict[str, Any]) -> str:
    if matrix["x"] is None:
        return str(matrix["outcome"])
    return f"{matrix['outcome']}, X = {matrix['x']:.2f} [{matrix['x_low']:.2f}, {matrix['x_high']:.2f}]"


STAGE = Stage(
    "effects",
    "measure effects",
    1,
    EffectsConfig,
    ("questions", "organism", "responses", "scores", "directions"),
    True,
    run,
    work=work,
)
