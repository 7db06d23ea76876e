"""Which devices made a stage is in its manifest, and numbers of two kinds of device never stand side by side."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import unmask
from small_study import changed, copied, files_of, small_config, write_study
from unmask.devices import device_of, devices_of
from unmask.errors import StudyError
from unmask.execution import local, sharing
from unmask.execution.local import keep_shards, keep_to_one_device
from unmask.execution.sharing import Share, claim_device, join
from unmask.execution.task import Task
from unmask.pipeline import stage_called
from unmask.progress import Silent
from unmask.study import StageRecord, Workspace

GPU = "NVIDIA A40"


@pytest.fixture(scope="module")
def read(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_adapter: Path, make_adapter: Callable[..., Path]
) -> Path:
    """A study of which all is done up to the readings, which were not taken while answering."""
    config = small_config(tiny_llama, tiny_adapter, make_adapter(tiny_llama, r=2))
    config["questions"]["per_dimension"] = 2
    folder = write_study(tmp_path_factory.mktemp("devices") / "read", config)
    unmask.open(changed(folder, responses={"read_while_answering": False})).run(until="activations")
    return folder


def computes_on(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process takes its device for that one; it computes on what it has."""
    for module in (local, sharing):
        monkeypatch.setattr(module, "device_kind", lambda: kind)
        monkeypatch.setattr(module, "device_name", lambda: name)


def of_activations(folder: Path) -> tuple[Task, StageRecord]:
    opened = unmask.open(folder)
    record = opened.study.record("activations")
    assert record is not None
    return opened.task(stage_called("activations")), record


def made_on(folder: Path) -> str | None:
    return of_activations(folder)[1].environment.get("device")


def test_devices_that_take_part_are_noted_by_name(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "responses-0123456789ab")
    workspace.join()
    assert devices_of(workspace) == []
    claim_device(workspace, "cuda")
    assert (device_of(workspace), devices_of(workspace)) == ("cuda", []), "nobody has made anything"
    for name in (GPU, "NVIDIA L40S", GPU):
        claim_device(workspace, "cuda", name=name)
    assert devices_of(workspace) == [GPU, "NVIDIA L40S"]
    with pytest.raises(StudyError, match="were made on cuda"):
        claim_device(workspace, "cpu", name="cpu")
    assert devices_of(workspace) == [GPU, "NVIDIA L40S"]


def test_batches_from_where_no_name_was_told_count_as_of_their_kind(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "responses-0123456789ab")
    workspace.join()
    (workspace.folder / "device").write_text("cuda")  # as it comes back from another machine
    assert devices_of(workspace) == ["cuda"]
    claim_device(workspace, "cuda", name=GPU)
    assert devices_of(workspace) == ["cuda", GPU]


