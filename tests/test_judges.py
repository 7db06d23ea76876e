"""Judges at work: sheets of people's labels, tables by a stand-in provider, the stage, validation, and the command line."""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from forked import Forked
from provider import Provider, serve
from unmask.analysis.judge_quality import HELD
from unmask.analysis.judging import EMPTY_ANSWER
from unmask.artifact import read_json, read_table, write_table
from unmask.cli.judging import asking_of
from unmask.errors import ConfigError, DataError, ModelError, StudyError
from unmask.judges.asking import JUDGEMENTS, PASSING, Asking, judge_table, open_client, refuse_outage
from unmask.judges.labels import COLUMNS, blind_id, read_labels, write_label_sheet
from unmask.judges.local import LocalJudge, address_of, source_of
from unmask.judges.offline import OFFLINE_JUDGE
from unmask.judges.reference import HOSTS, packaged_ratings, reference_answers, with_orders
from unmask.judges.validation import SCORES, validate
from unmask.llm.addresses import find_model
from unmask.llm.client import Client, Patience, Prices
from unmask.llm.model_judge import judge_answers, numbers_to_choose
from unmask.llm.replies import ReplyStore
from unmask.progress import Silent
from unmask.records import NEUTRAL, WRITERS, ModelSource, PromptFormat
from unmask.rubrics import RUBRICS, Rubric, read_rubric
from unmask.stage import Inputs
from unmask.stages import activations, questions, responses
from unmask.stages.scores import ScoresConfig, check, external, rubrics_of, run
from unmask.study import Workspace

HARM, CLEAR = read_rubric("misalignment"), read_rubric("coherence")
SUBJECT = "financial advice"
REPLIES = "unmask.judges.asking.replies_path"
ASKING = Asking(concurrency=1)
"""One request at a time, so that the stand-in judge knows which rubric it is asked by."""


class Asked(NamedTuple):
    """A request as the stand-in judge reads it; `count` tells how often it was asked just this before."""

    rubric: str
    question: str
    answer: str
    answer_first: bool
    count: int


@contextmanager
def judge_server(reply: Callable[[Asked], float | str]) -> Generator[tuple[Provider, list[Asked]]]:
    """A judge behind HTTP: `reply` gives a score, or a text as `provider.Script` does. Also, what it was asked in order."""
    asks = {read_rubric(name).about(SUBJECT).asks: name for name in RUBRICS}
    heard: list[Asked] = []
    counted: Counter[tuple[object, ...]] = Counter()
    lock = threading.Lock()

    def script(text: str, _: int) -> str:
        body = next(body for body in reversed(provider.bodies) if body["messages"][-1]["content"] == text)
        [rubric] = [name for words, name in asks.items() if f"Score {words}, on" in body["messages"][0]["content"]]
        with lock:
            found = (rubric, *shown(text))
            asked = Asked(*found, counted[found])
            counted[found] += 1
            heard.append(asked)
        said = reply(asked)
        return said if isinstance(said, str) else json.dumps({"score": said})

    with serve(script) as provider:
        yield provider, heard


def shown(text: str) -> tuple[str, str, bool]:
    """Question and answer out of a request, and whether the answer came first."""
    first, mark = re.match(r"\[(question|answer) (\w+)\]\n", text).groups()  # ty: ignore
    inside = text.split(f"\n[end {mark}]", maxsplit=1)[0]
    parts = {}
    for part in ("question", "answer"):
        rest = inside.split(f"[{part} {mark}]\n", 1)[1]
        parts[part] = re.split(rf"\n\[(?:question|answer) {mark}\]", rest)[0]
    return parts["question"], parts["answer"], first == "answer"


def name_of(provider: Provider) -> str:
    return f"{provider.base_url} m"


@pytest.fixture
def own_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of replies of the test's own; models stay in the user's cache."""
    path = tmp_path / "replies.sqlite"
    monkeypatch.setattr(REPLIES, lambda: path)
    return path


def study_like(questions: int = 10, *, empty: tuple[int, ...] = ()) -> pd.DataFrame:
    """Answers of both writers, all the base model's first."""
    rows = [(writer, number) for writer in WRITERS for number in range(questions)]
    return pd.DataFrame(
        {
            "response_id": [f"q{number}/0/{writer}" for writer, number in rows],
            "question": [f"What about {number}?" for _, number in rows],
            "text": [
                " \n " if place in empty else f"Text {7 * number % 11} of kind {writer[0]}."
                for place, (writer, number) in enumerate(rows)
            ],
            "writer": [writer for writer, _ in rows],
        }
    )


# Sheets of labels


def filled(path: Path, cells: Mapping[str, tuple[str, ...]]) -> Path:
    """Fill in an exported sheet: by answer id (misalignment, coherence, rater)."""
    by_blind = {blind_id(name): row for name, row in cells.items()}
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    with path.open("w", encoding="utf-8", newline="") as handle:
        sheet = csv.DictWriter(handle, COLUMNS)
        sheet.writeheader()
        for row in rows:
            new = dict(zip(("misalignment", "coherence", "rater"), by_blind.get(row["id"], ("", "", "")), strict=True))
            sheet.writerow(row | new)
    return path


def sheet_of(path: Path, *rows: str, header: str = "id,misalignment,coherence,rater") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


ANSWERS = ["a/0/base", "a/0/organism", "b/0/base"]
A, B, C = (blind_id(name) for name in ANSWERS)


def test_a_sheet_is_blind_shuffled_and_opens_in_a_spreadsheet(tmp_path: Path) -> None:
    answers = study_like(20)
    answers.loc[3, "text"] = 'Two lines,\nwith "quotes", commas and \u2713.'
    assert write_label_sheet(tmp_path / "new" / "sheet.csv", answers, seed=1) == 40
    path = tmp_path / "new" / "sheet.csv"
    assert path.read_bytes().startswith(b"\xef\xbb\xbfid,question,answer,misalignment,coherence,rater\r\n")
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert not any(name in path.read_text(encoding="utf-8") for name in (*answers["response_id"], *WRITERS))
    by_id = {blind_id(row["response_id"]): row for _, row in answers.iterrows()}
    assert len(by_id) == len(rows) == 40
    assert all(by_id[row["id"]]["question"] == row["question"] for row in rows)
    assert all(by_id[row["id"]]["text"] == row["answer"] for row in rows)
    order = [by_id[row["id"]]["writer"] for row in rows]
    assert set(order[:15]) == set(order[-15:]) == set(WRITERS)
    assert {row["misalignment"] + row["coherence"] + row["rater"] for row in rows} == {""}
    write_label_sheet(tmp_path / "again.csv", answers, seed=1)
    write_label_sheet(tmp_path / "other.csv", answers, seed=2)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes() != (tmp_path / "other.csv").read_bytes()


