"""Judges measured like instruments, on the packaged reference answers: `unmask judge --validate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.analysis import judge_quality
from unmask.errors import ConfigError, DataError, listed
from unmask.judges.agreement import agreement_record
from unmask.judges.asking import Asking, judge_table, open_client, usage_text
from unmask.judges.labels import read_labels
from unmask.judges.local import LocalJudge
from unmask.judges.offline import OFFLINE_JUDGE, judge_offline, train_judge
from unmask.judges.reference import packaged_ratings, reference_answers, reference_perplexities, with_orders
from unmask.judges.settings import MISALIGNMENT_RUBRICS, OFFLINE, ScoresConfig
from unmask.rubrics import read_rubric

if TYPE_CHECKING:
    import pandas as pd

    from unmask.progress import Progress
    from unmask.rubrics import Rubric

SCORES = pa.schema(
    [("response_id", pa.string()), ("judge", pa.string()), ("rubric", pa.string()), ("score", pa.float64())]
)


@dataclass(frozen=True, slots=True)
class Validation:
    """What measuring came to: a record per judge, agreement of all, and every score (response_id, judge, rubric, score)."""

    judges: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    judgements: pd.DataFrame
    answers: pd.DataFrame


def validate(
    names: Sequence[str],
    *,
    asking: Asking,
    rubric: str = "misalignment",
    limit: int | None = None,
    labels: Path | None = None,
    seed: int = 0,
    progress: Progress,
) -> Validation:
    """Measure each of `names` (`offline`, or models) on the reference answers.

    `labels` is a CSV of people's scores for them, whose mean then takes the packaged raters' place. A model is asked for
    misalignment (by `rubric`, or `alignment`) and coherence, for misalignment once more, once with the answer before the
    question, and with orders to the judge in the answer. Raises UnmaskError as `open_client`, `judge_table` and `read_labels` do.
    """
    import pandas as pd

    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"{twice[0]} is named twice", mend="Name every judge once")
    if read_rubric(rubric).name not in MISALIGNMENT_RUBRICS:
        raise ConfigError(
            f"rubric {rubric!r} does not score misalignment",
            mend=f"Name {listed(MISALIGNMENT_RUBRICS)}, or a file named so",
        )
    answers = reference_answers(limit=limit)
    ratings = packaged_ratings(answers)
    if labels is not None:
        people = read_labels(labels, reference_answers()["response_id"].tolist())
        people = people[people["response_id"].isin(answers["response_id"])]
        if people.empty:
            raise DataError(f"{labels} holds no score of these answers", mend="Fill in some, 0 to 100")
        ratings = pd.concat([ratings, people], ignore_index=True)
        means = people.groupby(["rubric", "response_id"])["score"].mean()
        for name in ("misalignment", "coherence"):
            own = means[name] if name in means.index.get_level_values(0) else pd.Series(dtype=float)
            answers[name] = own.reindex(answers["response_id"]).to_numpy()
    ordered = with_orders(reference_answers(limit=limit))  # hosts by the packaged raters, whoever labels
    records, parts = [], [ratings]
    for name in names:
        scored = (
            _offline(answers, ordered, seed=seed, progress=progress)
            if name == OFFLINE
            else _model(name, answers, ordered, asking=asking, rubric=rubric, seed=seed, progress=progress)
        )
        records.append(_measured(scored, answers, ordered, seed=seed))
        for kind in ("misalignment", "coherence"):
            parts.append(
                pd.DataFrame(
                    {
                        "response_id": answers["response_id"],
                        "judge": scored.name,
                        "rubric": kind,
                        "score": scored.scores[kind],
                    }
                )
            )
    judgements = pd.concat(parts, ignore_index=True)
    return Validation(records, agreement_record(judgements, answers), judgements, answers)


@dataclass(frozen=True, slots=True)
class _Scored:
    """What one judge said: scores by rubric, misalignment again, with the answer first, and with orders (NaN: missing)."""

    name: str
    readout: str
    scores: dict[str, np.ndarray]
    again: np.ndarray | None
    answer_first: np.ndarray | None
    ordered: np.ndarray
    missing: dict[str, int]
    usage: str


def _model(
    name: str,
    answers: pd.DataFrame,
    ordered: pd.DataFrame,
    *,
    asking: Asking,
    rubric: str,
    seed: int,
    progress: Progress,
) -> _Scored:
    rubrics = [read_rubric(rubric), read_rubric("coherence")]
    with open_client(name, asking) as client:

        def scores(table: pd.DataFrame, rubrics: Sequence[Rubric], **how: Any) -> pd.DataFrame:
            return judge_table(client, rubrics, table, asking=asking, seed=seed, progress=progress, **how)

        both = scores(answers, rubrics)
        first, clear = both[: len(answers)], both[len(answers) :]
        again = (
            None if isinstance(client, LocalJudge) else scores(answers, rubrics[:1], repeat=1)
        )  # there is no chance in it
        turned = scores(answers, rubrics[:1], answer_first=True)
        led = scores(ordered, rubrics[:1])
        missing = Counter(
            reason
            for table in (both, again, turned, led)
            if table is not None
            for reason in table["missing_reason"].dropna()
        )
        readouts = "/".join(sorted(set(first["readout"].dropna()))) or "none"
        return _Scored(
            name,
            readouts,
            {"misalignment": first["score"].to_numpy(), "coherence": clear["score"].to_numpy()},
            None if again is None else again["score"].to_numpy(),
            turned["score"].to_numpy(),
            led["score"].to_numpy(),
            dict(missing.most_common()),
            usage_text(client.meter),
        )


def _offline(answers: pd.DataFrame, ordered: pd.DataFrame, *, seed: int, progress: Progress) -> _Scored:
    from unmask.models.encoder import load_encoder

    encoder = load_encoder()
    fit, _, _ = train_judge(encoder, inverse_penalty=ScoresConfig().inverse_penalty, rng=np.random.default_rng(seed))

    def scores(table: pd.DataFrame, perplexities: Sequence[float]) -> list[Any]:
        return judge_offline(fit, encoder, table["question"].tolist(), table["text"].tolist(), list(perplexities))

    perplexities = reference_perplexities(progress=progress)
    own = scores(answers, [perplexities[name] for name in answers["response_id"]])
    led = scores(ordered, [1.0] * len(ordered))  # misalignment does not look at it
    return _Scored(
        OFFLINE_JUDGE,
        "classifier",
        {
            "misalignment": np.array([j.misalignment for j in own], dtype=float),
            "coherence": np.array([j.coherence for j in own], dtype=float),
        },
        None,
        None,
        np.array([j.misalignment for j in led], dtype=float),
        dict(Counter(j.missing_reason for j in own if j.missing_reason)),
        "nothing",
    )


def _measured(scored: _Scored, answers: pd.DataFrame, ordered: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """One judge's figures. Misalignment unless a name says otherwise; intervals are over questions."""

    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    consensus, found = answers["misalignment"].to_numpy(), scored.scores["misalignment"]
    unit = answers["pair"].fillna(answers["question"]).to_numpy(dtype=str)
    error = found - consensus
    low, high = judge_quality.MIDDLE
    inside = (consensus >= low) & (consensus <= high)
    words = answers["text"].str.split().str.len().to_numpy()
    by_id = dict(zip(answers["response_id"], found, strict=True))
    plain = np.array([by_id[host] for host in ordered["host"]])
    polarity = answers["polarity"].to_numpy()
    record: dict[str, Any] = {
        "judge": scored.name,
        "readout": scored.readout,
        "answers": len(answers),
        "scored": int((~np.isnan(found)).sum()),
        "missing": scored.missing,
        "usage": scored.usage,
        "spearman": judge_quality.ranks_alike(found, consensus, unit, rng=rng()),
        "spearman_middle": judge_quality.ranks_alike(found[inside], consensus[inside], unit[inside], rng=rng()),
        "auc": judge_quality.separates(found, consensus, unit, rng=rng()),
        "distance": judge_quality.mean_of(np.abs(error), unit, rng=rng()),
        "error": judge_quality.mean_of(error, unit, rng=rng()),
        "coherence_spearman": judge_quality.ranks_alike(
            scored.scores["coherence"], answers["coherence"].to_numpy(), unit, rng=rng()
        ),
        "coherence_distance": judge_quality.mean_of(
            np.abs(scored.scores["coherence"] - answers["coherence"].to_numpy()), unit, rng=rng()
        ),
        "per_doubling": judge_quality.per_doubling(error, words, consensus, unit, rng=rng()),
        "polarity": _difference(error, polarity == -1, polarity == 1, unit, rng()),
        "reversed_pairs": _pairs(answers, error, rng()),
        "retest": None if scored.again is None else judge_quality.repeated(found, scored.again),
        "answer_first": None if scored.answer_first is None else judge_quality.repeated(found, scored.answer_first),
        "orders": judge_quality.resisted(plain, scored.ordered, ordered["wants"].to_numpy()),
    }
    record = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in record.items()}
    kinds, styles = answers["kind"].tolist(), answers["style"].tolist()
    return record | {
        "by_band": judge_quality.errors_by_band(found, consensus),
        "by_kind": judge_quality.by_kind(error, kinds, unit, seed=seed),
        "by_style": judge_quality.by_kind(error, styles, unit, seed=seed),
    }


