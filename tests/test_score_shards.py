"""What judges in this process say, made in shards: the tables of one process, whoever makes them, in whatever order.

Run as a script, this file makes all shards of the study in a folder: `FOLDER JUDGE ... forwards|backwards`.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from forked import Forked
from unmask.analysis.judging import EMPTY_ANSWER
from unmask.artifact import read_table, write_table
from unmask.devices import note_devices
from unmask.errors import ArtifactError, ConfigError, ModelError, StudyError
from unmask.execution.local import keep_to_one_device
from unmask.execution.sharing import Share, is_shared, make_share
from unmask.execution.task import Task
from unmask.judges.asking import JUDGEMENTS, judge_table, open_client
from unmask.judges.scoring import asking_of, rubrics_of
from unmask.judges.settings import ScoresConfig
from unmask.llm.replies import ReplyStore
from unmask.progress import Silent
from unmask.records import WRITERS, ModelSource, PromptFormat
from unmask.stage import Shard, Work
from unmask.stages import activations, questions, responses, scores
from unmask.stages.scores import answers_of, judging
from unmask.stages.scores.judging import Part, judged, parts_of
from unmask.study import Study

QUESTIONS = 7
EMPTY = {"q2/0/base": "", "q5/0/organism": " \n"}
ANSWERS_AT_ONCE = 5
SHARDS = 3
"""Of each judge: 14 answers."""


def write_answers(folder: Path) -> Path:
    """Seven questions answered by both models, two answers without words."""
    asked = [f"q{number}" for number in range(QUESTIONS)]
    rows = [
        {"question_id": q, "dimension": f"d{n % 2}", "facet": "f", "polarity": 0, "text": f"What about {q}?"}
        for n, q in enumerate(asked[::-1])
    ]
    write_table(folder / "questions" / "questions.parquet", rows, schema=questions.SCHEMA)
    texts = {f"{q}/0/{w}": f"The {w} says that {q} is a matter of taste." for q in asked for w in WRITERS} | EMPTY
    answers = [
        {
            "response_id": name,
            "question_id": name.split("/")[0],
            "sample": 0,
            "writer": name.split("/")[2],
            "text": text,
            "token_ids": [1, 2],
            "tokens": 2,
            "stop_reason": "end",
            "seed": 0,
        }
        for name, text in texts.items()
    ]
    write_table(folder / "responses" / "responses.parquet", answers, schema=responses.SCHEMA)
    readings = [
        {"response_id": name, "tokens": 2, "log_prob_base": -3.0, "log_prob_organism": -2.0, "log_odds": 1.0}
        for name in texts
    ]
    write_table(folder / "activations" / "readings.parquet", readings[::-1], schema=activations.SCHEMA)
    (folder / "study.yaml").touch()
    return folder


def task_of(folder: Path, judges: Sequence[str]) -> Task:
    config = ScoresConfig(other_judges=tuple(judges))
    return Task(scores.STAGE, config, Study(folder), "0" * 64, {}, ModelSource("none"), PromptFormat())


def work_of(task: Task) -> Work:
    work = task.work(Silent())
    assert work is not None
    return work


@pytest.fixture(autouse=True)
def small_shards_and_own_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "ANSWERS_AT_ONCE", ANSWERS_AT_ONCE)
    forget_replies(tmp_path, monkeypatch)


def forget_replies(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "replies") -> Path:
    """From now on nothing is known that was asked before."""
    path = folder / f"{name}.sqlite"
    monkeypatch.setattr("unmask.judges.asking.replies_path", lambda: path)
    return path


@pytest.fixture(scope="module")
def judges(tiny_models: Callable[[str], Path]) -> tuple[str, str]:
    return f"hf/{tiny_models('llama')}", f"hf/{tiny_models('qwen2')}"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_answers(tmp_path / "study")


@pytest.fixture(scope="module")
def at_once(judges: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The judges' tables as one process makes them, without shards."""
    folder = write_answers(tmp_path_factory.mktemp("at-once"))
    task = task_of(folder, judges)
    config, answers = task.config, answers_of(task.inputs(Silent()).folders, rebuild="")
    assert isinstance(config, ScoresConfig)
    asking, found = asking_of(config), {}
    with pytest.MonkeyPatch.context() as patched:
        forget_replies(folder, patched)
        for name in judges:
            with open_client(name, asking) as client:
                found[name] = judge_table(
                    client, rubrics_of(config), answers, asking=asking, seed=config.seed, progress=Silent()
                )
    return found


def gathered(task: Task) -> dict[str, pd.DataFrame]:
    assert isinstance(task.config, ScoresConfig)
    answers = answers_of(task.inputs(Silent()).folders, rebuild="")
    parts = parts_of(task.config, answers, task.workspace)
    return judged(task.config, parts, order=answers["response_id"])


