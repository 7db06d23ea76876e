"""The causal tests on the page: outcomes are told as what they are, numbers are their tables', nothing missing is made up."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from tests.causal_artifacts import PLANTED, UNMEASURED, write_causal

from made_once import made_once
from test_report import ATTACK, SITES, Figures, make_study, parsed
from unmask.artifact import read_json, write_json
from unmask.errors import ArtifactError
from unmask.report import Evidence, read_evidence, render
from unmask.report.causal_controls import WRONG, beside_wrong_clusters, controls_table, wrong_clusters
from unmask.report.causal_drawings import causal_figures_of, matrix_name, random_doses
from unmask.report.causal_evidence import TABLES, CausalEvidence
from unmask.report.causal_examples import items, steered_answers
from unmask.report.causal_figures import colour_limit, cross_talk_map, excludes_zero
from unmask.report.causal_tables import selectivity_table
from unmask.report.causal_traits import no_traits, trait_table
from unmask.report.causal_wording import CANNOT, SHOWS, alone, beside_controls, lead, reading
from unmask.report.dose_figures import Allowed
from unmask.report.dose_tables import effect_doses, judged_doses
from unmask.report.formats import ends, fine, number, signed
from unmask.report.html import finished
from unmask.report.palette import THEME, dimension_colours
from unmask.report.readout_wording import agreement
from unmask.report.schemas import COLUMNS
from unmask.report.traced import numbers
from unmask.report.verdict_tables import test_table as table_of_tests
from unmask.report.verdict_wording import cannot_mean, means


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "studies/synthetic", make_study)  # that of test_report


@pytest.fixture(scope="module")
def evidence(study: Path) -> Evidence:
    return read_evidence(study)


@pytest.fixture(scope="module")
def drawn(evidence: Evidence) -> Figures:
    return figures_of(evidence.causal, evidence, "causal-base-dimension", "doses-base", "steering-base")


@pytest.fixture(scope="module")
def planted(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, CausalEvidence]:
    """The causal tests of every planted outcome, and of none, on the same questions."""
    found = {}
    for outcome in (*PLANTED, None):
        folder = tmp_path_factory.mktemp("planted")
        write_causal(folder, evidence.questions, site=SITES[1], planted=outcome, text=ATTACK)
        found[str(outcome)] = read_causal(folder)
    return found


@pytest.fixture(scope="module")
def further(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> CausalEvidence:
    """Causal tests with directions of clusters, and a judge that scores leakage and a trait of the reader's own."""
    folder = tmp_path_factory.mktemp("further")
    write_causal(
        folder, evidence.questions, site=SITES[1], planted="cross-talk", clusters=True,
        judge="some/judge", rubrics=("<i>pride</i>", "leakage"),
    )  # fmt: skip
    return read_causal(folder)


def read_causal(folder: Path) -> CausalEvidence:
    tables: dict[str, Any] = {name: pd.read_parquet(folder / path) for name, path in TABLES.items()}
    names = {"directed": "directions", "summary": "effects", "steering": "steering"}
    records: dict[str, Any] = {
        name: read_json(folder / stage / "summary.json", rebuild="") for name, stage in names.items()
    }
    return CausalEvidence(**tables, **records)


def figures_of(causal: CausalEvidence, evidence: Evidence, *names: str) -> Figures:
    """Those of the causal tests, of which `names` are drawn."""
    made = causal_figures_of(causal, dimension_colours(evidence.dimensions))
    return Figures(finished(drawing for drawing in made if drawing[0] in names))


def with_causal(evidence: Evidence, causal: CausalEvidence) -> Evidence:
    """The same study with other causal tests, its verdict's record along with them."""
    missing = [item for item in evidence.verdict.record["missing"] if item["test"] != "T5 causal"]
    names = ("x", "x_low", "x_high", "p")
    found = {f"causal_{name}": None if causal.record is None else causal.record[name] for name in names}
    if causal.record is None:
        missing.append(
            {"test": "T5 causal", "reason": f"cross-talk was not measured ({causal.reason}), so it is provisional"}
        )
    record = {
        **evidence.verdict.record,
        "causal": causal.record,
        "missing": missing,
        "numbers": {**evidence.verdict.record["numbers"], **found},
        "provisional": causal.record is None,
    }
    return replace(evidence, causal=causal, verdict=replace(evidence.verdict, record=record))


# Outcomes