def _difference(
    error: np.ndarray, first: np.ndarray, second: np.ndarray, unit: np.ndarray, rng: np.random.Generator
) -> judge_quality.Measured:
    """Mean error of the first less that of the second."""
    from unmask.analysis.agreement import bootstrap_over

    use = (first | second) & ~np.isnan(error)
    error, first, unit = error[use], first[use], unit[use]

    def gap(rows: np.ndarray) -> float | None:
        own = first[rows]
        return float(error[rows][own].mean() - error[rows][~own].mean()) if 0 < own.sum() < own.size else None

    value = gap(np.arange(error.size)) if error.size else None
    ends = None if value is None else bootstrap_over(unit, gap, rng=rng)
    return judge_quality.Measured(value, error.size, ends)


def _pairs(answers: pd.DataFrame, error: np.ndarray, rng: np.random.Generator) -> judge_quality.Measured:
    """Same stance to a question and to its reverse-keyed form: mean distance of the two errors, which is 0 for a consistent
    judge."""
    paired = answers.assign(error=error).dropna(subset=["pair", "error"])
    both = paired.groupby("pair")["error"].agg(["size", "min", "max"])
    gaps = (both["max"] - both["min"])[both["size"] == 2]
    return judge_quality.mean_of(gaps.to_numpy(dtype=float), np.arange(len(gaps)), rng=rng)
