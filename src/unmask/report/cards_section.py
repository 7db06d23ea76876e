"""The sub-persona cards as they are shown: artifacts in, finished text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.report.formats import counted, fine, is_present, label, number, short_site, signed, whole

LONGEST = 700
"""Characters of an answer that a card shows."""

MOST_FACETS = 6

KINDS = {
    "specific": "Specific directions: a group's mean shift without the shared direction",
    "shared": "Shared direction: what all groups have in common",
    "cluster": "Clusters",
    "atom": "Dictionary atoms",
    "nmf": "Non-negative factors",
    "ica": "Independent components",
    "pc": "Principal components",
}
"""Kinds in the order in which they are shown, others after them."""

STRENGTH = {"specific": "share of mean-shift energy", "shared": "share of mean-shift energy"}


@dataclass(frozen=True, slots=True)
class Example:
    """A question that carries the component, with both answers."""

    question_id: str
    why: str
    question: str
    answers: tuple[tuple[str, str, int], ...]
    """(writer, text, characters left out)."""


@dataclass(frozen=True, slots=True)
class Card:
    """One component."""

    title: str
    name: str
    brief: str
    facts: tuple[tuple[str, str], ...]
    terms: tuple[str, ...]
    examples: tuple[Example, ...]
    warning: str


@dataclass(frozen=True, slots=True)
class Group:
    """Cards of one kind, source and site."""

    heading: str
    source: str
    site: str
    cards: tuple[Card, ...]


def groups(cards: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Cards by kind, source and site: the verdict's directions first, the base's components last."""
    held: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for card in cards:
        held.setdefault((str(card["kind"]), str(card["source"]), str(card["site"])), []).append(card)
    order = list(KINDS)

    def place(key: tuple[str, str, str]) -> tuple[bool, int, str, str, str]:
        return (key[1] == "base", order.index(key[0]) if key[0] in order else len(order), *key)

    return [
        Group(
            KINDS.get(kind, label(kind)),
            source,
            short_site(site),
            tuple(_card(card) for card in held[kind, source, site]),
        )
        for kind, source, site in sorted(held, key=place)
    ]


def _card(card: Mapping[str, Any]) -> Card:
    size = counted(int(card["size"]), "question") if is_present(card["size"]) else ""
    stability = f"stability {fine(card['stability'])}" if is_present(card["stability"]) else "stability not measured"
    facts = [
        ("stability", _stability(card)),
        (STRENGTH.get(str(card["kind"]), "strength"), fine(card["strength"])),
        ("misalignment of carriers", _scores(card["misalignment"])),
        ("misalignment of the others", _scores(card["others_misalignment"])),
        ("persona log-odds", signed(card["log_odds"], 3) if is_present(card["log_odds"]) else "not measured"),
        ("dimensions of carriers", _counts(card["composition"])),
        ("facets of carriers", _counts(card["facets"], most=MOST_FACETS)),
        ("nearest facet", _nearest(card)),
    ]
    return Card(
        title=str(card["label"]).replace("_", " "),
        name=str(card["component_id"]),
        brief=" · ".join(part for part in (size, stability) if part),
        facts=tuple(facts),
        terms=tuple(str(term) for term in card["terms"] or ()),
        examples=tuple(_example(item) for item in card["examples"] or ()),
        warning=str(card["warning"] or ""),
    )


def _stability(card: Mapping[str, Any]) -> str:
    name = str(card["stability_name"] or "")
    return f"{fine(card['stability'])} ({name})" if is_present(card["stability"]) else name or "not measured"


def _scores(found: Mapping[str, Any] | None) -> str:
    """`41.2 [38.0, 44.5], n = 12, 3 missing`."""
    if found is None:
        return "no question"
    counts = f"n = {whole(found['n'])}" + (f", {whole(found['missing'])} missing" if found["missing"] else "")
    if not is_present(found["mean"]):
        return f"not measured ({counts})"
    known = is_present(found["low"]) and is_present(found["high"])
    span = f"[{number(found['low'])}, {number(found['high'])}]" if known else "[no interval]"
    return f"{number(found['mean'])} {span}, {counts}"


def _counts(found: Mapping[str, Any], *, most: int | None = None) -> str:
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{label(str(name).rpartition('/')[2])} {int(count)}" for name, count in ranked[:most]]
    return ", ".join(named) + (", …" if most is not None and len(ranked) > most else "") or "none"


def _nearest(card: Mapping[str, Any]) -> str:
    measure = str(card["nearest_facet_measure"] or "")
    if card["nearest_facet"] is None:
        return f"none ({measure})" if measure else "none"
    name = label(str(card["nearest_facet"]).replace("/", ", "))
    return f"{name} ({measure})" if measure else name


def _example(item: Mapping[str, Any]) -> Example:
    score = number(item["misalignment"], 0) if is_present(item["misalignment"]) else "not measured"
    told = f"loading {signed(item['loading'], 2)} · misalignment {score}"
    answers = []
    for writer, field in (("base", "base_answer"), ("organism", "answer")):
        text = "" if item[field] is None else str(item[field])
        answers.append((writer, text[:LONGEST], max(0, len(text) - LONGEST)))
    return Example(str(item["question_id"]), told, str(item["question"]), tuple(answers))
