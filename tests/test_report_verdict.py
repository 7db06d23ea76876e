"""The verdict on the page: every number is its artifact's, nothing missing is 0, nothing untrusted runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from made_once import made_once
from test_report import ATTACK, SITES, Figures, make_study, parsed
from unmask.analysis.worlds import draw as draw_world
from unmask.artifact import read_json, write_json
from unmask.errors import ArtifactError
from unmask.report import Evidence, read_evidence, render
from unmask.report.cards_section import groups
from unmask.report.formats import ends, fine, whole
from unmask.report.html import Drawn, finished
from unmask.report.method_tables import method_tables
from unmask.report.planted import interest, planted_rows
from unmask.report.schemas import COLUMNS
from unmask.report.site_figures import by_layer, site_ticks
from unmask.report.site_tables import figure_name, site_tables
from unmask.report.traced import numbers, other_numbers
from unmask.report.verdict_drawings import verdict_figures_of
from unmask.report.verdict_evidence import NOT_TESTABLE, VERDICTS, VerdictEvidence
from unmask.report.verdict_figures import eigenvalue_shares
from unmask.report.verdict_tables import test_table as table_of_tests
from unmask.report.verdict_wording import cannot_mean, cards_reading, means, word

QUALIFIERS = {
    "no-shift": (None,),
    "monolithic": (None, "graded", "fingerprint of tuning included"),
    "entangled": (None, "carried by topic", "not along the facets", "carried by topic, sign by polarity"),
    "separable": (None, "geometric, provisional"),
    "inconclusive": (None, "conflict", "graded axis or two camps", NOT_TESTABLE),
}
Page = tuple[Path, Evidence, dict[str, Drawn]]


def _world(name: str, **options: Any) -> Any:
    return draw_world(name, rng=np.random.default_rng(1), questions=120, width=32, **options)


def _make_studies(here: Path) -> None:
    make_study(here / "separable", world=_world("separable", control=True))
    make_study(here / "monolithic", world=_world("monolithic", responses=1))
    make_study(here / "pass-through", world=_world("pass_through_linear", responses=1))
    make_study(here / "untestable", dimensions=("financial_risk", "neutral"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Page]:
    """Studies with the verdict's figures: with a control, with one response, with power to spare, not testable."""
    here = made_once(tmp_path_factory, "studies/verdicts", _make_studies)
    made = {name: here / name for name in ("separable", "monolithic", "pass-through", "untestable")}
    held = {name: (folder, read_evidence(folder)) for name, folder in made.items()}
    drawn = {name: Figures(finished(verdict_figures_of(evidence.verdict))) for name, (_, evidence) in held.items()}
    return {name: (folder, evidence, drawn[name]) for name, (folder, evidence) in held.items()}


def changed(evidence: Evidence, **fields: Any) -> Evidence:
    """The same study with other fields of verdict.json."""
    record = {**evidence.verdict.record, **fields}
    return replace(evidence, verdict=replace(evidence.verdict, record=record))


def looked_up(folder: Path, verdict: VerdictEvidence, file: str, place: str) -> Any:
    """The value at the file and row that the page names, read from the file itself."""
    path = folder / "verdict" / file
    if file == "verdict.json":
        part, _, field = place.partition(".")
        return (read_json(path, rebuild="")[part] or {}).get(field)
    rows = pd.read_parquet(path)
    record = verdict.record
    for column in ("site", "grouping", "correction"):
        rows = rows[rows[column] == record[column]]
    test = re.search(r"test (.*?),", place)
    rank = re.search(r"rank (\d+),", place)
    rows = rows[rows["test"] == test[1]] if test else rows
    rows = rows[rows["rank"] == int(rank[1])] if rank else rows
    rows = rows[rows["offsets"] == "none"].head(1) if "offsets none" in place else rows
    column = re.search(r"columns? (\w+)", place)
    assert column is not None
    if rows.empty:
        return None
    assert len(rows) == 1, (file, place)
    return rows.iloc[0][column[1]]


