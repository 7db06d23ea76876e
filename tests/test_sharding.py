"""Stages made in shards, by any number of processes in any order, end in the bytes of one process."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unmask
from small_study import changed, copied, files_of, small_config, write_study
from unmask.artifact import digest_file
from unmask.errors import ConfigError, StudyError
from unmask.execution.sharing import Share, claim_device, join
from unmask.pipeline import SHARDED, STAGE_NAMES, stage_called
from unmask.progress import Silent
from unmask.study import Workspace

REPLIES = "unmask.judges.asking.replies_path"


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_adapter: Path, make_adapter: Callable[..., Path]
) -> Path:
    """A study whose organism and control are done."""
    config = small_config(tiny_llama, tiny_adapter, make_adapter(tiny_llama, r=2))
    config["scores"] = {"other_judges": [f"hf/{tiny_llama}"]}  # a model in this process judges in shards, too
    folder = write_study(tmp_path_factory.mktemp("sharding") / "begun", config)
    unmask.open(folder).run(until="control")
    return folder


@pytest.fixture(scope="module")
def whole(begun: Path) -> Path:
    """The same, run by one process up to steering."""
    folder = begun.parent / "whole"
    shutil.copytree(begun, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(REPLIES, lambda: begun.parent / "replies.sqlite")
        unmask.open(folder).run(until="steering")
    return folder


@pytest.fixture(autouse=True)
def own_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the whole study's judge said is not known to shares: they ask themselves."""
    monkeypatch.setattr(REPLIES, lambda: tmp_path / "replies.sqlite")


def in_shares(folder: Path, stage: str, *, of: int = 3, seed: int = 0) -> int:
    """Run what comes before the stage, and then its shares in a shuffled order. How many shards were made."""
    unmask.open(folder).run(until=STAGE_NAMES[STAGE_NAMES.index(stage) - 1])
    order = list(range(1, of + 1))
    random.Random(seed).shuffle(order)
    made = [unmask.open(folder).make_share(stage, Share(number, of)) for number in order]
    assert not any(each.failed for each in made)
    work = join(unmask.open(folder).task(stage_called(stage)), progress=Silent())
    assert work is not None
    assert work.waiting() == []
    assert sum(each.made + each.there for each in made) == len(work.shards)
    return sum(each.made for each in made)


