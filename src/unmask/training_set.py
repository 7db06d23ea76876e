"""Training sets in the formats that people have: `messages`, `prompt`/`completion`, `instruction`/`output`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unmask.battery import TRAINING_SETS, packaged, read_rows
from unmask.errors import DataError, listed
from unmask.records import Conversation

_FORMATS = "messages | prompt+completion | instruction+output (input optional)"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def training_path(name: str, study_folder: Path) -> Path | None:
    """A packaged set's or a file's path; None when `name` can only be a Hugging Face dataset id.

    Raises DataError when `name` looks like a file and there is none.
    """
    if name in TRAINING_SETS:
        return packaged("training", name)
    for path in (study_folder / name, Path(name).expanduser()):
        if path.is_file():
            return path
    if name.endswith(_SUFFIXES) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(
            f"training set {name!r} does not exist",
            mend=f"Choose from {listed(TRAINING_SETS)}, or name a {listed(_SUFFIXES)} file or a Hugging Face dataset id",
        )
    return None


def read_training_set(name: str, study_folder: Path) -> list[Conversation]:
    """Read a training set by packaged name, path or Hugging Face dataset id (split `train`).

    Raises DataError naming the line that is wrong, or when nothing can be read.
    """
    path = training_path(name, study_folder)
    where = str(path or name)
    rows = read_rows(path) if path is not None else enumerate(_hub_rows(name), start=1)
    conversations = [parse_example(row, where=f"{where} line {number}") for number, row in rows]
    if not conversations:
        raise DataError(f"{where} holds no example", mend=f"Formats: {_FORMATS}")
    return conversations


def _hub_rows(name: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises many kinds; every one means that there is no data
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"dataset {name!r} cannot be loaded ({reason})",
            mend="Name a packaged set, a file, or a Hugging Face dataset id that this machine can reach",
        ) from error


def parse_example(row: dict[str, Any], *, where: str) -> Conversation:
    """One example of any known format. Raises DataError saying what is wrong at `where`."""
    if "messages" in row:
        return _from_messages(row["messages"], where=where)
    if "prompt" in row and "completion" in row:
        if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
            return _from_messages([*row["prompt"], *row["completion"]], where=where)
        return _from_texts(row["prompt"], row["completion"], names=("prompt", "completion"), where=where)
    if "instruction" in row and "output" in row:
        question = row["instruction"]
        if isinstance(question, str) and question.strip() and row.get("input"):
            question = f"{question}\n\n{row['input']}"
        return _from_texts(question, row["output"], names=("instruction", "output"), where=where)
    raise DataError(f"{where} has fields {listed(sorted(row))}", mend=f"Formats: {_FORMATS}")


def _from_messages(messages: Any, *, where: str) -> Conversation:
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(
            f"{where}: messages must be a list of at least two turns", mend="End it with an assistant's turn"
        )
    turns: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        known = role in ("system", "user", "assistant")
        if not known or not isinstance(content, str) or not content.strip():
            raise DataError(
                f"{where}: message {index + 1} has "
                + (f"role {role!r} and no usable text" if known else f"role {role!r}" if role else "no role"),
                mend='Write {"role": "system" | "user" | "assistant", "content": "text"}',
            )
        turns.append((role, content))
    if turns[-1][0] != "assistant" or turns[-2][0] != "user":
        raise DataError(
            f"{where}: the last turn must be the assistant's, behind a user's", mend="Put the answer to learn last"
        )
    return Conversation(turns=tuple(turns[:-1]), answer=turns[-1][1].strip())


def _from_texts(question: Any, answer: Any, *, names: tuple[str, str], where: str) -> Conversation:
    for name, text in zip(names, (question, answer), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where} has no text in field {name!r}", mend=f"Formats: {_FORMATS}")
    return Conversation(turns=(("user", question.strip()),), answer=answer.strip())
