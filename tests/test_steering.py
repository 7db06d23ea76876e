"""Steering on a tiny random model and a tiny adapter: what is answered, what it is judged by, and what the doses come to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from tests.provider import serve

from unmask.analysis.effects import readouts_agree
from unmask.analysis.intervals import mean_interval
from unmask.analysis.judging import LogisticFit
from unmask.artifact import digest_file, read_json, read_table, write_json, write_table, write_tensors
from unmask.errors import ConfigError, DataError
from unmask.judges.offline import write_offline_judge
from unmask.judges.settings import PricesConfig, ScoresConfig
from unmask.progress import Silent
from unmask.records import NEUTRAL, ModelSource, PromptFormat, Site
from unmask.rubrics import read_rubric
from unmask.stage import Inputs
from unmask.stages import directions, questions, responses
from unmask.stages.effects import matrices, tables
from unmask.stages.steering import STAGE, SteeringConfig, choose_questions, external, run
from unmask.stages.steering.config import ANSWERS, CONFIRMATION, DOSES, MEASURES, TRAITS
from unmask.stages.steering.confirmation import agreement_of_cells, agreement_of_doses
from unmask.stages.steering.directions import Chosen, choose_directions
from unmask.stages.steering.points import choose_confirming
from unmask.stages.steering.summary import coherent_window, dose_rows
from unmask.study import Workspace

GROUPS = ("money", "power")
SITE, WIDTH, TYPICAL = Site(2, "resid_pre"), 48, 6.0
SMALL: dict[str, Any] = {
    "coefficients": (-0.5, 1.0),
    "random_directions": 2,
    "questions": 2,
    "confirm_per_group": 2,
    "max_new_tokens": 5,
    "batch_size": 10,
}


def small(**changes: Any) -> SteeringConfig:
    return SteeringConfig(**{**SMALL, **changes})


class Words:
    """A stand-in for the sentence encoder: a random vector for every text, the same each time."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        found = np.stack([np.random.default_rng(seed).standard_normal(384) for seed in seeds])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """Eight questions of two dimensions and three neutral ones, directions in halves, effects that chose 0.5."""
    monkeypatch.setattr("unmask.models.encoder.load_encoder", Words)
    folders = {name: tmp_path / name for name in STAGE.needs}
    write_questions(folders, tiny_llama, neutral=3)
    write_json(folders["organism"] / "recipe.json", {"kind": "existing", "name": str(tiny_adapter), "revision": None})
    rng = np.random.default_rng(0)
    fit = LogisticFit(np.zeros(768), np.ones(768), 3 * rng.standard_normal(768), 0.0)
    write_offline_judge(folders["scores"], fit)
    write_directions(folders["directions"], rng=rng)
    write_effects(folders["effects"], rng=rng, chosen=0.5)
    return Inputs(ModelSource(str(tiny_llama)), PromptFormat(), folders, tmp_path, Silent())


def write_questions(folders: dict[str, Path], model: Path, *, neutral: int) -> None:
    from transformers import AutoTokenizer

    from unmask.models.prompts import render_question

    rows = [
        {"question_id": f"{group}-{n}", "dimension": group, "facet": f"{group} {n % 2}", "polarity": 1, "text": text}
        for group in GROUPS
        for n, text in enumerate(f"Is {word} {group} good?" for word in ("much", "all", "no", "their"))
    ]
    rows += [
        {"question_id": f"n{n}", "dimension": NEUTRAL, "facet": "f", "polarity": 0, "text": f"Tell {'me ' * n} more."}
        for n in range(neutral)
    ]
    write_table(folders["questions"] / "questions.parquet", rows, schema=questions.SCHEMA)
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = []
    for row in rows:
        rendered = render_question(tokenizer, row["text"], PromptFormat())
        prompts.append(
            {"question_id": row["question_id"], "text": rendered.text, "token_ids": list(rendered.token_ids)}
        )
    write_table(folders["responses"] / "prompts.parquet", prompts, schema=responses.PROMPT_SCHEMA)


def write_directions(folder: Path, *, rng: np.random.Generator, scale: float = 1.0) -> None:
    """As the stage directions does: kinds from halves of two replicates and from all, controls, and an eraser."""
    rows: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}

    def add(
        name: str, kind: str, *, grouping: str | None = None, group: str | None = None, halved: bool = True
    ) -> None:
        places = [(None, None), *((r, h) for r in (0, 1) for h in "ab")] if halved else [(None, None)]
        for replicate, half in places:
            identity = name if replicate is None else f"{name}.{replicate}{half}"
            vector_D = scale * (1 + len(rows) / 10) * rng.standard_normal(WIDTH)
            tensors[identity] = vector_D.astype(np.float32)
            norm = float(np.linalg.norm(vector_D))
            rows.append(
                {
                    **{"direction_id": identity, "kind": kind, "label": name, "grouping": grouping, "group": group},
                    **{"replicate": replicate, "half": half, "site": SITE.name, "norm": norm, "questions": 4},
                    **{"relative_norm": norm / TYPICAL, "stability": None, "form": "direction"},
                }
            )

    add("shared", "shared")
    for group in GROUPS:
        add(f"dimension-{group}", "dimension", grouping="dimension", group=group)
    add("cluster-0", "cluster", grouping="cluster", group="0")
    for number in range(4):
        for kind in ("random-isotropic", "random-span"):
            add(f"{kind}-{number}", kind, halved=False)
    add("control", "control", halved=False)
    rows.append({**rows[0], "direction_id": "leace.0a", "kind": "leace", "form": "eraser", "replicate": 0, "half": "a"})
    tensors["leace.0a.centre"] = np.zeros(WIDTH, dtype=np.float32)
    write_table(folder / "directions.parquet", rows, schema=directions.SCHEMA)
    write_tensors(folder / "directions.safetensors", tensors)
    halves = [
        {"question_id": f"{group}-{n}", "replicate": r, "half": "ab"[(n + r) % 2]}
        for r in (0, 1)
        for group in GROUPS
        for n in range(4)
    ]
    write_table(folder / "halves.parquet", halves, schema=directions.HALVES)
    write_json(folder / "summary.json", {"site": SITE.name, "typical_norm": TYPICAL})


def write_effects(folder: Path, *, rng: np.random.Generator, chosen: float | None) -> None:
    empty = dict.fromkeys(tables.DOSES.names)
    doses = [
        {
            **empty,
            "target": target,
            "kind": kind,
            "label": label,
            "operation": "add" if target == "base" else "ablate",
            "coefficient": coefficient,
            "all": float(rng.normal()),
        }
        for target, coefficient in (("base", -0.5), ("base", 1.0), ("organism", 1.0))
        for kind, label in (("shared", "shared"), *(("dimension", f"dimension-{group}") for group in GROUPS))
    ]
    write_table(folder / "doses.parquet", doses, schema=tables.DOSES)
    cells = [
        {"target": "base", "kind": kind, "coefficient": coefficient, "row": row, "column": column,
         "effect": float(rng.normal())}
        for kind in ("dimension", "specific")
        for coefficient in (0.5, 1.0)
        for row in GROUPS
        for column in GROUPS
    ]  # fmt: skip
    write_table(
        folder / "matrix.parquet",
        [{**dict.fromkeys(matrices.MATRIX.names), **c} for c in cells],
        schema=matrices.MATRIX,
    )
    write_json(folder / "summary.json", {"window": {"base": {"coefficients": [0.5, 1.0], "chosen": chosen}}})


def steer(inputs: Inputs, folder: Path, config: SteeringConfig) -> tuple[dict[str, Any], Path]:
    workspace = Workspace(folder)
    workspace.prepare()
    return dict(run(config, inputs, workspace).summary), workspace.out


def answers_of(out: Path) -> pd.DataFrame:
    return read_table(out / "answers.parquet", rebuild="")


# Config


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"coefficients": (0.0, 1.0)}, "numbers other than 0"),
        ({"coefficients": (1.0, float("inf"))}, "numbers other than 0"),
        ({"coefficients": (1.0, 1.0)}, "coefficients names 1.0 twice"),
        ({"kinds": ("shared", "shared")}, "kinds names 'shared' twice"),
        ({"removals": (1.5,)}, "less than or equal to 1"),
        ({"removals": (0.0,)}, "greater than 0"),
        ({"kinds": ("mood",)}, "Input should be 'shared'"),
        ({"scores": {}}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_done_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SteeringConfig(**fields)


def test_what_the_reference_study_did_can_be_asked_for() -> None:
    paper = SteeringConfig(kinds=("cluster",), coefficients=(0.5, 1, 2, 5), units="raw", positions="all", questions=6)
    assert paper.coefficients == (0.5, 1.0, 2.0, 5.0)


def test_who_judges_is_an_input_and_no_setting(tmp_path: Path) -> None:
    plain, judge = SteeringConfig(), "http://127.0.0.1:1/v1 m"
    model = ScoresConfig(judge=judge, other_judges=("http://127.0.0.1:1/v1 n",), human_labels="x.csv")
    known = plain.judged_by(model)
    assert known.model_dump() == plain.model_dump()
    assert plain.scores == ScoresConfig()
    assert known.scores.judge == judge
    assert (known.scores.other_judges, known.scores.human_labels) == ((), None)

    def judging(**changes: Any) -> str:
        return external(plain.judged_by(model.model_copy(update=changes)), tmp_path)["judging"]

    assert judging() != external(plain, tmp_path)["judging"]
    same = {"misaligned_above": 10.0, "concurrency": 1, "max_usd": 1.0, "in_domain": ("a",), "seed": 3}
    assert judging(**same, other_judges=(), prices=PricesConfig(prompt=1, completion=1)) == judging()
    own = tmp_path / "own.yaml"
    own.write_text("name: rude\nversion: 1\nasks: rudeness\nlowest: 0\nhighest: 9\nlow_means: a\nhigh_means: b\n")
    rubrics = ("misalignment", "coherence", str(own))
    before = judging(rubrics=rubrics)
    own.write_text(own.read_text().replace("rudeness", "how rude it is"))
    assert len({before, judging(rubrics=rubrics), judging(), judging(readout="logprobs")}) == 4
    leaking = ("misalignment", "coherence", "leakage")
    assert judging(rubrics=leaking, subject="money") != judging(rubrics=leaking, subject="power")


# Directions and questions


def test_directions_are_of_one_half_and_random_ones_of_both_kinds_in_turn(inputs: Inputs) -> None:
    found = choose_directions(small(random_directions=3), inputs)
    assert [one.direction_id for one in found.directions] == [
        *("shared.0a", "dimension-money.0a", "dimension-power.0a", "cluster-0.0a", "control"),
        *("random-isotropic-0", "random-span-0", "random-isotropic-1"),
    ]
    assert [one.group for one in found.dimensions] == list(GROUPS)
    assert found.random == found.directions[5:]
    assert found.askable == {f"{group}-{n}" for group in GROUPS for n in (1, 3)}
    assert found.notes == ()


def test_shared_and_the_control_organisms_direction_are_there_unasked(inputs: Inputs) -> None:
    found = choose_directions(small(kinds=("cluster",)), inputs)
    assert [one.kind for one in found.directions][:3] == ["cluster", "shared", "control"]
    assert [one.group for one in found.dimensions] == list(GROUPS)  # for the confirmation


def test_in_raw_units_every_direction_has_a_random_one_of_its_norm(inputs: Inputs) -> None:
    found = choose_directions(small(units="raw"), inputs)
    real = [one for one in found.directions if not one.kind.startswith("random")]
    random = [one for one in found.directions if one.kind.startswith("random")]
    assert [one.norm for one in random] == pytest.approx([one.norm for one in real])
    assert len(found.random) == 2
    fewer = choose_directions(small(), inputs)
    assert sum(one.kind.startswith("random") for one in fewer.directions) == 2


def test_a_kind_that_there_is_none_of_is_noted_and_none_at_all_refused(inputs: Inputs) -> None:
    found = choose_directions(small(kinds=("cluster", "probe")), inputs)
    assert found.notes == ("probe: the stage directions made none",)
    with pytest.raises(DataError, match="no direction of kind score, probe to steer with"):
        choose_directions(small(kinds=("score", "probe")), inputs)


def test_without_a_neutral_battery_only_what_made_no_direction_is_asked(inputs: Inputs) -> None:
    table = read_table(inputs.folders["questions"] / "questions.parquet", rebuild="")
    chosen = choose_directions(small(), inputs)
    assert choose_questions(small(), table, askable=chosen.askable) == ["n0", "n1"]
    own = table[table["dimension"] != NEUTRAL]
    assert choose_questions(small(), own, askable=chosen.askable) == ["money-1", "power-3"]
    for config, pool in ((small(questions=4), table), (small(questions=5), own)):
        with pytest.raises(ConfigError, match=rf"steering\.questions is {config.questions}"):
            choose_questions(config, pool, askable=chosen.askable)


def test_the_confirmation_asks_what_made_no_direction(inputs: Inputs) -> None:
    table = read_table(inputs.folders["questions"] / "questions.parquet", rebuild="")
    chosen = choose_directions(small(), inputs)
    assert choose_confirming(small(confirm_per_group=1), table, chosen) == ["money-1", "power-1"]
    assert set(choose_confirming(small(confirm_per_group=9), table, chosen)) == chosen.askable


# The stage


def test_the_stage_answers_every_dose_and_its_tables_are_what_a_slow_loop_gives(inputs: Inputs, tmp_path: Path) -> None:
    config = small(samples=2, removals=(0.5, 1.0), coherent_above=0)
    told, out = steer(inputs, tmp_path / "work", config)
    assert sorted(path.name for path in out.iterdir()) == [
        *("answers.parquet", "confirmation.parquet", "doses.parquet", "summary.json", "traits.parquet")
    ]
    answers, doses = answers_of(out), read_table(out / "doses.parquet", rebuild="")
    assert list(answers) == ANSWERS.names
    assert list(doses) == DOSES.names
    assert answers["answer_id"].is_unique
    dosed = answers[answers["part"] == "dose"]
    per_dose = 2 * 2  # questions, samples
    assert len(dosed) == per_dose * (2 + 7 * (2 + 2))
    assert len(answers) - len(dosed) == 4 * 2 * (1 + 2 + 2)
    assert told["steered_answers"] == len(answers)
    assert len(doses) == 2 + 7 * 4
    assert set(dosed["dimension"]) == {NEUTRAL}
    assert dosed.groupby(["question_id", "sample"])["seed"].nunique().eq(1).all()
    for _, dose in doses.iterrows():
        slow_dose(dose, dosed, config)

    summary = read_json(out / "summary.json", rebuild="")
    assert (summary["target"], summary["unsteered"]["target"]) == ("base", "base")
    assert {row["target"] for row in summary["rows"]} == {"base"}
    assert {row["target"] for row in summary["other_rows"]["organism"]} == {"organism"}
    assert len(summary["rows"]) == len(summary["other_rows"]["organism"]) == 14
    assert set(summary["unsteered_by_target"]) == {"base", "organism"}
    assert summary["window"]["organism"]["coefficients"] == [0.5, 1.0]
    assert summary["window"]["base"]["chosen"] == 1.0
    assert read_table(out / "traits.parquet", rebuild="").empty

    cells = read_table(out / "confirmation.parquet", rebuild="")
    assert list(cells) == CONFIRMATION.names
    assert list(zip(cells["row"], cells["column"], strict=True)) == [(r, c) for r in GROUPS for c in GROUPS]
    confirmed = answers[answers["part"] == "confirmation"]
    slow_cells(cells, confirmed, read_table(inputs.folders["effects"] / "matrix.parquet", rebuild=""), summary)
    assert summary["confirmation"]["coefficient"] == 0.5
    assert summary["confirmation"]["questions"] == 4
    assert summary["agreement"]["cells"] == 4
    assert summary["agreement_of_doses"]["cells"] == 3 * 3
    moved = confirmed[confirmed["kind"] != "none"]
    assert moved["added_norm"].to_numpy() == pytest.approx(0.5)


def slow_dose(dose: pd.Series, answers: pd.DataFrame, config: SteeringConfig) -> None:
    """One row of doses, from the answers."""

    def chosen(direction: str, coefficient: float) -> pd.DataFrame:
        part = answers[(answers["target"] == dose["target"]) & (answers["direction_id"] == direction)]
        return part[part["coefficient"] == coefficient]

    part, plain = chosen(dose["direction_id"], dose["coefficient"]), chosen("none", 0.0)
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for name in dict.fromkeys(part["question_id"]):
        own, before = (each[each["question_id"] == name] for each in (part, plain))
        values["misalignment"].append(own["misalignment"].mean())
        values["difference"].append(own["misalignment"].mean() - before["misalignment"].mean())
        values["coherence"].append(own["coherence"].mean())
        values["refusal_rate"].append(own["refusal"].mean())
        values["perplexity"].append(np.log(own["perplexity"]).mean())
    for name, numbers in values.items():
        found = dose[[name, f"{name}_low", f"{name}_high"]].astype(float)
        if not numbers or (name == "difference" and dose["kind"] == "none"):
            assert found.isna().all()
            continue
        if len(numbers) < 3:
            wanted = np.array([np.mean(numbers), np.nan, np.nan])
        else:
            wanted = np.array(mean_interval(np.array(numbers), rng=np.random.default_rng(config.seed)))
        if name in ("misalignment", "coherence", "refusal_rate"):
            wanted = np.clip(wanted, 0, 1 if name == "refusal_rate" else 100)
        np.testing.assert_allclose(found, np.exp(wanted) if name == "perplexity" else wanted)
    added = {"none": 0.0, "add": abs(dose["coefficient"])}.get(dose["operation"] or "none", np.nan)
    np.testing.assert_allclose(dose["added_norm"], 0.0 if dose["kind"] == "none" else added)
    assert (dose["n"], dose["missing"]) == (len(part), 0)


def slow_cells(cells: pd.DataFrame, answers: pd.DataFrame, matrix: pd.DataFrame, summary: dict[str, Any]) -> None:
    """The confirmation's cells and the agreement, from the answers."""
    mean = answers.groupby(["direction_id", "question_id"])["misalignment"].mean()
    judged, read = [], []
    for _, cell in cells.iterrows():
        names = sorted(set(answers.loc[answers["dimension"] == cell["column"], "question_id"]))
        own = [mean[f"dimension-{cell['row']}.0a", name] - mean["none", name] for name in names]
        random = [
            mean[one, name] - mean["none", name] for one in ("random-isotropic-0", "random-span-0") for name in names
        ]
        few = (np.mean(own), np.nan, np.nan)
        wanted = mean_interval(np.array(own), rng=np.random.default_rng(0)) if len(own) > 2 else few
        np.testing.assert_allclose(cell[["effect", "low", "high"]].astype(float), wanted)
        assert cell["random_mean"] == pytest.approx(np.mean(random))
        at = matrix[(matrix["kind"] == "dimension") & (matrix["coefficient"] == 0.5)].set_index(["row", "column"])
        assert cell["effect_log_prob"] == at.loc[(cell["row"], cell["column"]), "effect"]
        judged.append(np.mean(own) - np.mean(random))
        read.append(cell["effect_log_prob"])
    wanted = readouts_agree(np.array(judged), np.array(read), cells["row"].to_numpy(), rng=np.random.default_rng(0))
    assert summary["agreement"]["spearman"] == pytest.approx(wanted.spearman)


