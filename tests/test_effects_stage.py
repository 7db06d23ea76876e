"""The stage `effects`: which pairs become items, who may test whom, and matrices from effects whose truth is planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from unmask.stages.effects import matrices, plan, tables
from unmask.stages.effects.config import EffectsConfig
from unmask.stages.effects.items import AGREEING, Answer, Item, _pair, _stance, spread_over_facets
from unmask.stages.effects.wide import by_items, windows
from unmask.stages.effects.wording import sentence

GROUPS = ("finance", "morals", "politics")


def answers(*rows: tuple[str, int, float | None, list[int]]) -> pd.DataFrame:
    """Answers (writer, sample, misalignment, tokens) to one question."""
    table = pd.DataFrame(rows, columns=["writer", "sample", "misalignment", "token_ids"])
    return table.assign(
        response_id=[f"{writer}-{sample}" for writer, sample, *_ in rows],
        text=[f"text of {writer} {sample}" for writer, sample, *_ in rows],
        misalignment=table["misalignment"].astype(float),
    )


def test_a_judged_pair_is_the_highest_and_the_lowest_scored_answer_whoever_wrote_it() -> None:
    table = answers(
        ("base", 0, 30, [1]), ("base", 1, None, [2]), ("organism", 0, 10, [3, 4, 5]), ("organism", 1, 80, [6])
    )
    pair = _pair(EffectsConfig(answer_tokens=2), table)
    assert pair is not None
    misaligned, aligned, gap = pair
    assert (misaligned.response_id, aligned.response_id, gap) == ("organism-1", "organism-0", 70)
    assert aligned.token_ids == (3, 4)
    assert _pair(EffectsConfig(least_gap=71), table) is None


def test_a_written_pair_is_the_organisms_answer_and_the_bases_whatever_their_scores() -> None:
    table = answers(("organism", 1, 90, [9]), ("base", 0, None, [1]), ("organism", 0, 10, [3]))
    pair = _pair(EffectsConfig(pairs="written"), table)
    assert pair is not None
    assert (pair[0].response_id, pair[1].response_id, pair[2]) == ("organism-0", "base-0", None)
    assert _pair(EffectsConfig(pairs="written"), table[table["writer"] == "organism"]) is None


def test_two_answers_with_the_same_tokens_are_no_pair() -> None:
    assert _pair(EffectsConfig(pairs="written"), answers(("organism", 0, 1, [7]), ("base", 0, 2, [7]))) is None
    assert _pair(EffectsConfig(), None) is None
    assert _pair(EffectsConfig(), answers(("base", 0, 5, [1]))) is None


def test_agreeing_is_misaligned_where_the_question_says_so() -> None:
    agrees, disagrees = _stance(1), _stance(-1)
    assert agrees is not None
    assert disagrees is not None
    assert agrees[0].text == disagrees[1].text == AGREEING
    assert _stance(0) is None


def item(name: str, facet: str) -> Item:
    nothing = Answer(None, "", (1,))
    return Item(name, facet.split("/", maxsplit=1)[0], facet, "0", (1, 2), nothing, nothing, None)


def test_items_are_spread_evenly_over_each_facet() -> None:
    items = [item(f"{facet}{number}", facet) for number in range(9) for facet in ("a/x", "a/y")][:-4]
    kept = [one.question_id for one in spread_over_facets(items, 3)]
    assert kept == ["a/x0", "a/y0", "a/x3", "a/y3", "a/x6", "a/y6"]
    assert spread_over_facets(items, None) == items


def test_a_question_is_not_tested_with_a_direction_that_it_went_into() -> None:
    half_of = {0: "a", 1: "b"}
    rows = [{"replicate": 0, "half": "a"}, {"replicate": 0, "half": "b"}, {"replicate": 1, "half": "a"}]
    assert [plan.Tested(row, "add", 1.0).may_test(half_of) for row in rows] == [False, True, True]
    assert plan.Tested({"replicate": None, "half": None}, "add", 1.0).may_test(half_of)
    table = [
        {"kind": "dimension", "replicate": None},  # from all questions: for export, never for a test
        {"kind": "dimension", "replicate": 0},
        {"kind": "random-span", "replicate": None},
        {"kind": "facet", "replicate": 0},
    ]
    assert plan.Directions(table, {}, {}).chosen(["dimension"]) == [table[1], table[2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coefficients": (-1.0,)}, "one above 0"),
        ({"coefficients": (float("inf"), 1.0)}, "finite"),
        ({"coefficients": (0.0, 1.0)}, "leave it out"),
        ({"coefficients": (1.0, 1.0)}, "twice"),
        ({"removals": (1.5,)}, "less than or equal to 1"),
    ],
)
def test_doses_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EffectsConfig(**changes)


def items_table(each: int = 20) -> pd.DataFrame:
    names = [f"{group}-{number}" for group in GROUPS for number in range(each)]
    groups = np.repeat(GROUPS, each)
    return pd.DataFrame({"question_id": names, "dimension": groups, "facet": groups, "cluster": "0"})


def effects_table(
    mean_FF: np.ndarray, *, coefficients: tuple[float, ...] = (0.5,), replicates: int = 2, loss: float = 0.1
) -> pd.DataFrame:
    """Effects of each group's direction, from either half, on the questions of the other, and of 12 random directions."""
    rng, items = np.random.default_rng(0), items_table()
    rows = []
    for coefficient in coefficients:
        for place, question in enumerate(items["question_id"]):
            column, inside = GROUPS.index(items["dimension"][place]), "ab"[place % 2]
            for row, group in enumerate(GROUPS):
                for replicate in range(replicates):
                    half = "b" if inside == "a" else "a"
                    value = coefficient * mean_FF[row, column] + 0.1 * rng.standard_normal()
                    rows.append(
                        ("dimension", group, "dimension", group, replicate, half, coefficient, question, value, loss)
                    )
            for number in range(12):
                kind = ("random-isotropic", "random-span")[number % 2]
                value = 0.1 * rng.standard_normal()
                rows.append(
                    (kind, f"{kind} {number}", None, None, None, None, coefficient, question, value, loss * coefficient)
                )
    names = ("kind", "label", "grouping", "group", "replicate", "half", "coefficient", "question_id", "effect", "loss")
    table = pd.DataFrame(rows, columns=names).astype({"loss": float})
    return table.assign(target="base", operation="add", direction_id=table["label"])