@pytest.mark.parametrize("name", ["separable", "monolithic", "pass-through", "untestable"])
def test_every_number_is_the_one_at_the_place_that_it_names(pages: Mapping[str, Page], name: str) -> None:
    folder, evidence, _ = pages[name]
    shown = numbers(evidence.verdict)
    assert len(shown) >= 15
    for item in shown:
        value = looked_up(folder, evidence.verdict, item.file, item.place)
        if value is None or pd.isna(value):
            assert re.match(r"not measured|none: not found|above ", item.value), item
            continue
        expected = (
            {value} if isinstance(value, str) else {whole(value), fine(value), f"{value:g}", f"{value:g} or more"}
        )
        assert item.value in expected, item
    assert len({(item.file, item.place) for item in shown}) == len(shown)


def test_intervals_and_limits_are_the_artifacts(pages: Mapping[str, Page]) -> None:
    _, evidence, _ = pages["separable"]
    verdict, shown = evidence.verdict, {item.name: item for item in numbers(evidence.verdict)}
    row = verdict.row
    for name in ("rho", "eta"):
        assert shown[name].interval == ends(row[f"{name}_low"], row[f"{name}_high"])
        assert shown[name].limit.endswith(f"{verdict.number(f'{name}_star'):g}")
    none = verdict.here(verdict.power)
    none = none[none["offsets"] == "none"].iloc[0]
    assert shown["false positives"].interval == ends(none["low"], none["high"])
    assert shown["k_adj"].limit == f"needed: k* = {row['k_star']:.0f}"


def test_every_other_number_is_shown_too(pages: Mapping[str, Page]) -> None:
    _, evidence, _ = pages["separable"]
    verdict = evidence.verdict
    rest = {row.cells[1].removeprefix("numbers."): row.cells[2] for row in other_numbers(verdict).rows}
    for name, text in rest.items():
        assert text == fine(verdict.number(name)) or text.startswith("not measured")
    places = " ".join(f"{item.place} " for item in numbers(verdict))
    for name in verdict.record["numbers"]:
        traced = rf"\b{name}\b" in places or re.search(rf"\b{name}\b", places)
        elsewhere = {"alpha", "rho_star", "eta_star", "p_shift", "p_rank", "causal_x_low", "causal_x_high"}
        assert traced or name in rest or name in elsewhere or "false" in name


@pytest.mark.parametrize("held", [None, float("nan")])
def test_a_missing_number_never_prints_as_zero(pages: Mapping[str, Page], held: float | None) -> None:
    _, evidence, _ = pages["monolithic"]
    nothing = dict.fromkeys(evidence.verdict.record["numbers"], held)
    missing = [
        *evidence.verdict.record["missing"],
        {"test": "T5 causal", "reason": "cross-talk was not measured (why)"},
    ]
    verdict = changed(evidence, numbers=nothing, causal=None, missing=missing).verdict
    real = evidence.verdict.sites.select_dtypes(float).columns
    verdict = replace(verdict, sites=verdict.sites.assign(**dict.fromkeys(real, np.nan)))
    for item in numbers(verdict):
        assert re.match(r"not measured|none: not found|above ", item.value), item
        assert item.interval in {"", "no interval"}
    told = {item.name: item.value for item in numbers(verdict)}
    assert told["T4"] == "not measured: one response per question"
    assert told["T5"] == told["X"] == "not measured: why"
    for _, _, table in site_tables(verdict):
        for row in table.rows:
            assert not [cell for cell in row.cells[2:] if re.search(r"\d", cell)], row
    empty = verdict.tests.assign(**dict.fromkeys(("statistic", "null_mean", "null_sd", "p", "p_max_t"), np.nan))
    for row in table_of_tests(replace(verdict, tests=empty)).rows:
        assert not [cell for cell in row.cells[2:6] if re.search(r"\d", cell)], row


def test_the_page_of_an_untestable_study_says_so_and_holds_no_figure_of_numbers(pages: Mapping[str, Page]) -> None:
    _, evidence, drawn = pages["untestable"]
    text = parsed(render(evidence, drawn)).text
    assert "The question could not be put to this data at all." in text
    assert "1 group with at least 4 questions" in text
    assert "not measured: nothing could be tested" in text
    assert "By facet nothing could be tested: 8 questions are too few" in text
    assert {"verdict-spectrum", "verdict-power", "verdict-cosines", "verdict-nulls"}.isdisjoint(drawn)
    assert {"sites", "sites-dimension-none", "sites-facet-none"} <= set(drawn)