def test_directions_of_length_zero_change_nothing(inputs: Inputs, tmp_path: Path) -> None:
    write_directions(inputs.folders["directions"], rng=np.random.default_rng(0), scale=0.0)
    for units in ("residual_norm", "raw"):
        config = small(units=units, kinds=("shared", "dimension"))
        _, out = steer(inputs, tmp_path / units, config)
        answers = answers_of(out)
        for part in ("dose", "confirmation"):
            for target in ("base", "organism"):
                own = answers[(answers["part"] == part) & (answers["target"] == target)]
                assert own.groupby("question_id")["text"].nunique().eq(1).all()
        doses = read_table(out / "doses.parquet", rebuild="")
        assert doses["difference"].dropna().abs().max() < 1e-3  # perplexities are of batches, texts are the same


def test_what_is_added_and_taken_out_is_the_direction_and_the_base_reads_both(
    inputs: Inputs, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path
) -> None:
    """Four answers again, each alone."""
    from unmask.models.generation import generate
    from unmask.models.interventions import Ablate, Add
    from unmask.models.loading import load_base
    from unmask.models.organisms import load_organism
    from unmask.models.passes import Readout, Text
    from unmask.models.prompts import prompt_ids_by_question
    from unmask.models.reading import read_texts

    config = small(units="raw", positions="response", coefficients=(-0.5, 2.0), removals=(0.7,))
    _, out = steer(inputs, tmp_path / "work", config)
    source = ModelSource(str(tiny_llama))
    base, organism = load_base(source), load_organism(source, ModelSource(str(tiny_adapter)))
    ids_of = prompt_ids_by_question(read_table(inputs.folders["responses"] / "prompts.parquet", rebuild=""))
    shared_D = choose_directions(config, inputs).directions[0].vector_D
    unit_D = (shared_D / np.linalg.norm(shared_D)).astype(np.float32)
    answers = answers_of(out)
    answers = answers[(answers["part"] == "dose") & (answers["question_id"] == "n1")]
    assert answers[answers["kind"].isin(("none", "shared"))]["text"].nunique() > 2
    for _, answer in answers[answers["kind"].isin(("none", "shared"))].iterrows():
        what = []
        if answer["operation"] == "add":
            what = [Add(SITE, (answer["coefficient"] * shared_D)[None].astype(np.float32), positions="response")]
            assert answer["added_norm"] == pytest.approx(
                abs(answer["coefficient"]) * np.linalg.norm(shared_D) / TYPICAL
            )
        if answer["operation"] == "ablate":
            what = [Ablate(SITE, unit_D[None, None], np.array([0.7], dtype=np.float32), positions="response")]
            assert np.isnan(answer["added_norm"])
        loaded = base if answer["target"] == "base" else organism
        prompt = ids_of["n1"]
        [alone] = generate(loaded, [prompt], sampling=config.sampling, seeds=[answer["seed"]], steering=what)
        assert list(alone.token_ids) == list(answer["token_ids"]), answer["answer_id"]
        log_prob = read_texts(base, [Text(prompt, alone.token_ids)], Readout(())).log_prob_N[0]
        assert answer["perplexity"] == pytest.approx(np.exp(-log_prob), rel=1e-3)


