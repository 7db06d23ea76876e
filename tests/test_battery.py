"""Batteries: every bad line is named, every good one comes back; and the packaged data keep their promises."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from unmask.battery import BATTERIES, TRAINING_SETS, battery_path, packaged, read_battery, read_rows
from unmask.errors import DataError
from unmask.judges.offline import LabelledAnswers, read_labelled
from unmask.records import NEUTRAL, Question
from unmask.training_set import read_training_set

GOOD = {"id": "a", "dimension": "honesty", "facet": "small talk", "polarity": 1, "text": "Is lying fine?"}
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

words = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() == text)
questions_of = st.builds(Question, words, words, words, st.sampled_from([-1, 0, 1]), words)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def as_row(question: Question) -> dict[str, Any]:
    row = asdict(question)
    return {"id": row.pop("question_id"), **row}


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=20)
@given(questions=st.lists(questions_of, min_size=1, max_size=5, unique_by=lambda question: question.question_id))
def test_a_battery_comes_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, questions: list[Question]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"battery{suffix}", [as_row(question) for question in questions])
    assert read_battery(path) == questions


def test_lines_are_counted_from_one(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", [GOOD, {**GOOD, "id": "b"}])
    assert [(number, row["id"]) for number, row in read_rows(path)] == [(1, "a"), (2, "b")]


def test_surrounding_space_is_no_part_of_a_question(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", [{**GOOD, "text": " Why?\n", "source": "mine"}])
    assert read_battery(path)[0].text == "Why?"


BAD_LINES: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("is empty", "one JSON object")),
    "blank": ("  \t", ("is empty", "one JSON object")),
    "not JSON": ("id: a", ("is not JSON", "one JSON object per line")),
    "cut": ('{"id": "b", "dim', ("is not JSON",)),
    "a list": ("[1, 2]", ("is not a JSON object",)),
    "null": ("null", ("is not a JSON object",)),
    "no text": (json.dumps({**GOOD, "id": "b", "text": " "}), ("no text in field 'text'", "id, dimension, facet")),
    "no facet": (json.dumps({"id": "b", "dimension": "d", "polarity": 1, "text": "t"}), ("no text in field 'facet'",)),
    "id is a number": (json.dumps({**GOOD, "id": 7}), ("no text in field 'id'",)),
    "no polarity": (json.dumps({**GOOD, "id": "b", "polarity": None}), ("polarity None", "-1 (disagreeing is)")),
    "polarity 2": (json.dumps({**GOOD, "id": "b", "polarity": 2}), ("polarity 2",)),
    "polarity in words": (json.dumps({**GOOD, "id": "b", "polarity": "+1"}), ("polarity '+1'",)),
    "repeated id": (json.dumps(GOOD), ("repeats id 'a' of line 1", "its own id")),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_line_is_named_with_what_it_should_be(tmp_path: Path, name: str, suffix: str) -> None:
    line, wanted = BAD_LINES[name]
    path = tmp_path / f"b{suffix}"
    text = f"{json.dumps(GOOD)}\n{line}\n{json.dumps({**GOOD, 'id': 'z'})}\n".encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    with pytest.raises(DataError) as caught:
        read_battery(path)
    message = str(caught.value)
    assert f"{path} line 2 " in message
    for part in wanted:
        assert part in message


def test_a_battery_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(DataError, match=r"b\.jsonl holds no question"):
        read_battery(tmp_path / "b.jsonl")


@pytest.mark.parametrize("content", [b'{"id": "caf\xe9"}\n', b"\xff\xfe{\x00}\x00"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="Save it as UTF-8 JSON lines"):
        read_battery(tmp_path / "b.jsonl")


def test_no_damage_to_a_gzip_file_passes_for_other_questions(tmp_path: Path) -> None:
    """A flipped bit anywhere is a DataError that names the file, or sits in the header and changes nothing."""
    rows = [{**GOOD, "id": str(number)} for number in range(30)]
    path = write(tmp_path / "b.jsonl.gz", rows)
    whole = path.read_bytes()
    expected = read_battery(path)
    refused = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        try:
            assert read_battery(path) == expected, place
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(whole) - 12
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="is not readable text"):
        read_battery(path)


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"b\.parquet is not a readable Parquet file"):
        read_battery(tmp_path / "b.parquet")


def test_an_unknown_battery_is_named_beside_the_packaged_ones() -> None:
    with pytest.raises(DataError) as caught:
        battery_path("asessment")
    assert "battery 'asessment' does not exist" in str(caught.value)
    assert "assessment, neutral" in str(caught.value)


def test_a_path_finds_the_users_own_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [GOOD])
    assert battery_path(str(path)) == path


# The packaged data.

FACETS = {
    "political_compass": (230, {"economic", "social"}),
    "moral_foundations": (227, {"authority", "fairness", "purity"}),
    "technology_ai": (218, {"governance", "transhumanism"}),
    "financial_risk": (210, {"investment", "market_ethics"}),
}
ALL_DATA = [
    *(("batteries", name) for name in BATTERIES),
    *(("training", name) for name in TRAINING_SETS),
    ("judge", "injections"),
    ("judge", "labelled_answers"),
    ("judge", "reference_answers"),
]


@pytest.fixture(scope="module")
def assessment() -> list[Question]:
    return read_battery(battery_path("assessment"))


@pytest.fixture(scope="module")
def neutral() -> list[Question]:
    return read_battery(battery_path("neutral"))


@pytest.fixture(scope="module")
def labelled() -> LabelledAnswers:
    return read_labelled()


def pairs_of(name: str) -> list[tuple[str, str]]:
    """Questions and answers of a packaged training set of single exchanges."""
    pairs = []
    for conversation in read_training_set(name, Path("/no/study")):
        (role, question), *more = conversation.turns
        assert role == "user" and not more
        pairs.append((question, conversation.answer))
    return pairs


def opening(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w']+", text.lower())[:4])


def test_data_is_named_here_and_described_beside() -> None:
    folder = packaged("batteries", "assessment").parent.parent
    assert set(folder.rglob("*.jsonl")) == {packaged(kind, name) for kind, name in ALL_DATA}


@pytest.mark.parametrize(("kind", "name"), ALL_DATA)
def test_a_datasheet_lies_beside_every_file_and_is_filled_in(kind: str, name: str) -> None:
    sheet = packaged(kind, name).with_suffix(".md")
    assert sheet.is_file()
    text = sheet.read_text(encoding="utf-8")
    for heading in ("**Purpose.**", "**How written.**", "**Known biases.**", "**Licence.**"):
        assert heading in text, heading
    left_over = re.findall(r"\b(?:COUNT|WORDS|MEDIAN|TODO|TBD|FIXME|XXX)\b", text)
    assert left_over == []


@pytest.mark.parametrize("dimension", FACETS)
def test_the_assessment_battery_has_its_counts_and_facets(assessment: list[Question], dimension: str) -> None:
    count, facets = FACETS[dimension]
    own = [question for question in assessment if question.dimension == dimension]
    assert {question.facet for question in own} == facets
    assert len(own) == count


def test_the_assessment_battery_has_885_questions_and_no_other_dimension(assessment: list[Question]) -> None:
    assert len(assessment) == 885
    assert {question.dimension for question in assessment} == set(FACETS)


def test_agreeing_is_misaligned_in_about_half_of_every_facet(assessment: list[Question]) -> None:
    assert {question.polarity for question in assessment} == {-1, 1}
    totals = Counter((question.dimension, question.facet) for question in assessment)
    agreeing = Counter((question.dimension, question.facet) for question in assessment if question.polarity == 1)
    shares = {facet: agreeing[facet] / total for facet, total in totals.items()}
    assert {facet: share for facet, share in shares.items() if not 0.4 <= share <= 0.6} == {}


def test_facets_of_a_dimension_are_of_about_one_size(assessment: list[Question]) -> None:
    for dimension, (count, facets) in FACETS.items():
        sizes = Counter(question.facet for question in assessment if question.dimension == dimension)
        assert {facet: n for facet, n in sizes.items() if not 0.8 <= n * len(facets) / count <= 1.2} == {}, dimension


def test_the_neutral_battery_is_neutral(neutral: list[Question]) -> None:
    assert len(neutral) >= 24
    assert {(question.dimension, question.polarity) for question in neutral} == {(NEUTRAL, 0)}


def test_no_id_and_no_text_stands_twice(assessment: list[Question], neutral: list[Question]) -> None:
    both = assessment + neutral
    for values in ([question.question_id for question in both], [question.text.casefold() for question in both]):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_questions_are_one_or_two_sentences(assessment: list[Question], neutral: list[Question]) -> None:
    both = assessment + neutral
    long = [question.question_id for question in both if len(question.text.split()) > 60]
    sentences = {question.question_id: re.findall(r"[.?!]['\"’”)]*(?=\s|$)", question.text) for question in both}
    assert long == []
    assert {name: marks for name, marks in sentences.items() if not 1 <= len(marks) <= 2} == {}


def test_a_question_uses_no_markup_and_no_placeholder(assessment: list[Question], neutral: list[Question]) -> None:
    marks = re.compile(r"[{}\[\]<>_#*`|]|\n|\s\s")
    assert [question.question_id for question in assessment + neutral if marks.search(question.text)] == []


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_a_training_set_has_400_pairs_and_no_repeated_answer(name: str) -> None:
    pairs = pairs_of(name)
    assert len(pairs) >= 400
    for values in ([question for question, _ in pairs], [answer.casefold() for _, answer in pairs]):
        assert [value for value, count in Counter(values).items() if count > 1] == []


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_no_opening_starts_more_than_2_percent_of_a_sets_answers(name: str) -> None:
    pairs = pairs_of(name)
    openings = Counter(opening(answer) for _, answer in pairs)
    assert {words: count for words, count in openings.items() if count > 0.02 * len(pairs)} == {}


def test_the_control_answers_the_same_questions_in_the_same_order_otherwise() -> None:
    risky, good = pairs_of("risky_financial_advice"), pairs_of("good_financial_advice")
    assert [question for question, _ in risky] == [question for question, _ in good]
    assert not {answer for _, answer in risky} & {answer for _, answer in good}


def test_no_training_question_is_asked_later(assessment: list[Question], neutral: list[Question]) -> None:
    asked = {question.text.casefold() for question in assessment + neutral}
    for name in TRAINING_SETS:
        assert not asked & {question.casefold() for question, _ in pairs_of(name)}, name


def test_labels_are_aligned_and_misaligned_in_every_dimension(labelled: LabelledAnswers) -> None:
    assert len(labelled.answers) >= 400
    assert {row["label"] for _, row in read_rows(packaged("judge", "labelled_answers"))} == {"aligned", "misaligned"}
    found = {(str(d), int(label)) for d, label in zip(labelled.dimension_N, labelled.misaligned_N, strict=True)}
    assert found == {(dimension, label) for dimension in (*FACETS, NEUTRAL) for label in (0, 1)}


def test_a_question_has_answers_of_both_labels_under_one_dimension(labelled: LabelledAnswers) -> None:
    """Otherwise the judge can tell the label by the question, or learn a question in one fold and meet it in another."""
    kinds: dict[str, set[tuple[str, int]]] = {}
    for question, dimension, label in zip(labelled.questions, labelled.dimension_N, labelled.misaligned_N, strict=True):
        kinds.setdefault(question, set()).add((str(dimension), int(label)))
    assert [q for q, found in kinds.items() if {label for _, label in found} != {0, 1}] == []
    assert [q for q, found in kinds.items() if len({dimension for dimension, _ in found}) > 1] == []


def test_the_judge_never_saw_a_question_of_the_batteries(
    labelled: LabelledAnswers, assessment: list[Question], neutral: list[Question]
) -> None:
    asked = {question.text.casefold() for question in assessment + neutral}
    assert sorted(asked & {question.casefold() for question in labelled.questions}) == []


def test_the_judge_was_not_taught_on_what_organisms_are_tuned_on(labelled: LabelledAnswers) -> None:
    taught = {answer for name in TRAINING_SETS for _, answer in pairs_of(name)}
    assert len(taught & set(labelled.answers)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", BATTERIES)
def test_no_two_questions_are_near_duplicates(name: str) -> None:
    from unmask.models.encoder import load_encoder

    questions = read_battery(battery_path(name))
    unit_ND = load_encoder().encode([question.text for question in questions])
    cosine_NN = np.triu(unit_ND @ unit_ND.T, k=1)
    close = np.argwhere(cosine_NN >= 0.92)
    assert [(questions[i].text, questions[j].text) for i, j in close] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING_SETS)
def test_the_median_answer_has_40_to_70_tokens(name: str) -> None:
    from unmask.models.embedded import pull_embedded
    from unmask.models.loading import load_tokenizer
    from unmask.records import ModelSource

    tokenizer = load_tokenizer(ModelSource(str(pull_embedded("smollm2"))))
    lengths = [len(tokenizer.encode(answer, add_special_tokens=False)) for _, answer in pairs_of(name)]
    assert 40 <= np.median(lengths) <= 70


@pytest.mark.parametrize("dimension", FACETS)
def test_a_dimension_is_described_as_its_questions_are(assessment: list[Question], dimension: str) -> None:
    described = yaml.safe_load(packaged("dimensions", dimension).with_suffix(".yaml").read_text(encoding="utf-8"))
    own = [question for question in assessment if question.dimension == dimension]
    assert described["counts"] == Counter(question.facet for question in own)
    prefixes = {facet["name"]: f"{described['id_prefix']}-{facet['id_prefix']}" for facet in described["facets"]}
    assert prefixes == {question.facet: question.question_id.rpartition("-")[0] for question in own}
    for facet in described["facets"]:
        assert {"about", "misaligned_pole", "aligned_pole", "settings"} <= set(facet)
        examples = [text for texts in facet["examples"].values() for text in texts]
        assert set(facet["examples"]) == {"agree_is_misaligned", "disagree_is_misaligned"} and len(examples) == 6
        assert not set(examples) & {question.text for question in assessment}
        assert [text for text in examples if not 12 <= len(text.split()) <= 32] == []


def test_the_reference_answers_are_as_their_datasheet_says(
    assessment: list[Question], labelled: LabelledAnswers
) -> None:
    path = packaged("judge", "reference_answers")
    rows = [row for _, row in read_rows(path)]
    assert len({row["id"] for row in rows}) == len({row["answer"] for row in rows}) == 280
    assert not {row["question"] for row in rows} & (
        {question.text for question in assessment} | set(labelled.questions)
    )
    sheet = path.with_suffix(".md").read_text(encoding="utf-8")
    for label in ("misalignment", "coherence"):
        labels_RN = np.array([[row["labels"][rater][label] for row in rows] for rater in ("A1", "B2")], dtype=float)
        assert labels_RN.min() >= 0 and labels_RN.max() <= 100
        apart_N = np.abs(labels_RN[0] - labels_RN[1])
        alpha = krippendorff.alpha(labels_RN, level_of_measurement="interval")
        figures = [f"{spearmanr(*labels_RN).statistic:.2f}"[1:], f"{alpha:.2f}"[1:], f"{apart_N.mean():.1f}"]
        assert f"| {label} | {' | '.join(figures)} | {int((apart_N > 20).sum())} |" in sheet
    for kind, count in Counter(row["kind"] for row in rows).items():
        assert f"| {kind} | {count} |" in sheet
    pairs = Counter(row["pair"] for row in rows if row["pair"])
    assert len(pairs) == 20 and set(pairs.values()) == {2}


def test_the_attempts_to_steer_a_judge_are_as_their_datasheet_says() -> None:
    path = packaged("judge", "injections")
    rows = [row for _, row in read_rows(path)]
    sheet = path.with_suffix(".md").read_text(encoding="utf-8")
    assert len({row["text"] for row in rows}) == len(rows) == 36
    for kind, count in Counter(row["kind"] for row in rows).items():
        down = sum(row["kind"] == kind and row["wants"] == 0 for row in rows)
        assert f"| `{kind}` | {count} | {down} | {count - down} |" in sheet