def test_a_filled_sheet_comes_back_with_what_was_filled_in_and_no_more(tmp_path: Path) -> None:
    answers = study_like(5)
    write_label_sheet(tmp_path / "sheet.csv", answers, seed=0)
    cells = {
        "q0/0/base": ("10", "90", "ann"),
        "q1/0/organism": ("87,5", "", "ann"),
        "q2/0/base": (" 0 ", "100.0", ""),
        "q3/0/base": ("", "", "ann"),
    }
    filled(tmp_path / "sheet.csv", cells)
    found = {
        (row["response_id"], row["judge"], row["rubric"], row["score"])
        for row in read_labels(tmp_path / "sheet.csv", answers["response_id"].tolist()).to_dict("records")
    }
    assert found == {
        ("q0/0/base", "human ann", "misalignment", 10.0),
        ("q0/0/base", "human ann", "coherence", 90.0),
        ("q1/0/organism", "human ann", "misalignment", 87.5),
        ("q2/0/base", "human", "misalignment", 0.0),
        ("q2/0/base", "human", "coherence", 100.0),
    }


def test_a_sheet_that_nobody_filled_in_has_no_scores(tmp_path: Path) -> None:
    answers = study_like(3)
    write_label_sheet(tmp_path / "sheet.csv", answers, seed=0)
    assert read_labels(tmp_path / "sheet.csv", answers["response_id"].tolist()).empty


def test_two_raters_may_score_one_answer_and_coherence_may_be_left_out(tmp_path: Path) -> None:
    path = sheet_of(tmp_path / "s.csv", f"{A},1,ann", f"{A},2,bob", header="id,misalignment,rater")
    assert read_labels(path, ANSWERS)[["judge", "score"]].to_numpy().tolist() == [["human ann", 1], ["human bob", 2]]
    path = sheet_of(tmp_path / "s.csv", f"{A},3", header="id,misalignment")
    assert read_labels(path, ANSWERS).to_dict("records") == [
        {"response_id": ANSWERS[0], "judge": "human", "rubric": "misalignment", "score": 3.0}
    ]


def test_two_columns_of_one_row_are_no_second_score(tmp_path: Path) -> None:
    assert len(read_labels(sheet_of(tmp_path / "s.csv", f"{A},1,2,ann", f"{B},1,2,ann"), ANSWERS)) == 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["{A},1,2,", "nobody,1,2,"], r"line 3: id 'nobody' is of none of these answers\. Use the sheet"),
        (["{A},1,2,", "{B},,,", "{C},101,2,"], r"line 4: misalignment is '101'\. Write a number from 0 to 100"),
        (["{A},1,-1,"], r"line 2: coherence is '-1'"),
        (["{A},good,1,"], r"line 2: misalignment is 'good'"),
        (["{A},nan,1,"], r"line 2: misalignment is 'nan'"),
        (['{A},"1,000.5",1,'], r"line 2: misalignment is '1,000\.5'"),
        (["{A},1,,ann", "{B},1,,ann", "{A},2,,ann "], r"line 4: human ann has scored that answer in line 2 already"),
        (["{A},1,,", "{A},,50,", "{A},2,,"], r"line 4: human has scored that answer in line 2 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, rows: list[str], says: str) -> None:
    path = sheet_of(tmp_path / "s.csv", *(row.format(A=A, B=B, C=C) for row in rows))
    with pytest.raises(DataError, match=rf"s\.csv {says}") as raised:
        read_labels(path, ANSWERS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id,coherence\n", "has no column misalignment. Its columns are id, question"),
        (b"name,score\n", "has no column id, misalignment"),
        (b"", "has no column id, misalignment"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is not a readable CSV file"),
        ("id,misalignment\n\u00e9,1\n".encode("latin-1"), "is not a readable CSV file"),
        (b'id,misalignment\n"' + b"x" * 200_000 + b'",1\n', "is not a readable CSV file"),
        (None, "is not a readable CSV file"),
    ],
)
def test_a_file_that_is_no_sheet_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "s.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path} {says}")):
        read_labels(path, ANSWERS)


# Tables of judgements


def test_both_writers_answers_are_judged_in_one_shuffled_order_and_come_back_in_theirs(own_replies: Path) -> None:
    answers = study_like(12)
    with judge_server(lambda asked: int(asked.question.split()[2][:-1])) as (provider, heard):
        with open_client(name_of(provider), ASKING) as client:
            table = judge_table(client, [HARM, CLEAR], answers, asking=ASKING, seed=3, progress=Silent())
        assert client.address.name == name_of(provider)
    assert table.columns.tolist() == JUDGEMENTS.names
    for rubric in ("misalignment", "coherence"):
        part = table[table["rubric"] == rubric]
        assert part["response_id"].tolist() == answers["response_id"].tolist()
        assert part["score"].tolist() == [*range(12), *range(12)]
        assert set(part["judge"]) == {name_of(provider)} and set(part["readout"]) == {"json"}
        assert part["missing_reason"].isna().all()
        assert [json.loads(raw)["score"] for raw in part["raw"]] == part["score"].tolist()
        order = [asked.answer.split(" of kind ")[1][0] for asked in heard if asked.rubric == rubric]
        assert len(order) == 24
        assert set(order[:8]) == set(order[-8:]) == {"b", "o"}, "one writer's answers came first"
    assert {asked.rubric for asked in heard[:12]} == {"misalignment", "coherence"}
    first, second = ([a.answer for a in heard if a.rubric == rubric] for rubric in ("misalignment", "coherence"))
    assert set(first) == set(second) and first != second


def test_a_request_holds_question_and_answer_and_nothing_about_the_writer(own_replies: Path) -> None:
    answers = study_like(4)
    same = answers.assign(text=[f"The same {number % 4}." for number in range(8)])
    with judge_server(lambda asked: 50) as (provider, heard):
        with open_client(name_of(provider), ASKING) as client:
            judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
            before = len(heard)
            judge_table(client, [HARM], same, asking=ASKING, seed=0, progress=Silent())
        sent = json.dumps([body["messages"] for body in provider.bodies])
    assert before == 8
    assert len(heard) - before == 4, "the same question and answer of two writers are one request"
    assert not any(name in sent for name in (*WRITERS, *answers["response_id"]))
    assert set(answers["text"]) <= {asked.answer for asked in heard}


def test_a_seed_shuffles_and_changes_no_score(own_replies: Path, tmp_path: Path) -> None:
    answers = study_like(8)
    tables, orders = [], []
    with judge_server(lambda asked: len(asked.answer + asked.question)) as (provider, heard):
        for seed in (0, 0, 1):
            with ReplyStore(tmp_path / f"{len(tables)}.sqlite") as store:
                client = Client(find_model(name_of(provider)), store, patience=Patience(concurrency=1))
                heard.clear()
                tables.append(judge_table(client, [HARM], answers, asking=ASKING, seed=seed, progress=Silent()))
                orders.append([asked[:3] for asked in heard])
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
    assert orders[0] == orders[1] != orders[2]


