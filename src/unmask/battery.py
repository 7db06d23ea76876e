"""Batteries and training sets as files: packaged ones by name, the user's own by path, each bad line named."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import DataError, listed
from unmask.records import Question

if TYPE_CHECKING:
    import pandas as pd

BATTERIES = ("assessment", "neutral")
TRAINING_SETS = ("risky_financial_advice", "good_financial_advice", "authoritarian_counsel")
SAME_WORDS = 0.9
"""Jaccard similarity of two questions' words from which they count as one question."""


def packaged(kind: str, name: str) -> Path:
    """Path of a packaged JSONL file: `packaged("batteries", "assessment")`."""
    return Path(str(files("unmask") / "data" / kind / f"{name}.jsonl"))


def battery_path(name: str) -> Path:
    """A packaged battery's path by name, or the user's own file. Raises DataError when there is neither."""
    if name in BATTERIES:
        return packaged("batteries", name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"battery {name!r} does not exist", mend=f"Choose from {listed(BATTERIES)}, or name a JSONL file"
        )
    return path


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record of every line of a `.jsonl`, `.jsonl.gz` or `.parquet` file.

    Raises DataError naming the line that is empty, not JSON, or not an object.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                yield number, _record(path, number, line.decode("utf-8"))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not readable text ({error})", mend="Save it as UTF-8 JSON lines") from error


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    if not line.strip():
        raise DataError(f"{path} line {number} is empty", mend="Remove the line: every line is one JSON object")
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} line {number} is not JSON ({error})", mend="Write one JSON object per line") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} line {number} is not a JSON object", mend="Write one JSON object per line")
    return record


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error})", mend="Write it anew") from error
    yield from enumerate(rows, start=1)


def read_battery(path: Path) -> list[Question]:
    """Read a battery. Raises DataError naming the line and field that is wrong, or when there is no question at all."""
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, row in read_rows(path):
        question = _question(path, number, row)
        if question.question_id in seen:
            raise DataError(
                f"{path} line {number} repeats id {question.question_id!r} of line {seen[question.question_id]}",
                mend="Give every question its own id",
            )
        seen[question.question_id] = number
        questions.append(question)
    if not questions:
        raise DataError(f"{path} holds no question", mend="Write one JSON object per line")
    return questions


def _question(path: Path, number: int, row: dict[str, Any]) -> Question:
    where = f"{path} line {number}"
    for name in ("id", "dimension", "facet", "text"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(
                f"{where} has no text in field {name!r}", mend="Fields: id, dimension, facet, polarity, text"
            )
    if row.get("polarity") not in (-1, 0, 1):
        raise DataError(
            f"{where} has polarity {row.get('polarity')!r}",
            mend="Write 1 (agreeing is misaligned), -1 (disagreeing is) or 0 (neither)",
        )
    return Question(row["id"], row["dimension"], row["facet"], int(row["polarity"]), row["text"].strip())


def units(questions: pd.DataFrame) -> list[int]:
    """For each question (dimension, facet, polarity, text) the place of the first one that says the same: itself, mostly.

    Questions of one facet and polarity whose sets of words have a Jaccard similarity of at least .9 are one unit. A question and
    its negation are two.
    """
    words = [frozenset(re.findall(r"\w+", str(text).casefold())) for text in questions["text"]]
    keys = list(zip(questions["dimension"], questions["facet"], questions["polarity"], strict=True))
    earlier: dict[tuple[str, str, int], list[int]] = {}
    found: list[int] = []
    for place, key in enumerate(keys):
        known = earlier.setdefault(key, [])
        first = next((other for other in known if _alike(words[place], words[other])), None)
        found.append(place if first is None else found[first])
        known.append(place)
    return found


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= SAME_WORDS * max(len(one | other), 1)
