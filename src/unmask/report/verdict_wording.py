"""The verdict in sentences: what it means, what it cannot mean, and what the clusters cannot decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.report.formats import counted, fine, label, short_site, whole
from unmask.report.verdict_evidence import NOT_TESTABLE, VerdictEvidence

EXPLAINED = "docs/verdict.md"
"""Where the tests and the rule are explained in full."""

CLUSTERS_CANNOT_DECIDE = (
    "Clusters describe the shift; they cannot decide whether it is one thing. In simulated studies whose truth is "
    "known (docs/calibration.md), the reference study's procedure (PCA, k-means, agreement with the dimensions) comes "
    "out significant in 100 % of all worlds, whether they hold sub-personas, one direction or no shift at all, "
    "because it measures topic: the base model's activations cluster as well. K-means on the shift does so in 100 % "
    "of worlds with one direction that is much stronger on some questions, a probe for the facet in 80 % of them and "
    "in 100 % where a shift merely follows topic, while the gap statistic sees next to nothing where sub-personas are "
    "real. So a clustering that succeeds is no evidence of sub-personas, and a failed clustering was never evidence "
    "of a monolith."
)

CARDS = (
    "A card describes one component: which questions carry it, how the answers to them score, what they say. Any data has "
    "components, one thing too, so a card is no evidence that its component is a sub-persona."
)

_MEANS: dict[tuple[str, str | None], str] = {
    ("no-shift", None): "No mean shift was found: what the tuning did to these activations cannot be told from nothing.",
    ("monolithic", None): (
        "In every {group} the tuning moved the activations along one and the same direction; what may lie outside it "
        "is smaller than the smallest effect that this study set out to find."
    ),
    ("monolithic", "fingerprint of tuning included"): (
        "In every {group} the tuning moved the activations along one and the same direction, the move that any tuning "
        "makes included; what may lie outside it is smaller than the smallest effect that this study set out to find."
    ),
    ("monolithic", "graded"): (
        "The tuning moved the activations along one axis, in some {group}s further than in others."
    ),
    ("entangled", None): (
        "The shift differs between questions, but not as separable parts over the {group}s."
    ),
    ("entangled", "carried by topic"): (
        "The {group}s are moved differently, but by no more than one map of the base model's own activations carries over: the "
        "shift follows topic, and is not made of parts by {group}."
    ),
    ("entangled", "not along the facets"): (
        "The shift has parts that come back in a second answer to the same question, but they do not follow the {group}s."
    ),
    ("separable", None): (
        "The {group}s are moved along directions of their own, by more than topic carries over and with enough energy to count."
    ),
    ("inconclusive", None): "This data cannot tell one thing from several.",
    ("inconclusive", NOT_TESTABLE): "The question could not be put to this data at all.",
    ("inconclusive", "conflict"): "Two tests contradict each other, so neither reading is taken.",
    ("inconclusive", "graded axis or two camps"): (
        "Beside the shared direction the {group}s differ along one more: an axis on which they are graded, or two "
        "camps of them. Which of both cannot be told."
    ),
}  # fmt: skip
"""Verdict and qualifier to what it means; a qualifier that is not listed takes the verdict's own sentence."""

_CANNOT = {
    "no-shift": (
        "It cannot mean that the tuning changed nothing: what cancels between questions, or shows at none of the "
        "recorded sites, is not seen."
    ),
    "monolithic": (
        "It cannot mean that there are no sub-personas: parts below the limits, or parts that do not follow the "
        "{group}s, would not show."
    ),
    "entangled": (
        "It cannot mean that nothing could ever be told apart: other groups of questions, other sites or more data "
        "may divide what these do not."
    ),
    "separable": (
        "It cannot mean that these are all the parts there are, or that they are what the {group}s' names say."
    ),
    "inconclusive": "It cannot be read as one thing, nor as several: neither was shown, and neither was excluded.",
}  # fmt: skip

TURNED = "sign by polarity"
"""In a qualifier: the shifts of questions whose polarity is -1 were turned round before they were tested."""

_TURNED = (
    "This holds for shifts that are turned round where agreeing with the question is the aligned answer: as they "
    "are, they cancel."
)
_UNTESTED_PARTS = (
    "Nor can it mean that the parts act separately: only steering can show that, and it has not tested it here."
)
_TESTED_PARTS = (
    "Nor can it mean that the parts act separately wherever one looks: that was tested at one site, by adding "
    "directions to the base model (T5)."
)
_CAUSAL = {
    "selective": (
        "Adding one {group}'s direction to the base model moves that {group}'s answers and leaves the others' largely "
        "alone (T5)."
    ),
    "cross-talk": "Adding one {group}'s direction to the base model moves the other {group}s' answers as well (T5).",
    "undetermined": "Whether one {group}'s direction moves that {group}'s answers alone was tested and is not settled (T5).",
    "not potent": (
        "Adding one {group}'s direction to the base model moves its own answers no more than random directions do, so whether "
        "parts act apart stays open (T5)."
    ),
}  # fmt: skip
"""What the causal test adds to any verdict of a shift."""
_UNCONTROLLED = (
    "There is no control organism, so a move that any tuning makes, whatever it teaches, is still in the shift and "
    "may hide what is particular to this organism."
)

NAMES = {
    "no-shift": "No shift",
    "monolithic": "Monolithic",
    "entangled": "Entangled",
    "separable": "Separable",
    "inconclusive": "Inconclusive",
}