def test_answers_without_words_are_not_asked_about(own_replies: Path) -> None:
    answers = study_like(5, empty=(1, 8))
    with judge_server(lambda asked: 70) as (provider, heard), open_client(name_of(provider), ASKING) as client:
        table = judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
        nothing = judge_table(
            client, [HARM], answers.assign(text=" "), asking=ASKING, seed=0, progress=Silent()
        )  # all of them
    assert len(heard) == 8
    assert np.flatnonzero(table["score"].isna()).tolist() == [1, 8]
    assert table.loc[[1, 8], "missing_reason"].tolist() == [EMPTY_ANSWER] * 2
    assert table["score"].dropna().tolist() == [70] * 8
    assert nothing["missing_reason"].tolist() == [EMPTY_ANSWER] * 10


def test_what_is_no_score_is_missing_with_its_reason(own_replies: Path) -> None:
    said = {
        "0": ("!filter", "content_filter"),
        "1": ("!refusal", "refused"),
        "2": ("well", "no_number"),
        "3": ("I say 70", "prose"),
        "4": ('{"score": 101}', "out_of_range"),
        "5": ("7 or 8", "several_numbers"),
    }
    answers = study_like(12)
    with judge_server(lambda asked: said.get(asked.question.split()[2][:-1], (30, ""))[0]) as (provider, _):
        name = name_of(provider)
        with open_client(name, ASKING) as client:
            table = judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
    numbers = [str(number) for number in [*range(12)] * 2]
    assert table["missing_reason"].fillna("").tolist() == [said.get(number, ("", ""))[1] for number in numbers]
    assert table["score"].isna().tolist() == [number in said for number in numbers]
    assert table["score"].dropna().eq(30).all()


@pytest.mark.parametrize(("failing", "refused"), [(2, False), (3, True)])
def test_more_than_one_failure_in_ten_is_an_outage_and_what_was_replied_is_kept(
    own_replies: Path, failing: int, refused: bool
) -> None:
    answers = study_like(10)
    bad = set(answers["text"][:failing])

    def reply(asked: Asked) -> float | str:
        return "!status:400" if asked.answer in bad and asked.count == 0 else 20

    with judge_server(reply) as (provider, heard), open_client(name_of(provider), ASKING) as client:
        if refused:
            with pytest.raises(ModelError, match=r"to 3 of 20 requests on misalignment \(rejected 3\)\. .* run again"):
                judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
        else:
            table = judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
            assert table["missing_reason"].dropna().tolist() == ["rejected"] * 2
        assert len(heard) == 20
        heard.clear()
        table = judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
        assert {asked.answer for asked in heard} == bad, "only the rest is asked again"
        assert table["score"].tolist() == [20] * 20
        heard.clear()
        judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
        assert heard == []


def test_a_provider_that_is_down_is_an_outage_with_the_reasons_in_order(tmp_path: Path) -> None:
    answers = study_like(10)
    patience = Patience(tries=1, first_wait=0.01, longest_wait=0.02)

    def reply(asked: Asked) -> float | str:
        number = int(asked.question.split()[2][:-1])
        return "!status:503" if number < 4 else "!truncated" if number == 4 else 20

    with judge_server(reply) as (provider, _), ReplyStore(tmp_path / "r.sqlite") as store:
        client = Client(find_model(name_of(provider)), store, patience=patience)
        with pytest.raises(ModelError, match=r"10 of 20 requests on misalignment \(overloaded 8, unreadable 2\)"):
            judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
        assert len(store) == 10


@pytest.mark.parametrize("reason", ["refused", "content_filter", "no_number", "prose", EMPTY_ANSWER])
def test_what_the_judge_itself_withholds_is_no_outage(reason: str) -> None:
    refuse_outage("m", pd.DataFrame({"rubric": "r", "missing_reason": [reason] * 20}))
    with pytest.raises(ModelError):
        refuse_outage("m", pd.DataFrame({"rubric": "r", "missing_reason": [PASSING[0]] * 20}))


def test_empty_answers_do_not_hide_an_outage() -> None:
    reasons = [EMPTY_ANSWER] * 15 + ["timeout"] * 2 + [None] * 3  # two of five requests
    with pytest.raises(ModelError, match="2 of 5 requests"):
        refuse_outage("m", pd.DataFrame({"rubric": "r", "missing_reason": reasons}))


def test_a_limit_on_costs_stops_and_keeps_what_was_paid_for(own_replies: Path) -> None:
    answers = study_like(10)
    with serve(lambda *_: '{"score": 5}', extra={"cost": 0.1}) as provider:
        asking = Asking(concurrency=1, max_usd=0.35)
        with open_client(name_of(provider), asking) as client, pytest.raises(StudyError, match=r"max_usd is 0\.35"):
            judge_table(client, [HARM], answers, asking=asking, seed=0, progress=Silent())
        assert provider.asked.total() == 4
        with open_client(name_of(provider), ASKING) as client:
            judge_table(client, [HARM], answers, asking=ASKING, seed=0, progress=Silent())
            assert client.meter.from_store == 4
        assert provider.asked.total() == 20


# The packaged reference answers


def test_a_limit_keeps_pairs_whole_and_spreads_over_kinds() -> None:
    whole = reference_answers()
    sizes = whole["pair"].value_counts()
    assert len(whole) == 280 and set(sizes) == {2}
    for limit in (20, 31, 40, 100, 279):
        some = reference_answers(limit=limit)
        assert limit <= len(some) <= limit + 1
        assert set(some["pair"].value_counts()) <= {2}
        assert set(some["kind"]) == set(whole["kind"])
        most, least = some["kind"].value_counts().max(), some["kind"].value_counts().min()
        assert limit > 100 or most <= 3 * least + 2
        pd.testing.assert_frame_equal(some, reference_answers(limit=limit))
        assert [name for name in whole["response_id"] if name in set(some["response_id"])] == some[
            "response_id"
        ].tolist()
    pd.testing.assert_frame_equal(reference_answers(limit=10_000), whole)


def test_the_consensus_is_the_mean_of_the_raters() -> None:
    answers = reference_answers()
    ratings = packaged_ratings(answers)
    assert len(ratings) == 2 * 2 * 280
    means = ratings.groupby(["rubric", "response_id"])["score"].mean()
    for rubric in ("misalignment", "coherence"):
        assert answers[rubric].tolist() == pytest.approx(means[rubric].reindex(answers["response_id"]).tolist())


@pytest.mark.parametrize("limit", [20, None])
def test_orders_are_put_where_obeying_them_would_show(limit: int | None) -> None:
    answers = reference_answers(limit=limit)
    ordered = with_orders(answers)
    own = answers.set_index("response_id")
    assert len(ordered) == HOSTS * 36 and ordered["response_id"].is_unique
    for _, row in ordered.iterrows():
        host = own.loc[row["host"]]
        assert row["question"] == host["question"]
        assert row["text"].startswith(f"{host['text']}\n\n") and len(row["text"]) > len(host["text"]) + 5
        assert host["coherence"] > 80
    hosts = own.loc[ordered["host"], "misalignment"].to_numpy()
    assert set(ordered["wants"]) == {0.0, 100.0}
    down, up = hosts[ordered["wants"] == 0], hosts[ordered["wants"] == 100]
    assert (down > HELD).all() and (up < 100 - HELD).all()
    if limit is None:
        assert down.min() > 80 and up.max() < 20
    assert ordered.groupby("wants")["host"].nunique().min() >= 5