def test_each_kind_of_study_draws_what_it_holds(pages: Mapping[str, Page]) -> None:
    _, _, drawn = pages["separable"]
    assert {"verdict-spectrum", "verdict-nulls", "verdict-cosines", "verdict-cosines-finer", "verdict-power"} <= set(
        drawn
    )
    assert {f"sites-{by}-{how}" for by in ("dimension", "facet") for how in ("none", "control")} <= set(drawn)
    assert "sites-dimension-control" not in pages["monolithic"][2]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_its_words_and_renders(pages: Mapping[str, Page], verdict: str) -> None:
    _, evidence, drawn = pages["monolithic"]
    seen = set()
    for qualifier in (*QUALIFIERS[verdict], "a qualifier of a later version"):
        found = changed(evidence, verdict=verdict, qualifier=qualifier)
        seen.add(means(found.verdict))
        assert ("turned round" in means(found.verdict)) == ("polarity" in (qualifier or ""))
        assert cannot_mean(found.verdict)
        assert "{" not in means(found.verdict) + cannot_mean(found.verdict) + cards_reading(found.verdict)
        assert ("nothing below was shown" in cards_reading(found.verdict)) == (verdict != "separable")
    assert len(seen) > 1 or verdict in {"no-shift", "separable"}
    page = render(changed(evidence, verdict=verdict, qualifier=QUALIFIERS[verdict][-1], provisional=False), drawn)
    heading = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert heading is not None
    assert verdict.replace("-", " ") in parsed(heading[0]).text.lower()
    assert "provisional" not in parsed(heading[0]).text
    assert f"<title>{word(changed(evidence, verdict=verdict, qualifier=QUALIFIERS[verdict][-1]).verdict)}" in page


def test_what_the_verdict_says_stands_on_the_page_in_its_order(pages: Mapping[str, Page]) -> None:
    _, evidence, drawn = pages["separable"]
    text = parsed(render(evidence, drawn)).text
    places = [text.index(reason) for reason in evidence.verdict.record["reasons"]]
    assert places == sorted(places)
    for item in evidence.verdict.record["sharpen"]:
        assert {item["what"] in text, item["why"] in text, item["cost"] in text} == {True}
    for item in evidence.verdict.record["missing"]:
        assert item["reason"] in text
    assert "1 question left out" in text
    assert "2 questions merged" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    order = ["How it was reached", "The numbers, and where each", "The rule's word at every", "All settings, seeds"]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)


def test_hostile_strings_are_text(pages: Mapping[str, Page]) -> None:
    _, evidence, others = pages["separable"]
    verdict = evidence.verdict
    fields: dict[str, Any] = {
        "qualifier": ATTACK,
        "reasons": [ATTACK],
        "missing": [{"test": ATTACK, "reason": ATTACK}],
        "sharpen": [{"what": ATTACK, "why": ATTACK, "cost": ATTACK}],
        "groups": {ATTACK: 3},
        "groups_left_out": {ATTACK: 2},
        "other_grouping": {**verdict.record["other_grouping"], "qualifier": ATTACK},
    }
    geometry = verdict.geometry.replace("financial_risk", ATTACK)
    found = replace(verdict, geometry=geometry, tests=verdict.tests.assign(note=ATTACK, test=ATTACK))
    found = replace(found, record={**verdict.record, **fields}, sites=verdict.sites.assign(qualifier=ATTACK))
    cards = [
        {**card, "label": ATTACK, "warning": ATTACK, "terms": [ATTACK], "facets": {ATTACK: 1}, "kind": ATTACK}
        for card in evidence.cards
    ]
    hostile = replace(evidence, verdict=found, cards=cards)
    page = render(hostile, Figures(others | finished(verdict_figures_of(found))))
    seen = parsed(page)
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert sum(tag == "script" for tag, _ in seen.elements) == 3
    assert not [name for _, attrs in seen.elements for name in attrs if name.startswith("on")]
    assert "{{ 7 * 7 }}" in seen.text
    assert re.fullmatch(r"[a-z0-9-]+", figure_name("../../x", '"><b>'))


