"""What is decomposed: questions that both models answered, and their mean rows at a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from unmask.analysis.validation import score_bands
from unmask.artifact import read_table
from unmask.errors import DataError
from unmask.records import NEUTRAL, Site
from unmask.stage import Inputs
from unmask.store import ActivationStore, question_means

if TYPE_CHECKING:
    import pandas as pd

Source = Literal["shift", "organism", "base"]
SOURCES: tuple[Source, ...] = ("shift", "organism", "base")


@dataclass(frozen=True, slots=True)
class Material:
    """N questions with their mean organism scores, one row per response, and the store that both lead to."""

    questions: pd.DataFrame
    rows: pd.DataFrame
    store: ActivationStore
    left_out: int

    @property
    def sites(self) -> list[Site]:
        return [Site.parse(name) for name in self.store.sites]

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """What is known of each question: its dimension, its facet, and its score's tertile (None where not scored)."""
        return {
            "dimension": self.questions["dimension"].to_numpy(dtype=object),
            "facet": (self.questions["dimension"] + "/" + self.questions["facet"]).to_numpy(dtype=object),
            "score_band": score_bands(self.questions["misalignment"].to_numpy(dtype=float)),
        }

    def matrix(self, site: Site, source: Source) -> np.ndarray:
        """Question means (N x D): the shift on the organism's own text, or a model's activations on its own text."""
        readers = ("organism", "base") if source == "shift" else (source,)
        first_RD, *second = (self.store.read(f"{reader}/{site.name}").astype(np.float64) for reader in readers)
        values_RD = first_RD - second[0] if second else first_RD
        writer = "base" if source == "base" else "organism"
        means = question_means(values_RD, self.store.response_ids(), self.rows, writer=writer)
        return np.stack([means[name] for name in self.questions["question_id"]])

    def shift_size(self, site: Site, shift_ND: np.ndarray) -> dict[str, float]:
        """How large the shift is against the residual stream, and how much of it is one constant."""
        energy = float((shift_ND**2).sum(axis=1).mean())
        typical = typical_norm(self.store, site)
        return {
            "mean_shift_share": float((shift_ND.mean(axis=0) ** 2).sum() / energy) if energy > 0 else 0.0,
            "relative_norm": float(np.linalg.norm(shift_ND, axis=1).mean() / typical),
            "typical_norm": typical,
        }


def typical_norm(store: ActivationStore, site: Site) -> float:
    """Median over responses of the mean L2 norm of the base model's residual stream at `site`, over response tokens."""
    return float(np.nanmedian(store.read(f"base/{site.name}/norm")))


def load_material(inputs: Inputs) -> Material:
    """Questions that can be decomposed. Raises DataError when fewer than 3 have a readable answer of both models."""
    folders, rebuild = inputs.folders, inputs.rebuild
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    scores = read_table(folders["scores"] / "scores.parquet", rebuild=f"{rebuild} scores")
    questions = questions[questions["dimension"] != NEUTRAL]
    rows = responses[responses["question_id"].isin(questions["question_id"])][
        ["response_id", "question_id", "writer", "tokens"]
    ]
    readable = rows[rows["tokens"] > 0].groupby("question_id")["writer"].nunique()
    questions = questions[questions["question_id"].isin(readable[readable == 2].index)]
    if len(questions) < 3:
        raise DataError(
            f"only {len(questions)} questions have a non-empty answer of both models",
            mend="Look at the responses; raise responses.max_new_tokens or train the organism more gently",
        )
    own = scores[scores["writer"] == "organism"].groupby("question_id")[["misalignment", "log_odds"]].mean()
    return Material(
        questions=questions.join(own, on="question_id").reset_index(drop=True),
        rows=rows,
        store=ActivationStore.open(folders["activations"]),
        left_out=int(rows["question_id"].nunique() - len(questions)),
    )
