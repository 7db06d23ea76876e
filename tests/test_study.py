"""The study directory: sealed by one rename, adopted after a kill, and every damaged or foreign file named."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.artifact import listing, read_json, write_json, write_text
from unmask.errors import ArtifactError, StudyError
from unmask.execution.local import run_stage
from unmask.execution.task import Task
from unmask.progress import Silent
from unmask.records import ModelSource, PromptFormat
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import FORMAT, StageRecord, Study, Workspace, adopt, commit, stage_key

KEY = "0123456789abcdef"
FILES = {"table.parquet": "rows", "deep/er/notes.txt": "text", "adapter/manifest.json": "{}"}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", config_text="# mine\n")


def workspace_of(study: Study, *, key: str = KEY) -> Workspace:
    return Workspace(study.scratch / f"scores-{key[:12]}")


def fill(study: Study, files: dict[str, str], *, key: str = KEY) -> tuple[Workspace, StageRecord]:
    """A prepared workspace that holds a finished batch and `files`, and the record that would seal it."""
    workspace = workspace_of(study, key=key)
    workspace.prepare()
    write_text(workspace.batches / "batch-0", "done")
    for name, text in files.items():
        write_text(workspace.out / name, text)
    record = StageRecord(
        stage="scores",
        key=key,
        version=1,
        config={"seed": 0, "layers": [1, 2]},
        inputs={"stage:responses": "d1"},
        files=listing(workspace.out),
        summary={"mean": None},
        environment={"python": "3.11"},
        started="2031-01-01T00:00:00+00:00",
        seconds=1.5,
    )
    return workspace, record


def seal(workspace: Workspace, record: StageRecord) -> None:
    """What `commit` has done when it is killed before its rename."""
    write_json(workspace.out / "manifest.json", {name: getattr(record, name) for name in StageRecord.__slots__})


def finish(study: Study, files: dict[str, str] | None = None, *, key: str = KEY) -> StageRecord:
    workspace, record = fill(study, FILES if files is None else files, key=key)
    commit(study, workspace, record)
    return record


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_committed_stage_comes_back_and_leaves_no_scratch(study: Study) -> None:
    record = finish(study)
    assert study.record("scores") == record
    assert study.verify("scores") == record
    found = contents(study.stage_folder("scores"))
    assert found.pop("manifest.json")
    assert found == FILES
    assert not study.scratch.exists()


def test_a_commit_replaces_the_whole_stage_not_file_by_file(study: Study) -> None:
    finish(study, {"old.txt": "old", "both.txt": "old"})
    finish(study, {"both.txt": "new"}, key="f" * 16)
    assert contents(study.stage_folder("scores")).keys() == {"both.txt", "manifest.json"}
    assert study.verify("scores").key == "f" * 16


def test_another_runs_scratch_keeps_the_scratch_folder(study: Study) -> None:
    other, _ = fill(study, FILES, key="e" * 16)
    finish(study)
    assert [folder.name for folder in study.scratch.iterdir()] == [other.folder.name]


def test_the_digest_of_a_record_says_what_was_made_not_when(study: Study) -> None:
    record = finish(study)
    assert replace(record, started="2032-02-02", seconds=9.0, environment={}, key="x").digest == record.digest
    name, digest = next(iter(record.files.items()))
    assert replace(record, files={**record.files, name: digest[::-1]}).digest != record.digest
    assert replace(record, files={**record.files, "more": digest}).digest != record.digest
    renamed = {("renamed" if file == name else file): value for file, value in record.files.items()}
    assert replace(record, files=renamed).digest != record.digest


def test_a_sealed_result_that_a_kill_left_is_adopted_as_it_is(study: Study) -> None:
    finish(study, {"old.txt": "old"}, key="a" * 16)
    workspace, record = fill(study, FILES)
    seal(workspace, record)
    assert adopt(study, workspace, stage="scores", key=KEY)
    assert study.verify("scores") == record
    assert not study.scratch.exists()


def test_a_kill_between_the_two_renames_loses_nothing(study: Study) -> None:
    finish(study, {"old.txt": "old"}, key="a" * 16)
    workspace, record = fill(study, FILES)
    seal(workspace, record)
    study.stage_folder("scores").rename(workspace.folder / "replaced")
    assert study.record("scores") is None
    assert adopt(study, workspace, stage="scores", key=KEY)
    assert study.verify("scores") == record
    assert not study.scratch.exists()


def half_written(workspace: Workspace) -> None:
    write_text(workspace.out / "table.parquet", "ro")


def temporary_manifest(workspace: Workspace) -> None:
    half_written(workspace)
    (workspace.out / ".manifest.json.k1ll3d.json").write_text('{"stage": "sco')


def changed_after_the_seal(workspace: Workspace) -> None:
    (workspace.out / "table.parquet").write_text("rowz")


def lost_after_the_seal(workspace: Workspace) -> None:
    (workspace.out / "table.parquet").unlink()


def added_after_the_seal(workspace: Workspace) -> None:
    (workspace.out / "deep" / "more.txt").write_text("more")


def broken_seal(workspace: Workspace) -> None:
    (workspace.out / "manifest.json").write_text('{"stage": "sco')


def seal_of_another_version(workspace: Workspace) -> None:
    path = workspace.out / "manifest.json"
    write_json(path, {**read_json(path, rebuild=""), "colour": "blue"})


def another_key(workspace: Workspace) -> None:
    path = workspace.out / "manifest.json"
    write_json(path, {**read_json(path, rebuild=""), "key": KEY[::-1]})


@pytest.mark.parametrize("damage", [None, half_written, temporary_manifest])
def test_an_unsealed_result_is_not_adopted_and_only_its_batches_are_kept(study: Study, damage: object) -> None:
    workspace = workspace_of(study)
    workspace.prepare()
    write_text(workspace.batches / "batch-0", "done")
    (workspace.batches / ".batch-1.k1ll3d").write_text("half")
    if callable(damage):
        damage(workspace)
    assert not adopt(study, workspace, stage="scores", key=KEY)
    assert not study.stage_folder("scores").exists()
    workspace.prepare()
    assert contents(workspace.folder) == {"batches/batch-0": "done"}
    assert workspace.out.is_dir()


@pytest.mark.parametrize(
    "damage",
    [
        changed_after_the_seal,
        lost_after_the_seal,
        added_after_the_seal,
        broken_seal,
        seal_of_another_version,
        another_key,
    ],
)
def test_a_sealed_result_that_does_not_match_its_seal_is_made_again(study: Study, damage: object) -> None:
    assert callable(damage)
    before = finish(study, {"old.txt": "old"}, key="a" * 16)
    workspace, record = fill(study, FILES)
    seal(workspace, record)
    damage(workspace)
    assert not adopt(study, workspace, stage="scores", key=KEY)
    assert study.verify("scores") == before
    assert finish(study) == study.verify("scores")


def test_a_workspace_that_was_never_begun_has_nothing_to_adopt(study: Study) -> None:
    assert not adopt(study, workspace_of(study), stage="scores", key=KEY)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_is_named_with_the_command_that_rebuilds_its_stage(study: Study, name: str, damage: str) -> None:
    finish(study)
    path = study.stage_folder("scores") / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(ArtifactError) as caught:
        study.verify("scores")
    assert f"{path} {'is missing' if damage == 'missing' else 'does not match its checksum'}" in str(caught.value)
    assert f"`unmask run {study.folder} --force scores`" in str(caught.value)


@pytest.mark.parametrize("name", ["extra.txt", "deep/extra.txt", "deep/manifest.json"])
def test_a_foreign_file_is_named(study: Study, name: str) -> None:
    finish(study)
    foreign = study.stage_folder("scores") / name
    write_text(foreign, "not ours")
    with pytest.raises(ArtifactError) as caught:
        study.verify("scores")
    assert f"{foreign} is foreign" in str(caught.value)
    assert f"`unmask run {study.folder} --force scores`" in str(caught.value)


def test_what_a_file_browser_leaves_is_no_damage(study: Study) -> None:
    record = finish(study)
    for name in (".DS_Store", "deep/.DS_Store", ".ipynb_checkpoints/table.csv"):
        write_text(study.stage_folder("scores") / name, "")
    assert study.verify("scores") == record


def test_a_stage_that_never_ran_has_no_record_and_cannot_be_verified(study: Study) -> None:
    assert study.record("scores") is None
    with pytest.raises(ArtifactError) as caught:
        study.verify("scores")
    assert f"stage 'scores' of {study.folder} has not been run" in str(caught.value)
    assert f"`unmask run {study.folder}`" in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"stage": "sco', "[1, 2]", '{"stage": "scores"}', '{"colour": "blue"}'])
def test_a_broken_manifest_is_named_with_the_command_that_rebuilds(study: Study, text: str) -> None:
    finish(study)
    manifest = study.stage_folder("scores") / "manifest.json"
    manifest.write_text(text)
    for reading in (study.record, study.verify):
        with pytest.raises(ArtifactError) as caught:
            reading("scores")
        assert str(manifest) in str(caught.value)
        assert f"`unmask run {study.folder} --force scores`" in str(caught.value)


def test_create_then_open(tmp_path: Path) -> None:
    made = Study.create(tmp_path / "a" / "b", config_text="base: é\n")
    assert Study.open(str(made.folder)) == made
    assert made.config_path.read_text(encoding="utf-8") == "base: é\n"


def test_create_never_overwrites(study: Study) -> None:
    with pytest.raises(StudyError) as caught:
        Study.create(study.folder, config_text="other")
    assert f"{study.config_path} exists already" in str(caught.value)
    assert f"`unmask run {study.folder}`" in str(caught.value)
    assert study.config_path.read_text() == "# mine\n"


def test_create_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StudyError, match=r"file is a file\. Name a new or empty folder"):
        Study.create(tmp_path / "file", config_text="")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_a_study_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        Study.open(tmp_path / "nowhere")
    assert f"no study at {tmp_path / 'nowhere'}" in str(caught.value)
    assert f"`unmask init {tmp_path / 'nowhere'}`" in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_study_written_by_hand_needs_no_marker(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("base: {}\n")
    assert Study.open(tmp_path).config_path.is_file()


def test_a_study_of_a_newer_version_is_refused(study: Study) -> None:
    write_json(study.folder / ".unmask.json", {"format": FORMAT + 1})
    with pytest.raises(StudyError) as caught:
        Study.open(study.folder)
    assert f"format {FORMAT + 1}, this one reads up to {FORMAT}" in str(caught.value)
    assert "pip install --upgrade unmask" in str(caught.value)


@pytest.mark.parametrize("content", [{"format": None}, {"format": "2"}, {}, [1]])
def test_a_marker_without_a_format_is_named(study: Study, content: object) -> None:
    write_json(study.folder / ".unmask.json", content)
    with pytest.raises(ArtifactError) as caught:
        Study.open(study.folder)
    assert f"rm {study.folder / '.unmask.json'}" in str(caught.value)


def test_one_process_holds_a_study_and_the_lock_goes_with_it(study: Study) -> None:
    code = "import sys; from unmask.study import Study\nwith Study.open(sys.argv[1]).lock(): print('held')"

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(study.folder)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ},
        )

    with study.lock():
        refused = other()
        with pytest.raises(StudyError), study.lock():
            pass
    assert refused.returncode != 0
    assert f"another unmask process is working on {study.folder}" in refused.stderr
    assert other().stdout == "held\n"


def test_an_error_inside_the_lock_frees_it(study: Study) -> None:
    with pytest.raises(ValueError, match="bug"), study.lock():
        raise ValueError("bug")
    with study.lock():
        assert (study.folder / ".lock").is_file()


values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
settings_of = st.dictionaries(st.text(max_size=5), values, max_size=4)
inputs_of = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4)
keys_of = st.tuples(st.sampled_from(["scores", "report"]), st.integers(1, 3), settings_of, inputs_of)


def key_of(parts: tuple[str, int, dict[str, object], dict[str, str]], *, backwards: bool = False) -> str:
    stage, version, config, inputs = parts
    if backwards:
        config, inputs = dict(reversed(config.items())), dict(reversed(inputs.items()))
    return stage_key(stage=stage, version=version, config=config, inputs=inputs)


@settings(deadline=None)
@given(keys_of)
def test_a_key_does_not_know_the_order_in_which_settings_were_written(parts: tuple) -> None:
    assert key_of(parts) == key_of(parts, backwards=True)


@settings(deadline=None)
@given(keys_of, st.integers(0, 3), st.text(min_size=6, max_size=8))
def test_a_key_changes_with_every_part_of_it(parts: tuple, place: int, new: str) -> None:
    stage, version, config, inputs = parts
    changed = [
        ("steering", version, config, inputs),
        (stage, version + 1, config, inputs),
        (stage, version, {**config, new: 1}, inputs),
        (stage, version, config, {**inputs, new: "digest"}),
    ][place]
    assert key_of(changed) != key_of(parts)


class OutOfMemoryError(RuntimeError):
    """Called as torch's."""


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
)
def test_memory_that_runs_out_is_one_sentence_and_what_is_finished_stays(study: Study, error: Exception) -> None:
    def run(config: StageConfig, inputs: Inputs, workspace: Workspace) -> Result:
        write_text(workspace.batches / "batch-0", "done")
        raise error

    with pytest.raises(StudyError, match=r"ran out of memory in stage scores.*keeps what is finished"):
        run_stage(
            Task(
                stage=Stage("scores", "score", 1, StageConfig, (), False, run),
                config=StageConfig(),
                study=study,
                key=KEY,
                input_digests={},
                base=ModelSource("tiny"),
                prompt_format=PromptFormat(),
            ),
            progress=Silent(),
        )
    assert (workspace_of(study).batches / "batch-0").is_file()
