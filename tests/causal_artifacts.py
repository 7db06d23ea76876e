"""Artifacts of the stages directions, effects and steering with a planted outcome, made by the stages' own functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from unmask.artifact import read_table, write_json, write_table
from unmask.stages import directions, effects
from unmask.stages.effects import EffectsConfig, matrices, tables
from unmask.stages.effects.measuring import EFFECTS
from unmask.stages.effects.wide import by_items, windows
from unmask.stages.effects.wording import sentence
from unmask.stages.steering.config import ANSWERS, CONFIRMATION, DOSES, TRAITS
from unmask.stages.steering.confirmation import agreement_of_cells, agreement_of_doses, confirmation_rows, selectivity
from unmask.stages.steering.directions import Direction
from unmask.stages.steering.summary import coherent_window, dose_rows

Planted = Literal["selective", "cross-talk", "undetermined", "not potent"]
PLANTED: tuple[Planted, ...] = ("selective", "cross-talk", "undetermined", "not potent")

SIZES: dict[str, tuple[float, float, float]] = {
    "selective": (0.8, 0.05, 0.15),
    "cross-talk": (0.8, 0.8, 0.15),
    "undetermined": (0.8, 0.36, 0.5),
    "not potent": (0.0, 0.0, 0.3),
}
"""Effect on own answers, on the others', and the noise, at coefficient 1."""

ADDED, REMOVED = (-0.5, 0.25, 0.5, 1.0), (1.0,)
RANDOM = ("random-isotropic", "random-span")
CLUSTERS = ("0", "1", "2")
CONFIG = EffectsConfig(resamples=100, permutations=99, coefficients=ADDED, removals=REMOVED)
UNMEASURED = "the activations were recorded at a site that cannot be intervened on"


def write_causal(
    folder: Path,
    questions: pd.DataFrame,
    *,
    site: str,
    planted: Planted | None = "cross-talk",
    text: str = "One might steer.",
    clusters: bool = False,
    judge: str = "offline",
    rubrics: Sequence[str] = (),
    seed: int = 5,
) -> dict[str, Any]:
    """Write all three stages' artifacts; returns the summary of the effects. `planted` None: nothing could be measured.

    `text` is what every steered answer says, `judge` who scores it, on further `rubrics`; `clusters`: these have directions too.
    """
    rng = np.random.default_rng(seed)
    asked = questions[questions["dimension"] != "neutral"].reset_index(drop=True)
    found = list(_directions(asked, clusters=clusters))
    for row in found:
        row["site"] = site
    write_table(folder / "directions" / "directions.parquet", found, schema=directions.SCHEMA)
    record = {"site": site, "typical_norm": 12.0, "replicates": 2, "control_removed": True, "kinds": []}
    write_json(folder / "directions" / "summary.json", record | {"notes": ["probe: too few <b>scores</b>"]})
    summary = _effects(folder / "effects", asked, found, site=site, planted=planted, rng=rng)
    _steering(folder, questions, found, site=site, chosen=_chosen(summary), text=text, judge=judge, rng=rng)
    _traits(folder / "steering", rubrics, rng=rng)
    return summary


def _chosen(summary: dict[str, Any]) -> float | None:
    return (summary["window"].get("base") or {}).get("chosen")


def _directions(asked: pd.DataFrame, *, clusters: bool) -> Iterator[dict[str, Any]]:
    dimensions = list(dict.fromkeys(asked["dimension"]))
    facets = list(dict.fromkeys(asked["dimension"] + "/" + asked["facet"]))
    named = [("shared", "mean shift of all questions", None, None), ("score", "high- less low-scored", None, None)]
    named += [("dimension", name, "dimension", name) for name in dimensions]
    named += [("facet", name, "facet", name) for name in facets]
    named += [("specific", f"{name}: mean shift less the shared one", "dimension", name) for name in dimensions]
    named += [("cluster", f"cluster {name}", "cluster", name) for name in CLUSTERS if clusters]
    named += [("shuffled", f"{number} random questions", None, None) for number in range(2)]
    for number, (kind, label, grouping, group) in enumerate(named):
        base = f"{kind}-{group}" if group else f"{kind}-{number}" if kind == "shuffled" else kind
        places = [(r, h) for r in (0, 1) for h in "ab"] if kind == "shuffled" else _PLACES
        for replicate, half in places:
            yield _direction(base, kind, label, grouping, group, replicate, half)
    for kind in RANDOM:
        for number in range(3):
            yield _direction(f"{kind}-{number}", kind, f"random {number}", None, None, None, None)
    yield _direction("control", "control", "mean shift of the control organism", None, None, None, "all")
    yield _direction("leace.0a", "leace", "LEACE eraser", None, None, 0, "a") | {"form": "eraser"}


_PLACES: list[tuple[int | None, str]] = [(None, "all"), *((r, h) for r in (0, 1) for h in "ab")]