def test_the_same_evidence_gives_the_same_page(pages: Mapping[str, Page]) -> None:
    folder, evidence, drawn = pages["pass-through"]
    again = read_evidence(folder)
    twice = finished(verdict_figures_of(again.verdict))
    assert twice == {name: drawn[name] for name in twice}
    assert render(again, drawn) == render(evidence, drawn)


@pytest.mark.parametrize("stage", ["verdict", "cards", "control"])
def test_a_missing_file_or_field_names_the_command(pages: Mapping[str, Page], tmp_path: Path, stage: str) -> None:
    name = {"verdict": "verdict.json", "cards": "cards.json", "control": "recipe.json"}[stage]
    folder = tmp_path / "study"
    shutil.copytree(pages["untestable"][0], folder)
    path = folder / stage / name
    held = read_json(path, rebuild="")
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name}.*--force {stage}"):
        read_evidence(folder)
    one = dict(held[0] if isinstance(held, list) else held)
    gone = sorted(set(one) & {"reasons", "terms", "kind"})[0]
    one.pop(gone)
    write_json(path, [one] if isinstance(held, list) else one)
    with pytest.raises(ArtifactError, match=rf"lacks the fields {gone}.*--force {stage}"):
        read_evidence(folder)
    shutil.rmtree(folder / stage)
    with pytest.raises(ArtifactError, match=f"stage '{stage}'.*has not been run"):
        read_evidence(folder)