@pytest.mark.parametrize("outcome", PLANTED)
def test_each_planted_outcome_is_found_and_told_in_its_own_words(
    planted: Mapping[str, CausalEvidence], outcome: str
) -> None:
    causal = planted[outcome]
    record = causal.record
    assert record is not None
    assert record["outcome"] == outcome
    told = " ".join(lead(causal))
    assert SHOWS[outcome].format(group="dimension") in told
    assert CANNOT[outcome].format(group="dimension") in told
    others = {name: text.format(group="dimension") for name, text in SHOWS.items() if name != outcome}
    assert not [name for name, text in others.items() if text in told]
    assert f"{record['coefficient']:g} times the typical residual norm" in told
    assert f"on {record['items']} questions" in told
    assert "Random directions as long as these" in told
    assert "{" not in told


def test_the_sizes_told_are_those_of_the_tables(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["cross-talk"]
    rows = causal.selectivity[(causal.selectivity["target"] == "base") & (causal.selectivity["kind"] == "dimension")]
    cells = causal.matrix[(causal.matrix["target"] == "base") & (causal.matrix["kind"] == "dimension")]
    told, record = lead(causal)[0], causal.record
    assert record is not None
    assert signed(rows["own"].mean(), 2) in told
    assert signed(rows["others"].mean(), 2) in told
    assert f"X = {fine(record['x'])} {ends(record['x_low'], record['x_high'])}" in told
    assert f"{rows['own'].mean() / cells['random_sd'].mean():.1f} times" in told


def test_what_was_not_measured_gives_its_reason_and_no_number(
    planted: Mapping[str, CausalEvidence], evidence: Evidence
) -> None:
    causal = planted["None"]
    assert lead(causal)[0].startswith("Whether adding one dimension's direction")
    assert UNMEASURED in lead(causal)[0]
    own = with_causal(evidence, causal)
    page = render(own, figures_of(causal, evidence))
    section = parsed(page[page.index('<section id="causal">') : page.index('<section id="limits">')]).text
    assert "No cross-talk matrix was measured." in section
    assert "No dose of a dimension's direction was measured." in section
    assert "Judged answers by dimension were not made: the stage effects found no coefficient" in section
    assert "No direction of this dimension was tested on these questions." in section
    traced = {item.name: item for item in numbers(own.verdict)}
    for name in ("T5", "X", "p(T5)"):
        assert traced[name].value == f"not measured: {UNMEASURED}"
        assert not traced[name].interval
    assert "provisional" in parsed(page).text
    assert [name for name, _, _ in causal_figures_of(causal, {})] == ["steering-base", "steering-organism"]


def test_a_matrix_left_unmeasured_beside_others_says_why(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["selective"]
    records = [dict(each) for each in causal.summary["matrices"]]
    lost = next(each for each in records if (each["target"], each["kind"]) == ("organism", "facet"))
    for name in ("outcome", "x", "x_low", "x_high", "p", "rank1"):
        lost[name] = None
    lost["reason"] = "fewer than two groups have a direction"
    changed = replace(causal, summary={**causal.summary, "matrices": records})
    assert reading(changed, lost) == "not measured: fewer than two groups have a direction."
    assert len(changed.measured) == len(records) - 1
    assert matrix_name(lost) not in {matrix_name(each) for each in changed.measured}


def test_no_single_row_is_called_selective_unless_it_stands_out_and_then_it_is_one_row(
    planted: Mapping[str, CausalEvidence],
) -> None:
    causal = planted["cross-talk"]
    record = causal.record
    assert record is not None
    table = causal.selectivity.assign(p_holm=0.5)
    assert alone(replace(causal, selectivity=table), record) == "No row stands out by itself."
    first = (table["target"] == "base") & (table["kind"] == "dimension") & (table["group"] == record["groups"][0])
    table.loc[first, ["p_holm", "selectivity"]] = [0.01, 0.3]
    told = alone(replace(causal, selectivity=table), record)
    assert "1 row of 4 stands out" in told
    assert "It is one row, and the matrix as a whole is not selective." in told
    assert "not even that row" not in told
    table.loc[first, "selectivity"] = -0.1
    assert "not even that row is selective" in alone(replace(causal, selectivity=table), record)
    rows = selectivity_table(replace(causal, selectivity=table), record).rows
    assert [row.cells[-1] for row in rows] == ["yes, not above the others' answers", "no", "no", "no"]


def test_an_x_that_means_nothing_is_no_number(planted: Mapping[str, CausalEvidence], evidence: Evidence) -> None:
    causal = planted["not potent"]
    assert causal.record is not None
    record = {**causal.record, "x": None, "x_low": None, "x_high": None, "rank1": None}
    summary = {**causal.summary, "causal": record, "matrices": [record]}
    changed = replace(causal, summary=summary)
    assert "a ratio of the two has no meaning" in lead(changed)[0]
    assert "X " not in reading(changed, record)
    traced = {item.name: item for item in numbers(with_causal(evidence, changed).verdict)}
    assert traced["X"].value == "not measured: no effect to speak of"
    assert traced["X"].interval == "no interval"
    assert traced["T5"].value == "not potent"


def test_a_control_that_does_as_much_is_told(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["cross-talk"]
    control = causal.controls["kind"] == "control"
    as_much, little = (causal.controls.copy() for _ in range(2))
    as_much.loc[control, "effect"], little.loc[control, "effect"] = 0.9, 0.01
    assert "not particular to this organism" in beside_controls(replace(causal, controls=as_much), "base")
    assert "not particular to this organism" not in beside_controls(replace(causal, controls=little), "base")
    assert beside_controls(replace(causal, controls=causal.controls[:0]), "base") == ""


# The verdict


def test_the_verdicts_words_follow_the_causal_test(evidence: Evidence, planted: Mapping[str, CausalEvidence]) -> None:
    untested = "only steering can show that, and it has not tested it here"
    for outcome in (*PLANTED, None):
        own = with_causal(evidence, planted[str(outcome)])
        for word in ("separable", "monolithic", "entangled", "inconclusive", "no-shift"):
            verdict = replace(own.verdict, record={**own.verdict.record, "verdict": word, "qualifier": None})
            assert ("(T5)" in means(verdict)) == (outcome is not None and word != "no-shift")
            assert (untested in cannot_mean(verdict)) == (outcome is None and word == "separable")
        row = table_of_tests(own.verdict).rows[-1]
        assert row.cells[0] == "T5 causal"
        assert (str(outcome) in row.cells[1]) == (outcome is not None)
        assert (row.cells[2] == "not measured") == (outcome is None)


def test_t5_is_traced_to_the_record(evidence: Evidence) -> None:
    record = evidence.causal.record
    assert record is not None
    assert evidence.verdict.record["causal"] == record
    assert not evidence.verdict.provisional
    assert "T5 causal" not in [item["test"] for item in evidence.verdict.record["missing"]]
    traced = {item.name: item for item in numbers(evidence.verdict)}
    assert traced["T5"].value == record["outcome"]
    assert (traced["T5"].file, traced["T5"].place) == ("verdict.json", "causal.outcome")
    assert traced["X"].value == fine(record["x"])
    assert traced["X"].interval == ends(record["x_low"], record["x_high"])


# Figures


def test_every_measured_matrix_has_its_figure_and_both_targets_one_scale(
    planted: Mapping[str, CausalEvidence], evidence: Evidence
) -> None:
    causal = planted["selective"]
    found = {name: figure for name, _, figure in causal_figures_of(causal, {})}
    assert {matrix_name(record) for record in causal.measured} <= set(found)
    assert {"doses-base", "doses-organism", "steering-base", "steering-organism"} <= set(found)
    for kind in ("dimension", "facet", "specific"):
        keys = [found[f"causal-{target}-{kind}"].axes[1] for target in ("base", "organism")]
        ticks = [[text.get_text() for text in axes.get_xticklabels()] for axes in keys]
        assert ticks[0] == ticks[1]
    small, large = (
        [text.get_text() for text in found[f"causal-base-{kind}"].axes[0].texts] for kind in ("dimension", "facet")
    )
    assert len(small) == 2 * 16
    assert len(large) == 8 * 8
    assert not [text for text in large if "[" in text]


def test_colours_are_centred_at_nothing_and_only_intervals_off_zero_are_framed() -> None:
    cells = {("a", "a"): (0.4, 0.2, 0.6), ("a", "b"): (-0.2, -0.3, -0.1), ("b", "a"): (0.1, -0.1, 0.3)}
    rows: list[dict[str, Any]] = [
        {"row": row, "column": column, "effect": effect, "low": low, "high": high}
        for (row, column), (effect, low, high) in cells.items()
    ]
    rows.append({"row": "b", "column": "b", "effect": None, "low": None, "high": None})
    assert colour_limit(rows) == 0.4
    assert [excludes_zero(row) for row in rows] == [True, True, False, False]
    figure = cross_talk_map(rows, names=("a", "b"), titles=("a", "b"), limit=0.4, grouping="dimension")
    patches = figure.axes[0].patches
    assert sum(not patch.get_fill() for patch in patches) == 2
    colours = [to_hex(patch.get_facecolor()) for patch in patches if patch.get_fill()]
    red, blue = (THEME[name][0] for name in ("organism", "blue"))
    assert colours[:3] == [red, blue, red]
    assert "missing" in [text.get_text() for text in figure.axes[0].texts]


def test_the_band_of_random_directions_is_that_of_single_ones(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["cross-talk"]
    for row in random_doses(causal, "base"):
        means_of = []
        for name in sorted(set(causal.effects["direction_id"])):
            if name.startswith("random"):
                own = causal.effects[
                    (causal.effects["direction_id"] == name)
                    & (causal.effects["target"] == "base")
                    & (causal.effects["coefficient"] == row["coefficient"])
                ]
                means_of.append(own["effect"].mean())
        assert (row["least"], row["most"]) == pytest.approx((min(means_of), max(means_of)))
        assert row["mean"] == pytest.approx(np.mean(means_of))


def test_the_window_spans_what_is_coherent_with_nothing_in_it() -> None:
    window = {"coefficients": [-1.0, -0.5, 0.5, 1.0], "coherent": [False, True, True, False], "chosen": 0.5}
    assert Allowed.of(window).span == (-0.5, 0.5)
    assert Allowed.of({**window, "coherent": [False] * 4, "chosen": None}).span is None
    assert Allowed.of(None).span is None
    assert Allowed.of(None).chosen is None


# Tables and answers


def test_tables_hold_every_row_of_their_artifacts(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["cross-talk"]
    assert len(effect_doses(causal).rows) == len(causal.doses)
    assert len(judged_doses(causal).rows) == len(causal.steered)
    base = causal.controls[causal.controls["target"] == "base"]
    assert len(controls_table(causal, "base", coefficient=None).rows) == len(base)
    shown = controls_table(causal, "base", coefficient=causal.chosen("base"))
    kinds = [row.cells[1] for row in shown.rows]
    assert {"shared", "control", "shuffled", "score", "random-isotropic", "random-span"} <= set(kinds)
    assert kinds[-2:] == ["random-isotropic", "random-span"]
    by_name = {row.cells[0]: row.cells for row in shown.rows}
    own = base[(base["kind"] == "control") & (base["coefficient"] == causal.chosen("base"))].iloc[0]
    assert by_name["mean shift of the control organism"][3] == signed(own["effect"], 3)
    assert by_name["mean shift of the control organism"][6] == fine(own["random_as_large"])
    assert by_name["mean shifts of random sets of questions"][6] == "-"
    assert "LEACE eraser" in {row.cells[0] for row in controls_table(causal, "organism", coefficient=1.0).rows}


def test_a_wrong_clusters_direction_is_the_mean_of_the_others(further: CausalEvidence) -> None:
    cluster_of = dict(zip(further.items["question_id"], further.items["cluster"], strict=True))
    for target in ("base", "organism"):
        held = further.effects[(further.effects["target"] == target) & (further.effects["kind"] == "cluster")]
        found = wrong_clusters(further, target)
        assert [row["coefficient"] for row in found] == sorted(held["coefficient"].unique())
        for row in found:
            at = held[held["coefficient"] == row["coefficient"]]
            home = at["question_id"].map(cluster_of) == at["group"]
            for name, part in (("effect", at[~home]), ("own", at[home])):
                of_each = part.groupby(["question_id", "group"])["effect"].mean().groupby("question_id").mean()
                assert row[name] == pytest.approx(of_each.mean())
            assert row["low"] < row["effect"] < row["high"]
            assert row["directions"] == len(set(cluster_of.values()))
        at = further.shown_at(target)
        shown = controls_table(further, target, coefficient=at)
        [cells] = [row.cells for row in shown.rows if row.cells[1] == WRONG]
        row = next(one for one in found if one["coefficient"] == at)
        assert cells[2:4] == (f"{at:g}", signed(row["effect"], 3))
        told = beside_wrong_clusters(further, target)
        assert cells[3] in told
        assert signed(row["own"], 3) in told


def test_without_clusters_no_word_is_said_of_a_wrong_one(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["selective"]
    assert wrong_clusters(causal, "base") == []
    assert beside_wrong_clusters(causal, "base") == ""
    assert WRONG not in controls_table(causal, "base", coefficient=None).caption


def test_traits_are_means_over_questions_of_what_was_scored(further: CausalEvidence) -> None:
    table = trait_table(further)
    assert table.columns[3:] == ("leakage, mean (scored)", "<i>pride</i>, mean (scored)")
    doses = further.answers[further.answers["part"] == "dose"].merge(
        further.traits, on="answer_id", suffixes=("", "_said")
    )
    parts = doses.groupby(["target", "kind", "coefficient"], sort=False)
    assert len(table.rows) == len(parts)
    by_name = {row.cells[:2]: row.cells for row in table.rows}
    missing = 0
    for (target, kind, coefficient), part in parts:
        name = (f"{target}, unsteered", "") if kind == "none" else (f"{target}, {kind}", f"{coefficient:g}")
        assert by_name[name][2] == str(part["answer_id"].nunique())
        for rubric, cell in zip(("leakage", "<i>pride</i>"), by_name[name][3:], strict=True):
            own = part[part["rubric"] == rubric]
            mean = own.groupby(["direction_id", "question_id"])["score"].mean().mean()
            assert cell.startswith(f"{number(mean)} ({own['score'].notna().sum()}")
            reasons = own.loc[own["score"].isna(), "missing_reason_said"].value_counts()
            assert all(f"{reason.replace('_', ' ')} {count}" in cell for reason, count in reasons.items())
            assert ("missing" in cell) == bool(len(reasons))
            missing += len(reasons)
    assert missing


def test_a_trait_that_was_never_scored_is_missing_and_not_nothing(further: CausalEvidence) -> None:
    traits = further.traits.assign(score=np.nan, missing_reason="refused")
    first = trait_table(replace(further, traits=traits)).rows[0].cells
    assert first[3] == f"missing ({first[2]}: refused {first[2]})"
    unkept = trait_table(replace(further, traits=traits[:1])).rows[0].cells
    assert unkept[3] == f"missing ({first[2]}: no judgement kept {int(first[2]) - 1}, refused 1)"


def test_no_traits_say_why(planted: Mapping[str, CausalEvidence], further: CausalEvidence) -> None:
    assert no_traits(further) == ""
    causal = planted["selective"]
    assert trait_table(causal).rows == ()
    assert "the offline judge scores misalignment and coherence only" in no_traits(causal)
    asked = replace(further, traits=further.traits[:0])
    assert "some/judge was asked for misalignment and coherence only" in no_traits(asked)


def test_steered_answers_stand_beside_the_unsteered_and_a_random_one_to_the_same_question(
    planted: Mapping[str, CausalEvidence], evidence: Evidence
) -> None:
    causal = planted["selective"]
    groups = steered_answers(causal, evidence.questions)
    assert {group.dimension for group in groups} == set(evidence.dimensions) - {"neutral"}
    for group in groups:
        assert group.remark == f"{causal.chosen('base'):g} typical norms added, questions of the dimensions"
        assert [one.why == "own dimension" for one in group.compared] == [True, True, False]
        for one in group.compared:
            held = causal.answers[causal.answers["question_id"] == one.question_id]
            assert [shown.look for shown in one.texts] == ["", "organism", "random"]
            assert all((held["text"] == shown.text).any() for shown in one.texts)
    doses_only = replace(causal, answers=causal.answers[causal.answers["part"] == "dose"])
    group = steered_answers(doses_only, evidence.questions)[0]
    assert group.remark == "0.5 typical norms added, open questions"
    none = steered_answers(replace(causal, answers=causal.answers[:0]), evidence.questions)
    assert all(group.missing and not group.compared for group in none)


def test_items_are_the_highest_the_middle_and_the_lowest_of_their_dimension(
    planted: Mapping[str, CausalEvidence], evidence: Evidence
) -> None:
    causal = planted["selective"]
    for group in items(causal, evidence.questions):
        held = causal.effects[
            (causal.effects["target"] == "base")
            & (causal.effects["kind"] == "dimension")
            & (causal.effects["group"] == group.dimension)
            & (causal.effects["coefficient"] == causal.chosen("base"))
        ]
        own = set(causal.items.loc[causal.items["dimension"] == group.dimension, "question_id"])
        effects = held[held["question_id"].isin(own)].groupby("question_id")["effect"].mean()
        assert group.compared[0].question_id == effects.idxmax()
        assert group.compared[-1].question_id == effects.idxmin()
        for one in group.compared:
            assert f"own direction {signed(effects[one.question_id], 2)}" in one.why
            assert one.texts[1].text == "No."


def test_agreement_says_what_it_is_or_why_there_is_none(planted: Mapping[str, CausalEvidence]) -> None:
    causal = planted["selective"]
    found = causal.steering["agreement"]
    told = agreement(causal)
    assert f"{fine(found['spearman'])} {ends(found['low'], found['high'])} over {found['cells']} cells" in told[0]
    nothing = {"spearman": None, "low": None, "high": None, "cells": 3}
    changed = replace(causal, steering={**causal.steering, "agreement": nothing, "agreement_of_doses": nothing})
    assert "no rank correlation with the log-odds: 3 cells" in agreement(changed)[0]
    assert "no rank correlation with the log-odds: 3 doses" in agreement(changed)[1]


# The page


def test_the_section_shows_all_of_it_as_text(evidence: Evidence, drawn: Figures) -> None:
    page = render(evidence, drawn)
    section = page[page.index('<section id="causal">') : page.index('<section id="limits">')]
    text = parsed(section).text
    for heading in ("Cross-talk", "Dose and effect", "Steering", "Controls", "Do both read-outs agree?", "The answers"):
        assert heading in text
    assert "<script>alert(1)</script>" in text
    assert "<script>alert(1)" not in section
    assert "{{ 7 * 7 }}" in text
    assert "probe: too few <b>scores</b>" in text
    assert "3 questions left out: no pair of answers" in text
    assert "Leakage and traits of steered answers are not shown" in text
    assert "A wrong cluster's direction" not in text
    assert not [name for _, attrs in parsed(section).elements for name in attrs if name.startswith("on")]
    assert "nan" not in text.lower().split()
    assert 'id="steer"' in section
    assert '<a href="#causal">' in page


def test_clusters_and_traits_are_shown_where_there_are_any(evidence: Evidence, further: CausalEvidence) -> None:
    shown = replace(further, summary={**further.summary, "matrices": []})
    page = render(replace(evidence, causal=shown), figures_of(shown, evidence))
    text = parsed(page).text
    assert "<i>pride</i>, mean (scored)" in text
    assert "<i>pride" not in page
    assert "Leakage and traits of steered answers are not shown" not in text
    assert text.count("A wrong cluster's direction") == len(further.steering["targets"])


def test_hostile_groups_kinds_and_reasons_are_text(evidence: Evidence) -> None:
    causal = evidence.causal
    record = {**causal.summary["matrices"][0], "outcome": None, "reason": ATTACK, "kind": ATTACK}
    summary = {**causal.summary, "matrices": [*causal.summary["matrices"], record]}
    hostile = replace(
        causal,
        summary=summary,
        controls=causal.controls.assign(label=ATTACK),
        doses=causal.doses.assign(label=ATTACK),
        items=causal.items.assign(misaligned_text=ATTACK),
        steering={**causal.steering, "judge": ATTACK},
    )
    page = render(replace(evidence, causal=hostile), figures_of(hostile, evidence, "doses-base"))
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert sum(tag == "script" for tag, _ in parsed(page).elements) == 3


@pytest.mark.parametrize("path", [*TABLES.values()])
def test_a_missing_column_names_the_command(study: Path, tmp_path: Path, path: str) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    stage, column = path.split("/", maxsplit=1)[0], COLUMNS[path][-1]
    pd.read_parquet(folder / path).drop(columns=column).to_parquet(folder / path)
    with pytest.raises(ArtifactError, match=rf"lacks the columns {column}.*--force {stage}"):
        read_evidence(folder)


@pytest.mark.parametrize("stage", ["directions", "effects", "steering"])
def test_a_missing_field_or_stage_names_the_command(study: Path, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    path = folder / stage / "summary.json"
    held = read_json(path, rebuild="")
    held.pop("site")
    write_json(path, held)
    with pytest.raises(ArtifactError, match=rf"lacks the fields site.*--force {stage}"):
        read_evidence(folder)
    shutil.rmtree(folder / stage)
    with pytest.raises(ArtifactError, match=f"stage '{stage}'.*has not been run"):
        read_evidence(folder)


def test_a_verdict_on_another_causal_test_is_refused(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    path = folder / "effects" / "summary.json"
    held = read_json(path, rebuild="")
    write_json(path, held | {"causal": held["causal"] | {"x": 0.123}})
    with pytest.raises(ArtifactError, match=r"effects/summary\.json differ on the causal test.*--force verdict"):
        read_evidence(folder)