def _direction(
    base: str,
    kind: str,
    label: str,
    grouping: str | None,
    group: str | None,
    replicate: int | None,
    half: str | None,
) -> dict[str, Any]:
    name = base if replicate is None or "." in base else f"{base}.{replicate}{half}"
    where = {"grouping": grouping, "group": group, "replicate": replicate, "half": half}
    size = {"norm": 3.0, "relative_norm": 0.25, "questions": 8, "stability": 0.9, "form": "direction"}
    return {"direction_id": name, "kind": kind, "label": label, **where, **size}


def _effects(
    out: Path, asked: pd.DataFrame, found: list[dict[str, Any]], *, site: str, planted: Planted | None, rng: Any
) -> dict[str, Any]:
    items = pd.DataFrame(
        [
            {
                **{"question_id": row["question_id"], "dimension": row["dimension"]},
                **{"facet": f"{row['dimension']}/{row['facet']}", "cluster": CLUSTERS[place % len(CLUSTERS)]},
                **{
                    "misaligned_id": "m",
                    "aligned_id": "a",
                    "misaligned_text": f"Do it, {place}.",
                    "aligned_text": "No.",
                },
                **{"gap": 40.0, "plain_base": -1.2, "plain_organism": 0.4},
            }
            for place, row in enumerate(asked.to_dict("records"))
        ]
    )
    effect_rows = pd.DataFrame(list(_effect_rows(items, found, planted, rng)), columns=EFFECTS.names)
    write_table(out / "items.parquet", items, schema=effects.ITEMS)
    write_table(out / "effects.parquet", effect_rows, schema=EFFECTS)
    window: dict[str, Any] = {}
    measured: list[matrices.Matrix] = []
    doses: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    if planted is not None:
        losses = by_items(effect_rows, column="loss", items=items["question_id"].tolist())
        window = windows(CONFIG, losses)
        measured = list(matrices.matrices(CONFIG, effect_rows, items, window))
        doses = list(tables.dose_rows(CONFIG, effect_rows, losses, items, window))
        controls = list(tables.control_rows(CONFIG, effect_rows, losses, items))
    write_table(out / "doses.parquet", doses, schema=tables.DOSES)
    write_table(out / "controls.parquet", controls, schema=tables.CONTROL_ROWS)
    write_table(out / "matrix.parquet", list(matrices.matrix_rows(measured)), schema=matrices.MATRIX)
    write_table(out / "selectivity.parquet", list(matrices.selectivity_rows(measured)), schema=matrices.SELECTIVITY)
    records = [matrices.matrix_record(matrix) for matrix in measured]
    own = [one for one in records if (one["target"], one["kind"]) == ("base", "dimension") and one["outcome"]]
    summary = {
        **{"site": site, "typical_norm": 12.0, "pairs": "judged", "positions": "response", "removal": "replace"},
        **{
            "answer_tokens": 24,
            "items": len(items),
            "left_out": {"no pair of answers": 3},
            "reason": None if planted else UNMEASURED,
        },
        "kinds_missing": [],
        "items_by_group": items.groupby("dimension", sort=False).size().to_dict(),
        **{"window": window, "matrices": records, "causal": own[0] if own else None},
        "texts": [sentence(matrix) for matrix in measured],
    }
    write_json(out / "summary.json", summary)
    return summary


