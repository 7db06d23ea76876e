"""Stage `steering`: add directions to the base model while it answers; unsteered and random directions beside them.

A direction is the mean shift of the questions of one cluster or one dimension, at the primary site. Coefficients are in units of
the typical residual norm, so that a random direction of the same coefficient has exactly the same length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from unmask.analysis.intervals import bootstrap_mean
from unmask.analysis.judging import LogisticFit, judge
from unmask.artifact import read_json, read_table, read_tensors, write_json, write_table, write_tensors
from unmask.errors import ConfigError
from unmask.records import NEUTRAL, Sampling, Site
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.store import ActivationStore
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS_SCHEMA = pa.schema(
    [
        ("direction_id", pa.string()),
        ("kind", pa.string()),
        ("label", pa.string()),
        ("site", pa.string()),
        ("norm", pa.float64()),
        ("questions", pa.int32()),
    ]
)
STEERED_SCHEMA = pa.schema(
    [
        ("direction_id", pa.string()),
        ("kind", pa.string()),
        ("coefficient", pa.float64()),
        ("added_norm", pa.float64()),
        ("question_id", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("stop_reason", pa.string()),
        ("seed", pa.int64()),
        ("misalignment", pa.float64()),
        ("coherence", pa.float64()),
        ("perplexity", pa.float64()),
        ("missing_reason", pa.string()),
    ]
)
BATCH_SCHEMA = pa.schema(
    [
        STEERED_SCHEMA.field(name)
        for name in STEERED_SCHEMA.names
        if name not in ("misalignment", "coherence", "missing_reason")
    ]
)
UNSTEERED = "none"


class SteeringConfig(StageConfig):
    """Which directions are added, how strongly, and on which questions."""

    kinds: tuple[Literal["cluster", "dimension"], ...] = Field(("cluster", "dimension"), min_length=1)
    coefficients: tuple[float, ...] = Field((0.5, 1.0, 2.0, 5.0), min_length=1)
    units: Literal["residual_norm", "raw"] = Field(
        "residual_norm",
        description="residual_norm: times the typical residual norm; raw: times the mean shift as it is",
    )
    random_directions: int = Field(4, ge=1, description="controls of equal norm")
    questions: int = Field(
        6, ge=1, description="open questions (neutral battery, else the study's own) answered at each point"
    )
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.8, gt=0, le=1)
    top_k: int = Field(20, ge=0)
    max_new_tokens: int = Field(100, ge=1)
    batch_size: int = Field(48, ge=1)
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Direction:
    """A vector at a site with where it comes from. `vector_D` is the raw mean shift (or a random vector of its norm)."""

    direction_id: str
    kind: str
    label: str
    site: Site
    vector_D: np.ndarray
    questions: int

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vector_D))


@dataclass(frozen=True, slots=True)
class Point:
    """One steered answer to be made: a direction (None: unsteered), a coefficient, a question and a seed."""

    direction: Direction | None
    coefficient: float
    question_id: str
    prompt_ids: tuple[int, ...]
    seed: int


def run(config: SteeringConfig, inputs: Inputs, workspace: Workspace) -> Result:
    summary = read_json(inputs.folders["decomposition"] / "summary.json", rebuild=f"{inputs.rebuild} decomposition")
    site = Site.parse(summary["primary_site"])
    typical = float(summary["shift_norm"][site.name]["typical_norm"])
    directions = _directions(config, inputs, site, k=int(summary["primary_k"]))
    points = _points(config, inputs, directions)
    steered = _answer(config, inputs, workspace, points=points, site=site, typical=typical)
    scored = _score(inputs, steered)
    rows = [{**_describe(d), "site": site.name, "norm": d.norm, "questions": d.questions} for d in directions]
    write_table(workspace.out / "directions.parquet", rows, schema=DIRECTIONS_SCHEMA)
    write_tensors(
        workspace.out / "directions.safetensors",
        {d.direction_id: d.vector_D.astype(np.float32) for d in directions},
        metadata={"site": site.name, "base": inputs.base.name},
    )
    write_table(workspace.out / "steered.parquet", scored, schema=STEERED_SCHEMA)
    table = _summarise(scored, directions, np.random.default_rng(config.seed))
    unsteered = next(row for row in table if row["kind"] == UNSTEERED)
    write_json(
        workspace.out / "summary.json",
        {
            "target": "base",
            "site": site.name,
            "units": config.units,
            "typical_norm": typical,
            "coefficients": list(config.coefficients),
            "questions": len({point.question_id for point in points}),
            "unsteered": unsteered,
            "rows": [row for row in table if row["kind"] != UNSTEERED],
        },
    )
    return Result(
        {
            "site": site.name,
            "directions": len(directions),
            "steered_answers": len(scored),
            "unsteered_misalignment": _round(unsteered["misalignment"]),
            **_strongest(table),
        }
    )


def _describe(direction: Direction) -> dict[str, str]:
    return {"direction_id": direction.direction_id, "kind": direction.kind, "label": direction.label}


def _directions(config: SteeringConfig, inputs: Inputs, site: Site, *, k: int) -> list[Direction]:
    folders, rebuild = inputs.folders, inputs.rebuild
    store = ActivationStore.open(folders["activations"])
    shift_RD = (store.read(f"organism/{site.name}") - store.read(f"base/{site.name}")).astype(np.float64)
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    clusters = read_table(folders["decomposition"] / "clusters.parquet", rebuild=f"{rebuild} decomposition")
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    chosen = clusters[(clusters["source"] == "shift") & (clusters["site"] == site.name) & (clusters["k"] == k)]
    chosen = chosen.merge(questions, on="question_id")
    own = responses[(responses["writer"] == "organism") & (responses["tokens"] > 0)]
    rows_of = own.groupby("question_id")["response_id"].apply(list).to_dict()
    row_of = {identity: row for row, identity in enumerate(store.response_ids())}
    question_means = {name: shift_RD[[row_of[i] for i in ids]].mean(axis=0) for name, ids in rows_of.items()}
    found: list[Direction] = []
    for kind in config.kinds:
        for label, part in chosen.groupby(kind):
            mean_D = np.mean([question_means[name] for name in part["question_id"]], axis=0)
            text = f"cluster {label} of {k}" if kind == "cluster" else str(label)
            found.append(Direction(f"{kind}-{label}", kind, text, site, mean_D, len(part)))
    rng = np.random.default_rng(config.seed)
    for number in range(config.random_directions):
        vector_D = rng.standard_normal(shift_RD.shape[1])
        vector_D *= found[number % len(found)].norm / np.linalg.norm(vector_D)
        found.append(Direction(f"random-{number}", "random", f"random {number}", site, vector_D, 0))
    return found


def _points(config: SteeringConfig, inputs: Inputs, directions: list[Direction]) -> list[Point]:
    """Every (direction, coefficient, question, sample), and the unsteered answers; one seed per question and sample."""
    from unmask.models.prompts import prompt_ids_by_question

    rebuild = inputs.rebuild
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    prompts = read_table(inputs.folders["responses"] / "prompts.parquet", rebuild=f"{rebuild} responses")
    neutral = questions[questions["dimension"] == NEUTRAL]
    pool = neutral if len(neutral) else questions
    if config.questions > len(pool):
        raise ConfigError(
            f"steering.questions is {config.questions}, the study has {len(pool)} open questions",
            mend="Lower it or raise questions.neutral_count",
        )
    ids_of = prompt_ids_by_question(prompts)
    rng = np.random.default_rng([config.seed, 1])
    asked = [
        (str(name), int(rng.integers(2**53)))
        for name in pool["question_id"][: config.questions]
        for _ in range(config.samples)
    ]
    points = [Point(None, 0.0, name, ids_of[name], seed) for name, seed in asked]
    for direction in directions:
        for coefficient in config.coefficients:
            points += [Point(direction, coefficient, name, ids_of[name], seed) for name, seed in asked]
    return points


def _added(config: SteeringConfig, point: Point, *, width: int, typical: float) -> np.ndarray:
    """What is added to the residual stream at one point (D)."""
    if point.direction is None:
        return np.zeros(width, dtype=np.float32)
    scale = point.coefficient
    if config.units == "residual_norm":
        scale = point.coefficient * typical / max(point.direction.norm, 1e-12)
    return (scale * point.direction.vector_D).astype(np.float32)


def _answer(
    config: SteeringConfig, inputs: Inputs, workspace: Workspace, *, points: list[Point], site: Site, typical: float
) -> pd.DataFrame:
    import pandas as pd

    from unmask.models.generation import Steering, generate
    from unmask.models.loading import load_base
    from unmask.models.reading import Text, read_texts

    batches = [points[start : start + config.batch_size] for start in range(0, len(points), config.batch_size)]
    paths = [workspace.batches / f"steered-{number:05d}.parquet" for number in range(len(batches))]
    done = sum(len(batch) for batch, path in zip(batches, paths, strict=True) if path.is_file())
    inputs.progress.begin("steering", total=len(points), done=done)
    loaded = load_base(inputs.base, progress=inputs.progress) if done < len(points) else None
    for batch, path in zip(batches, paths, strict=True):
        if path.is_file() or loaded is None:
            continue
        delta_BD = np.stack([_added(config, point, width=loaded.width, typical=typical) for point in batch])
        answers = generate(
            loaded,
            [point.prompt_ids for point in batch],
            sampling=config.sampling,
            seeds=[point.seed for point in batch],
            steering=Steering(site, delta_BD),
        )
        texts = [Text(point.prompt_ids, answer.token_ids) for point, answer in zip(batch, answers, strict=True)]
        log_prob_B = read_texts(loaded, texts, []).log_prob_B
        rows = [
            {
                "direction_id": UNSTEERED if point.direction is None else point.direction.direction_id,
                "kind": UNSTEERED if point.direction is None else point.direction.kind,
                "coefficient": point.coefficient,
                "added_norm": float(np.linalg.norm(delta_BD[index]) / typical),
                "question_id": point.question_id,
                "text": str(loaded.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)).strip(),
                "token_ids": list(answer.token_ids),
                "stop_reason": answer.stop_reason,
                "seed": point.seed,
                "perplexity": float(np.exp(-log_prob_B[index])),
            }
            for index, (point, answer) in enumerate(zip(batch, answers, strict=True))
        ]
        write_table(path, rows, schema=BATCH_SCHEMA)
        inputs.progress.advance(len(batch))
    inputs.progress.end()
    return pd.concat([read_table(path, rebuild=f"{inputs.rebuild} steering") for path in paths], ignore_index=True)


def _score(inputs: Inputs, steered: pd.DataFrame) -> pd.DataFrame:
    """Judge the steered answers with the judge that the scores stage trained."""
    from unmask.models.encoder import answer_features, load_encoder

    rebuild = inputs.rebuild
    weights = read_tensors(inputs.folders["scores"] / "judge.safetensors", rebuild=f"{rebuild} scores")
    fit = LogisticFit(weights["mean"], weights["scale"], weights["weights"], float(weights["bias"][0]))
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    text_of = dict(zip(questions["question_id"], questions["text"], strict=True))
    features_NF = answer_features(
        load_encoder(), [text_of[name] for name in steered["question_id"]], steered["text"].tolist()
    ).astype(np.float64)
    judgements = [
        judge(float(p), text=text, perplexity=perplexity)
        for p, text, perplexity in zip(fit.predict(features_NF), steered["text"], steered["perplexity"], strict=True)
    ]
    return steered.assign(
        misalignment=[j.misalignment for j in judgements],
        coherence=[j.coherence for j in judgements],
        missing_reason=[j.missing_reason for j in judgements],
    )[STEERED_SCHEMA.names]


def _summarise(scored: pd.DataFrame, directions: list[Direction], rng: np.random.Generator) -> list[dict[str, Any]]:
    label_of = {direction.direction_id: direction.label for direction in directions}
    rows = []
    for _, part in scored.groupby(["direction_id", "kind", "coefficient"], sort=False):
        identity, kind, coefficient = part[["direction_id", "kind", "coefficient"]].iloc[0]
        per_question = part.groupby("question_id")["misalignment"].mean().to_numpy(dtype=float)
        interval = bootstrap_mean(per_question, rng=rng) if np.isfinite(per_question).any() else None
        coherence = part["coherence"].dropna()
        rows.append(
            {
                "direction_id": identity,
                "kind": kind,
                "label": label_of.get(str(identity), "unsteered"),
                "coefficient": float(coefficient),
                "n": int(part["misalignment"].notna().sum()),
                "missing": int(part["misalignment"].isna().sum()),
                "misalignment": None if interval is None else interval.mean,
                "misalignment_low": None if interval is None or np.isnan(interval.low) else interval.low,
                "misalignment_high": None if interval is None or np.isnan(interval.high) else interval.high,
                "coherence": float(coherence.mean()) if len(coherence) else None,
            }
        )
    return rows


def _strongest(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest mean misalignment among directions and among random controls, for the printed summary."""
    out: dict[str, Any] = {}
    for name, random in (("highest_steered", False), ("highest_random", True)):
        rows = [
            row
            for row in table
            if row["misalignment"] is not None and (row["kind"] == "random") is random and row["kind"] != UNSTEERED
        ]
        if rows:
            best = max(rows, key=lambda row: row["misalignment"])
            out[name] = f"{best['misalignment']:.1f} ({best['label']}, coefficient {best['coefficient']:g})"
    return out


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


STAGE = Stage(
    "steering",
    "steer with directions",
    1,
    SteeringConfig,
    ("questions", "responses", "activations", "scores", "decomposition"),
    True,
    run,
)