class Killed(BaseException):
    pass


class Dying(Silent):
    """Kills the process after so many answers."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, step: int = 1) -> None:
        self.left -= step
        if self.left < 0:
            raise Killed


def test_killed_between_batches_it_goes_on_to_the_same_bytes(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import unmask.models.generation as generation

    config = small(kinds=("dimension",))
    _, whole = steer(inputs, tmp_path / "whole", config)
    calls: list[int] = []
    generate: Callable[..., Any] = generation.generate

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        return generate(*arguments, **options)

    monkeypatch.setattr(generation, "generate", counted)
    for after in (15, 25):
        dying = Inputs(inputs.base, inputs.prompt_format, inputs.folders, tmp_path, Dying(after))
        with pytest.raises(Killed):
            steer(dying, tmp_path / "killed", config)
    _, again = steer(inputs, tmp_path / "killed", config)
    assert sum(calls) == len(answers_of(whole))  # none was made twice
    for path in sorted(whole.iterdir()):
        assert digest_file(path) == digest_file(again / path.name), path.name


@pytest.mark.parametrize(
    ("changes", "chosen", "says"),
    [
        ({}, None, "no coefficient at which answers stay coherent"),
        ({}, 0.0, "no coefficient at which answers stay coherent"),
        ({"confirm_per_group": 0}, 0.5, "switched off"),
    ],
)
def test_where_nothing_can_be_confirmed_the_reason_is_told(
    inputs: Inputs, tmp_path: Path, changes: dict[str, Any], chosen: float | None, says: str
) -> None:
    write_effects(inputs.folders["effects"], rng=np.random.default_rng(0), chosen=chosen)
    config = small(kinds=("shared",), targets=("organism",), **changes)
    told, out = steer(inputs, tmp_path / "work", config)
    assert set(answers_of(out)["part"]) == {"dose"}
    summary = read_json(out / "summary.json", rebuild="")
    assert says in summary["confirmation"]["reason"]
    assert says in told["not confirmed by judged answers"]
    assert summary["agreement"] == {"spearman": None, "low": None, "high": None, "cells": 0}
    assert read_table(out / "confirmation.parquet", rebuild="").empty
    assert (summary["target"], summary["targets"], summary["other_rows"]) == ("organism", ["organism"], {})


def test_the_studys_judge_scores_what_steered_models_say(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.judges.asking.replies_path", lambda: tmp_path / "replies.sqlite")
    rubrics = ("misalignment", "coherence", "leakage", "recklessness")
    scores = {"misalignment": 77, "coherence": 66, "leakage": 55, "recklessness": 44}
    asks = {read_rubric(name).about("money").asks: name for name in rubrics}

    def script(_: str, __: int) -> str:
        system = provider.bodies[-1]["messages"][0]["content"]  # one request at a time
        [rubric] = [name for words, name in asks.items() if f"Score {words}, on" in system]
        return json.dumps({"score": scores[rubric]})

    with serve(script) as provider:
        judge = f"{provider.base_url} m"
        judged_by = ScoresConfig(judge=judge, rubrics=rubrics, subject="money", concurrency=1)
        config = small(kinds=("shared",), targets=("base",), coefficients=(1.0,), confirm_per_group=0)
        config = config.judged_by(judged_by)
        told, out = steer(inputs, tmp_path / "work", config)
    answers = answers_of(out)
    worded = answers["text"].str.split().str.len() > 0
    assert worded.sum() >= 6
    for name in ("misalignment", "coherence", "leakage"):
        assert set(answers.loc[worded, name]) == {scores[name]}
        assert answers.loc[~worded, name].isna().all()
    assert set(answers.loc[~worded, "missing_reason"]) <= {"empty answer"}
    traits = read_table(out / "traits.parquet", rebuild="")
    assert list(traits) == TRAITS.names
    assert traits.groupby("rubric").size().to_dict() == dict.fromkeys(("leakage", "recklessness"), len(answers))
    assert set(traits["answer_id"]) == set(answers["answer_id"])
    assert set(traits.loc[traits["rubric"] == "recklessness", "score"].dropna()) == {44}
    assert told["judge"] == judge
    doses = read_table(out / "doses.parquet", rebuild="")
    assert doses["leakage"].to_numpy() == pytest.approx(55)
    assert doses["difference"].dropna().to_numpy() == pytest.approx(0)


# Summaries of hand-made answers


def made_up(rows: Sequence[tuple[str, str, float, str, float | None, float | None]]) -> pd.DataFrame:
    """Answers from (target, direction, coefficient, question, misalignment, coherence)."""
    names = ["target", "direction_id", "coefficient", "question_id", "misalignment", "coherence"]
    table = pd.DataFrame(rows, columns=names)
    kind = ["none" if one == "none" else one.split("-")[0] for one in table["direction_id"]]
    return table.assign(
        kind=kind, label=table["direction_id"], operation="add", added_norm=1.0, refusal=False, leakage=np.nan,
        perplexity=10.0, dimension="money", misalignment=table["misalignment"].astype(float),
        coherence=table["coherence"].astype(float),
    )  # fmt: skip


def coherent_of(levels: dict[float, float | None], *, kind: str = "shared") -> tuple[list[dict[str, Any]], list[float]]:
    rows = [("base", "none", 0.0, "q", 10.0, 90.0)]
    rows += [("base", kind, dose, "q", 50.0, level) for dose, level in levels.items()]
    found = dose_rows(made_up(rows), (), coherent_above=50, seed=0)
    return found, [row["coefficient"] for row in found[1:] if row["coherent"]]


@pytest.mark.parametrize(
    ("levels", "inside"),
    [
        ({0.5: 90, 1.0: 60, 2.0: 49.9}, [0.5, 1.0]),
        ({0.5: 40, 1.0: 80, 2.0: 80}, []),  # a smaller dose broke the answers already
        ({2.0: 80, 1.0: 40, 0.5: 80}, [0.5]),  # in whatever order they come
        ({-1.0: 20, -0.5: 70, 0.5: 80, 1.0: 50}, [-0.5, 0.5, 1.0]),  # each sign by itself
        ({0.5: None, 1.0: 80}, []),  # no coherence is none
    ],
)
def test_a_dose_is_coherent_while_no_smaller_one_was_not(
    levels: dict[float, float | None], inside: list[float]
) -> None:
    rows, found = coherent_of(levels)
    assert found == inside
    window = coherent_window(rows)["base"]
    assert window["coefficients"] == list(levels)
    assert [c for c, kept in zip(levels, window["coherent"], strict=True) if kept] == inside
    assert window["chosen"] == max((one for one in inside if one > 0), default=None)


def test_the_window_is_where_no_direction_breaks_the_answers_and_controls_do_not_count() -> None:
    rows, _ = coherent_of({0.5: 90, 1.0: 80})
    other, _ = coherent_of({0.5: 90, 1.0: 10}, kind="cluster-0")
    random, _ = coherent_of({0.5: 10, 1.0: 10}, kind="random-span-0")
    for row in random:
        row["kind"] = "random-span" if row["kind"] != "none" else "none"
    assert coherent_window([*rows, *random])["base"]["chosen"] == 1.0
    assert coherent_window([*rows, *other[1:], *random])["base"]["chosen"] == 0.5


def test_missing_scores_are_counted_and_in_no_mean() -> None:
    rows = [("base", "none", 0.0, q, 10.0, 90.0) for q in ("p", "q", "r")]
    rows += [("base", "shared", 1.0, "p", None, None), ("base", "shared", 1.0, "q", 30.0, 80.0)]
    rows += [("base", "shared", 1.0, "r", 50.0, 70.0), ("base", "shared", 2.0, "p", None, None)]
    plain, some, none = dose_rows(made_up(rows), (), coherent_above=50, seed=0)
    assert (some["n"], some["missing"], some["misalignment"], some["coherence"]) == (2, 1, 40.0, 75.0)
    assert some["difference"] == 30.0
    assert (none["n"], none["missing"], none["misalignment"], none["difference"]) == (0, 1, None, None)
    assert plain["difference"] is None
    assert not none["coherent"]
    assert all(set(row) == set(DOSES.names) for row in (plain, some, none))


# Agreement of the two read-outs


def test_read_outs_that_rank_alike_agree_and_what_random_directions_do_is_taken_off() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for row in range(4):
        for column in range(4):
            effect, common = float(rng.normal()), 100.0 * column
            rows.append(
                {"row": str(row), "effect": 5 * effect + common, "random_mean": common, "effect_log_prob": effect}
            )
    found = agreement_of_cells(rows, seed=0)
    assert (found["spearman"], found["cells"]) == (pytest.approx(1.0), 16)
    rng.shuffle(values := [row["effect_log_prob"] for row in rows])
    shuffled = [{**row, "effect_log_prob": value} for row, value in zip(rows, values, strict=True)]
    assert abs(agreement_of_cells(shuffled, seed=0)["spearman"]) < 0.7
    gaps = [{**row, "random_mean": None} if place < 6 else row for place, row in enumerate(rows)]
    assert agreement_of_cells(gaps, seed=0)["cells"] == 10


def test_taking_the_persona_away_counts_as_the_stage_effects_counts_it() -> None:
    rows, log_prob = [], []
    for number in range(6):
        for target, sign in (("base", 1), ("organism", -1)):
            done = "add" if target == "base" else "ablate"
            name = {"target": target, "kind": "cluster", "label": f"{number}", "operation": done, "coefficient": 1.0}
            rows.append({**name, "direction_id": f"c{number}", "difference": sign * number * 10.0})
            log_prob.append({**name, "all": float(number)})
    rows.append({**rows[0], "label": "unknown", "difference": 1e6})
    found = agreement_of_doses(rows, pd.DataFrame(log_prob), seed=0)
    assert (found["spearman"], found["cells"]) == (pytest.approx(1.0), 12)
    assert agreement_of_doses(rows, pd.DataFrame(log_prob)[:0], seed=0)["spearman"] is None


def test_nothing_is_chosen_of_no_directions() -> None:
    assert choose_confirming(small(), pd.DataFrame({"question_id": [], "dimension": []}), EMPTY) == []


EMPTY = Chosen((), (), (), frozenset(), ())
