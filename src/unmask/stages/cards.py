"""Stage `cards`: what each component consists of, from its own evidence: who carries it, how they score, what they say.

A card describes; whether there are sub-personas at all is the verdict's to say.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from unmask.analysis.carriers import carriers
from unmask.analysis.clustering import is_outlier_group
from unmask.analysis.facets import NearestFacet, nearest_by_loadings, nearest_by_members
from unmask.analysis.intervals import mean_interval
from unmask.analysis.labelling import Term, Vocabulary, composition_words, distinctive_terms, label, ranked, vocabulary
from unmask.artifact import read_table, write_json, write_table
from unmask.errors import ArtifactError
from unmask.records import NEUTRAL, WRITERS, Writer
from unmask.stage import Inputs, Result, Stage, StageConfig
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

Card = dict[str, Any]
SIGNED = ("pc", "ica")
"""Kinds whose both ends mean something; the sign of the others is fixed."""

UNSTABLE, NOT_TO_BE_TRUSTED = 0.5, 0.6
"""Hennig (2007), as in R's fpc: a cluster below 0.5 is dissolved, one below 0.6 should not be trusted."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("component_id", "kind", "source", "site", "label", "label_by")),
        ("size", pa.int32()),
        ("stability", pa.float64()),
        ("stability_name", pa.string()),
        ("strength", pa.float64()),
        *(
            (f"{whose}{name}", pa.int32() if name in ("n", "missing") else pa.float64())
            for whose in ("misalignment_", "others_misalignment_")
            for name in ("mean", "low", "high", "n", "missing")
        ),
        ("log_odds", pa.float64()),
        *((name, pa.string()) for name in ("composition", "facets", "nearest_facet", "nearest_facet_measure")),
        ("terms", pa.list_(pa.string())),
        ("warning", pa.string()),
    ]
)


class CardsConfig(StageConfig):
    """What a card shows."""

    examples: int = Field(4, ge=1, description="questions and answers on a card, those that carry it most")
    terms: int = Field(8, ge=1, description="distinctive words on a card, at most")
    seed: int = Field(0, description="of the intervals and permutations")


@dataclass(frozen=True)
class Corpus:
    """The N questions that are decomposed, in their order, with what both models said and how it scored.

    `answers` are of each question's first sample; `misalignment_N` and `log_odds_N` the organism's means over samples.
    """

    questions: pd.DataFrame
    answers: dict[Writer, dict[str, dict[str, Any]]]
    misalignment_N: np.ndarray
    log_odds_N: np.ndarray

    @cached_property
    def row(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.questions["question_id"])}

    @cached_property
    def facets_N(self) -> np.ndarray:
        return (self.questions["dimension"] + "/" + self.questions["facet"]).to_numpy(dtype=str)

    @cached_property
    def asked(self) -> Vocabulary:
        return vocabulary([str(text) for text in self.questions["text"]])

    @cached_property
    def said(self) -> dict[Writer, Vocabulary]:
        return {
            writer: vocabulary([str(self.answers[writer].get(name, {}).get("text") or "") for name in self.row])
            for writer in WRITERS
        }


@dataclass(frozen=True, slots=True)
class End:
    """The questions that carry one end of a component, strongest first, and what they are made of, in words."""

    rows: list[int]
    members_N: np.ndarray
    nearest: NearestFacet
    terms: list[Term]
    label: str


def run(config: CardsConfig, inputs: Inputs, workspace: Workspace) -> Result:
    found = [(stage, *_read_components(inputs, stage)) for stage in ("decomposition", "verdict")]
    corpus = _corpus(inputs, [set(loadings["question_id"]) for _, _, loadings in found])
    cards: list[Card] = []
    inputs.progress.begin("describing components", total=sum(len(components) for _, components, _ in found))
    for stage, components, loadings in found:
        _refuse_unnamed(inputs, stage, set(loadings["component_id"]) - set(components["component_id"]))
        parts = dict(tuple(loadings.dropna(subset="loading").groupby("component_id", sort=False)))
        for component in components.to_dict("records"):
            part = parts.get(component["component_id"])
            if part is None:
                raise ArtifactError(
                    f"component {component['component_id']!r} has no loadings in {inputs.folders[stage]}/loadings.parquet",
                    mend=f"Rebuild it with `{inputs.rebuild} {stage}`",
                )
            values_N = np.full(len(corpus.row), np.nan)
            values_N[[corpus.row[name] for name in part["question_id"]]] = part["loading"]
            cards.append(describe(component, values_N, corpus, config))
            inputs.progress.advance()
    inputs.progress.end()
    write_json(workspace.out / "cards.json", cards)
    write_table(workspace.out / "cards.parquet", [_flat(card) for card in cards], schema=SCHEMA)
    return Result(
        {
            "cards": len(cards),
            "by_kind": dict(sorted(Counter(card["kind"] for card in cards).items())),
            "with_a_nearest_facet": sum(card["nearest_facet"] is not None for card in cards),
            "with_a_warning": sum(card["warning"] is not None for card in cards),
        }
    )


