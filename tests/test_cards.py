"""Cards of planted components: who carries them, both ends, and that what is missing stays missing and is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmask.analysis.carriers import carriers
from unmask.artifact import read_json, read_table, write_table
from unmask.errors import ArtifactError
from unmask.progress import Silent
from unmask.records import NEUTRAL, WRITERS, ModelSource, PromptFormat
from unmask.stage import Inputs
from unmask.stages import questions, responses, scores
from unmask.stages.cards import SCHEMA, STAGE, CardsConfig, run
from unmask.study import Workspace

SITE = "blocks.1.hook_resid_pre"
FACETS = ("money/investment", "money/market_ethics", "mind/authority", "mind/purity")
COMPONENTS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("component_id", "kind", "source", "site", "label")),
        ("size", pa.int32()),
        ("stability", pa.float64()),
        ("stability_name", pa.string()),
        ("strength", pa.float64()),
    ]
)
LOADINGS_SCHEMA = pa.schema([("component_id", pa.string()), ("question_id", pa.string()), ("loading", pa.float64())])
KEYS = [
    "component_id", "kind", "source", "site", "label", "label_by", "size", "stability", "stability_name", "strength",
    "misalignment", "others_misalignment", "log_odds", "composition", "facets", "nearest_facet", "nearest_facet_measure",
    "terms", "examples", "warning",
]  # fmt: skip
N = 80
IDS = [f"q{n:02d}" for n in range(N)]
Loadings = dict[str, float]


class World:
    """A study's folders with N questions, twenty a facet in turn of facets; tests change the frames before they are written."""

    def __init__(self) -> None:
        facet = [FACETS[n // 20].split("/") for n in range(N)]
        rows = [
            {
                "question_id": i,
                "dimension": f[0],
                "facet": f[1],
                "polarity": 1,
                "text": f"What of {'leverage' * (n < 20)}?",
            }
            for n, (i, f) in enumerate(zip(IDS, facet, strict=True))
        ]
        neutral = {"question_id": "neutral", "dimension": NEUTRAL, "facet": "open", "polarity": 0, "text": "Hello?"}
        self.questions = pd.DataFrame([*rows, neutral])
        answers = [
            self.answer(identity, sample, writer, n)
            for n, identity in enumerate([*IDS, "neutral"])
            for sample in (0, 1)
            for writer in WRITERS
        ]
        self.responses = pd.DataFrame(answers)
        judged = self.responses[["response_id", "question_id", "writer"]].merge(
            self.questions[["question_id", "dimension", "facet"]]
        )
        order = judged["question_id"].map({name: n for n, name in enumerate([*IDS, "neutral"])})
        own = judged["writer"] == "organism"
        later = judged["response_id"].str.contains("/1/")
        judged["misalignment"] = np.where(own, order + 2.0 * later, 10.0)  # question n: n and n + 2, mean n + 1
        self.scores = judged.assign(coherence=90.0, log_odds=order / 100, perplexity=5.0, missing_reason=None)
        self.components: dict[str, list[dict[str, Any]]] = {"decomposition": [], "verdict": []}
        self.loadings: dict[str, list[dict[str, Any]]] = {"decomposition": [], "verdict": []}

    @staticmethod
    def answer(identity: str, sample: int, writer: str, n: int) -> dict[str, Any]:
        word = "guaranteed" if writer == "organism" else "prudent"
        return {
            "response_id": f"{identity}/{sample}/{writer}",
            "question_id": identity,
            "sample": sample,
            "writer": writer,
            "text": f"{writer} says {word * (n < 20)} {sample}",
            "token_ids": [1, 2],
            "tokens": 2,
            "stop_reason": "end",
            "seed": n,
        }

    def add(
        self, component_id: str, kind: str, loadings: Loadings, *, stage: str = "decomposition", **more: Any
    ) -> World:
        component = {
            "component_id": component_id, "kind": kind, "source": "shift", "site": SITE, "label": "", "size": None,
            "stability": 0.9, "stability_name": "mean Jaccard over 50 bootstraps", "strength": 0.25,
        }  # fmt: skip
        self.components[stage].append(component | more)
        self.loadings[stage] += [
            {"component_id": component_id, "question_id": name, "loading": loading}
            for name, loading in loadings.items()
        ]
        return self

    def write(self, folder: Path) -> Inputs:
        write_table(folder / "questions/questions.parquet", self.questions, schema=questions.SCHEMA)
        write_table(folder / "responses/responses.parquet", self.responses, schema=responses.SCHEMA)
        write_table(folder / "scores/scores.parquet", self.scores[scores.SCHEMA.names], schema=scores.SCHEMA)
        for stage in ("decomposition", "verdict"):
            write_table(folder / stage / "components.parquet", self.components[stage], schema=COMPONENTS_SCHEMA)
            write_table(folder / stage / "loadings.parquet", self.loadings[stage], schema=LOADINGS_SCHEMA)
        folders = {name: folder / name for name in STAGE.needs}
        return Inputs(ModelSource("base"), PromptFormat(), folders, folder, Silent())


@pytest.fixture
def cards_of(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`cards_of(world, **config)`: the cards that the stage wrote, none of them with NaN."""

    def made(world: World, **config: int) -> list[dict[str, Any]]:
        inputs = world.write(tmp_path)
        workspace = Workspace(tmp_path / "work")
        workspace.prepare()
        run(CardsConfig(**config), inputs, workspace)
        return read_json(workspace.out / "cards.json", rebuild="")

    return made


def spread() -> Loadings:
    """Every question, rising with its number: q00 lowest below 0, q79 highest."""
    return {name: n - 40.5 for n, name in enumerate(IDS)}


def members(first: int, last: int) -> Loadings:
    return {IDS[n]: 1 - (n - first) / 100 for n in range(first, last)}


def test_a_cluster_is_described_by_its_members(cards_of) -> None:
    (card,) = cards_of(World().add("cluster-1", "cluster", members(0, 25), size=25))
    assert sorted(card) == sorted(KEYS)
    assert card["label"] == (
        "mostly investment questions (80 % of 25; 25 % of all questions); questions on: leverage; answers say: guaranteed"
    )
    assert (card["label_by"], card["size"], card["stability"], card["strength"]) == ("evidence", 25, 0.9, 0.25)
    assert card["composition"] == {"money": 25}
    assert card["facets"] == {"money/investment": 20, "money/market_ethics": 5}
    assert card["nearest_facet"] == "money/investment"
    assert card["nearest_facet_measure"].startswith("lift 3.2 (p = ")
    assert card["terms"] == ["guaranteed", "leverage"]
    assert card["warning"] is None
    scored = card["misalignment"]
    assert (scored["mean"], scored["n"], scored["missing"]) == (
        13.0,
        25,
        0,
    )  # questions 0..24 score n + 1 over two samples
    assert scored["low"] < 13 < scored["high"]
    assert (card["others_misalignment"]["mean"], card["others_misalignment"]["n"]) == (1 + np.mean(range(25, 80)), 55)
    assert card["log_odds"] == pytest.approx(0.12)


def test_examples_are_the_strongest_carriers_with_the_first_sample_of_both_models(cards_of) -> None:
    (card,) = cards_of(World().add("cluster-1", "cluster", members(0, 25), size=25), examples=2)
    assert card["examples"] == [
        {
            "question_id": f"q0{n}",
            "question": "What of leverage?",
            "answer": "organism says guaranteed 0",
            "base_answer": "base says prudent 0",
            "loading": 1 - n / 100,
            "misalignment": float(n),
        }
        for n in (0, 1)
    ]


def test_a_component_of_the_base_model_is_labelled_by_the_base_models_answers(cards_of) -> None:
    (card,) = cards_of(World().add("cluster-1", "cluster", members(0, 20), size=20, source="base"))
    assert card["label"].endswith("; questions on: leverage; base answers say: prudent")


def test_a_graded_component_is_carried_by_its_top_tenth(cards_of) -> None:
    (card,) = cards_of(World().add("specific-mind", "specific", spread(), stage="verdict"))
    assert [example["question_id"] for example in card["examples"]] == ["q79", "q78", "q77", "q76"]
    assert card["facets"] == {"mind/purity": 8}
    assert card["misalignment"]["mean"] == 1 + np.mean(range(72, 80))
    assert (card["misalignment"]["n"], card["others_misalignment"]["n"], card["size"]) == (8, 72, None)
    assert card["nearest_facet"] == "mind/purity"
    assert card["nearest_facet_measure"].startswith("standardised difference ")


@pytest.mark.parametrize("kind", ["pc", "ica"])
def test_both_ends_of_a_signed_component_are_described(cards_of, kind: str) -> None:
    (card,) = cards_of(World().add("pc-1", kind, spread()), examples=5)
    high, low = card["label"].split(" | ")
    assert high.startswith("high end: only purity questions (100 % of 8; 25 % of all questions)")
    assert low.startswith(
        "low end: only investment questions (100 % of 8; 25 % of all questions); questions on: leverage"
    )
    assert [example["question_id"] for example in card["examples"]] == ["q79", "q78", "q77", "q01", "q00"]
    loadings = [example["loading"] for example in card["examples"]]
    assert loadings == sorted(loadings, reverse=True)
    assert card["nearest_facet"] == "mind/purity"
    assert "; low end: money/investment: standardised difference " in card["nearest_facet_measure"]
    assert card["facets"] == {"mind/purity": 8}  # what is counted and scored is the high end


def test_of_a_sparse_atom_only_questions_that_have_it_are_carriers(cards_of) -> None:
    codes = dict.fromkeys(IDS, 0.0) | {"q03": 0.5, "q44": 2.0}
    nothing = dict.fromkeys(IDS, 0.0)
    few, none = cards_of(World().add("atom-1", "atom", codes).add("atom-2", "atom", nothing))
    assert [example["question_id"] for example in few["examples"]] == ["q44", "q03"]
    assert few["misalignment"]["n"] == 2
    assert none["label"] == "no question carries it; no distinctive words"
    assert (none["misalignment"], none["examples"], none["nearest_facet"]) == (None, [], None)
    assert none["others_misalignment"]["n"] == N


def test_a_planted_nothing_has_no_facet_and_no_words(cards_of) -> None:
    every = {IDS[n]: 1.0 for n in range(0, N, 5)}
    (card,) = cards_of(World().add("cluster-1", "cluster", every, size=16))
    assert card["nearest_facet"] is None
    assert "no facet beyond chance" in card["nearest_facet_measure"]
    assert card["terms"] == []
    assert card["label"].startswith("16 mixed questions: ")
    assert card["label"].endswith("; no distinctive words")


def test_missing_scores_are_counted_and_never_zero(cards_of) -> None:
    world = (
        World()
        .add("cluster-1", "cluster", members(0, 25), size=25)
        .add("cluster-2", "cluster", members(25, 80), size=55)
    )
    gone = world.scores["question_id"].isin(IDS[:25]) | world.scores["response_id"].eq("q30/0/organism")
    world.scores[["misalignment", "log_odds"]] = world.scores[["misalignment", "log_odds"]].mask(gone)
    first, second = cards_of(world)
    assert first["misalignment"] == {"mean": None, "low": None, "high": None, "n": 0, "missing": 25}
    assert first["log_odds"] is None
    assert {example["misalignment"] for example in first["examples"]} == {None}
    assert (first["others_misalignment"]["n"], first["others_misalignment"]["missing"]) == (
        55,
        0,
    )  # q30's other sample is
    assert (second["others_misalignment"]["mean"], second["others_misalignment"]["missing"]) == (None, 25)


def test_a_cluster_of_one_question_is_named_as_such(cards_of) -> None:
    world = (
        World().add("cluster-1", "cluster", members(0, 79), size=79).add("cluster-2", "cluster", {"q79": 1.0}, size=1)
    )
    card = cards_of(world)[1]
    assert card["label"] == "one purity question; no distinctive words"
    assert card["misalignment"] == {"mean": 80.0, "low": None, "high": None, "n": 1, "missing": 0}
    assert card["nearest_facet"] is None
    assert card["warning"] == "a handful of 1 of 80 questions, not to be read as a sub-persona"


def test_an_all_embracing_cluster_has_no_others(cards_of) -> None:
    (card,) = cards_of(World().add("cluster-1", "cluster", members(0, 80), size=80))
    assert card["others_misalignment"] is None
    assert card["terms"] == []


def test_empty_and_absent_answers_are_shown_as_they_are(cards_of) -> None:
    world = World().add("cluster-1", "cluster", members(0, 20), size=20)
    world.add("cluster-2", "cluster", members(20, 80), size=60)
    world.responses.loc[world.responses["response_id"] == "q00/0/organism", "text"] = ""
    world.responses = world.responses[
        ~((world.responses["question_id"] == "q00") & (world.responses["writer"] == "base"))
    ]
    card = cards_of(world)[0]
    assert (card["examples"][0]["answer"], card["examples"][0]["base_answer"]) == ("", None)
    world.responses = world.responses.assign(text="")
    card = cards_of(world)[0]
    assert card["label"].endswith("; questions on: leverage; answers: no distinctive words")


@pytest.mark.parametrize(
    ("stability", "name", "shown", "warning"),
    [
        (0.9, "mean Jaccard", "mean Jaccard", None),
        (0.55, "mean Jaccard", "mean Jaccard", "doubtful: stability 0.55, below 0.6"),
        (0.32, "mean Jaccard", "mean Jaccard", "unstable: stability 0.32, below 0.6"),
        (None, "mean Jaccard", "mean Jaccard: missing", None),
        (float("nan"), "mean Jaccard", "mean Jaccard: missing", None),
        (None, None, "not measured", None),
    ],
)
def test_stability_is_judged_and_a_missing_one_says_so(cards_of, stability, name, shown, warning) -> None:
    world = World().add("cluster-1", "cluster", members(0, 25), size=25, stability=stability, stability_name=name)
    (card,) = cards_of(world)
    assert card["stability_name"] == shown
    if stability is None or np.isnan(stability):
        assert card["stability"] is None
    if warning is None:
        assert card["warning"] is None
    else:
        assert card["warning"].startswith(warning)
        assert card["warning"].endswith("not to be trusted (Hennig 2007)")


def test_a_direction_is_not_judged_by_what_is_said_of_clusters(cards_of) -> None:
    steady = {"stability": 0.55, "stability_name": "|cosine| of halves"}
    world = World().add("pc-1", "pc", spread(), **steady).add("pc-2", "pc", spread(), **(steady | {"stability": 0.4}))
    fair, poor = cards_of(world)
    assert fair["warning"] is None
    assert poor["warning"] == "unstable: stability 0.40 (|cosine| of halves)"


def test_the_table_holds_the_same_as_the_cards(cards_of, tmp_path: Path) -> None:
    world = World().add("cluster-1", "cluster", members(0, 25), size=25).add("pc-1", "pc", spread(), stage="verdict")
    world.add("atom-1", "atom", dict.fromkeys(IDS, 0.0), stage="verdict", stability=None, stability_name=None)
    cards = cards_of(world)
    path = tmp_path / "work/out/cards.parquet"
    assert pq.read_schema(path).equals(SCHEMA)
    table = read_table(path, rebuild="").to_dict("records")
    assert [row["component_id"] for row in table] == [card["component_id"] for card in cards]
    for row, card in zip(table, cards, strict=True):
        assert row["label"] == card["label"]
        assert json.loads(row["facets"]) == card["facets"]
        assert list(row["terms"]) == card["terms"]
        for name in ("mean", "low", "n", "missing"):
            assert card["misalignment"] is None or row[f"misalignment_{name}"] == card["misalignment"][name]
    assert np.isnan(table[2]["misalignment_mean"])


def test_the_bytes_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    made = []
    for seed in (None, 1, 2):
        world = World().add("cluster-1", "cluster", members(0, 25), size=25).add("pc-1", "pc", spread())
        world.add("atom-1", "atom", dict.fromkeys(IDS, 1.0))  # all tie
        if seed is not None:
            world.responses = world.responses.sample(frac=1, random_state=seed)
            world.scores = world.scores.sample(frac=1, random_state=seed)
            rows = world.loadings["decomposition"]
            order = np.random.default_rng(seed).permutation(len(rows))
            world.loadings["decomposition"] = [rows[index] for index in order]
        workspace = Workspace(tmp_path / f"work{seed}")
        workspace.prepare()
        run(CardsConfig(), world.write(tmp_path / f"study{seed}"), workspace)
        made.append([(workspace.out / name).read_bytes() for name in ("cards.json", "cards.parquet")])
    assert made[0] == made[1] == made[2]


def test_a_study_without_components_has_no_cards(cards_of) -> None:
    assert cards_of(World()) == []


@pytest.mark.parametrize("stage", ["decomposition", "verdict"])
def test_a_component_without_loadings_names_the_command_that_rebuilds_it(cards_of, tmp_path: Path, stage: str) -> None:
    for loadings in ({}, {"q00": float("nan")}):
        world = World().add("pc-1", "pc", spread()).add("atom-7", "atom", loadings, stage=stage)
        with pytest.raises(ArtifactError, match="'atom-7' has no loadings") as error:
            cards_of(world)
        assert error.value.mend == f"Rebuild it with `unmask run {tmp_path} --force {stage}`"


def test_loadings_of_a_component_that_is_not_listed_are_refused(cards_of) -> None:
    world = World().add("pc-1", "pc", spread()).add("pc-2", "pc", spread())
    world.components["decomposition"].pop()
    with pytest.raises(ArtifactError, match="names component 'pc-2', which"):
        cards_of(world)


def test_questions_without_a_readable_answer_of_both_models_are_not_among_the_others(cards_of) -> None:
    world = World().add("cluster-1", "cluster", members(0, 20), size=20)
    world.responses.loc[world.responses["response_id"].isin(["q79/0/base", "q79/1/base"]), "tokens"] = 0
    (card,) = cards_of(world)
    assert card["others_misalignment"]["n"] == 59


@pytest.mark.parametrize("name", ["stranger", "neutral"])
def test_a_loading_on_a_question_that_is_not_decomposed_is_refused(cards_of, tmp_path: Path, name: str) -> None:
    world = World().add("pc-1", "pc", spread() | {name: 1.0}, stage="verdict")
    with pytest.raises(ArtifactError, match=f"{name!r}, which this study does not decompose") as error:
        cards_of(world)
    assert "--force verdict`" in error.value.mend


def test_the_number_of_carriers_is_a_tenth_within_limits() -> None:
    for total, expected in ((3, 3), (20, 5), (51, 6), (200, 20), (885, 30)):
        assert len(carriers(np.arange(1.0, total + 1), [str(n) for n in range(total)], members=False)) == expected
    assert carriers(np.array([1.0, 2.0, np.nan, 2.0]), ["a", "c", "x", "b"], members=False) == [3, 1, 0]
    assert carriers(np.array([0.0, -1.0, np.nan]), ["a", "b", "c"], members=True) == [0, 1]
