"""The verdict's numbers, each with the table and row that it can be looked up in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from unmask.analysis.crosstalk import MOST_SELECTIVE
from unmask.report.formats import ends, fine, is_present, label, whole
from unmask.report.planted import interest, planted_rows
from unmask.report.tables import Row, Table
from unmask.report.verdict_evidence import VerdictEvidence

RECORD, SITES, TESTS, POWER = "verdict.json", "sites.parquet", "tests.parquet", "power.parquet"


@dataclass(frozen=True, slots=True)
class Traced:
    """A number as it is printed, and where it stands: `file` in the study's folder verdict/, `place` in that file."""

    name: str
    says: str
    value: str
    interval: str
    limit: str
    file: str
    place: str


def numbers(verdict: VerdictEvidence) -> list[Traced]:
    """The key numbers, in the order in which the rule looks at them."""
    return [*_tested(verdict), *_sizes(verdict), *_beyond_topic(verdict), *_causal(verdict), *_planted(verdict)]


def _tested(v: VerdictEvidence) -> list[Traced]:
    level = _limit(v, "alpha", "shown if at most")
    first = v.here(v.tests)
    first = first[first["test"] == "T2 rank"]["rank"].min()
    rank = f", rank {whole(first)}" if is_present(first) else ""
    return [
        Traced(
            *("p(T1)", "is there a mean shift?", _value(v, "p_shift"), "", level),
            *(TESTS, "test T1 shift, column p"),
        ),
        Traced(
            *("p(T2)", "do the mean shifts need a second direction?", _value(v, "p_rank"), "", level),
            *(TESTS, f"test T2 rank{rank}, column p"),
        ),
        Traced(
            *("rank", "directions that the mean shifts need", _value(v, "rank", whole), "", ""),
            *(SITES, "column rank"),
        ),
    ]


def _sizes(v: VerdictEvidence) -> list[Traced]:
    said = {
        "rho": "share of mean-shift energy outside the shared direction",
        "eta": "that energy over the question variance",
    }
    return [
        Traced(
            name,
            says,
            _value(v, name),
            ends(v.number(f"{name}_low"), v.number(f"{name}_high"), absent="no interval" if v.tested else ""),
            _limit(v, f"{name}_star", "matters from"),
            SITES,
            f"columns {name}, {name}_low, {name}_high",
        )
        for name, says in said.items()
    ]


def _beyond_topic(v: VerdictEvidence) -> list[Traced]:
    needed = v.number("k_star")
    said = [
        Traced(
            *("k_adj", "dimensions of the difference beyond topic (T3)", _value(v, "k_adj", whole), ""),
            *(f"needed: k* = {whole(needed)}" if needed is not None else "", SITES, "columns k_adj, k_star"),
        ),
        Traced(
            *("p(T3)", "largest p-value up to k*", _value(v, "p_adj"), "", _limit(v, "alpha", "shown if at most")),
            *(SITES, "column p_adj"),
        ),
    ]
    for name in ("rho", "eta"):
        least = v.enough_beyond_topic(name)
        enough = f"enough from {least:g}" if least is not None else ""
        adjusted = f"{name}_adj"
        said.append(
            Traced(adjusted, f"{name} beyond topic", _value(v, adjusted), "", enough, SITES, f"column {adjusted}")
        )
    believed = v.number("gamma")
    used = f"used: Γ = {believed:g}" if believed is not None else ""
    said.append(Traced("Γ*", "largest Γ at which k* still holds", _gamma_star(v), "", used, SITES, "column gamma_star"))
    dimensions = _value(v, "replicate_dimensions", whole)
    says = "dimensions inside groups that come back in a second answer"
    said.append(Traced("T4", says, dimensions, "", "", SITES, "column replicate_dimensions"))
    return said


def _causal(v: VerdictEvidence) -> list[Traced]:
    """T5 over the groups; what was not measured says so."""
    record, group = v.causal, label(v.grouping)
    outcome = str(record["outcome"]) if record is not None else _causal_value(v, "causal")
    around = ends(v.number("causal_x_low"), v.number("causal_x_high"), absent="" if record is None else "no interval")
    says = "effect on the others' answers over that on the own"
    limit = f"selective below {MOST_SELECTIVE:g}, cross-talk above (whole interval)"
    return [
        Traced(
            "T5",
            f"does one {group}'s direction move that {group}'s answers alone?",
            outcome,
            "",
            "",
            RECORD,
            "causal.outcome",
        ),
        Traced("X", says, _causal_value(v, "causal_x"), around, limit, RECORD, "numbers.causal_x"),
        Traced(
            *(
                "p(T5)",
                "do directions fit their own answers better than each other's?",
                _causal_value(v, "causal_p"),
                "",
            ),
            *(_limit(v, "alpha", "selective only below"), RECORD, "numbers.causal_p"),
        ),
    ]


def _causal_value(v: VerdictEvidence, name: str) -> str:
    """A number of T5; why there is none: no test, or no effect on own answers to compare with."""
    value = v.number(name)
    if value is not None:
        return fine(value)
    if v.causal is not None:
        return "not measured: no effect to speak of"
    reason = next((str(item["reason"]) for item in v.record["missing"] if item["test"] == "T5 causal"), "")
    inside = re.search(r"\((.*)\)", reason, re.DOTALL)
    return f"not measured: {inside[1]}" if inside else "not measured"


