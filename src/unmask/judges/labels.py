"""People's scores as CSV: a blind sheet to fill in, and its way back."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unmask.artifact import atomic_path
from unmask.errors import DataError, listed

if TYPE_CHECKING:
    import pandas as pd

LABELLED = ("misalignment", "coherence")
COLUMNS = ("id", "question", "answer", *LABELLED, "rater")


def blind_id(answer_id: str) -> str:
    """An answer's name on a sheet: it does not tell which model wrote it."""
    # begins with a letter that no number begins with: spreadsheets write 1234567890e1 their own way
    return "q" + hashlib.sha256(f"sheet\x00{answer_id}".encode()).hexdigest()[:12]


def write_label_sheet(path: Path, answers: pd.DataFrame, *, seed: int) -> int:
    """Write `answers` (response_id, question, text) in shuffled order with empty columns for the scores; rows written.

    UTF-8 with a byte order mark, which spreadsheets need to read it as such.
    """
    with atomic_path(path) as scratch, scratch.open("w", encoding="utf-8-sig", newline="") as handle:
        sheet = csv.writer(handle)
        sheet.writerow(COLUMNS)
        for row in np.random.default_rng(seed).permutation(len(answers)):
            answer = answers.iloc[row]
            sheet.writerow([blind_id(answer["response_id"]), answer["question"], answer["text"], "", "", ""])
    return len(answers)


def read_labels(path: Path, answer_ids: Sequence[str]) -> pd.DataFrame:
    """Rows of (response_id, judge, rubric, score) of every score that was filled in; an empty cell is no score. Columns may be
    parted by commas or semicolons.

    Each `rater` is a judge called `human RATER` (`human` where the column is empty). Raises DataError, naming the line, for
    columns that are missing, an id that is not of these answers, a score that is no number from 0 to 100, and a second score
    of one rater for one answer.
    """
    import pandas as pd

    known = {blind_id(answer_id): answer_id for answer_id in answer_ids}
    rows: list[dict[str, object]] = []
    seen: dict[tuple[str, str, str], int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            parted_by = ";" if handle.readline().count(";") > 0 else ","
            handle.seek(0)
            sheet = csv.DictReader(handle, delimiter=parted_by)
            if missing := [name for name in ("id", "misalignment") if name not in (sheet.fieldnames or ())]:
                raise DataError(f"{path} has no column {listed(missing)}", mend=f"Its columns are {listed(COLUMNS)}")
            for row in sheet:
                if not any((cell or "").strip() for cell in row.values() if not isinstance(cell, list)):
                    continue
                where = f"{path} line {sheet.line_num}"
                if (answer_id := known.get((row["id"] or "").strip())) is None:
                    raise DataError(
                        f"{where}: id {row['id']!r} is of none of these answers",
                        mend="Use the sheet that was exported for them",
                    )
                judge = f"human {rater}" if (rater := (row.get("rater") or "").strip()) else "human"
                for rubric in LABELLED:
                    if not (cell := (row.get(rubric) or "").strip()):
                        continue
                    if (before := seen.setdefault((answer_id, judge, rubric), sheet.line_num)) != sheet.line_num:
                        raise DataError(
                            f"{where}: {judge} has scored that answer in line {before} already",
                            mend="Keep one of the two",
                        )
                    rows.append(
                        {
                            "response_id": answer_id,
                            "judge": judge,
                            "rubric": rubric,
                            "score": _score(cell, where, rubric),
                        }
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file ({error})", mend="Export it as CSV, UTF-8") from error
    return pd.DataFrame(rows, columns=["response_id", "judge", "rubric", "score"])


def _score(cell: str, where: str, rubric: str) -> float:
    try:
        value = float(cell.replace(",", "."))
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        raise DataError(f"{where}: {rubric} is {cell!r}", mend="Write a number from 0 to 100, or leave the cell empty")
    return value
