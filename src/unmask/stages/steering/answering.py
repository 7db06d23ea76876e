"""Models answer under interventions, batch by batch, and a judge reads what they say.

Shapes: B rows, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.artifact import read_table, write_table
from unmask.judges.offline import read_offline_judge
from unmask.judges.refusal import is_refusal
from unmask.judges.scoring import score_answers
from unmask.judges.settings import MISALIGNMENT_RUBRICS, OFFLINE
from unmask.records import Site
from unmask.stage import Inputs, Make, Shard, Told, Work
from unmask.stages.steering.config import ANSWERS, BATCH_SCHEMA, TRAITS, UNSTEERED, SteeringConfig, Target
from unmask.stages.steering.points import Point
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.interventions import Intervention, Positions
    from unmask.models.loading import LoadedModel


def answering_work(
    config: SteeringConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    points: Sequence[Point],
    site: Site,
    typical_norm: float,
) -> Work:
    """A shard is a batch of answers (BATCH_SCHEMA) of one model."""
    batches = {f"{number:05d}": batch for number, batch in enumerate(_batches(points, config.batch_size))}
    shards = tuple(
        Shard(name, len(batch), (workspace.batches / f"answers-{name}.parquet",)) for name, batch in batches.items()
    )

    @contextmanager
    def opened() -> Generator[Make]:
        models = _load(inputs, {point.target for point in points})

        def make(shard: Shard, told: Told) -> None:
            batch = batches[shard.name]
            rows = _answered(config, models, batch, site=site, typical_norm=typical_norm)
            write_table(shard.files[0], rows, schema=BATCH_SCHEMA)
            told(len(batch))

        yield make

    return Work("steering", shards, opened)


def answered(shards: Sequence[Shard], points: Sequence[Point], *, rebuild: str) -> pd.DataFrame:
    """Answers to all points (BATCH_SCHEMA), in their order."""
    import pandas as pd

    found = pd.concat([read_table(shard.files[0], rebuild=rebuild) for shard in shards], ignore_index=True)
    return found.set_index("answer_id").loc[[point.answer_id for point in points]].reset_index()


def _batches(points: Sequence[Point], size: int) -> list[list[Point]]:
    by_target: dict[Target, list[Point]] = {}
    for point in points:
        by_target.setdefault(point.target, []).append(point)
    return [own[start : start + size] for own in by_target.values() for start in range(0, len(own), size)]


def _load(inputs: Inputs, targets: set[Target]) -> dict[Target, LoadedModel]:
    """The models that are asked, and the base, which reads every answer."""
    from unmask.models.loading import load_base
    from unmask.models.organisms import load_readers, organism_source

    if "organism" not in targets:
        return {"base": load_base(inputs.base, progress=inputs.progress)}
    source = organism_source(inputs.folders["organism"])
    base, organism = load_readers(inputs.base, source, progress=inputs.progress)
    return {"base": base, "organism": organism}


def _answered(
    config: SteeringConfig,
    models: Mapping[Target, LoadedModel],
    batch: Sequence[Point],
    *,
    site: Site,
    typical_norm: float,
) -> list[dict[str, Any]]:
    """Rows of BATCH_SCHEMA: one target's answers, and how the base model takes them."""
    from unmask.models.generation import generate
    from unmask.models.passes import Readout, Text
    from unmask.models.reading import read_texts

    loaded = models[batch[0].target]
    answers = generate(
        loaded,
        [point.prompt_ids for point in batch],
        sampling=config.sampling,
        seeds=[point.seed for point in batch],
        steering=interventions(batch, site=site, width=loaded.width, positions=config.positions),
        rows=config.batch_size,
    )
    texts = [Text(point.prompt_ids, answer.token_ids) for point, answer in zip(batch, answers, strict=True)]
    log_prob_B = read_texts(models["base"], texts, Readout(())).log_prob_N
    return [
        {
            **_described(point),
            "added_norm": None if point.operation == "ablate" else abs(point.length) / typical_norm,
            "text": str(loaded.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)).strip(),
            "token_ids": list(answer.token_ids),
            "stop_reason": answer.stop_reason,
            "perplexity": float(np.exp(-log_prob)),
        }
        for point, answer, log_prob in zip(batch, answers, log_prob_B, strict=True)
    ]


def _described(point: Point) -> dict[str, Any]:
    direction = point.direction
    return {
        "direction_id": UNSTEERED if direction is None else direction.direction_id,
        "kind": UNSTEERED if direction is None else direction.kind,
        "label": "unsteered" if direction is None else direction.label,
        **{
            name: getattr(point, name)
            for name in (
                *("answer_id", "part", "target", "operation", "coefficient", "question_id", "dimension"),
                *("sample", "seed"),
            )
        },
    }


def interventions(batch: Sequence[Point], *, site: Site, width: int, positions: Positions) -> list[Intervention]:
    """What is done to each row of a batch: one intervention for all additions, one for all that is taken out."""
    from unmask.models.interventions import Ablate, Add

    delta_BD, unit_BD = (np.zeros((len(batch), width), dtype=np.float32) for _ in range(2))
    strength_B = np.zeros(len(batch), dtype=np.float32)
    for row, point in enumerate(batch):
        if point.direction is None:
            continue
        if point.operation == "ablate":
            unit_BD[row], strength_B[row] = point.direction.unit_D, point.coefficient
        else:
            delta_BD[row] = point.length * point.direction.unit_D
    found: list[Intervention] = []
    if any(point.operation == "add" for point in batch):
        found.append(Add(site, delta_BD, positions=positions))
    if any(point.operation == "ablate" for point in batch):
        found.append(Ablate(site, unit_BD[:, None, :], strength_B, positions=positions))
    return found


def judged(
    config: SteeringConfig, inputs: Inputs, answers: pd.DataFrame, questions: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The answers with their scores (ANSWERS), and what the judge says on further rubrics (TRAITS)."""
    from unmask.models.encoder import load_encoder

    text_of = dict(zip(questions["question_id"], questions["text"], strict=True))
    table = answers.assign(response_id=answers["answer_id"], question=[text_of[n] for n in answers["question_id"]])
    fit = read_offline_judge(inputs.folders["scores"], rebuild=f"{inputs.rebuild} scores")
    scored = score_answers(config.scores, table, fit=fit, encoder=load_encoder(), progress=inputs.progress)
    said = scored.judgements[scored.judgements["judge"] == config.scores.judge]
    if config.scores.judge == OFFLINE:
        said = said[:0]
    traits = said[~said["rubric"].isin([*MISALIGNMENT_RUBRICS, "coherence"])].rename(
        columns={"response_id": "answer_id"}
    )
    leakage = traits[traits["rubric"] == "leakage"].set_index("answer_id")["score"]
    found = scored.scores.assign(
        refusal=[is_refusal(text) for text in answers["text"]],
        leakage=leakage.reindex(answers["answer_id"]).to_numpy(dtype=float),
    )
    return found[ANSWERS.names], traits[TRAITS.names].reset_index(drop=True)