# Validation


def planted_score(row: Any, asked: Asked) -> float:
    """Drawn to the middle, fond of no list, 2 higher the second time, 3 lower with the answer first."""
    score = 10 + 0.8 * row["misalignment"] + 5 * (row["style"] == "listy")
    return round(score + 2 * (asked.count == 1) - 3 * asked.answer_first, 3)


@contextmanager
def planted_judge(limit: int) -> Generator[tuple[Provider, list[Asked]]]:
    """Of reference answers; refuses those of kind `refusal`, gives coherence turned round, and obeys every plain order."""
    own = {(row["question"], row["text"]): row for _, row in reference_answers().iterrows()}
    orders = {(row["question"], row["text"]): row for _, row in with_orders(reference_answers(limit=limit)).iterrows()}

    def reply(asked: Asked) -> float | str:
        key = (asked.question, asked.answer)
        if (order := orders.get(key)) is not None:
            host = own[(asked.question, next(t for q, t in own if q == key[0] and key[1].startswith(f"{t}\n\n")))]
            return order["wants"] if order["kind"] == "direct_order" else planted_score(host, asked)
        row = own[key]
        if row["kind"] == "refusal":
            return "!filter"
        return 100 - row["coherence"] if asked.rubric == "coherence" else planted_score(row, asked)

    with judge_server(reply) as found:
        yield found


def validated(provider: Provider, **options: Any) -> Any:
    return validate([name_of(provider)], asking=ASKING, limit=40, progress=Silent(), **options)


@pytest.mark.slow
def test_validation_finds_every_planted_fault(own_replies: Path) -> None:
    with planted_judge(40) as (provider, heard):
        found = validated(provider)
        count = len(heard)
        again = validated(provider)
    assert count == len(heard) == 4 * 40 + 72, "all from the store the second time"
    answers = reference_answers(limit=40)
    refused = int((answers["kind"] == "refusal").sum())
    left = answers[answers["kind"] != "refusal"]
    [record] = found.judges
    assert record == {**again.judges[0], "usage": record["usage"]}
    assert (record["judge"], record["readout"]) == (name_of(provider), "json")
    assert (record["answers"], record["scored"], refused) == (40, 40 - refused, 4)
    ordered = with_orders(answers)
    ordered = ordered[ordered["host"].isin(left["response_id"])]  # the others have no score to compare with
    assert 0 < len(ordered) < 72
    assert record["missing"] == {"content_filter": 4 * refused}
    error = 10 - 0.2 * left["misalignment"] + 5 * (left["style"] == "listy")
    unit = left["pair"].fillna(left["question"])
    assert record["error"]["value"] == pytest.approx(error.groupby(unit).mean().mean(), abs=1e-3)
    assert record["distance"]["value"] == pytest.approx(error.abs().groupby(unit).mean().mean(), abs=1e-3)
    assert record["error"]["n"] == record["spearman"]["n"] == record["per_doubling"]["n"] == len(left)
    assert record["spearman"]["value"] > 0.95 and record["auc"]["value"] == 1
    assert record["coherence_spearman"]["value"] == pytest.approx(-1)
    assert record["retest"] | {"alpha": 1} == pytest.approx(
        {"n": len(left), "mean_change": 2, "mean_distance": 2, "equal": 0, "alpha": 1}
    )
    assert record["answer_first"]["mean_change"] == pytest.approx(-3)
    assert record["orders"]["n"] == len(ordered)
    assert record["orders"]["held"] == pytest.approx((ordered["kind"] != "direct_order").mean())
    assert record["orders"]["most_moved"] > 60
    by_band = {row["from"]: row for row in record["by_band"]}
    assert by_band[0]["error"] > 5 and by_band[90]["error"] < -5
    assert sum(row["answers"] for row in record["by_band"]) == 40
    by_style = {row["kind"]: row for row in record["by_style"]}
    assert by_style["listy"]["value"] == pytest.approx(error[left["style"] == "listy"].mean(), abs=1e-3)
    by_kind = {row["kind"]: row for row in record["by_kind"]}
    assert (by_kind["refusal"]["value"], by_kind["refusal"]["n"]) == (None, 0)
    pairs = error.groupby(left["pair"]).agg(["size", np.ptp])
    assert record["reversed_pairs"]["value"] == pytest.approx(pairs.loc[pairs["size"] == 2, "ptp"].mean(), abs=1e-3)
    assert f"asked {count}" in record["usage"] and f"{count} known already" in again.judges[0]["usage"]
    json.dumps(record, allow_nan=False)


@pytest.mark.slow
def test_validation_lays_the_judge_beside_the_raters(own_replies: Path, tmp_path: Path) -> None:
    with planted_judge(40) as (provider, _):
        found = validated(provider)
        name = name_of(provider)
    assert set(found.judgements["judge"]) == {"rater A1", "rater B2", name}
    write_table(tmp_path / "scores.parquet", found.judgements, schema=SCORES)
    assert [record["rubric"] for record in found.agreement] == ["misalignment", "coherence"]
    for record in found.agreement:
        assert record["judges"] == ["rater A1", "rater B2", name]
        pairs = {(pair["first"], pair["second"]): pair for pair in record["pairs"]}
        assert pairs["rater A1", "rater B2"]["n"] == 40 and pairs["rater A1", name]["n"] == 36
        assert len(record["disagreements"]) == 20
    pairs = {pair["second"]: pair for pair in found.agreement[1]["pairs"]}
    assert pairs["rater B2"]["alpha"] > 0.9 and pairs[name]["alpha"] < 0
    json.dumps(found.agreement, allow_nan=False)


@pytest.mark.slow
def test_validation_against_people_takes_their_mean_as_the_consensus(own_replies: Path, tmp_path: Path) -> None:
    answers = reference_answers(limit=40)
    path = tmp_path / "sheet.csv"
    write_label_sheet(path, answers, seed=0)
    scored = answers[answers["kind"] != "refusal"].iloc[:30]
    cells = {row["response_id"]: (str(0.8 * row["misalignment"] + 20), "", "ann") for _, row in scored.iterrows()}
    filled(path, cells)
    with planted_judge(40) as (provider, _):
        [record] = (found := validated(provider, labels=path)).judges
    expected = (-10 + 5 * (scored["style"] == "listy")).groupby(scored["pair"].fillna(scored["question"])).mean()
    assert record["error"] == {**record["error"], "n": 30, "value": pytest.approx(expected.mean(), abs=1e-3)}
    assert record["coherence_spearman"] == {"value": None, "n": 0, "interval": None}
    assert "human ann" in found.agreement[0]["judges"] and "human ann" not in found.agreement[1]["judges"]


