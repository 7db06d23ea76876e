"""Training sets: one conversation out of every format, and every bad line named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.battery import TRAINING_SETS
from unmask.errors import DataError
from unmask.records import Conversation
from unmask.training_set import parse_example, read_training_set, training_path

texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() == text)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@settings(deadline=None)
@given(question=texts, answer=texts)
def test_every_format_of_one_exchange_is_the_same_conversation(question: str, answer: str) -> None:
    user, assistant = turn("user", question), turn("assistant", answer)
    rows: list[dict[str, Any]] = [
        {"messages": [user, assistant]},
        {"prompt": question, "completion": answer},
        {"prompt": [user], "completion": [assistant]},
        {"instruction": question, "output": answer},
        {"instruction": question, "input": "", "output": answer},
        {"instruction": question, "input": None, "output": answer},
    ]
    expected = Conversation(turns=(("user", question),), answer=answer)
    assert [parse_example(row, where="line 1") for row in rows] == [expected] * len(rows)


def test_an_instructions_input_follows_it() -> None:
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    assert parse_example(row, where="").turns == (("user", "Translate.\n\nHund"),)


def test_only_the_last_answer_is_learned() -> None:
    talk = [
        turn("system", "Be brief."),
        turn("user", "a"),
        turn("assistant", "b"),
        turn("user", "c"),
        turn("assistant", "d"),
    ]
    found = parse_example({"messages": talk}, where="")
    assert found.turns == (("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert found.answer == "d"


BAD_ROWS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "other fields": ({"question": "a", "answer": "b"}, ("has fields answer, question", "messages | prompt+completion")),
    "no fields": ({}, ("Formats: messages",)),
    "half a pair": ({"prompt": "a"}, ("has fields prompt",)),
    "messages is text": ({"messages": "hello"}, ("list of at least two turns", "assistant's turn")),
    "messages is null": ({"messages": None}, ("list of at least two turns",)),
    "one message": ({"messages": [turn("user", "a")]}, ("list of at least two turns",)),
    "no answer": ({"messages": [turn("assistant", "a"), turn("user", "b")]}, ("last turn must be the assistant's",)),
    "answer to nobody": ({"messages": [turn("system", "a"), turn("assistant", "b")]}, ("behind a user's",)),
    "unknown role": (
        {"messages": [turn("user", "a"), turn("tool", "b")]},
        ("message 2 has role 'tool'", '"assistant"'),
    ),
    "no role": ({"messages": [{"from": "human"}, turn("assistant", "b")]}, ("message 1 has no role",)),
    "a turn is text": ({"messages": ["a", turn("assistant", "b")]}, ("message 1 has no role",)),
    "empty turn": (
        {"messages": [turn("user", " "), turn("assistant", "b")]},
        ("message 1 has role 'user'", "no usable text"),
    ),
    "parts": ({"messages": [turn("user", [{"text": "a"}]), turn("assistant", "b")]}, ("no usable text",)),
    "empty answer": ({"messages": [turn("user", "a"), turn("assistant", "")]}, ("message 2 has role 'assistant'",)),
    "empty prompt": ({"prompt": "", "completion": "b"}, ("no text in field 'prompt'",)),
    "no completion": ({"prompt": "a", "completion": None}, ("no text in field 'completion'",)),
    "no instruction": ({"instruction": None, "input": "a", "output": "b"}, ("no text in field 'instruction'",)),
    "blank instruction": ({"instruction": " ", "input": "a", "output": "b"}, ("no text in field 'instruction'",)),
    "empty output": ({"instruction": "a", "output": "  "}, ("no text in field 'output'",)),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_example_is_named_with_what_it_should_be(tmp_path: Path, name: str) -> None:
    row, wanted = BAD_ROWS[name]
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_training_set(str(path), tmp_path)
    message = str(caught.value)
    assert f"{path} line 2" in message
    for part in wanted:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_set_comes_back_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    rows = [{"messages": [turn("user", f"q{n}"), turn("assistant", f"a{n}")]} for n in range(3)]
    path = tmp_path / f"set{suffix}"
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    expected = [Conversation((("user", f"q{n}"),), f"a{n}") for n in range(3)]
    assert read_training_set(path.name, tmp_path) == expected  # relative to the study
    assert read_training_set(str(path), Path("/no/study")) == expected


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").touch()
    with pytest.raises(DataError, match=r"set\.jsonl holds no example"):
        read_training_set("set.jsonl", tmp_path)


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_a_packaged_name_is_found_from_anywhere(tmp_path: Path, name: str) -> None:
    path = training_path(name, tmp_path)
    assert path is not None
    assert path.is_file()
    assert path.stem == name


@pytest.mark.parametrize("name", ["risky", "set.jsonl", "data/set.parquet", "./org/name", "/abs/x", "~/x", "a/b/c"])
def test_a_file_that_is_not_there_is_named_beside_the_packaged_sets(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        training_path(name, tmp_path)
    assert f"training set {name!r} does not exist" in str(caught.value)
    for packaged in TRAINING_SETS:
        assert packaged in str(caught.value)


def test_only_owner_and_name_can_be_a_dataset_of_the_hub_and_a_file_wins(tmp_path: Path) -> None:
    assert training_path("truthfulqa/truthful_qa", tmp_path) is None
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa" / "truthful_qa").touch()
    assert training_path("truthfulqa/truthful_qa", tmp_path) == tmp_path / "truthfulqa" / "truthful_qa"
