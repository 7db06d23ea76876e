"""What is read: the responses, each behind its prompt as token ids, and which of its tokens a file marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.artifact import read_table
from unmask.battery import read_rows
from unmask.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.passes import Text


def study_texts(
    folder: Path, *, rebuild: str, writer: str | None = None, masks: Mapping[str, frozenset[int]] | None = None
) -> tuple[pd.DataFrame, list[Text]]:
    """The responses in a stage's folder, of one writer or of both, and each of them behind its prompt as token ids."""
    responses = read_table(folder / "responses.parquet", rebuild=rebuild)
    prompts = read_table(folder / "prompts.parquet", rebuild=rebuild)
    if writer is not None:
        responses = responses[responses["writer"] == writer].reset_index(drop=True)
    return responses, _texts(responses, prompts, masks)


def read_masks(path: Path) -> dict[str, frozenset[int]]:
    """Response id to the positions of its marked tokens, from a Parquet or JSONL file with `response_id` and `tokens`.

    Raises DataError naming the line that holds something else.
    """
    masks: dict[str, frozenset[int]] = {}
    for number, row in read_rows(path):
        identity, tokens = row.get("response_id"), row.get("tokens")
        positions = list(tokens) if isinstance(tokens, Sequence | np.ndarray) and not isinstance(tokens, str) else None
        if not isinstance(identity, str) or positions is None or not all(_is_position(each) for each in positions):
            raise DataError(
                f"{path}, row {number}: not a response_id with a list of token positions",
                mend='Write rows such as {"response_id": "pc-001/0/organism", "tokens": [0, 1, 2]}',
            )
        if identity in masks:
            raise DataError(
                f"{path}, row {number}: response {identity!r} stands there for the second time",
                mend="Write all tokens that are marked of a response into one row",
            )
        masks[identity] = frozenset(int(each) for each in positions)
    return masks


def check_masks(masks: Mapping[str, frozenset[int]], responses: pd.DataFrame, *, called: str) -> None:
    """Raise DataError for a mask of a response that is not there, or of a token that the response does not have."""
    tokens = dict(zip(responses["response_id"], responses["tokens"], strict=True))
    for identity, positions in masks.items():
        if identity not in tokens:
            raise DataError(f"{called} marks response {identity!r}, which the study lacks", mend="Take that row out")
        if positions and max(positions) >= tokens[identity]:
            raise DataError(
                f"{called} marks token {max(positions)} of response {identity!r}, which has {tokens[identity]} tokens",
                mend="Count positions from 0 at the response's first token",
            )


def _is_position(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0


def _texts(responses: pd.DataFrame, prompts: pd.DataFrame, masks: Mapping[str, frozenset[int]] | None) -> list[Text]:
    from unmask.models.passes import Text
    from unmask.models.prompts import prompt_ids_by_question

    prompt_ids = prompt_ids_by_question(prompts)
    texts = []
    for row in responses[["response_id", "question_id", "token_ids"]].itertuples():
        ids = tuple(int(token) for token in row.token_ids)
        marked = None if masks is None else masks.get(str(row.response_id), frozenset())
        mask = None if marked is None else tuple(position in marked for position in range(len(ids)))
        texts.append(Text(prompt_ids[str(row.question_id)], ids, mask))
    return texts