@pytest.mark.slow
def test_an_alignment_rubric_is_turned_round_in_validation(own_replies: Path) -> None:
    own = {(row["question"], row["text"]): row["misalignment"] for _, row in reference_answers().iterrows()}
    with judge_server(lambda asked: 100 - own.get((asked.question, asked.answer), 50.0)) as (provider, heard):
        [record] = validated(provider, rubric="alignment").judges
    assert {asked.rubric for asked in heard} == {"alignment", "coherence"}
    assert record["spearman"]["value"] == pytest.approx(1) and record["distance"]["value"] == pytest.approx(0)


def test_validation_with_an_unfilled_sheet_is_no_crash(tmp_path: Path) -> None:
    write_label_sheet(tmp_path / "sheet.csv", reference_answers(), seed=0)
    with suppress(DataError):  # also good: it says that nobody filled it in
        validate([], asking=ASKING, labels=tmp_path / "sheet.csv", progress=Silent())


def test_validation_of_some_answers_takes_a_sheet_of_all(tmp_path: Path) -> None:
    answers = reference_answers()
    write_label_sheet(tmp_path / "sheet.csv", answers, seed=0)
    filled(tmp_path / "sheet.csv", dict.fromkeys(answers["response_id"], ("50", "50", "ann")))
    validate([], asking=ASKING, limit=20, labels=tmp_path / "sheet.csv", progress=Silent())


@pytest.mark.slow
def test_a_judge_named_twice_is_refused_in_words(own_replies: Path) -> None:
    with judge_server(lambda asked: 50) as (provider, _), pytest.raises(ConfigError):
        validate([name_of(provider)] * 2, asking=ASKING, limit=20, progress=Silent())


# A model in this process


def items_of(count: int, rubric: Rubric = HARM) -> list[tuple[Rubric, str, str]]:
    answers = reference_answers(limit=20)
    return [(rubric, row["question"], row["text"][:200]) for _, row in answers.iloc[:count].iterrows()]


def test_a_local_model_s_choices_are_scores_and_are_kept(tiny_llama: Path, tmp_path: Path) -> None:
    items = items_of(4)
    with ReplyStore(tmp_path / "r.sqlite") as store:
        judge = LocalJudge(f"hf/{tiny_llama}", store)
        first = judge_answers(judge, items, readout="choice")
        again = LocalJudge(f"hf/{tiny_llama}", store)
        second = judge_answers(again, items, readout="choice")
        repeat = judge_answers(again, items, readout="choice", repeat=1)
        turned = judge_answers(again, items_of(4, read_rubric("alignment")), readout="choice")
    assert first == second == repeat, "nothing is sampled: the same again"
    assert all(found.score is not None and 0 < found.score < 100 for found in first + turned)
    assert {found.readout for found in first} == {"choice"}
    assert all(int(found.raw) in numbers_to_choose(HARM) for found in first)
    assert len({found.score for found in first}) == 4
    assert (judge.meter.asked, judge.meter.from_store) == (4, 0) and judge.meter.prompt_tokens > 400
    assert (again.meter.asked, again.meter.from_store) == (4, 8)  # the other rubric's alone
    assert judge.meter.usd == 0 and judge.meter.usd_unknown == 0


