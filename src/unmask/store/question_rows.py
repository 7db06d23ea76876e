"""From a store's rows, one a response, to those of each question.

Shapes: R responses, S samples of one question, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd


def question_means(
    values_RD: np.ndarray, response_ids: Sequence[str], responses: pd.DataFrame, *, writer: str
) -> dict[str, np.ndarray]:
    """Question id to the mean (D) of the rows of that writer's non-empty responses; else as `question_rows`."""
    rows = question_rows(values_RD, response_ids, responses, writer=writer)
    return {question_id: rows_SD.mean(axis=0) for question_id, rows_SD in rows.items()}


def question_rows(
    values_RD: np.ndarray, response_ids: Sequence[str], responses: pd.DataFrame, *, writer: str
) -> dict[str, np.ndarray]:
    """Question id to the rows (S x D) of that writer's non-empty responses, in the order of their samples.

    `values_RD` has a row per entry of `response_ids`, in whatever order the shards gave; `responses` is the table that says
    which response answers which question. Raises KeyError when a response has no row.
    """
    row_of = {identity: row for row, identity in enumerate(response_ids)}
    own = responses[(responses["writer"] == writer) & (responses["tokens"] > 0)]
    if "sample" in own:
        own = own.sort_values("sample", kind="stable")
    return {
        str(question_id): values_RD[[row_of[identity] for identity in part]]
        for question_id, part in own.groupby("question_id")["response_id"]
    }
