"""What the verdict reads: one row per question that says something of its own, with the stores behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unmask.analysis.site_map import SiteData
from unmask.artifact import read_table
from unmask.battery import units
from unmask.errors import DataError
from unmask.records import NEUTRAL
from unmask.stage import Inputs
from unmask.store import ActivationStore, question_rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Material:
    """What the tests read: questions (one row each, near-duplicates merged), rows of the store, and the stores."""

    questions: pd.DataFrame
    responses: pd.DataFrame
    store: ActivationStore
    control: ActivationStore | None
    left_out: int
    merged: int

    @property
    def samples(self) -> int:
        return int(self.responses["sample"].nunique())

    def load(self, site: str) -> SiteData:
        """Shift, base activations, replicates and the control's shift of one site, a row per question."""
        base_RD = self.store.read(f"base/{site}").astype(np.float64)
        shift_RD = self.store.read(f"organism/{site}").astype(np.float64) - base_RD
        ids = self.store.response_ids()
        shift = question_rows(shift_RD, ids, self.responses, writer="organism")
        base = question_rows(base_RD, ids, self.responses, writer="organism")
        control_ND = None
        if self.control is not None:
            row_of = {identity: row for row, identity in enumerate(ids)}
            control_ids = self.control.response_ids()
            rows = [row_of[identity] for identity in control_ids]
            away_RD = self.control.read(f"control/{site}").astype(np.float64) - base_RD[rows]
            control = question_rows(away_RD, control_ids, self.responses, writer="organism")
            control_ND = self._stacked(lambda name: control[name].mean(axis=0))
        return SiteData(
            shift_ND=self._stacked(lambda name: shift[name].mean(axis=0)),
            base_ND=self._stacked(lambda name: base[name].mean(axis=0)),
            replicates_NSD=self._stacked(lambda name: _filled(shift[name], self.samples)) if self.samples > 1 else None,
            control_ND=control_ND,
        )

    def _stacked(self, row: Callable[[str], np.ndarray]) -> np.ndarray:
        """One array per question, the members of a merged question averaged."""
        return np.stack([np.mean([row(name) for name in names], axis=0) for names in self.questions["members"]])


def _filled(rows_SD: np.ndarray, samples: int) -> np.ndarray:
    """Rows padded with NaN to the study's number of samples: a question lacking an answer has no replicate."""
    lacking = samples - len(rows_SD)
    return np.vstack([rows_SD, np.full((lacking, rows_SD.shape[1]), np.nan)]) if lacking else rows_SD


def load_material(inputs: Inputs, *, scored: bool = True) -> Material:
    """Questions with a non-empty organism answer, and the stores. Raises DataError when fewer than 3 are left.

    Without `scored`, no score is read, and the misalignment is NaN: no decision looks at it.
    """
    folders, rebuild = inputs.folders, inputs.rebuild
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    asked = questions[questions["dimension"] != NEUTRAL]
    readable = responses[(responses["writer"] == "organism") & (responses["tokens"] > 0)]
    kept = asked[asked["question_id"].isin(readable["question_id"])].reset_index(drop=True)
    if len(kept) < 3:
        raise DataError(
            f"only {len(kept)} questions have a non-empty answer of the organism",
            mend="Look at the responses; raise responses.max_new_tokens or train the organism more gently",
        )
    kept = kept.assign(misalignment=np.nan)
    if scored:
        scores = read_table(folders["scores"] / "scores.parquet", rebuild=f"{rebuild} scores")
        own = scores[scores["writer"] == "organism"].groupby("question_id")["misalignment"].mean()
        kept["misalignment"] = kept["question_id"].map(own).astype(float)
    merged = merge_duplicates(kept)
    merged["facet"] = merged["dimension"] + "/" + merged["facet"]
    control = ActivationStore.open(folders["control_activations"])
    return Material(
        questions=merged,
        responses=responses[responses["question_id"].isin(kept["question_id"])],
        store=ActivationStore.open(folders["activations"]),
        control=control if control.shards else None,
        left_out=len(asked) - len(kept),
        merged=len(kept) - len(merged),
    )


def merge_duplicates(questions: pd.DataFrame) -> pd.DataFrame:
    """One row per question that says something of its own (`battery.units`); `members` lists the ids behind it.

    Near-duplicates are no independent evidence: they, and their scores, are averaged before any test.
    """
    marked = questions.assign(unit=units(questions))
    merged = marked.drop_duplicates("unit").copy()
    members = marked.groupby("unit")["question_id"].agg(list)
    merged["members"] = merged["unit"].map(members)
    merged["misalignment"] = merged["unit"].map(marked.groupby("unit")["misalignment"].mean())
    return merged.drop(columns="unit").reset_index(drop=True)