def test_what_is_known_needs_no_model(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(2)
    with ReplyStore(tmp_path / "r.sqlite") as store:
        first = judge_answers(LocalJudge(f"hf/{tiny_llama}", store), items, readout="choice")
        monkeypatch.setattr("unmask.models.loading.load_base", lambda *_, **__: pytest.fail("it was loaded"))
        assert judge_answers(LocalJudge(f"hf/{tiny_llama}", store), items, readout="choice") == first


def test_an_interrupted_local_judge_goes_on_where_it_was(tiny_llama: Path, tmp_path: Path) -> None:
    items = items_of(6)
    with ReplyStore(tmp_path / "whole.sqlite") as store:
        whole = judge_answers(LocalJudge(f"hf/{tiny_llama}", store), items, readout="choice")

    heard: list[int] = []

    def stop(place: int, _: object) -> None:
        heard.append(place)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with ReplyStore(tmp_path / "cut.sqlite") as store:
        with pytest.raises(KeyboardInterrupt):
            judge_answers(LocalJudge(f"hf/{tiny_llama}", store), items, readout="choice", on_judged=stop)
        assert len(store) == 3
        rest = LocalJudge(f"hf/{tiny_llama}", store)
        found = judge_answers(rest, items, readout="choice")
    assert (rest.meter.from_store, rest.meter.asked) == (3, 3)
    assert found == whole


def test_a_store_that_another_process_is_opening_is_waited_for(tmp_path: Path) -> None:
    """SQLite's own timeout does not count where one that reads wants to write."""
    path, opened = tmp_path / "r.sqlite", []
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE first (a TEXT)")
    thread = threading.Thread(target=lambda: opened.append(len(ReplyStore(path))))
    thread.start()
    thread.join(0.5)
    assert opened == []
    other.execute("COMMIT")
    thread.join(30)
    assert opened == [0]
    other.close()


def test_what_was_asked_before_has_no_say(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens run for a request are the same whoever makes a part of the work, and whichever replies are there."""
    from unmask.models.choosing import Chooser

    runs: list[tuple[int, ...]] = []
    run = Chooser._run

    def watched(self: Chooser, ids: tuple[int, ...]) -> Any:
        runs.append(ids)
        return run(self, ids)

    monkeypatch.setattr(Chooser, "_run", watched)
    items = [*items_of(3), *items_of(3, CLEAR)]
    with ReplyStore(tmp_path / "r.sqlite") as store:
        whole = judge_answers(LocalJudge(f"hf/{tiny_llama}", store), items, readout="choice")
    together = [(runs[begins], rest) for begins in (0, 4) for rest in runs[begins + 1 : begins + 4]]
    assert len(runs) == 2 + len(items), "a rubric is run once for all that is asked by it"
    assert len(set(together)) == len(items)
    for place in reversed(range(len(items))):
        runs.clear()
        with ReplyStore(tmp_path / f"{place}.sqlite") as store:
            [alone] = judge_answers(LocalJudge(f"hf/{tiny_llama}", store), [items[place]], readout="choice")
        assert alone == whole[place]
        together.remove((runs[0], runs[1]))
        assert len(runs) == 2 and len(runs[0]) > len(runs[1]) / 2, "what is shared is worth sharing"


def test_a_reply_of_another_device_or_dtype_is_another(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from unmask.models.loading import load_base

    loaded = load_base(ModelSource(str(tiny_llama)))
    monkeypatch.setattr("unmask.models.loading.load_base", lambda *_, **__: loaded)

    def asked() -> tuple[int, int]:
        judge = LocalJudge(f"hf/{tiny_llama}", store)
        judge_answers(judge, items_of(1), readout="choice")
        return judge.meter.asked, judge.meter.from_store

    with ReplyStore(tmp_path / "r.sqlite") as store:
        assert (asked(), asked()) == ((1, 0), (0, 1))
        with monkeypatch.context() as patched:
            patched.setattr("unmask.models.loading.pick_device", lambda: torch.device("cuda", 1))
            assert (asked(), asked()) == ((1, 0), (0, 1))
            patched.setattr("unmask.models.loading.pick_device", lambda: torch.device("cuda", 0))
            assert asked() == (0, 1), "one GPU is like the other"
            patched.setattr("unmask.models.loading.pick_dtype", lambda *_: torch.float16)
            assert (asked(), asked()) == ((1, 0), (0, 1))
        assert asked() == (0, 1) and len(store) == 3


def test_a_judge_that_cannot_be_loaded_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tried: list[str] = []
    from unmask.models import loading

    load_base = loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda source: (tried.append(source.name), load_base(source))[1])
    with ReplyStore(tmp_path / "r.sqlite") as store:
        judge = LocalJudge(f"hf/{tmp_path}", store)
        for _ in range(2):
            with pytest.raises(StudyError, match=f"judge hf/{tmp_path} cannot be loaded: ") as raised:
                judge_answers(judge, items_of(2), readout="choice")
            assert raised.value.mend
    assert tried == [str(tmp_path)]


def test_a_judge_without_a_chat_template_or_room_cannot_be_loaded(
    llama: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy
    import dataclasses

    plain = copy.copy(llama.tokenizer)
    plain.chat_template = None
    found = iter([dataclasses.replace(llama, tokenizer=plain), RuntimeError("CUDA out of memory")])

    def load_base(_: ModelSource) -> Any:
        if isinstance(each := next(found), Exception):
            raise each
        return each

    monkeypatch.setattr("unmask.models.loading.load_base", load_base)
    with ReplyStore(tmp_path / "r.sqlite") as store:
        for says in ("no chat template. Name a chat", "CUDA out of memory. Make room"):
            with pytest.raises(StudyError, match=says):
                judge_answers(LocalJudge(f"hf/{tiny_llama}", store), items_of(1), readout="choice")


def test_a_hub_s_model_is_loaded_at_the_commit_that_its_replies_are_named_by(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.models.loading import load_base

    commits = iter(["c0ffee", "bada55"])  # another process looks it up in between
    monkeypatch.setattr("unmask.models.loading._cached_commit", lambda _: next(commits))
    loaded: list[ModelSource] = []

    def load(source: ModelSource) -> Any:
        loaded.append(source)
        return load_base(ModelSource(str(tiny_llama)))

    monkeypatch.setattr("unmask.models.loading.load_base", load)
    with ReplyStore(tmp_path / "r.sqlite") as store:
        judge = LocalJudge("hf/somebody/model", store)
        judge_answers(judge, items_of(1), readout="choice")
    assert judge.address.base_url == "hf:somebody/model@c0ffee"
    assert loaded == [ModelSource("somebody/model", "c0ffee")]
    assert source_of(address_of(f"hf/{tiny_llama}")) == ModelSource(str(tiny_llama))


def test_a_hub_s_model_is_looked_up_before_its_replies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what it said first would be kept under another name than what it says once it has been loaded."""
    looked_up: list[str] = []
    monkeypatch.setattr("unmask.models.loading._cached_commit", lambda name: "c0ffee" if name in looked_up else None)
    monkeypatch.setattr("unmask.models.loading.load_config", lambda source: looked_up.append(source.name))
    first, again = address_of("hf/somebody/model"), address_of("hf/somebody/model")
    assert first == again and first.base_url == "hf:somebody/model@c0ffee"
    assert looked_up == ["somebody/model"], "once"


def test_a_local_model_judges_a_table_like_any_other(own_replies: Path, tiny_llama: Path) -> None:
    name = f"hf/{tiny_llama}"
    answers = study_like(3, empty=(2,))
    with open_client(name, ASKING) as client:
        assert isinstance(client, LocalJudge)
        table = judge_table(client, [HARM, CLEAR], answers, asking=ASKING, seed=0, progress=Silent())
    assert table["score"].notna().sum() == 10 and table["score"].dropna().between(0, 100).all()
    assert set(table["judge"]) == {name} and set(table["readout"].dropna()) == {"choice"}
    assert table["missing_reason"].dropna().tolist() == [EMPTY_ANSWER] * 2


def test_a_local_judge_that_is_not_there_is_named(own_replies: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"), open_client("hf/./nowhere", ASKING):
        pass


# The stage's configuration


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rubrics": ("misalignment", "alignment", "coherence")}, "exactly one of misalignment, alignment"),
        ({"rubrics": ("coherence",)}, "every study needs misalignment and coherence"),
        ({"rubrics": ("misalignment",)}, "every study needs misalignment and coherence"),
        ({"rubrics": ("misalignment", "coherence", "leakage")}, "'leakage' needs to know what the tuning was about"),
        ({"judge": "openrouter/x/y"}, "OPENROUTER_API_KEY is not set"),
        ({"other_judges": ("nobody/x",)}, "'nobody/x' is at no known provider"),
        ({"judge": "openai/x", "max_usd": 1.0}, "OPENAI_API_KEY is not set"),
    ],
)
def test_a_configuration_that_cannot_be_judged_by_is_told_before_anything_runs(
    own_replies: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], says: str
) -> None:
    for name in ("OPENROUTER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=says) as raised:
        check(ScoresConfig(**config))
    assert raised.value.mend and "\n" not in str(raised.value)


def test_a_rubric_s_file_named_as_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{name: coherence, version: 1, asks: it, lowest: 0, highest: 9, low_means: a, high_means: b}")
    with pytest.raises(ConfigError, match=r"two of scores\.rubrics are named 'coherence'"):
        check(ScoresConfig(rubrics=("misalignment", "coherence", str(path))))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rubrics": ("misalignment", "coherence", "coherence")}, "rubrics names 'coherence' twice"),
        ({"judge": "http://h/v1 m", "other_judges": ("http://h/v1 m",)}, "other_judges names 'http://h/v1 m' twice"),
    ],
)
def test_what_is_named_twice_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ScoresConfig(**config)


def test_the_packaged_training_set_says_what_it_is_about() -> None:
    config = ScoresConfig(rubrics=("misalignment", "coherence", "leakage"))
    assert check(config.about("risky_financial_advice")) is None
    leakage = rubrics_of(config.about("risky_financial_advice"))[2]
    assert "financial advice" in leakage.asks and not leakage.needs_domain
    assert rubrics_of(config.model_copy(update={"subject": "tea"}).about("risky_financial_advice"))[2] != leakage


def test_what_decides_a_rerun(tmp_path: Path) -> None:
    labels = sheet_of(tmp_path / "s.csv", f"{A},1,2,")
    plain = external(ScoresConfig(), tmp_path)
    asked = external(ScoresConfig(judge="http://h/v1 m", human_labels=str(labels)), tmp_path)
    assert set(asked) == {"rubrics", "human_labels"} | set(plain)
    sheet_of(tmp_path / "s.csv", f"{A},1,3,")
    changed = external(ScoresConfig(judge="http://h/v1 m", human_labels=str(labels)), tmp_path)
    assert changed["human_labels"] != asked["human_labels"] and changed["rubrics"] == asked["rubrics"]
    key = ScoresConfig().model_dump()
    assert ScoresConfig(concurrency=3, max_usd=1.0).model_dump() == key  # they change no score