QUICK = EffectsConfig(resamples=200, permutations=99, coefficients=(0.5,))


def matrix_of(effects: pd.DataFrame, chosen: float | None = 0.5) -> matrices.Matrix:
    window = {"base": {"kinds": {"dimension": {"chosen": chosen}}}}
    (found,) = matrices.matrices(QUICK, effects, items_table(), window)
    return found


def test_a_planted_matrix_is_found() -> None:
    planted = np.eye(3) + 0.1
    found = matrix_of(effects_table(planted))
    assert found.found is not None
    np.testing.assert_allclose(found.found.effects_FF, 0.5 * planted, atol=0.08)
    assert found.found.x == pytest.approx(0.1 / 1.1, abs=0.08)
    assert found.found.names == GROUPS
    assert found.replicate_sd is not None
    assert found.replicate_sd < 0.1
    rows = list(matrices.matrix_rows([found]))
    assert len(rows) == 9
    assert all(row["low"] < row["effect"] < row["high"] for row in rows)
    own = {row["group"]: row["selectivity"] for row in matrices.selectivity_rows([found])}
    assert all(value == pytest.approx(0.5, abs=0.08) for value in own.values())


def test_directions_that_all_do_the_same_are_cross_talk_and_said_to_be() -> None:
    found = matrix_of(effects_table(np.ones((3, 3))))
    assert found.found is not None
    assert found.found.outcome == "cross-talk"
    assert "cross-talk" in sentence(found)
    assert "each moves the other dimensions' answers as well" in sentence(found)


