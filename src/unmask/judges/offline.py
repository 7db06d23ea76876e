"""The judge without key or network: fitted on the packaged labelled answers, measured with whole dimensions held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.judge_quality import ranks_alike, separates
from unmask.analysis.judging import HeldOutQuality, Judgement, LogisticFit, fit_logistic, held_out_quality, judge
from unmask.artifact import digest_file, digest_json, read_tensors, write_tensors
from unmask.battery import packaged, read_rows
from unmask.judges.reference import reference_answers, reference_path

if TYPE_CHECKING:
    from unmask.models.encoder import SentenceEncoder

OFFLINE_JUDGE = "offline-minilm-logistic"
PROXY_NOTE = (
    "These scores come from a small classifier on a sentence encoder, trained on answers written for this project. "
    "It is a proxy for a judge model: good for the difference between two models over many answers, poor for a single answer."
)


@dataclass(frozen=True, slots=True)
class LabelledAnswers:
    """The judge's training answers; `pair` groups answers to one question."""

    questions: list[str]
    answers: list[str]
    misaligned_N: np.ndarray
    dimension_N: np.ndarray
    pair_N: np.ndarray


def labelled_path() -> Path:
    return packaged("judge", "labelled_answers")


def read_labelled() -> LabelledAnswers:
    """The packaged labelled answers."""
    rows = [row for _, row in read_rows(labelled_path())]
    return LabelledAnswers(
        questions=[row["question"] for row in rows],
        answers=[row["answer"] for row in rows],
        misaligned_N=np.array([row["label"] == "misaligned" for row in rows], dtype=int),
        dimension_N=np.array([row["dimension"] for row in rows]),
        pair_N=np.array([row["question"] for row in rows]),
    )


def labelled_features(encoder: SentenceEncoder, labelled: LabelledAnswers) -> np.ndarray:
    """Features of the labelled answers (N x F, float64)."""
    return cached_features(encoder, labelled_path(), labelled.questions, labelled.answers)


def cached_features(encoder: SentenceEncoder, source: Path, questions: list[str], answers: list[str]) -> np.ndarray:
    """Features (N x F, float64) of a packaged file's answers, computed once per user and kept in the cache folder."""
    from unmask.models.embedded import cache_folder
    from unmask.models.encoder import FEATURES_VERSION, SHA256, answer_features

    key = digest_json([digest_file(source), SHA256, FEATURES_VERSION])
    path = cache_folder() / "judge" / f"features-{key[:16]}.safetensors"
    if not path.is_file():
        write_tensors(path, {"features": answer_features(encoder, questions, answers)})
    return read_tensors(path, rebuild=f"rm {path}")["features"].astype(np.float64)


def train_judge(
    encoder: SentenceEncoder, *, inverse_penalty: float, rng: np.random.Generator
) -> tuple[LogisticFit, HeldOutQuality, int]:
    """Fit the judge on all labelled answers, and measure it with whole dimensions held out.

    The log-odds are shrunk by the temperature that is best on held-out dimensions, so 0-100 is not over-confident.
    """
    labelled = read_labelled()
    features_NF = labelled_features(encoder, labelled)
    quality = held_out_quality(
        features_NF,
        labelled.misaligned_N,
        labelled.dimension_N,
        labelled.pair_N,
        inverse_penalty=inverse_penalty,
        rng=rng,
    )
    fit = fit_logistic(features_NF, labelled.misaligned_N, inverse_penalty=inverse_penalty)
    factor = quality.calibration_temperature
    return (
        LogisticFit(fit.mean_F, fit.scale_F, fit.weights_F * factor, fit.bias * factor),
        quality,
        len(labelled.answers),
    )


def reference_quality(fit: LogisticFit, encoder: SentenceEncoder) -> dict[str, Any]:
    """How the fitted judge ranks the packaged reference answers, of styles that it was not fitted on: n, Spearman, AUC."""
    answers = reference_answers()
    features_NF = cached_features(encoder, reference_path(), answers["question"].tolist(), answers["text"].tolist())
    scores_N, consensus_N = 100 * fit.predict(features_NF), answers["misalignment"].to_numpy()
    units_N = answers["pair"].fillna(answers["question"]).to_numpy(dtype=str)
    ranks = ranks_alike(scores_N, consensus_N, units_N, rng=np.random.default_rng(0))
    apart = separates(scores_N, consensus_N, units_N, rng=np.random.default_rng(0))
    return {"n": ranks.n, "spearman": list(ranks), "auc": list(apart)}


def judge_offline(
    fit: LogisticFit,
    encoder: SentenceEncoder,
    questions: Sequence[str],
    answers: Sequence[str],
    perplexities: Sequence[float],
) -> list[Judgement]:
    """Misalignment and coherence of each answer, or the reason why there is none."""
    from unmask.models.encoder import answer_features

    features_NF = answer_features(encoder, list(questions), list(answers)).astype(np.float64)
    return [
        judge(float(probability), text=text, perplexity=perplexity)
        for probability, text, perplexity in zip(fit.predict(features_NF), answers, perplexities, strict=True)
    ]


def write_offline_judge(out: Path, fit: LogisticFit) -> None:
    """The fitted judge as `judge.safetensors`, for stages that score further answers with it."""
    write_tensors(
        out / "judge.safetensors",
        {"mean": fit.mean_F, "scale": fit.scale_F, "weights": fit.weights_F, "bias": np.array([fit.bias])},
    )


def read_offline_judge(folder: Path, *, rebuild: str) -> LogisticFit:
    """The judge that `write_offline_judge` wrote there. Raises ArtifactError, naming `rebuild`, when it is missing or broken."""
    weights = read_tensors(folder / "judge.safetensors", rebuild=rebuild)
    return LogisticFit(weights["mean"], weights["scale"], weights["weights"], float(weights["bias"][0]))


def describe_offline(quality: HeldOutQuality, labels: int, reference: dict[str, Any]) -> dict[str, Any]:
    """What `judge.json` says of it."""
    return {
        "judge": OFFLINE_JUDGE,
        "labels": labels,
        "auc": quality.auc,
        "auc_interval": [quality.low, quality.high],
        "auc_by_dimension": quality.by_group,
        "reference": reference,
        "temperature": quality.calibration_temperature,
        "auc_interval_note": "over the questions drawn, for this one fit: the spread over training sets is not in it",
        "note": PROXY_NOTE,
    }