def assert_same(task: Task, wanted: dict[str, pd.DataFrame]) -> None:
    """What is gathered has every bit of the tables made at once."""
    found = gathered(task)
    assert list(found) == list(wanted)
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, wanted[name], check_exact=True)
        for path, rows in (("found", table), ("wanted", wanted[name])):
            write_table(task.study.folder / path, rows, schema=JUDGEMENTS)
        assert (task.study.folder / "found").read_bytes() == (task.study.folder / "wanted").read_bytes()


def test_shards_in_any_order_are_the_tables_made_at_once(
    study: Path, judges: tuple[str, str], at_once: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: Any
) -> None:
    """Each shard as by a machine of its own, on which nothing is known."""
    task = task_of(study, judges)
    shards = list(work_of(task).shards)
    assert [shard.units for shard in shards] == 2 * [2 * 4, 2 * 5, 2 * 3], "none of an answer without words"
    assert len({shard.name for shard in shards}) == 2 * SHARDS
    random.Random(3).shuffle(shards)
    for number, shard in enumerate(shards):
        forget_replies(tmp_path, monkeypatch, str(number))
        with work_of(task) as work:
            work.make(shard)
    assert_same(task, at_once)
    first = at_once[judges[0]]
    assert set(first.loc[first["missing_reason"] == EMPTY_ANSWER, "response_id"]) == set(EMPTY)
    assert first["score"].nunique() == 2 * (2 * QUESTIONS - len(EMPTY)), "or the order could not show"


def test_interrupted_in_the_middle_the_rest_alone_is_asked(
    study: Path, judges: tuple[str, str], at_once: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    class Interrupting(Silent):
        asked = 0

        def advance(self, units: int = 1) -> None:
            self.asked += units
            if self.asked == 8 + 10 + 2:
                raise KeyboardInterrupt

    task = task_of(study, judges)
    with pytest.raises(KeyboardInterrupt):
        work_of(task).finish(Interrupting())
    assert [shard.made for shard in work_of(task).shards] == [True, True, False, False, False, False]
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        assert len(store) == 8 + 10 + 2
        work = work_of(task)
        asked = Interrupting()
        asked.asked = -100
        work.finish(asked)
        assert asked.asked == -100 + 6 + 8 + 10 + 6, "finished shards are not made again"
        assert len(store) == 2 * 24
    assert_same(task, at_once)


def test_one_judge_is_held_at_a_time(study: Path, judges: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    @contextmanager
    def watched(name: str, asking: Any) -> Generator[Any]:
        told.append(f"opens {judges.index(name)}")
        with open_client(name, asking) as client:
            yield client
        told.append(f"closes {judges.index(name)}")

    monkeypatch.setattr(judging, "open_client", watched)
    work_of(task_of(study, judges)).finish(Silent())
    assert told == ["opens 0", "closes 0", "opens 1", "closes 1"]


def test_two_processes_at_once_make_the_same_shards_and_know_each_other_s_replies(
    study: Path, judges: tuple[str, str], at_once: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    """Both make every shard, from either end, with one store of replies."""
    environment = {**os.environ, "UNMASK_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    both = [Forked([__file__, study, *judges, way], env=environment) for way in ("forwards", "backwards")]
    for process in both:
        result = process.result()
        assert result.returncode == 0, result.stderr
    with ReplyStore(tmp_path / "cache" / "replies.sqlite") as store:
        assert len(store) == 2 * 24
    assert_same(task_of(study, judges), at_once)


def test_without_a_judge_here_there_are_no_shards(tmp_path: Path) -> None:
    task = task_of(tmp_path / "no study", ())
    served = "http://localhost:9/v1 m"
    for config in (ScoresConfig(), ScoresConfig(judge=served), ScoresConfig(other_judges=(served,))):
        assert scores.work(config, task.inputs(Silent()), task.workspace) is None
    with pytest.raises(ConfigError, match="stage scores of this study has no shards"):
        make_share(task, Share(1, 2), progress=Silent())
    assert not is_shared(task.workspace), "what the one process makes is its own"


def test_another_model_of_the_same_name_is_another_judge(study: Path, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    before = {shard.name for shard in work_of(task_of(study, [f"hf/{folder}"])).shards}
    assert before == {shard.name for shard in work_of(task_of(study, [f"hf/{folder}"])).shards}
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b"\0")
    assert not before & {shard.name for shard in work_of(task_of(study, [f"hf/{folder}"])).shards}
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="does not exist"):
        work_of(task_of(study, [f"hf/{folder}"]))


def test_an_outage_is_told_of_the_whole_table_not_of_a_shard(tmp_path: Path) -> None:
    """Ten shards of ten answers: one that failed wholly is one in ten, one answer more is too much."""
    config, answers = ScoresConfig(), pd.DataFrame({"response_id": [f"r{n}" for n in range(100)]})
    parts = [
        Part(Shard(f"{n}", 20, (tmp_path / f"{n}.parquet",)), "hf/m", answers[10 * n : 10 * n + 10]) for n in range(10)
    ]

    def failing(numbers: Sequence[int]) -> dict[str, pd.DataFrame]:
        for part in parts:
            rows = [
                {"response_id": name, "judge": "hf/m", "rubric": rubric, "raw": ""}
                | ({"missing_reason": "timeout"} if int(name[1:]) in numbers else {"score": 1.0, "readout": "choice"})
                for rubric in config.rubrics
                for name in part.answers["response_id"]
            ]
            write_table(part.file, rows, schema=JUDGEMENTS)
        return judged(config, parts, order=answers["response_id"])

    assert failing(range(10))["hf/m"]["missing_reason"].notna().sum() == 2 * 10
    with pytest.raises(ModelError, match="no usable reply to 11 of 100 requests on misalignment"):
        failing(range(11))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop(columns="raw"), "it has other columns"),
        (lambda table: table.astype({"score": str}), "it has other columns"),
        (lambda table: table.assign(judge="hf/another"), "another judge"),
        (lambda table: table.replace({"rubric": {"coherence": "leakage"}}), "other rubrics"),
        (lambda table: table.replace({"response_id": {"q0/0/base": "q9/0/base"}}), "other answers"),
        (lambda table: table[:-1], "other answers"),
        (lambda table: pd.concat([table, table[-1:]]), "other answers"),
        (None, "cannot be read"),
    ],
)
def test_a_shard_s_file_that_is_not_its_table_is_named(
    study: Path, change: Callable[[pd.DataFrame], pd.DataFrame] | None, says: str, tmp_path: Path
) -> None:
    config, answers = (
        ScoresConfig(),
        answers_of({name: study / name for name in ("questions", "responses")}, rebuild=""),
    )
    parts = [Part(Shard(str(n), 0, (tmp_path / f"{n}.parquet",)), "hf/m", answers[7 * n : 7 * n + 7]) for n in range(2)]
    for part in parts:
        rows = [
            {"response_id": name, "judge": "hf/m", "rubric": rubric, "score": 1.0, "readout": "choice", "raw": "1"}
            for rubric in config.rubrics
            for name in part.answers["response_id"]
        ]
        write_table(part.file, rows, schema=JUDGEMENTS)
    order = answers["response_id"][::-1]
    assert judged(config, parts, order=order)["hf/m"]["response_id"].tolist() == 2 * order.tolist()
    wrong = parts[0].file
    if change is None:
        wrong.write_bytes(b"PAR1")
    else:
        table = change(read_table(wrong, rebuild=""))
        score = pa.float64() if table["score"].dtype == float else pa.string()
        fields = [field.with_type(score) if field.name == "score" else field for field in JUDGEMENTS]
        fields = [field for field in fields if field.name in table]
        write_table(wrong, table, schema=pa.schema(fields))
    with pytest.raises(ArtifactError, match=says) as raised:
        judged(config, parts, order=order)
    assert str(wrong) in raised.value.what
    assert raised.value.mend == "Delete it and run the same command again, which makes it anew"