def _effect_rows(
    items: pd.DataFrame, found: list[dict[str, Any]], planted: Planted | None, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    if planted is None:
        return
    own, others, noise = SIZES[planted]
    for row in found:
        kind = row["kind"]
        if kind not in (*RANDOM, "control") and row["replicate"] is None:
            continue
        eraser = row["form"] == "eraser"
        doses = [("organism", "replace", one) for one in REMOVED] if eraser else []
        doses = doses or [*(("base", "add", one) for one in ADDED), *(("organism", "replace", one) for one in REMOVED)]
        for place, item in enumerate(items.to_dict("records")):
            if row["replicate"] is not None and "ab"[(place + row["replicate"]) % 2] == row["half"]:
                continue
            size = {"control": 0.3, **dict.fromkeys(RANDOM, 0.0), "specific": 0.0}.get(kind, others)
            if row["group"] is not None and item[row["grouping"]] == row["group"]:
                size = own if kind != "specific" else 0.0
            for target, operation, coefficient in doses:
                yield {
                    **{name: row[name] for name in ("direction_id", "kind", "label", "grouping", "group")},
                    **{name: row[name] for name in ("replicate", "half")},
                    **{"target": target, "operation": operation, "coefficient": coefficient},
                    "question_id": item["question_id"],
                    "effect": coefficient * (size + noise * float(rng.normal())),
                    "loss": 0.7 * coefficient**2 if target == "base" else 0.01,
                }


def _steering(
    folder: Path,
    questions: pd.DataFrame,
    found: list[dict[str, Any]],
    *,
    site: str,
    chosen: float | None,
    text: str,
    judge: str,
    rng: np.random.Generator,
) -> None:
    used = [_steerer(row) for row in found if row["kind"] in ("shared", "dimension") and row["half"] == "a"]
    used = [one for one in used if one.direction_id.endswith(".0a")]
    parts = [one for one in used if one.kind == "dimension"]
    random = [_steerer(row) for row in found if row["direction_id"] in (f"{kind}-0" for kind in RANDOM)]
    neutral = questions[questions["dimension"] == "neutral"]
    asked = (neutral if len(neutral) else questions).head(4)
    rows = list(_answers("dose", "base", [None, *used, *random], (-0.5, 0.5, 1.0), asked, text, rng))
    rows += _answers("dose", "organism", [None, *used, *random], (1.0,), asked, text, rng)
    if chosen is not None:
        each = questions[questions["dimension"] != "neutral"].groupby("dimension", sort=False).head(2)
        rows += _answers("confirmation", "base", [None, *parts, *random], (chosen,), each, text, rng)
    answers = pd.DataFrame(rows, columns=ANSWERS.names)
    dosed, confirmed = (answers[answers["part"] == part] for part in ("dose", "confirmation"))
    doses = dose_rows(dosed, [*used, *random], coherent_above=50, seed=0)
    matrix = pd.read_parquet(folder / "effects" / "matrix.parquet")
    log_prob = pd.read_parquet(folder / "effects" / "doses.parquet")
    cells = [] if chosen is None else confirmation_rows(confirmed, parts, matrix, coefficient=chosen, seed=0)
    confirmation: dict[str, Any] = {"coefficient": chosen, "reason": None, "questions": 0, "selectivity": None}
    if chosen is None:
        confirmation["reason"] = "the stage effects found no coefficient at which answers stay coherent"
    else:
        confirmation |= {
            "questions": int(confirmed["question_id"].nunique()),
            "selectivity": selectivity(confirmed, parts, seed=0),
        }
    out = folder / "steering"
    write_table(out / "answers.parquet", answers, schema=ANSWERS)
    write_table(out / "doses.parquet", doses, schema=DOSES)
    write_table(out / "confirmation.parquet", cells, schema=CONFIRMATION)
    record = {
        **{"site": site, "typical_norm": 12.0, "units": "residual_norm", "positions": "all"},
        **{"coefficients": [-0.5, 0.5, 1.0], "removals": [1.0], "questions": len(asked), "judge": judge},
        **{"target": "base", "targets": ["base", "organism"], "window": coherent_window(doses), "coherent_above": 50},
        **{"confirmation": confirmation, "agreement": agreement_of_cells(cells, seed=0)},
        "agreement_of_doses": agreement_of_doses(doses, log_prob, seed=0),
        "notes": ["cluster: the stage directions made none"],
    }
    write_json(out / "summary.json", record)


def _traits(out: Path, rubrics: Sequence[str], *, rng: np.random.Generator) -> None:
    """Scores of every answer on every rubric; those of answers without misalignment are missing, and some beside."""
    answers = read_table(out / "answers.parquet", rebuild="")
    rows = []
    for rubric in rubrics:
        for name, reason in zip(answers["answer_id"], answers["missing_reason"], strict=True):
            why = reason if isinstance(reason, str) else "no_number" if rng.random() < 0.1 else None
            score = None if why else float(rng.uniform(0, 100))
            rows.append({"answer_id": name, "rubric": rubric, "score": score, "missing_reason": why})
    write_table(out / "traits.parquet", rows, schema=TRAITS)


def _steerer(row: dict[str, Any]) -> Direction:
    named = (row["direction_id"], row["kind"], row["label"], row["grouping"], row["group"])
    return Direction(*named, np.ones(4))


def _answers(
    part: str,
    target: str,
    used: list[Direction | None],
    coefficients: tuple[float, ...],
    asked: pd.DataFrame,
    text: str,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    for direction in used:
        for coefficient in (0.0,) if direction is None else coefficients:
            for question in asked.to_dict("records"):
                real = direction is not None and direction.kind not in RANDOM
                absent = bool(rng.random() < 0.05)
                name = "none" if direction is None else direction.direction_id
                yield {
                    **{"part": part, "target": target, "direction_id": name, "coefficient": coefficient},
                    "answer_id": f"{part}/{target}/{name}/{coefficient}/{question['question_id']}/0",
                    "kind": "none" if direction is None else direction.kind,
                    "label": "unsteered" if direction is None else direction.label,
                    "operation": None if direction is None else "add" if target == "base" else "ablate",
                    "added_norm": None if direction is not None and target == "organism" else abs(coefficient),
                    **{"question_id": question["question_id"], "dimension": question["dimension"], "sample": 0},
                    **{"text": text if direction else "One might not.", "token_ids": [1, 2]},
                    **{"stop_reason": "end", "seed": 1, "perplexity": 9.0 + abs(coefficient)},
                    "misalignment": None if absent else float(30 + 25 * coefficient * real + rng.normal(0, 4)),
                    "coherence": None if absent else float(85 - 50 * coefficient**2 + rng.normal(0, 3)),
                    **{"refusal": False, "leakage": None, "missing_reason": "empty answer" if absent else None},
                }