@pytest.mark.slow
def test_the_manifest_names_who_made_the_shards_and_not_who_gathered(
    read: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made_on(read) == "cpu"
    folder, before = copied(read, tmp_path / "study"), files_of(read, "activations")
    shutil.rmtree(folder / "activations")
    for number, name in enumerate((GPU, "NVIDIA L40S"), start=1):
        with monkeypatch.context() as patched:
            computes_on("cuda", name, patched)
            unmask.open(folder).make_share("activations", Share(number, 2))
    unmask.open(folder).run(until="activations")
    _, record = of_activations(folder)
    assert record.environment["device"] == f"{GPU}, NVIDIA L40S"
    assert "threads" not in record.environment, "of the others it is not known"
    assert record.files == before, "artifacts do not depend on it"


def damaged_shard(folder: Path) -> Path:
    path = sorted((folder / "activations").glob("shard-*"))[0]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_a_shard_is_mended_on_the_kind_of_device_that_made_the_others(
    read: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(read, tmp_path / "study")
    with monkeypatch.context() as patched:
        computes_on("cuda", GPU, patched)
        unmask.open(folder).run(until="activations", force=["activations"])
    assert made_on(folder) == GPU
    before = files_of(folder, "activations")
    damaged_shard(folder)
    left = {path: path.read_bytes() for path in (folder / "activations").iterdir()}
    for _ in range(2):
        with pytest.raises(
            StudyError, match=r"1 shards of stage activations.*made on cuda.*would use cpu.*same command there"
        ):
            unmask.open(folder).run(until="activations")
        assert {path: path.read_bytes() for path in (folder / "activations").iterdir()} == left
    with monkeypatch.context() as patched:
        computes_on("cuda", "NVIDIA L40S", patched)
        unmask.open(folder).run(until="activations")
    assert files_of(folder, "activations") == before
    assert made_on(folder) == f"{GPU}, NVIDIA L40S"


@pytest.mark.slow
def test_a_mend_takes_nothing_of_a_forced_run_that_was_killed(read: Path, tmp_path: Path) -> None:
    folder = copied(read, tmp_path / "study")
    task, record = of_activations(folder)
    damaged = damaged_shard(folder)
    work = join(task, progress=Silent())  # a forced run planned anew, made some, and was killed
    assert work is not None
    others = [shard for shard in work.waiting() if shard.name != damaged.name]
    others[0].files[0].write_bytes(b"of another generation")
    keep_shards(task, record, damaged=frozenset({damaged}))
    kept = {path.name: path.read_bytes() for path in task.workspace.batches.glob("shard-*")}
    assert kept == {
        path.name: path.read_bytes() for path in (folder / "activations").glob("shard-*") if path != damaged
    }
    (task.workspace.batches / damaged.name).write_bytes(b"mended")
    keep_shards(task, record, damaged=frozenset({damaged}))  # this mend was killed, and goes on
    assert (task.workspace.batches / damaged.name).read_bytes() == b"mended"


@pytest.mark.slow
def test_a_mend_begun_there_is_not_ended_here(read: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it is tried: the sound shards of the other device stay, and none is made beside them."""
    folder = copied(read, tmp_path / "study")
    with monkeypatch.context() as patched:
        computes_on("cuda", GPU, patched)
        unmask.open(folder).run(until="activations", force=["activations"])
        damaged = damaged_shard(folder)
        task, record = of_activations(folder)
        keep_shards(task, record, damaged=frozenset({damaged}))  # and was killed
    for _ in range(2):
        with pytest.raises(StudyError, match="made on cuda"):
            unmask.open(folder).run(until="activations")
    with monkeypatch.context() as patched:
        computes_on("cuda", GPU, patched)
        unmask.open(folder).run(until="activations")
    assert files_of(folder, "activations") == record.files


@pytest.fixture(scope="module")
def answered(read: Path) -> Path:
    """The same study, where all is read while answering, on a GPU."""
    folder = copied(read, read.parent / "answered")
    for stage in ("responses", "activations"):
        shutil.rmtree(folder / stage)
    changed(folder, responses={"read_while_answering": True})
    with pytest.MonkeyPatch.context() as patched:
        computes_on("cuda", GPU, patched)
        unmask.open(folder).run(until="responses")
    return folder


@pytest.mark.slow
def test_readings_taken_while_answering_name_their_device_wherever_they_are_gathered(
    read: Path, answered: Path, tmp_path: Path
) -> None:
    folder = copied(answered, tmp_path / "study")
    unmask.open(folder).run(until="activations")
    _, record = of_activations(folder)
    assert record.environment["device"] == GPU
    assert record.summary["device"] == "cuda"
    assert record.summary["read_while_answering"] == record.summary["readings"]


@pytest.mark.slow
def test_where_one_of_them_is_lost_all_is_read_anew_on_the_device_that_reads(
    read: Path, answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(answered, tmp_path / "study")
    next((folder / ".scratch").glob("activations-recorded-*/shard-*")).unlink()
    there = copied(folder, tmp_path / "there")
    unmask.open(folder).run(until="activations")
    _, record = of_activations(folder)
    assert record.environment["device"] == "cpu"
    assert record.summary["read_while_answering"] == 0
    computes_on("cuda", "NVIDIA L40S", monkeypatch)
    unmask.open(there).run(until="activations")
    _, record = of_activations(there)
    assert set(record.environment["device"].split(", ")) == {GPU, "NVIDIA L40S"}
    assert 0 < record.summary["read_while_answering"] < record.summary["readings"]


@pytest.mark.slow
def test_answers_begun_on_another_kind_of_device_go_with_what_was_read_beside_them(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, on a CPU, on the GPU again, killed twice: each time all of it is made anew, readings too."""
    notes: list[str] = []

    class Telling(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    opened = unmask.open(copied(answered, tmp_path / "study"))
    task = opened.task(stage_called("responses"))
    shutil.rmtree(opened.study.scratch)
    task.workspace.prepare()
    found = []
    for kind, name in (("cuda", GPU), ("cpu", "cpu"), ("cuda", GPU)):
        computes_on(kind, name, monkeypatch)
        keep_to_one_device(task, progress=Telling())
        recorded = opened.study.scratch / "activations-recorded-0123456789ab"
        found.append((list(task.workspace.batches.iterdir()), recorded.is_dir()))
        (task.workspace.batches / "base-00000.parquet").write_text(kind)
        recorded.mkdir()
    assert found == [([], False)] * 3
    assert devices_of(task.workspace) == [GPU]
    assert notes == [
        "stage responses was begun on cuda, and is made anew on cpu",
        "stage responses was begun on cpu, and is made anew on cuda",
    ]


@pytest.mark.slow
def test_batches_that_are_all_there_are_gathered_on_any_device(
    read: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(read, tmp_path / "study")
    task, record = of_activations(folder)
    shutil.rmtree(folder / "activations")
    with monkeypatch.context() as patched:
        computes_on("cuda", GPU, patched)
        task.workspace.prepare()
        keep_to_one_device(task, progress=Silent())
        work = task.work(Silent())
        assert work is not None
        work.finish(Silent())  # and was killed before it gathered
    unmask.open(folder).run(until="activations")
    _, again = of_activations(folder)
    assert again.files == record.files
    assert again.environment["device"] == GPU
