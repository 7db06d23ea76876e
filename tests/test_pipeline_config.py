"""The study file: every mistake is one sentence with its mend; and what makes a stage run again, and nothing else does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import unmask
from unmask.artifact import listing, write_json, write_text
from unmask.errors import ConfigError, StudyError
from unmask.pipeline import (
    STAGE_NAMES,
    STAGES,
    StudyPipeline,
    init_study,
    open_study,
    status_rows,
    why_stale,
)
from unmask.study import StageRecord, Study, Workspace, commit
from unmask.study_file import PRESETS, StudyConfig, preset_text, read_config

SMALL: dict[str, Any] = {
    "base": {"model": "./model"},
    "questions": {"battery": "b.jsonl"},
    "organism": {"training_set": "t.jsonl"},
    "activations": {"layers": [1, 2]},
}


def with_changes(**sections: dict[Any, Any]) -> dict[str, Any]:
    """SMALL with fields of sections set, or taken away where the value is `...`."""
    config = copy.deepcopy(SMALL)
    for section, fields in sections.items():
        config.setdefault(section, {}).update(fields)
        config[section] = {name: value for name, value in config[section].items() if value is not ...}
    return config


def write_config(folder: Path, config: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config), encoding="utf-8")
    return path


def message_of(folder: Path, config: object) -> str:
    path = write_config(folder, config)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}"), message
    assert "\n" not in message
    return message


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_parses_and_is_commented(name: str, tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, preset_text(name)))
    assert preset_text(name).startswith("# ")
    assert init_study(tmp_path / "study", preset=name).config == config
    assert (tmp_path / "study" / "study.yaml").read_text(encoding="utf-8") == preset_text(name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_asks_for_what_can_be_done(name: str, tmp_path: Path) -> None:
    from unmask.models.collecting import readout_of
    from unmask.stages import decomposition, questions

    config = read_config(write_config(tmp_path, preset_text(name)))
    asked = questions.select(config.questions, tmp_path)
    topical = [question for question in asked if question.dimension != "neutral"]
    sites = readout_of(config.activations, num_layers=36).sites
    assert config.decomposition.primary_k in decomposition.choose_k(config.decomposition, len(topical))
    assert decomposition.primary_site(config.decomposition, list(sites)).layer == 20
    assert config.steering.questions <= len(asked) - len(topical)


@pytest.mark.parametrize("name", PRESETS)
def test_a_setting_commented_out_in_a_preset_is_one_that_exists(name: str, tmp_path: Path) -> None:
    """Taking the `#` away must not be an error: `existing` goes in the place of `training_set`."""
    lines = preset_text(name).splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("  # "):
            continue
        opened = [*lines[:number], line.replace("# ", "", 1), *lines[number + 1 :]]
        field = line.removeprefix("  # ").split(":")[0]
        if field == "existing":  # in the place of the training set that stands before it
            opened.pop(max(place for place in range(number) if lines[place].startswith("  training_set:")))
        config = read_config(write_config(tmp_path, "\n".join(opened)))
        assert any(field in getattr(config, section).model_fields_set for section in StudyConfig.model_fields), field


def test_an_unknown_preset_is_named_beside_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        init_study(tmp_path / "study", preset="big")
    assert str(caught.value) == "no preset is called 'big'. Choose from: demo, laptop, paper."
    assert not (tmp_path / "study").exists()


# Mistakes


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for section, field in model.model_fields.items():
        assert isinstance(field.annotation, type)
        for name in field.annotation.model_fields:
            yield section, name


@pytest.mark.parametrize(("section", "field"), list(fields_of(StudyConfig)))
def test_a_misspelt_field_is_named_with_the_one_that_was_meant(tmp_path: Path, section: str, field: str) -> None:
    allowed = [name for owner, name in fields_of(StudyConfig) if owner == section]
    typo = field + "s" if field + "s" not in allowed else field + "z"
    config = with_changes(**{section: {field: ..., typo: 1}})
    if section == "activations" and field == "layers":
        config["activations"]["layers"] = [1]
    if section == "base" and field == "model":
        config["base"]["model"] = "m"
    if field in ("existing", "training_set"):
        config["organism"]["training_set"] = "t.jsonl"
    message = message_of(tmp_path, config)
    assert f"unknown field {section}.{typo}" in message
    assert "Did you mean '" in message
    assert f"Allowed there: {', '.join(allowed)}" in message


def test_a_typo_is_answered_with_the_closest_field(tmp_path: Path) -> None:
    message = message_of(tmp_path, with_changes(responses={"temprature": 0.7}))
    assert "unknown field responses.temprature. Did you mean 'temperature'? Allowed there: samples, " in message


def test_a_field_like_no_other_gets_the_list_and_no_guess(tmp_path: Path) -> None:
    message = message_of(tmp_path, with_changes(scores={"qqqq": 1}))
    assert "unknown field scores.qqqq. Allowed there: judge, other_judges, rubrics" in message
    assert "Did you mean" not in message


def test_a_misspelt_section_is_answered_with_the_sections(tmp_path: Path) -> None:
    message = message_of(tmp_path, {**SMALL, "decompostion": {}})
    assert "unknown field decompostion. Did you mean 'decomposition'?" in message
    assert f"Allowed there: {', '.join(StudyConfig.model_fields)}" in message


@pytest.mark.parametrize(
    ("section", "field", "value", "wanted"),
    [
        ("responses", "samples", "many", "responses.samples is 'many'"),
        ("responses", "samples", 0, "responses.samples is 0: Input should be greater than or equal to 1"),
        ("responses", "samples", 1.5, "responses.samples is 1.5"),
        ("responses", "top_p", 0, "responses.top_p is 0: Input should be greater than 0"),
        ("responses", "top_p", 1.1, "responses.top_p is 1.1: Input should be less than or equal to 1"),
        ("responses", "temperature", -0.1, "responses.temperature is -0.1"),
        ("activations", "layers", [], "activations.layers is []"),
        ("activations", "layers", [1, "x"], "activations.layers.1 is 'x'"),
        ("activations", "layers", 1.5, "activations.layers.0 is 1.5"),
        ("activations", "point", "resid_in", "'resid_pre', 'resid_mid'"),
        ("organism", "method", "qlora", "organism.method is 'qlora': Input should be 'lora' or 'full'"),
        ("organism", "learning_rate", 0, "organism.learning_rate is 0"),
        ("decomposition", "primary_k", 1, "decomposition.primary_k is 1"),
        ("scores", "misaligned_above", 101, "scores.misaligned_above is 101"),
        (
            "steering",
            "kinds",
            ["cluster", "mood"],
            "steering.kinds.1 is 'mood': Input should be 'shared', 'dimension', 'facet', 'cluster'",
        ),
        ("base", "dtype", "float8", "base.dtype is 'float8'"),
        ("base", "model", 7, "base.model is 7"),
        ("questions", "per_dimension", 0, "questions.per_dimension is 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    tmp_path: Path, section: str, field: str, value: object, wanted: str
) -> None:
    message = message_of(tmp_path, with_changes(**{section: {field: value}}))
    assert wanted in message
    assert "Input should be" in message or "Tuple should" in message
    assert "Correct it in the study file" in message


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"base": {"model": "m"}}, "organism"),
        ({name: part for name, part in SMALL.items() if name != "base"}, "base"),
        ({name: part for name, part in SMALL.items() if name != "activations"}, "activations"),
        (with_changes(base={"model": ...}), "base.model"),
        (with_changes(activations={"layers": ...}), "activations.layers"),
    ],
)
def test_a_missing_field_is_named(tmp_path: Path, config: object, field: str) -> None:
    message = message_of(tmp_path, config)
    assert f"field {field} is missing" in message
    assert "`unmask init` writes a complete example" in message


@pytest.mark.parametrize("organism", [{}, {"existing": "a", "training_set": "b"}])
def test_an_organism_has_exactly_one_source(tmp_path: Path, organism: dict[str, str]) -> None:
    message = message_of(tmp_path, {**SMALL, "organism": organism})
    assert "set exactly one of organism.existing" in message
    assert "organism.training_set" in message
    assert "Value error" not in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("base:\n  model: m\n  dtype: [auto\nquestions: {}\n", 4),
        ("base:\n\tmodel: m\n", 2),
        ("base: {model: m\nactivations: {layers: [1]}\n", 2),
        ("a: 'open\n", 2),
        ("base: *nobody\n", 1),
    ],
)
def test_text_that_is_not_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    message = message_of(tmp_path, text)
    assert f"is not YAML at line {line} (" in message
    assert "Correct that line" in message


def test_a_yaml_tag_builds_nothing(tmp_path: Path) -> None:
    assert "is not YAML at line 1" in message_of(tmp_path, "base: !!python/object/apply:os.getcwd []\n")


@pytest.mark.parametrize("content", [b"base: \xff\n", b"base: \x00\n"])
def test_bytes_that_are_no_text_are_one_sentence_too(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert f"{path} is not YAML (" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "just words", "- a\n- b\n", "7"])
def test_a_file_without_settings_is_told_so(tmp_path: Path, text: str) -> None:
    assert "holds no settings. Write a new one with `unmask init NEW_FOLDER`" in message_of(tmp_path, text)


def test_a_key_that_is_no_word_is_refused(tmp_path: Path) -> None:
    assert "scores.5" in message_of(tmp_path, with_changes(scores={5: 1}))


def test_a_config_is_frozen_and_the_same_text_is_the_same_config(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, SMALL))
    assert read_config(write_config(tmp_path, dict(reversed(SMALL.items())))) == config
    with pytest.raises(ValidationError):
        setattr(config.scores, "seed", 1)  # noqa: B010
    with pytest.raises(ValidationError):
        setattr(config, "scores", config.scores)  # noqa: B010


def test_a_small_number_may_be_written_with_an_exponent_and_no_point(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-5 as text."""
    text = yaml.safe_dump(SMALL).replace("training_set: t.jsonl", "training_set: t.jsonl\n  learning_rate: 1e-5")
    assert read_config(write_config(tmp_path, text)).organism.learning_rate == 1e-5