def word(verdict: VerdictEvidence) -> str:
    """`Entangled, carried by topic`."""
    return ", ".join(part for part in (NAMES[verdict.word], verdict.qualifier) if part)


def plain_word(verdict: VerdictEvidence) -> str:
    """The word inside a sentence, with what qualifies it."""
    told = [part for part in (verdict.qualifier, "provisional" if verdict.provisional else None) if part]
    return f"{verdict.word} ({', '.join(told)})" if told else verdict.word


def means(verdict: VerdictEvidence) -> str:
    """What the verdict means, in one sentence or two."""
    parts = (verdict.qualifier or "").split(", ")
    known = next((part for part in parts if (verdict.word, part) in _MEANS), None)
    told = [_MEANS[verdict.word, known]]
    if TURNED in parts:
        told.append(_TURNED)
    if verdict.causal is not None and verdict.word != "no-shift" and verdict.qualifier != NOT_TESTABLE:
        told.append(_CAUSAL.get(str(verdict.causal["outcome"]), ""))
    return " ".join(part.format(group=label(verdict.grouping)) for part in told if part)


def cannot_mean(verdict: VerdictEvidence) -> str:
    """What nobody should read into the verdict."""
    told = [_CANNOT[verdict.word].format(group=label(verdict.grouping))]
    if verdict.qualifier == NOT_TESTABLE:
        told = ["It says nothing about the organism."]
    elif verdict.word == "separable":
        told.append(_UNTESTED_PARTS if verdict.causal is None else _TESTED_PARTS)
    if verdict.word in {"monolithic", "entangled"} and not verdict.corrected:
        told.append(_UNCONTROLLED)
    return " ".join(told)


def basis(verdict: VerdictEvidence) -> str:
    """On what the verdict rests: questions, groups, site, correction."""
    record = verdict.record
    groups = ", ".join(f"{label(name)} {size:,}" for name, size in record["groups"].items())
    told = [f"It {'rests' if verdict.tested else 'would rest'} on {counted(int(record['questions']), 'question')}"]
    told.append(f" in {len(record['groups'])} {label(verdict.grouping)}s ({groups})" if groups else "")
    told.append(f", at {short_site(verdict.site)}, ")
    told.append(
        "after the control organism's mean shift was taken out."
        if verdict.corrected
        else "with the shift as it is: no control organism's shift was taken out."
    )
    return "".join(told)


def omissions(verdict: VerdictEvidence) -> list[str]:
    """Questions and groups that the tests did not see as they were asked."""
    record, told = verdict.record, []
    small: Mapping[str, Any] = record["groups_left_out"]
    if small:
        listed = ", ".join(f"{label(name)} ({counted(int(size), 'question')})" for name, size in small.items())
        told.append(f"Groups left out, too small to be tested: {listed}.")
    if record["left_out"]:
        told.append(f"{counted(int(record['left_out']), 'question')} left out: the organism's answer was empty.")
    if record["merged"]:
        many = int(record["merged"])
        told.append(
            f"{counted(many, 'question')} merged with near-duplicates of {'its' if many == 1 else 'their'} facet: "
            "worded alike, they are no independent evidence."
        )
    return told


def finer(verdict: VerdictEvidence) -> str:
    """What the finer grouping says, which never decides."""
    other = verdict.record["other_grouping"]
    if other is None:
        rows = verdict.here(verdict.sites, grouping="facet")
        reason = rows.iloc[0]["reason"] if len(rows) else None
        return f"By facet nothing could be tested{f': {reason}' if isinstance(reason, str) else ''}."
    name = f"{other['verdict']} ({other['qualifier']})" if other["qualifier"] else str(other["verdict"])
    text = (
        f"By {label(other['grouping'])}, with the same data in smaller groups, the rule says {name}: T2 has p = "
        f"{fine(other['p_rank'])} ({fine(other['p_rank_holm'])} by Holm over both groupings), the rank of the mean shifts "
        f"is {whole(other['rank'])}, and k_adj, what remains of it beyond topic, {whole(other['k_adj'])}."
    )
    if other["groups_left_out"]:
        text += f" {counted(len(other['groups_left_out']), 'group')} left out, too small to be tested."
    return f"{text} This does not change the verdict, which is by {label(verdict.grouping)}."


def cards_reading(verdict: VerdictEvidence) -> str:
    """What the cards are, beside this verdict."""
    if verdict.word != "separable":
        return f"{CARDS} This study's verdict is {plain_word(verdict)}: nothing below was shown to be a sub-persona."
    return (
        f"{CARDS} This study's verdict is {plain_word(verdict)}: the {label(verdict.grouping)}s have directions of "
        "their own, which are the ones called specific below. Of clusters and other components it says nothing."
    )


def limitation(verdict: VerdictEvidence) -> list[str]:
    """What a reader of the verdict must keep in mind."""
    items = [f"The verdict is {plain_word(verdict)}. {cannot_mean(verdict)}"]
    gamma = verdict.number("gamma")
    if gamma is not None:
        items.append(
            "What counts as topic is a choice: base differences between groups are believed to carry over up to Γ = "
            f"{fine(gamma)} times what they do within groups. Γ and the rule's limits were chosen on simulated "
            "families of worlds."
        )
    items.append("Groups are those of the battery: parts of a persona that lie across them are not what is tested.")
    return items