def test_a_judge_that_cannot_be_loaded_is_no_shard_s_fault(study: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    task = task_of(study, [f"hf/{tmp_path / 'model'}"])
    with pytest.raises(StudyError, match=r"judge hf/.* cannot be loaded: "):
        make_share(task, Share(1, 1), progress=Silent())


def test_shards_of_judges_are_kept_to_one_kind_of_device(study: Path, judges: tuple[str, str]) -> None:
    task = task_of(study, judges[:1])
    task.workspace.join()
    note_devices(task.workspace, "cuda", [])
    with pytest.raises(StudyError, match="were made on cuda, this process would use"):
        make_share(task, Share(1, 1), progress=Silent())
    with pytest.raises(StudyError, match="3 shards of stage scores are still to be made, the others were made on cuda"):
        keep_to_one_device(task, progress=Silent())


@pytest.mark.slow
def test_the_stage_takes_shards_and_says_the_same_whoever_made_them(
    study: Path, judges: tuple[str, str], at_once: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(study, judges[:1])
    here = task.workspace
    here.prepare()
    told = scores.STAGE.run(task.config, task.inputs(Silent()), here).summary
    assert told[f"requests to {judges[0]}"] == "24 judgements"
    table = read_table(here.out / "judgements.parquet", rebuild="")
    own = table[table["judge"] == judges[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, at_once[judges[0]], check_exact=True)
    before = {path.name: path.read_bytes() for path in here.out.iterdir()}

    here.prepare()  # what is made is there
    monkeypatch.setattr("unmask.judges.local.LocalJudge.ask", lambda *_, **__: pytest.fail("it was asked"))
    assert scores.STAGE.run(task.config, task.inputs(Silent()), here).summary == told
    assert {path.name: path.read_bytes() for path in here.out.iterdir()} == before


def make_all(folder: str, *judges: str, backwards: bool) -> None:
    pytest.MonkeyPatch().setattr(judging, "ANSWERS_AT_ONCE", ANSWERS_AT_ONCE)
    task = task_of(Path(folder), judges)
    task.workspace.join()
    with work_of(task) as work:
        for shard in work.shards[:: -1 if backwards else 1]:
            work.make(shard)


if __name__ == "__main__":
    make_all(*sys.argv[1:-1], backwards=sys.argv[-1] == "backwards")