def describe(component: dict[str, Any], loadings_N: np.ndarray, corpus: Corpus, config: CardsConfig) -> Card:
    """One card. `loadings_N` is NaN where the component says nothing of a question (for a cluster: no member)."""
    kind = str(component["kind"])
    ends = [_end(component, loadings_N, corpus, config)]
    if kind in SIGNED:
        ends.append(_end(component, -loadings_N, corpus, config))
    first = ends[0]
    inside = corpus.questions[first.members_N]
    terms = sorted(first.terms, key=lambda term: (-term.z, term.text))
    stability, strength = _number(component["stability"]), _number(component["strength"])
    return {
        **{name: str(component[name]) for name in ("component_id", "kind", "source", "site")},
        "label": first.label if len(ends) == 1 else f"high end: {first.label} | low end: {ends[1].label}",
        "label_by": "evidence",
        "size": None if _number(component["size"]) is None else int(component["size"]),
        "stability": stability,
        "stability_name": _stability_name(component["stability_name"], stability),
        "strength": strength,
        "misalignment": _scores(corpus.misalignment_N[first.members_N], config.seed),
        "others_misalignment": _scores(corpus.misalignment_N[~first.members_N], config.seed),
        "log_odds": _mean(corpus.log_odds_N[first.members_N]),
        "composition": dict(ranked(Counter(inside["dimension"].astype(str)))),
        "facets": dict(ranked(Counter(str(name) for name in corpus.facets_N[first.members_N]))),
        "nearest_facet": first.nearest.facet,
        "nearest_facet_measure": "; low end: ".join(
            [first.nearest.measure, *(_measure(end.nearest) for end in ends[1:])]
        ),
        "terms": list(dict.fromkeys(term.text for term in terms))[: config.terms],
        "examples": _examples(ends, loadings_N, corpus, config.examples),
        "warning": _warning(component, stability, len(corpus.row)),
    }


def _end(component: dict[str, Any], loadings_N: np.ndarray, corpus: Corpus, config: CardsConfig) -> End:
    cluster = component["kind"] == "cluster"
    rows = carriers(loadings_N, list(corpus.row), members=cluster)
    members_N = np.zeros(len(corpus.row), dtype=bool)
    members_N[rows] = True
    if cluster:
        nearest = nearest_by_members(corpus.facets_N, members_N)
    else:
        known_N = ~np.isnan(loadings_N)
        rng = np.random.default_rng(config.seed)
        nearest = nearest_by_loadings(corpus.facets_N[known_N], loadings_N[known_N], rng=rng)
    writer: Writer = "base" if component["source"] == "base" else "organism"
    asked = distinctive_terms(corpus.asked, members_N, most=config.terms)
    said = distinctive_terms(corpus.said[writer], members_N, most=config.terms)
    composition = composition_words(Counter(corpus.facets_N[members_N].tolist()), Counter(corpus.facets_N.tolist()))
    text = label(
        composition,
        [term.text for term in asked[:3]],
        [term.text for term in said[:3]],
        writer="base" if writer == "base" else "",
    )
    return End(rows, members_N, nearest, asked + said, text)


def _measure(nearest: NearestFacet) -> str:
    """With the facet's name, for an end that has no field of its own."""
    return nearest.measure if nearest.facet is None else f"{nearest.facet}: {nearest.measure}"