def test_every_stage_has_a_section_with_its_own_config() -> None:
    for stage in STAGES:
        assert StudyConfig.model_fields[stage.called].annotation is stage.config
    assert list(StudyConfig.model_fields) == ["base", *dict.fromkeys(stage.called for stage in STAGES)]
    for number, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(STAGE_NAMES[:number]), stage.name


def test_a_folder_without_a_study_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study at"):
        unmask.open(tmp_path)


@pytest.mark.parametrize("arguments", [{"until": "magic"}, {"force": ["scores", "magic"]}])
def test_an_unknown_stage_is_named_before_anything_happens(study: Path, arguments: dict[str, Any]) -> None:
    before = listing(study)
    with pytest.raises(ConfigError) as caught:
        open_study(study).run(**arguments)
    assert "no stage is called 'magic'" in str(caught.value)
    assert ", ".join(STAGE_NAMES) in str(caught.value)
    assert listing(study) == before


# What is stale, and why


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of the user's own battery, training set and model folder, in which nothing has been run."""
    folder = tmp_path / "study"
    folder.mkdir()
    question = {"id": "q", "dimension": "d", "facet": "f", "polarity": 1, "text": "Why?"}
    write_text(folder / "b.jsonl", json.dumps(question) + "\n")
    write_text(folder / "t.jsonl", json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    write_json(tmp_path / "model" / "config.json", {"num_hidden_layers": 4})
    monkeypatch.chdir(tmp_path)
    write_config(folder, SMALL)
    return folder


def finish_all(pipeline: StudyPipeline) -> None:
    """Commit every stage with outputs that are its name, under the key that a run would give it."""
    digests: dict[str, str] = {}
    for stage in STAGES:
        inputs = pipeline._inputs(stage, digests)
        workspace = Workspace(pipeline.study.scratch / stage.name)
        workspace.prepare()
        write_text(workspace.out / "made.txt", stage.name)
        record = StageRecord(
            stage=stage.name,
            key=pipeline._key(stage, inputs),
            version=stage.version,
            config=pipeline._section(stage).model_dump(mode="json"),
            inputs=inputs,
            files=listing(workspace.out),
            summary={"rows": 1},
            environment={},
            started="2031-01-01T00:00:00+00:00",
            seconds=1.0,
        )
        commit(pipeline.study, workspace, record)
        digests[stage.name] = record.digest


@pytest.fixture
def finished(study: Path) -> Path:
    finish_all(open_study(study))
    return study


def states_of(folder: Path) -> dict[str, tuple[str, str]]:
    return {status.stage: (status.state, status.reason) for status in open_study(folder).status()}


def reruns(folder: Path) -> dict[str, str]:
    """Stages that are not done for a reason of their own, and the reason."""
    states = states_of(folder)
    return {
        stage: reason for stage, (state, reason) in states.items() if state != "done" and not reason.startswith("waits")
    }


def test_nothing_was_run_yet(study: Path) -> None:
    assert states_of(study) == dict.fromkeys(STAGE_NAMES, ("missing", "not run yet"))


def test_all_is_done_and_stays_so(finished: Path) -> None:
    assert states_of(finished) == dict.fromkeys(STAGE_NAMES, ("done", ""))
    rows = status_rows(open_study(finished).status())
    assert json.loads(json.dumps(rows))[0] == {
        "stage": "questions",
        "state": "done",
        "reason": "",
        "folder": str(finished / "questions"),
        "summary": {"rows": 1},
        "seconds": 1.0,
        "started": "2031-01-01T00:00:00+00:00",
    }


CHANGES: dict[str, object] = {
    "questions.seed": 1,
    "questions.neutral_count": 3,
    "questions.dimensions": ["d"],
    "organism.rank": 8,
    "organism.learning_rate": 2e-5,
    "organism.projections": ["q_proj"],
    "responses.temperature": 0.0,
    "responses.seed": 1,
    "activations.layers": [1, 2, 3],
    "activations.point": "resid_post",
    "control.training_set": "t.jsonl",
    "scores.misaligned_above": 60,
    "verdict.gamma": 2.0,
    "cards.examples": 2,
    "decomposition.k": [2, 3],
    "decomposition.seed": 0,
    "steering.coefficients": [1.0],
    "report.title": "Mine",
}


def downstream(stage: str) -> set[str]:
    found = {stage}
    for later in STAGES:
        if found & set(later.needs):
            found.add(later.name)
    return found


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_setting_makes_its_own_stage_stale_with_both_values(finished: Path, field: str) -> None:
    value = CHANGES[field]
    section, name = field.split(".")
    before = getattr(open_study(finished).config, section).model_dump(mode="json")[name]
    write_config(finished, with_changes(**{section: {name: value}}))
    after = getattr(open_study(finished).config, section).model_dump(mode="json")[name]
    again = {other.name for other in STAGES if other.called == section}
    first = {other.name for other in STAGES if other.name in again and not again & set(other.needs)}
    found = reruns(finished)
    assert set(found) == first
    assert all(reason.startswith(f"{field} changed from {before!r} to {after!r}") for reason in found.values())
    states = states_of(finished)
    assert {name for name, (state, _) in states.items() if state == "stale"} == set.union(*map(downstream, again))
    write_config(finished, SMALL)
    assert reruns(finished) == {}


def test_a_stage_downstream_says_what_it_waits_for(finished: Path) -> None:
    write_config(finished, with_changes(scores={"seed": 1}))
    states = states_of(finished)
    assert states["decomposition"] == ("stale", "waits for scores")
    assert states["steering"] == ("stale", "waits for scores, decomposition, directions, effects")
    assert states["activations"] == ("done", "")


READ_WITH_THE_BASE = {"organism", "control", "responses", "activations", "control_activations", "effects", "steering"}


@pytest.mark.parametrize("name", ["system_prompt", "thinking", "dtype"])
def test_how_the_base_is_asked_is_an_input_of_the_stages_that_use_it(finished: Path, name: str) -> None:
    assert {stage.name for stage in STAGES if stage.needs_base} == READ_WITH_THE_BASE
    value = {"system_prompt": "Be kind.", "thinking": True, "dtype": "bfloat16"}[name]
    write_config(finished, with_changes(base={name: value}))
    assert reruns(finished) == {"organism": "base changed", "control": "base changed"}
    assert states_of(finished)["questions"] == ("done", "")


def test_the_same_model_in_another_folder_changes_nothing(finished: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "copy" / "config.json", {"num_hidden_layers": 4})
    write_config(finished, with_changes(base={"model": str(tmp_path / "copy")}))
    assert reruns(finished) == {}
    write_json(tmp_path / "other" / "config.json", {"num_hidden_layers": 5})
    write_config(finished, with_changes(base={"model": str(tmp_path / "other")}))
    assert reruns(finished) == {"organism": "base changed", "control": "base changed"}


def test_another_place_of_the_study_comments_and_defaults_spelt_out_change_nothing(
    finished: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    finished.rename(moved)
    spelt_out = with_changes(responses={"temperature": 0.7}, scores={}, activations={"point": "resid_pre"})
    text = "# a new comment\n" + yaml.safe_dump(dict(reversed(spelt_out.items())))
    write_config(moved, text.replace("0.7", "7.0e-1"))
    assert reruns(moved) == {}


def test_a_whole_number_in_the_place_of_a_float_changes_nothing(finished: Path) -> None:
    write_config(finished, with_changes(steering={"removals": [1]}, scores={"misaligned_above": 70.0}))
    assert reruns(finished) == {}


@pytest.mark.parametrize(
    ("file", "stage", "reason"),
    [("b.jsonl", "questions", "battery:0 changed"), ("t.jsonl", "organism", "training_set changed")],
)
def test_a_changed_file_makes_the_stage_stale_that_reads_it_and_touching_it_does_not(
    finished: Path, file: str, stage: str, reason: str
) -> None:
    path = finished / file
    content = path.read_bytes()
    path.write_bytes(content)
    assert reruns(finished) == {}
    path.write_bytes(content.replace(b"a", b"A", 1))
    assert reruns(finished) == {stage: reason}
    path.write_bytes(content)
    assert reruns(finished) == {}


def test_outputs_that_came_out_the_same_make_nothing_stale(finished: Path) -> None:
    """A later stage depends on what an earlier one made, not on when or how."""
    study = Study.open(finished)
    record = study.record("responses")
    assert record is not None
    workspace = Workspace(study.scratch / "responses-again")
    for text, stale in (("responses", {}), ("others", {"activations": "responses changed"})):
        workspace.prepare()
        write_text(workspace.out / "made.txt", text)
        commit(study, workspace, replace(record, files=listing(workspace.out), started="2032-01-01", seconds=99.0))
        assert reruns(finished) == stale


def record_with(**changes: Any) -> StageRecord:
    record = StageRecord(
        "scores", "k", 1, {"seed": 0, "rule": [1, 2]}, {"stage:responses": "d1", "file": "d2"}, {}, {}, {}, "", 0.0
    )
    return replace(record, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "its inputs changed"),
        ({"config": {"seed": 1, "rule": [1, 2]}}, "scores.seed changed from 1 to 0"),
        ({"config": {"rule": [1, 2]}}, "scores.seed changed from None to 0"),
        ({"inputs": {"stage:responses": "d0", "file": "d2"}}, "responses changed"),
        ({"inputs": {"stage:responses": "d1"}}, "file changed"),
        ({"version": 3}, "made by version 3 of the stage, this is 1"),
        (
            {"config": {"seed": 1, "rule": [1]}, "inputs": {}, "version": 2},
            "scores.seed changed from 1 to 0; scores.rule changed from [1] to [1, 2]; responses changed; file changed; "
            "made by version 2 of the stage, this is 1",
        ),
    ],
)
def test_why_stale_tells_every_difference(changes: dict[str, Any], reason: str) -> None:
    now = record_with()
    assert why_stale(record_with(**changes), now.config, now.inputs, 1, section="scores") == reason


def test_public_names_are_there_when_asked_for() -> None:
    for name in unmask.__all__:
        assert getattr(unmask, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'shut'"):
        unmask.shut  # noqa: B018
    assert unmask.open is open_study