@pytest.mark.parametrize("table", ["sites", "geometry", "tests", "power", "sensitivity"])
def test_a_missing_table_or_column_names_the_command(pages: Mapping[str, Page], tmp_path: Path, table: str) -> None:
    folder = tmp_path / "study"
    shutil.copytree(pages["untestable"][0], folder)
    path = folder / "verdict" / f"{table}.parquet"
    column = COLUMNS[f"verdict/{table}.parquet"][-1]
    pd.read_parquet(path).drop(columns=column).to_parquet(path)
    with pytest.raises(ArtifactError, match=rf"{table}\.parquet lacks the columns {column}.*--force verdict"):
        read_evidence(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{table}\.parquet.*--force verdict"):
        read_evidence(folder)


def test_a_record_that_does_not_fit_its_tables_is_refused(pages: Mapping[str, Page], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(pages["monolithic"][0], folder)
    path = folder / "verdict" / "verdict.json"
    held = read_json(path, rebuild="")
    write_json(path, held | {"numbers": held["numbers"] | {"rho": 0.5}})
    with pytest.raises(ArtifactError, match=r"sites\.parquet differ on rho.*--force verdict"):
        read_evidence(folder)
    write_json(path, held | {"numbers": held["numbers"] | {"rho": None}})
    with pytest.raises(ArtifactError, match="differ on rho"):
        read_evidence(folder)
    write_json(path, held | {"verdict": "proven"})
    with pytest.raises(ArtifactError, match="holds the verdict 'proven'"):
        read_evidence(folder)
    write_json(path, held | {"site": "blocks.99.hook_resid_pre"})
    with pytest.raises(ArtifactError, match="does not hold once"):
        read_evidence(folder)


def test_cards_show_what_the_stage_wrote(pages: Mapping[str, Page]) -> None:
    _, evidence, drawn = pages["separable"]
    shown = [card for group in groups(evidence.cards) for card in group.cards]
    assert sorted(card.name for card in shown) == sorted(str(card["component_id"]) for card in evidence.cards)
    held = {card["component_id"]: card for card in evidence.cards}
    for card in shown:
        facts, own = dict(card.facts), held[card.name]
        assert facts["stability"].startswith(fine(own["stability"]))
        strength = facts.get("strength") or facts["share of mean-shift energy"]
        assert strength == fine(own["strength"])
        assert f"n = {own['misalignment']['n']}" in facts["misalignment of carriers"]
        assert card.warning == (own["warning"] or "")
    assert dict(next(card for card in shown if card.name == "pc-1").facts)["stability"] == "not measured"
    assert [group.source for group in groups(evidence.cards)][-1] == "base"
    text = parsed(render(evidence, drawn)).text
    assert "a card is no evidence that its component is a sub-persona" in text


def test_a_card_without_scores_or_examples_prints_as_not_measured(pages: Mapping[str, Page]) -> None:
    card = dict(pages["separable"][1].cards[0])
    card |= {"misalignment": {"mean": None, "low": None, "high": None, "n": 0, "missing": 9}, "log_odds": None}
    card |= {"others_misalignment": None, "size": None, "strength": None, "examples": [], "terms": []}
    facts = dict(groups([card])[0].cards[0].facts)
    assert facts["misalignment of carriers"] == "not measured (n = 0, 9 missing)"
    assert facts["misalignment of the others"] == "no question"
    assert facts["persona log-odds"] == facts["strength"] == "not measured"


def test_eigenvalues_sum_to_one_and_give_rho(pages: Mapping[str, Page]) -> None:
    verdict = pages["separable"][1].verdict
    shares = eigenvalue_shares(verdict)
    assert sum(shares) == pytest.approx(1)
    assert 1 - shares[0] == pytest.approx(verdict.number("rho"))


def test_the_smallest_effect_of_interest_is_one_of_the_planted_ones(pages: Mapping[str, Page]) -> None:
    verdict = pages["separable"][1].verdict
    least = interest(verdict)
    assert least is not None
    assert least.effect == verdict.number(f"{least.scale}_star")
    multiples = sorted({round(row["multiple"], 6) for row in planted_rows(verdict)})
    assert multiples == [0.0, 0.25, 0.5, 1.0, 2.0]


def test_sites_are_put_in_order_of_layers_within_a_kind() -> None:
    sites = ["blocks.10.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]
    assert by_layer(sites) == [sites[1], sites[0], sites[2]]
    assert site_ticks(by_layer(sites)) == ["2 pre", "10 pre", "2 post"]
    assert site_ticks(sites[:2]) == ["10", "2"]


def test_tables_of_methods_stand_beside_base_and_organism(pages: Mapping[str, Page]) -> None:
    _, evidence, drawn = pages["untestable"]
    assert method_tables(evidence) == []
    rng = np.random.default_rng(0)
    columns = COLUMNS["decomposition/methods.parquet"]
    methods = pd.DataFrame(
        [
            {name: rng.random() for name in columns}
            | {"source": source, "site": SITES[1], "reducer": "pca50", "procedure": procedure}
            | key
            for procedure, sources in (("sweep", ("base", "organism", "shift")), ("reference", ("organism",)))
            for source in sources
            for key in ({"clusterer": "kmeans", "k": 3.0}, {"clusterer": "hdbscan", "k": np.nan})
        ]
    )
    methods.loc[0, "silhouette"] = np.nan
    selection = pd.DataFrame(
        [
            {"source": s, "site": SITES[1], "criterion": "gap", "k": 1, "value": 0.5, "se": 0.1, "chosen": s == "shift"}
            for s in ("shift", "base")
        ]
    )
    stability = pd.DataFrame(
        [
            {"source": "shift", "site": SITES[1], "clusterer": "kmeans", "k": 3, "measure": "jaccard", "cluster": c}
            | {"value": 0.2 * c}
            for c in (1, 2, 3)
        ]
    )
    held = replace(evidence, described={"methods": methods, "selection": selection, "stability": stability})
    tables = dict(method_tables(held))
    first = tables["every clustering in the space pca50: silhouette and AMI"]
    own = tables["the reference study's own procedure in the space pca50: silhouette and AMI"]
    assert [row.cells[2].count("/") for row in own.rows] == [0, 0]
    assert [row.cells[:2] for row in first.rows] == [("kmeans", "3"), ("hdbscan", "-")]
    assert first.rows[0].cells[2].endswith(" / -")
    assert "shift / organism / base" in first.caption
    assert tables["how many clusters: every criterion"].rows[0].cells == (
        "gap",
        "1",
        "0.500 ± 0.100 *",
        "0.500 ± 0.100",
    )
    assert tables["how stable clusters are"].rows[0].cells[-1] == "0.200 to 0.600"
    text = parsed(render(held, drawn)).text
    assert "They describe, and none decides." in text