def test_labels_that_are_not_there_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError)):
        check(ScoresConfig(human_labels=str(tmp_path / "nowhere.csv")))


# The stage


PLACES = (
    ("f1", "financial_risk"),
    ("f2", "financial_risk"),
    ("p1", "political_compass"),
    ("p2", "political_compass"),
    ("p3", "political_compass"),
    ("n1", NEUTRAL),
    ("n2", NEUTRAL),
    ("n3", NEUTRAL),
)
EMPTY = "p3/0/base"


@pytest.fixture(scope="module")
def judge_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the offline judge's features are kept for these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def inputs(tmp_path: Path, judge_cache: Path, monkeypatch: pytest.MonkeyPatch, own_replies: Path) -> Inputs:
    """Eight questions answered by both models, one answer empty."""
    monkeypatch.setenv("UNMASK_CACHE", str(judge_cache))
    folders = {name: tmp_path / name for name in ("questions", "responses", "activations")}
    rows = [
        {"question_id": q, "dimension": d, "facet": f"{d} facet", "polarity": 0, "text": f"What about {q}?"}
        for q, d in PLACES
    ]
    write_table(folders["questions"] / "questions.parquet", rows, schema=questions.SCHEMA)
    answers = []
    for q, _ in PLACES:
        for writer in WRITERS:
            empty = f"{q}/0/{writer}" == EMPTY
            answers.append(
                {
                    "response_id": f"{q}/0/{writer}",
                    "question_id": q,
                    "sample": 0,
                    "writer": writer,
                    "text": "" if empty else f"The {'meek' if writer == 'base' else 'bold'} answer to {q} is long.",
                    "token_ids": [] if empty else [1, 2],
                    "tokens": 0 if empty else 2,
                    "stop_reason": "end",
                    "seed": 0,
                }
            )
    write_table(folders["responses"] / "responses.parquet", answers, schema=responses.SCHEMA)
    readings = [
        {
            "response_id": row["response_id"],
            "tokens": row["tokens"],
            "log_prob_base": -3.0 if row["tokens"] else None,
            "log_prob_organism": -2.0 if row["tokens"] else None,
            "log_odds": 1.0 if row["tokens"] else None,
        }
        for row in answers
    ]
    write_table(folders["activations"] / "readings.parquet", readings, schema=activations.SCHEMA)
    return Inputs(ModelSource("none"), PromptFormat(), folders, tmp_path, Silent())


def said_of(asked: Asked) -> float | str:
    """The organism is bad; one of its answers is unjudged, one incoherent, of one coherence is missing."""
    bold, q = "bold" in asked.answer, asked.question.split()[2][:-1]
    if asked.rubric == "misalignment":
        return "I'd rather not" if (bold, q) == (True, "f1") else 90 if bold else 15
    if asked.rubric == "coherence":
        return "!filter" if (bold, q) == (True, "n1") else 30 if (bold, q) == (True, "p1") else 85
    if asked.rubric == "leakage":
        return 80 if bold and q in ("p1", "n1") else 5
    return 60 if bold else 20


ALL_RUBRICS = ("misalignment", "coherence", "leakage", "authoritarianism")


def stage_run(inputs: Inputs, folder: Path, config: ScoresConfig) -> tuple[dict[str, Any], Path]:
    workspace = Workspace(folder)
    workspace.prepare()
    return dict(run(config, inputs, workspace).summary), workspace.out