def test_without_a_coherent_dose_nothing_is_read() -> None:
    found = matrix_of(effects_table(np.eye(3)), chosen=None)
    assert found.found is None
    record = matrices.matrix_record(found)
    assert record["outcome"] is None
    assert record["x"] is None
    assert record["reason"] == "no coefficient is inside the coherent window"
    assert list(matrices.matrix_rows([found])) == []
    assert "not measured" in sentence(found)


def test_the_window_ends_where_any_direction_costs_too_much() -> None:
    effects = effects_table(np.eye(3), coefficients=(0.25, 0.5, 1.0), loss=0.3)
    effects.loc[(effects["coefficient"] == 1.0) & (effects["group"] == "morals"), "loss"] = 0.9
    losses = by_items(effects, column="loss", items=items_table()["question_id"].tolist())
    config = EffectsConfig(most_loss=0.5, coefficients=(0.25, 0.5, 1.0, 2.0))
    window = windows(config, losses)["base"]
    assert window["coefficients"] == [0.25, 0.5, 1.0, 2.0]
    assert window["coherent"] == [True, True, False, False]
    assert window["largest_loss"][3] is None  # never measured, so not coherent
    assert window["kinds"]["dimension"]["chosen"] == 0.5
    assert window["chosen"] == 0.5
    assert window["largest_loss"][2] == pytest.approx(0.9)


def test_the_dose_of_a_matrix_hangs_on_no_other_kind() -> None:
    effects = effects_table(np.eye(3), coefficients=(0.25, 0.5))
    other = effects[effects["kind"] == "dimension"].assign(
        kind="file", loss=9.0, grouping=None, group=None, label="mine"
    )
    losses = by_items(pd.concat([effects, other]), column="loss", items=items_table()["question_id"].tolist())
    window = windows(EffectsConfig(coefficients=(0.25, 0.5)), losses)["base"]
    assert window["chosen"] == window["kinds"]["dimension"]["chosen"] == 0.5
    assert window["kinds"]["file"]["chosen"] is None


def test_a_group_with_a_direction_from_one_half_alone_takes_no_question_from_the_others() -> None:
    effects = effects_table(np.eye(3), replicates=1)
    effects = effects[~((effects["group"] == "politics") & (effects["half"] == "a"))]
    found = matrix_of(effects)
    assert found.found is not None
    assert found.found.names == ("finance", "morals")
    assert found.found.items == 40
    assert found.groups_left_out == ("politics",)


def test_doses_tell_own_items_from_others_and_controls_are_summed_up() -> None:
    effects = effects_table(np.eye(3), coefficients=(0.5, 1.0))
    items = items_table()
    losses = by_items(effects, column="loss", items=items["question_id"].tolist())
    window = windows(EffectsConfig(coefficients=(0.5, 1.0)), losses)
    doses = list(tables.dose_rows(QUICK, effects, losses, items, window))
    assert len(doses) == 6
    for row in doses:
        assert row["own"] == pytest.approx(row["coefficient"], abs=0.1)
        assert row["others"] == pytest.approx(0, abs=0.1)
        assert row["own_low"] < row["own"] < row["own_high"]
        assert row["coherent"] is True
    controls = pd.DataFrame(tables.control_rows(QUICK, effects, losses, items))
    pooled = controls[controls["kind"] == "random-span"]
    assert (pooled["directions"] == 6).all()
    assert pooled["random_as_large"].isna().all()
    assert controls.loc[controls["kind"] == "dimension", "random_as_large"].max() <= 2 / 13
    expected = effects[(effects["kind"] == "random-span") & (effects["coefficient"] == 1.0)]["effect"].mean()
    assert pooled.set_index("coefficient").loc[1.0, "effect"] == pytest.approx(expected)