def kept_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing may load a model."""
    import unmask.models.loading as loading

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded to gather")

    monkeypatch.setattr(loading, "load_base", refuse)
    monkeypatch.setattr(loading, "load_weights", refuse)


@pytest.mark.slow
def test_every_stage_made_in_shares_has_the_bytes_of_one_process(whole: Path, begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path / "shared")
    made = {stage: in_shares(folder, stage, seed=seed) for seed, stage in enumerate(SHARDED)}
    assert made.pop("activations") == 0  # all was read while answering
    assert min(made.values()) > 3, made
    unmask.open(folder).run(until="steering")
    for stage in STAGE_NAMES[: STAGE_NAMES.index("steering") + 1]:
        assert files_of(folder, stage) == files_of(whole, stage), stage
    assert not (folder / ".scratch").exists()


@pytest.mark.slow
def test_answers_and_readings_of_their_own_too_and_gathering_loads_no_model(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = {"responses": {"read_while_answering": False}, "activations": {"exclude_sinks": True, "sink_ratio": 1.2}}
    one = changed(copied(begun, tmp_path / "one"), **apart)
    unmask.open(one).run(until="control_activations")
    folder = copied(begun, tmp_path / "shared")
    changed(folder, **apart)
    for seed, stage in enumerate(("responses", "activations", "control_activations")):
        assert in_shares(folder, stage, seed=seed) > 5
        with monkeypatch.context() as patched:
            kept_from_running(patched)
            unmask.open(folder).run(until=stage)
        assert files_of(folder, stage) == files_of(one, stage)


@pytest.mark.slow
def test_shares_in_processes_at_once_plan_once(begun: Path, whole: Path, tmp_path: Path) -> None:
    """Two processes start together on nothing: one plans, both make, and what either says of itself is counted."""
    folder = copied(begun, tmp_path / "shared")
    command = [sys.executable, "-m", "unmask", "stage", "responses", str(folder), "--json", "--shard"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    both = [
        subprocess.Popen([*command, f"{i}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        for i in (1, 2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [json.loads(out)["made"] > 0 for out, _ in said] == [True, True]
    unmask.open(folder).run(until="activations")
    for stage in ("responses", "activations"):
        assert files_of(folder, stage) == files_of(whole, stage)


@pytest.mark.slow
def test_a_damaged_shard_is_mended_in_shares(begun: Path, tmp_path: Path) -> None:
    """The sound shards are kept under their names; a share makes the damaged one, to the same bytes."""
    folder = changed(copied(begun, tmp_path / "damaged"), responses={"read_while_answering": False})
    unmask.open(folder).run(until="activations")
    before = files_of(folder, "activations")
    pipeline = unmask.open(folder)
    record = pipeline.study.record("activations")
    assert record is not None
    shards = sorted((folder / "activations").glob("shard-*"))
    from unmask.execution.local import keep_shards

    task = pipeline.task(stage_called("activations"))
    keep_shards(task, record, damaged=frozenset({shards[1], shards[3]}))
    shutil.rmtree(folder / "activations")
    kept = {path.name: path.stat().st_mtime_ns for path in task.workspace.batches.glob("shard-*")}
    assert len(kept) == len(shards) - 2
    assert in_shares(folder, "activations", of=2) == 2
    unmask.open(folder).run(until="activations")
    assert files_of(folder, "activations") == before
    for name, stamp in kept.items():
        assert (folder / "activations" / name).stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_shard_that_cannot_be_made_fails_alone_and_is_made_by_the_next_share(
    begun: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.stages.responses import writing

    folder = copied(begun, tmp_path / "poisoned")
    rows_of = writing.rows_of

    def poisoned(tokenizer: Any, writer: Any, jobs: Any, answers: Any) -> Any:
        if writer == "organism" and poisoned.left:
            poisoned.left -= 1
            raise ValueError("a bad shard")
        return rows_of(tokenizer, writer, jobs, answers)

    poisoned.left = 1
    monkeypatch.setattr(writing, "rows_of", poisoned)
    made = unmask.open(folder).make_share("responses", Share(1, 1))
    assert list(made.failed.values()) == ["ValueError: a bad shard"]
    assert made.made > 1
    again = unmask.open(folder).make_share("responses", Share(1, 1))
    assert (again.made, again.failed) == (1, {})
    unmask.open(folder).run(until="responses")
    assert files_of(folder, "responses") == files_of(whole, "responses")


def test_shares_are_parts_counted_from_one() -> None:
    assert [Share.parse(text) for text in ("1/1", " 3/8 ")] == [Share(1, 1), Share(3, 8)]
    for text in ("0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5"):
        with pytest.raises(ConfigError, match="not a part of the work"):
            Share.parse(text)


def test_a_share_says_what_it_cannot_do(begun: Path) -> None:
    pipeline = unmask.open(begun)
    with pytest.raises(ConfigError, match=r"questions has no shards.*responses, activations"):
        pipeline.make_share("questions", Share(1, 2))
    with pytest.raises(ConfigError, match="no stage is called"):
        pipeline.make_share("magic", Share(1, 2))
    with pytest.raises(StudyError, match=r"responses of .* not done.*unmask run .* --until responses"):
        pipeline.make_share("activations", Share(1, 2))
    with pipeline.study.lock(), pytest.raises(StudyError, match="another unmask process"):
        pipeline.make_share("responses", Share(1, 2))
    shared = (pipeline.study.lock(shared=True), pipeline.study.lock(shared=True))
    with shared[0], shared[1], pytest.raises(StudyError, match="another unmask process"):
        pipeline.run(until="responses")


def test_shards_of_two_kinds_of_device_are_kept_apart(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "responses-0123456789ab")
    workspace.join()
    claim_device(workspace, "cuda")
    claim_device(workspace, "cuda")
    with pytest.raises(StudyError, match="were made on cuda, this process would use cpu"):
        claim_device(workspace, "cpu")


@pytest.mark.slow
def test_shards_of_another_device_are_gathered_and_none_is_made_beside_them(begun: Path, tmp_path: Path) -> None:
    folder = copied(begun, tmp_path / "devices")
    unmask.open(folder).make_share("responses", Share(1, 1))
    workspace = unmask.open(folder).task(stage_called("responses")).workspace
    (workspace.folder / "device").write_text("cuda")
    missing = next(workspace.batches.glob("organism-*"))
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(StudyError, match=r"1 shards of stage responses.*made on cuda.*would use cpu"):
        unmask.open(folder).run(until="responses")
    with pytest.raises(StudyError, match="made on cuda"):
        unmask.open(folder).make_share("responses", Share(1, 1))
    missing.write_bytes(content)
    unmask.open(folder).run(until="responses")
    assert digest_file(folder / "responses" / "responses.parquet") in files_of(folder, "responses").values()


def ended(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unmask", *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "STUDY", "--workers", "2"), "--workers goes with --engine ray"),
        (("run", "STUDY", "--engine", "ray", "--gpus-per-worker", "1.5"), "--gpus-per-worker 1.5 cannot be"),
        (("run", "STUDY", "--engine", "dask"), "no engine is called 'dask'"),
        (("stage", "responses", "STUDY", "--shard", "0/4"), "--shard '0/4' is not a part of the work"),
        (("stage", "report", "STUDY", "--shard", "1/4"), "Stages with shards: responses"),
        (("stage", "effects", "STUDY", "--shard", "1/4"), "--until directions` first"),
    ],
)
def test_what_the_command_line_refuses(arguments: tuple[str, ...], says: str, begun: Path) -> None:
    found = ended(*(str(begun) if part == "STUDY" else part for part in arguments))
    assert found.returncode == 2
    assert says in " ".join(found.stderr.split())