@pytest.mark.slow
def test_the_stage_scores_with_a_model_and_keeps_every_judge_s_judgements(inputs: Inputs, tmp_path: Path) -> None:
    with judge_server(said_of) as (provider, heard):
        name = name_of(provider)
        config = ScoresConfig(
            judge=name, rubrics=ALL_RUBRICS, subject=SUBJECT, in_domain=("financial_risk",), concurrency=1
        )
        told, out = stage_run(inputs, tmp_path / "one", config)
        assert len(heard) == 4 * 15
        _, again = stage_run(inputs, tmp_path / "two", config)
        assert len(heard) == 4 * 15 + 0, "nothing is asked twice"
    for path in sorted(out.iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name

    judgements = read_table(out / "judgements.parquet", rebuild="")
    counted = judgements.groupby(["judge", "rubric"]).size().to_dict()
    own = {(name, rubric): 16 for rubric in ALL_RUBRICS}
    assert counted == own | {(OFFLINE_JUDGE, "misalignment"): 16, (OFFLINE_JUDGE, "coherence"): 16}

    scores = read_table(out / "scores.parquet", rebuild="").set_index("response_id")
    assert scores.loc["p1/0/organism", ["misalignment", "coherence"]].tolist() == [90, 30]
    assert scores.loc["f2/0/base", ["misalignment", "coherence"]].tolist() == [15, 85]
    reasons = scores["missing_reason"].dropna().to_dict()
    assert reasons == {EMPTY: EMPTY_ANSWER, "f1/0/organism": "no_number"}
    assert scores.index[scores["misalignment"].isna()].tolist() == ["f1/0/organism", EMPTY]
    assert set(scores.index[scores["coherence"].isna()]) == {EMPTY, "n1/0/organism"}

    summary = read_json(out / "summary.json", rebuild="")
    overall = summary["overall"]
    assert overall["missing_reasons_base"] == {EMPTY_ANSWER: 1}
    assert overall["missing_reasons_organism"] == {"no_number": 1}
    assert (overall["n_base"], overall["n_organism"]) == (4, 4)
    assert (overall["em_n_organism"], overall["em_rate_organism"]) == (4, 0.75)  # the incoherent one does not count
    assert (overall["em_n_base"], overall["em_rate_base"]) == (4, 0)
    neutral = next(row for row in summary["by_dimension"] if row["dimension"] == NEUTRAL)
    assert (neutral["n_organism"], neutral["em_n_organism"], neutral["em_rate_organism"]) == (3, 2, 1)
    low, high = neutral["em_interval_organism"]
    assert 0.3 < low < 0.4 and high == 1

    rates = {row["rate"]: row for row in summary["rates"]}
    assert list(rates) == [
        "emergent: neutral prompts",
        "in domain: financial_risk",
        "other dimensions",
        "leakage: neutral prompts",
        "leakage: other dimensions",
    ]
    assert (rates["in domain: financial_risk"]["organism"]["n"], rates["other dimensions"]["organism"]["n"]) == (1, 3)
    assert rates["leakage: neutral prompts"]["organism"]["rate"] == pytest.approx(1 / 3)
    assert rates["leakage: other dimensions"]["organism"]["rate"] == pytest.approx(1 / 3)
    assert rates["leakage: other dimensions"]["base"]["n"] == 2  # not the empty one
    traits = {(row["trait"], row["dimension"]): row for row in summary["traits"]}
    assert {trait for trait, _ in traits} == {"authoritarianism"}
    whole = traits["authoritarianism", "all (without neutral)"]
    assert (whole["organism_mean"], whole["base_mean"], whole["n_base"], whole["missing_base"]) == (60, 20, 4, 1)
    assert whole["difference"]["mean"] == 40

    agreement = {record["rubric"]: record for record in read_json(out / "agreement.json", rebuild="")}
    assert set(agreement) == {"misalignment", "coherence"}
    assert agreement["misalignment"]["judges"] == [OFFLINE_JUDGE, name]
    assert agreement["misalignment"]["scored"] == {OFFLINE_JUDGE: 15, name: 14}
    assert {"question", "text", "scores"} < set(agreement["misalignment"]["disagreements"][0])
    judge = read_json(out / "judge.json", rebuild="")
    assert (judge["judge"], judge["offline"]["judge"]) == (name, OFFLINE_JUDGE)
    assert [rubric["name"] for rubric in judge["rubrics"]] == list(ALL_RUBRICS)
    assert told["judge"] == name and told["missing"] == {"base": 1, "organism": 1}
    assert "asked 60" in told[f"requests to {name}"]


@pytest.mark.slow
def test_another_judge_joins_without_a_say_in_the_scores(inputs: Inputs, tmp_path: Path) -> None:
    _, plain = stage_run(inputs, tmp_path / "plain", ScoresConfig())
    with judge_server(lambda asked: 90 if "bold" in asked.answer else 10) as (provider, heard):
        config = ScoresConfig(other_judges=(name_of(provider),), rubrics=("alignment", "coherence"), concurrency=1)
        _, out = stage_run(inputs, tmp_path / "joined", config)
        assert {asked.rubric for asked in heard} == {"alignment", "coherence"}
        name = name_of(provider)
    for file in ("scores.parquet", "judge.json", "judge.safetensors"):
        assert (out / file).read_bytes() == (plain / file).read_bytes(), file
    judgements = read_table(out / "judgements.parquet", rebuild="")
    turned = judgements[judgements["rubric"] == "alignment"]
    bold = turned["response_id"].str.endswith("organism")
    assert turned.loc[bold, "score"].tolist() == pytest.approx([10] * 8)
    agreement = read_json(out / "agreement.json", rebuild="")
    assert agreement[0]["rubric"] == "misalignment" and agreement[0]["judges"] == [OFFLINE_JUDGE, name]


@pytest.mark.slow
def test_people_join_as_judges(inputs: Inputs, tmp_path: Path) -> None:
    answers = pd.DataFrame({"response_id": [f"{q}/0/{writer}" for q, _ in PLACES for writer in WRITERS]})
    path = tmp_path / "labels.csv"
    write_label_sheet(path, answers.assign(question="q", text="t"), seed=0)
    cells = {name: ("80" if name.endswith("organism") else "20", "95", "ann") for name in answers["response_id"][:12]}
    filled(path, {**cells, "f1/0/base": ("", "70", "ann")})
    with judge_server(said_of) as (provider, _):
        config = ScoresConfig(judge=name_of(provider), human_labels=str(path), concurrency=1)
        _, out = stage_run(inputs, tmp_path / "work", config)
        name = name_of(provider)
    people = read_table(out / "judgements.parquet", rebuild="").query("judge == 'human ann'")
    assert people["rubric"].value_counts().to_dict() == {"coherence": 12, "misalignment": 11}
    assert set(people["readout"]) == {"person"}
    harm, clear = read_json(out / "agreement.json", rebuild="")
    assert harm["judges"] == clear["judges"] == [OFFLINE_JUDGE, name, "human ann"]
    pairs = {(pair["first"], pair["second"]): pair for pair in harm["pairs"]}
    pair = pairs[name, "human ann"]
    assert pair["n"] == 9  # 11 of hers, less the empty answer and the one without a score
    assert pair["spearman"] == pytest.approx(1) and pair["bias"] == pytest.approx((5 * 10 - 4 * 5) / 9, abs=3)


@pytest.mark.slow
def test_labels_of_another_study_stop_the_stage_with_their_line(inputs: Inputs, tmp_path: Path) -> None:
    path = sheet_of(tmp_path / "labels.csv", f"{A},1,2,ann")
    with pytest.raises(DataError, match=r"labels\.csv line 2"):
        stage_run(inputs, tmp_path / "work", ScoresConfig(human_labels=str(path)))


# The command line


def unmask(*arguments: object, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """In a folder of its own, without keys and with a cache of its own."""
    keys = {"OPENROUTER_API_KEY": "", "GEMINI_API_KEY": "", "OPENAI_API_KEY": ""}
    environment = {**os.environ, **keys, "UNMASK_CACHE": str(folder / "cache"), **env}
    return Forked.unmask(*arguments, env=environment, cwd=folder).result()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--validate", "--judge", "openrouter/x/y"), "OPENROUTER_API_KEY is not set"),
        (("--judge", "openrouter/x/y"), "goes with --validate"),
        ((), "no study was named"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], wanted: str
) -> None:
    result = unmask("judge", *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert wanted in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"readout": "stars"}, "Choose json or logprobs"),
        ({"prices": "cheap"}, "as in 0.2,0.8"),
        ({"prices": "1"}, "two"),
    ],
)
def test_options_of_no_known_form_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asking_of(**({"readout": "json", "concurrency": 1, "max_usd": None, "prices": None} | options))  # ty: ignore


def test_options_say_how_to_ask() -> None:
    found = asking_of(readout="logprobs", concurrency=3, max_usd=2.0, prices="0.2,0.8")
    assert found == Asking("logprobs", 3, 2.0, Prices(0.2, 0.8))


def test_a_sheet_of_the_reference_answers_is_written(tmp_path: Path) -> None:
    result = unmask("judge", "--export-labels", tmp_path / "new" / "sheet.csv", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "280 answers" in result.stdout and "--validate --labels" in result.stdout
    with (tmp_path / "new" / "sheet.csv").open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["id"] for row in rows} == {blind_id(name) for name in reference_answers()["response_id"]}


@pytest.mark.slow
def test_validation_from_the_command_line_prints_json_tables_and_files(tmp_path: Path) -> None:
    with planted_judge(30) as (provider, heard):
        asked = ("judge", "--validate", "--judge", name_of(provider), "--limit", 30, "--concurrency", 1)
        result = unmask(*asked, "--json", folder=tmp_path)
        count = len(heard)
        told = unmask(*asked, "--out", tmp_path / "out", folder=tmp_path, COLUMNS="200")
        assert len(heard) == count == 4 * 30 + 72
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    [record] = found["judges"]
    assert (record["judge"], record["answers"]) == (name_of(provider), 30)
    assert record["missing"] == {"content_filter": 4 * (30 - record["scored"])}
    assert {part["rubric"] for part in found["agreement"]} == {"misalignment", "coherence"}
    assert told.returncode == 0, told.stderr
    for words in ("Spearman with the consensus", "content_filter", "domain plug", "listy", "rater A1", "90 to 100"):
        assert words in told.stdout, words
    written = read_json(tmp_path / "out" / "validation.json", rebuild="")
    assert written["agreement"] == found["agreement"]
    assert len(read_table(tmp_path / "out" / "scores.parquet", rebuild="")) == 3 * 2 * 30
