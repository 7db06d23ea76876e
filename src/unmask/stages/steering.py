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

from unmask.analysis.intervals import mean_interval
from unmask.analysis.judging import LogisticFit, judge
from unmask.artifact import read_json, read_table, read_tensors, write_json, write_table, write_tensors
from unmask.errors import ConfigError
from unmask.records import NEUTRAL, Sampling, Site
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.store import ActivationStore, question_means
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
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{inputs.rebuild} questions")
    asked = choose_questions(config, questions)
    directions = _directions(config, inputs, site, k=int(summary["primary_k"]), asked=set(asked))
    points = _points(config, inputs, directions, asked=asked)
    steered = _answer(config, inputs, workspace, points=points, site=site, typical=typical)
    scored = _score(inputs, steered)
    rows = [{**_describe(d), "site": site.name, "norm": d.norm, "questions": d.questions} for d in directions]
    write_table(workspace.out / "directions.parquet", rows, schema=DIRECTIONS_SCHEMA)
    write_tensors(
        workspace.out / "directions.safetensors",
        {d.direction_id: d.vector_D.astype(np.float32) for d in directions},
        provenance={"site": site.name, "base": inputs.base.called},
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
            **_by_dose(table),
        }
    )


def _describe(direction: Direction) -> dict[str, str]:
    return {"direction_id": direction.direction_id, "kind": direction.kind, "label": direction.label}


def _directions(config: SteeringConfig, inputs: Inputs, site: Site, *, k: int, asked: set[str]) -> list[Direction]:
    """Mean shifts by cluster and by dimension, and random directions of equal norm. Questions `asked` later are left out."""
    folders, rebuild = inputs.folders, inputs.rebuild
    store = ActivationStore.open(folders["activations"])
    shift_RD = (store.read(f"organism/{site.name}") - store.read(f"base/{site.name}")).astype(np.float64)
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    means = question_means(shift_RD, store.response_ids(), responses, writer="organism")
    chosen = _grouped(inputs, site, k=k)
    chosen = chosen[~chosen["question_id"].isin(asked)]
    found: list[Direction] = []
    for kind in config.kinds:
        for label, part in chosen.groupby(kind):
            mean_D = np.mean([means[name] for name in part["question_id"]], axis=0)
            text = str(label)
            if kind == "cluster":
                text = f"cluster {label} of {k}" + (" (outlier group)" if part["outlier"].iloc[0] else "")
            found.append(Direction(f"{kind}-{label}", kind, text, site, mean_D, len(part)))
    rng = np.random.default_rng(config.seed)
    # In raw units a control has the norm of one direction, so every direction needs its own.
    count = config.random_directions if config.units == "residual_norm" else max(config.random_directions, len(found))
    real = tuple(found)
    for number in range(count):
        vector_D = rng.standard_normal(shift_RD.shape[1])
        vector_D *= real[number % len(real)].norm / np.linalg.norm(vector_D)
        found.append(Direction(f"random-{number}", "random", f"random {number}", site, vector_D, 0))
    return found


def _grouped(inputs: Inputs, site: Site, *, k: int) -> pd.DataFrame:
    """Decomposed questions with their dimension, their cluster of the shift at `site`, and whether that is a handful."""
    folder, rebuild = inputs.folders["decomposition"], f"{inputs.rebuild} decomposition"
    questions = read_table(inputs.folders["questions"] / "questions.parquet", rebuild=f"{inputs.rebuild} questions")
    tables = {}
    for name in ("clusters", "cluster_summary"):
        table = read_table(folder / f"{name}.parquet", rebuild=rebuild)
        tables[name] = table[(table["source"] == "shift") & (table["site"] == site.name) & (table["k"] == k)]
    chosen = tables["clusters"].merge(tables["cluster_summary"][["cluster", "outlier"]], on="cluster", validate="m:1")
    return chosen.merge(questions, on="question_id", validate="1:1")


def check_questions(config: SteeringConfig, *, available: int) -> None:
    """Raise ConfigError when the study has fewer open questions than steering asks."""
    if config.questions > available:
        raise ConfigError(
            f"steering.questions is {config.questions}, the study has {available} open questions",
            mend="Lower it, or raise questions.neutral_count",
        )