def _planted(v: VerdictEvidence) -> list[Traced]:
    least = interest(v)
    name = f", {least.scale} = {least.effect:.3g}" if least is not None else ""
    power, false = v.number("power_at_interest"), v.number("false_positive_rate")
    said = [
        Traced(
            *("planted power", f"at the smallest effect of interest{name}", _value(v, "power_at_interest")),
            *(_wilson(v, power, at=1.0), "enough from 0.8", RECORD),
            "numbers.power_at_interest",
        )
    ]
    for scale in ("rho", "eta"):
        field = f"mde80_{scale}"
        said.append(
            Traced(
                *(f"MDE80 ({scale})", "effect found with power 0.8", _value(v, field), ""),
                *(_limit(v, f"{scale}_star", "matters from"), RECORD, f"numbers.{field}"),
            )
        )
    said.append(
        Traced(
            *("false positives", "k* found where none was planted", _value(v, "false_positive_rate")),
            *(_wilson(v, false, at=0.0), _limit(v, "alpha", "at most about"), POWER, "offsets none, column share"),
        )
    )
    return said


def _wilson(v: VerdictEvidence, share: float | None, *, at: float | None) -> str:
    """The interval of the planted point that a share is from; none where the share lies between points."""
    rows = [row for row in planted_rows(v) if at is not None and abs(row["multiple"] - at) < 1e-6]
    own = next((row for row in rows if share is not None and abs(row["share"] - share) < 1e-9), None)
    return ends(own["low"], own["high"]) if own is not None else ""


def _value(v: VerdictEvidence, name: str, form: Callable[..., str] = fine) -> str:
    value = v.number(name)
    return form(value) if value is not None else why_missing(v, name)


def _limit(v: VerdictEvidence, name: str, words: str) -> str:
    value = v.number(name)
    return f"{words} {value:g}" if value is not None else ""


def _gamma_star(v: VerdictEvidence) -> str:
    value, tried = v.number("gamma_star"), v.here(v.sensitivity)["gamma"]
    if value is None:
        return why_missing(v, "gamma_star")
    return f"{value:g} or more" if len(tried) and value >= float(tried.max()) else f"{value:g}"


def why_missing(v: VerdictEvidence, name: str) -> str:
    """Why there is no such number, in a few words."""
    if not v.tested:
        return "not measured: nothing could be tested"
    told = {str(item["test"]): str(item["reason"]) for item in v.record["missing"]}
    reasons = {"replicate": "T4 replicates", "score_bearing": "score-bearing", "origin": "fingerprint removal"}
    for start, test in reasons.items():
        if name.startswith(start) and test in told:
            return f"not measured: {told[test].partition(':')[0]}"
    if name == "gamma_star" and len(tried := v.here(v.sensitivity)["gamma"]):
        if v.here(v.sensitivity)["rejected"].any():
            return "not measured: no pass-through was shown within groups, so Γ multiplies nothing"
        return f"none: not found at any Γ tried ({tried.min():g} to {tried.max():g})"
    if name.startswith("mde80") and (rows := planted_rows(v)):
        largest = max(row[name.removeprefix("mde80_")] for row in rows)
        return f"above {fine(largest)}, the largest effect planted"
    return "not measured"


def other_numbers(verdict: VerdictEvidence) -> Table:
    """Everything else that the verdict holds, by its name in the file."""
    shown = {"alpha", "rho_star", "eta_star", "p_shift", "p_rank", "p_adj", "power_at_interest", "false_positive_rate"}
    shown |= {f"{name}{end}" for name in ("rho", "eta") for end in ("", "_low", "_high", "_adj")}
    shown |= {"causal_x", "causal_x_low", "causal_x_high", "causal_p"}
    shown |= {"k_adj", "k_star", "rank", "gamma_star", "replicate_dimensions", "mde80_rho", "mde80_eta"}
    rest = [name for name in sorted(verdict.record["numbers"]) if name not in shown]
    rows = [Row((_SAID.get(name, label(name)), f"numbers.{name}", _value(verdict, name))) for name in rest]
    caption = (
        "The other numbers of verdict/verdict.json. The rule does not read them; the p-values of pass-through decide what "
        "T3 takes out, and the constant of a graded axis decides k*."
    )
    return Table(caption, ("number", "name in the file", "value"), tuple(rows), words=2)


_SAID = {
    "gamma": "Γ: how much more topic may carry over between groups than within",
    "mean_share": "mean-shift energy over the mean energy of a question's shift",
    "transport_share": "share of the group differences that the topic model claims",
    "pass_through_p": "p: does the shift follow the base activations within groups?",
    "noise_ratio": "question noise over mean-shift energy",
    "replicate_p": "p(T4): largest replicating dimension",
    "replicate_reliability": "share of the within-group variance that two answers have in common",
    "origin_share": "the constant that one graded axis would need, over the control's own mean shift",
    "topic_gain_p": "p: does the shift follow, within groups, the directions in which the groups' topics differ?",
    "score_bearing_p": "p: does any direction bear the score?",
    "score_bearing_p_rank": "p: do groups need more than one score-bearing direction?",
    "causal_potent": "share of directions that move their own answers (T5)",
    "causal_rank1": "share of the cross-talk matrix in one dimension (T5)",
    "causal_coefficient": "coefficient at which T5 was read, in typical residual norms",
    "causal_items": "questions of T5",
    "capped": "shifts that were shortened, too loud by far",
}