def _examples(ends: list[End], loadings_N: np.ndarray, corpus: Corpus, count: int) -> list[Card]:
    """The strongest carriers; of a signed component the larger half from the high end, the rest from the low end."""
    high = ends[0].rows[: count if len(ends) == 1 else (count + 1) // 2]
    low = ends[1].rows[: count // 2][::-1] if len(ends) > 1 else []
    questions = corpus.questions.to_dict("records")
    out = []
    for row in [*high, *low]:
        identity = str(questions[row]["question_id"])
        own = corpus.answers["organism"].get(identity, {})
        out.append(
            {
                "question_id": identity,
                "question": str(questions[row]["text"]),
                "answer": own.get("text"),
                "base_answer": corpus.answers["base"].get(identity, {}).get("text"),
                "loading": float(loadings_N[row]),
                "misalignment": _number(own.get("misalignment")),
            }
        )
    return out


def _scores(values: np.ndarray, seed: int) -> Card | None:
    """The mean over questions with its interval; null where nothing is scored, and altogether where there is no question."""
    if values.size == 0:
        return None
    scored = int((~np.isnan(values)).sum())
    counts = {"n": scored, "missing": int(values.size) - scored}
    if scored == 0:
        return {"mean": None, "low": None, "high": None, **counts}
    interval = mean_interval(values, rng=np.random.default_rng(seed))
    return {name: _number(getattr(interval, name)) for name in ("mean", "low", "high")} | counts


def _stability_name(name: object, stability: float | None) -> str:
    measured = isinstance(name, str) and name != ""
    if stability is not None:
        return str(name) if measured else "measure not named"
    return f"{name}: missing" if measured else "not measured"


def _warning(component: dict[str, Any], stability: float | None, questions: int) -> str | None:
    told = []
    size = _number(component["size"])
    if component["kind"] == "cluster" and size is not None and is_outlier_group(int(size), total=questions):
        told.append(f"a handful of {int(size)} of {questions} questions, not to be read as a sub-persona")
    if component["kind"] != "cluster":
        if stability is not None and stability < UNSTABLE:
            told.append(f"unstable: stability {stability:.2f} ({component['stability_name']})")
    elif stability is not None and stability < NOT_TO_BE_TRUSTED:
        limit = f"below {NOT_TO_BE_TRUSTED:.1f} a cluster is not to be trusted (Hennig 2007)"
        told.append(f"{'unstable' if stability < UNSTABLE else 'doubtful'}: stability {stability:.2f}, {limit}")
    return "; ".join(told) or None


def _read_components(inputs: Inputs, stage: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    rebuild = f"{inputs.rebuild} {stage}"
    folder: Path = inputs.folders[stage]
    components = read_table(folder / "components.parquet", rebuild=rebuild)
    return components, read_table(folder / "loadings.parquet", rebuild=rebuild)


def _refuse_unnamed(inputs: Inputs, stage: str, unnamed: set[str]) -> None:
    if unnamed:
        raise ArtifactError(
            f"{inputs.folders[stage]}/loadings.parquet names component {min(unnamed)!r}, which components.parquet lacks",
            mend=f"Rebuild it with `{inputs.rebuild} {stage}`",
        )


def _corpus(inputs: Inputs, named: list[set[str]]) -> Corpus:
    """The questions with a readable answer of both models, their first answers and scores.

    Raises ArtifactError for a loading on a question that is not decomposed.
    """
    folders, rebuild = inputs.folders, inputs.rebuild
    questions = read_table(folders["questions"] / "questions.parquet", rebuild=f"{rebuild} questions")
    responses = read_table(folders["responses"] / "responses.parquet", rebuild=f"{rebuild} responses")
    scores = read_table(folders["scores"] / "scores.parquet", rebuild=f"{rebuild} scores")
    known = set(questions.loc[questions["dimension"] != NEUTRAL, "question_id"])
    for stage, names in zip(("decomposition", "verdict"), named, strict=True):
        if names - known:
            raise ArtifactError(
                f"{folders[stage]}/loadings.parquet names question {min(names - known)!r}, which this study does not decompose",
                mend=f"Rebuild it with `{rebuild} {stage}`",
            )
    readable = responses[responses["tokens"] > 0].groupby("question_id")["writer"].nunique()
    decomposed = (set(readable.index[readable == len(WRITERS)]) & known).union(*named)
    questions = questions[questions["question_id"].isin(decomposed)].reset_index(drop=True)
    means = scores[scores["writer"] == "organism"].groupby("question_id")[["misalignment", "log_odds"]].mean()
    own = means.reindex(questions["question_id"])
    first = (
        responses[responses["tokens"] > 0]
        .sort_values(["question_id", "sample"], kind="stable")
        .drop_duplicates(["question_id", "writer"])
    )
    first = first.merge(scores[["response_id", "misalignment"]], on="response_id", how="left")
    answers: dict[Writer, dict[str, dict[str, Any]]] = {}
    for writer in WRITERS:
        written = first[first["writer"] == writer]
        answers[writer] = written.set_index("question_id")[["text", "misalignment"]].to_dict("index")
    misalignment_N, log_odds_N = (own[name].to_numpy(dtype=float) for name in ("misalignment", "log_odds"))
    return Corpus(questions, answers, misalignment_N, log_odds_N)


def _flat(card: Card) -> Card:
    """A card as one row: intervals in columns of their own, counts as JSON, no examples."""
    row = {name: card[name] for name in SCHEMA.names if name in card}
    for whose in ("misalignment", "others_misalignment"):
        row |= {f"{whose}_{name}": value for name, value in (card[whose] or {}).items()}
    return row | {
        name: json.dumps(card[name], sort_keys=True, ensure_ascii=False) for name in ("composition", "facets")
    }


def _mean(values: np.ndarray) -> float | None:
    return _number(np.nanmean(values)) if (~np.isnan(values)).any() else None


def _number(value: Any) -> float | None:
    """None for a missing number, whether None, NaN or pandas' own."""
    import pandas as pd

    return None if pd.isna(value) else float(value)


STAGE = Stage(
    "cards",
    "describe the components",
    1,
    CardsConfig,
    ("questions", "responses", "scores", "decomposition", "verdict"),
    False,
    run,
)