def choose_questions(config: SteeringConfig, questions: pd.DataFrame) -> list[str]:
    """The questions put to the steered model: of the neutral battery, else spread evenly over the study's own.

    Raises ConfigError when there are too few.
    """
    neutral = questions[questions["dimension"] == NEUTRAL]
    pool = neutral if len(neutral) else questions
    check_questions(config, available=len(pool))
    if len(neutral):
        return [str(name) for name in pool["question_id"][: config.questions]]
    rows = np.linspace(0, len(pool) - 1, config.questions).round().astype(int)
    return [str(name) for name in pool["question_id"].iloc[rows]]


def _points(config: SteeringConfig, inputs: Inputs, directions: list[Direction], *, asked: list[str]) -> list[Point]:
    """Every (direction, coefficient, question, sample), and the unsteered answers; one seed per question and sample."""
    from unmask.models.prompts import prompt_ids_by_question

    prompts = read_table(inputs.folders["responses"] / "prompts.parquet", rebuild=f"{inputs.rebuild} responses")
    ids_of = prompt_ids_by_question(prompts)
    rng = np.random.default_rng([config.seed, 1])
    seeded = [(name, int(rng.integers(2**53))) for name in asked for _ in range(config.samples)]
    points = [Point(None, 0.0, name, ids_of[name], seed) for name, seed in seeded]
    for direction in directions:
        for coefficient in config.coefficients:
            points += [Point(direction, coefficient, name, ids_of[name], seed) for name, seed in seeded]
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
    from unmask.models.reading import Readout, Text, read_texts

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
        log_prob_B = read_texts(loaded, texts, Readout(())).log_prob_N
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
    """One row per direction and coefficient: mean misalignment over questions, and its difference from unsteered."""
    label_of = {direction.direction_id: direction.label for direction in directions}
    plain = scored[scored["kind"] == UNSTEERED].groupby("question_id")["misalignment"].mean()
    rows = []
    for _, part in scored.groupby(["direction_id", "kind", "coefficient"], sort=False):
        identity, kind, coefficient = part[["direction_id", "kind", "coefficient"]].iloc[0]
        by_question = part.groupby("question_id")["misalignment"].mean()
        level, change = _interval(by_question, rng), _interval(by_question - plain, rng)
        coherence = part["coherence"].dropna()
        rows.append(
            {
                "direction_id": identity,
                "kind": kind,
                "label": label_of.get(str(identity), "unsteered"),
                "coefficient": float(coefficient),
                "n": int(part["misalignment"].notna().sum()),
                "missing": int(part["misalignment"].isna().sum()),
                **{f"misalignment{end}": value for end, value in level.items()},
                **{f"difference{end}": value for end, value in change.items() if kind != UNSTEERED},
                "coherence": float(coherence.mean()) if len(coherence) else None,
            }
        )
    return rows


def _interval(values: pd.Series, rng: np.random.Generator) -> dict[str, float | None]:
    numbers = values.to_numpy(dtype=float)
    if not np.isfinite(numbers).any():
        return {"": None, "_low": None, "_high": None}
    ends = mean_interval(numbers, rng=rng)
    return {name: None if np.isnan(value) else value for name, value in zip(("", "_low", "_high"), ends, strict=True)}


def _by_dose(table: list[dict[str, Any]]) -> dict[str, Any]:
    """For the printed summary: mean misalignment over all directions and over all random ones, at the same coefficients."""
    out: dict[str, Any] = {}
    for coefficient in sorted({row["coefficient"] for row in table if row["kind"] != UNSTEERED}):
        at = [row for row in table if row["coefficient"] == coefficient and row["misalignment"] is not None]
        means = {
            name: [row["misalignment"] for row in at if row["kind"] in kinds]
            for name, kinds in (("directions", ("cluster", "dimension")), ("random", ("random",)))
        }
        out[f"misalignment at coefficient {coefficient:g}"] = {
            name: round(float(np.mean(values)), 1) if values else None for name, values in means.items()
        }
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
