"""What the causal tests show in sentences, each from numbers by a fixed rule, and what none of them can mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unmask.errors import listed
from unmask.report.causal_evidence import CausalEvidence
from unmask.report.formats import counted, ends, fine, is_present, label, percent, short_site, signed

SHOWS = {
    "selective": (
        "Adding one {group}'s direction to the base model moves that {group}'s answers and leaves the other {group}s' "
        "largely alone."
    ),
    "cross-talk": (
        "Adding one {group}'s direction to the base model moves the other {group}s' answers as well as its own: the "
        "directions do not act apart."
    ),
    "undetermined": (
        "Adding one {group}'s direction to the base model moves that {group}'s answers; whether it leaves the other "
        "{group}s' alone is not settled by this data."
    ),
    "not potent": (
        "Adding one {group}'s direction to the base model does not move even that {group}'s own answers more than random "
        "directions do, so whether it would leave the others' alone cannot be asked."
    ),
}  # fmt: skip
"""Outcome of the matrix that the verdict reads, in plain words."""

CANNOT = {
    "selective": (
        "It cannot mean that these {group}s are all the parts there are, nor that the organism's answers come about "
        "this way: it shows what the directions can do when they are added at this site and this strength."
    ),
    "cross-talk": (
        "It cannot mean that there are no parts: directions of other groups, or at other sites, may act apart, and what "
        "the directions have in common may hide what each has of its own (see the specific parts)."
    ),
    "undetermined": "It can be read neither as parts that act apart nor as parts that do not.",
    "not potent": (
        "It cannot mean that there are no parts, nor that there is one thing: a direction that is too weak here, or at "
        "the wrong site, shows neither."
    ),
}  # fmt: skip

ALWAYS = (
    "Effects are read from how likely given answers become, not from what the model writes; the judged answers below are "
    "the other read-out."
)
"""Of every outcome."""

TITLES = {
    "dimension": "Mean shifts by dimension",
    "facet": "Mean shifts by facet",
    "cluster": "Mean shifts by cluster",
    "specific": "Specific parts: a dimension's mean shift less the shared one",
}
DONE = {"base": "added to the base", "organism": "taken from the organism"}
VERB = {"base": "added", "organism": "taken out"}
ALIKE = 0.5
"""Share of the dimensions' mean effect from which a control is said to do the same kind of thing."""
POSITIONS = {
    "response": "where the answer is written",
    "prompt": "where the question is read, before its last token",
    "all": "at every token",
}  # fmt: skip
SETTLED = {
    "selective": "selective: own answers move, the others' largely do not",
    "cross-talk": "cross-talk: the others' answers move as well as the own ones",
    "undetermined": "undetermined: own answers move, the others' cannot be told",
    "not potent": "not potent: own answers move no more than under random directions",
}


def lead(causal: CausalEvidence) -> list[str]:
    """The paragraphs at the head of the section."""
    record = causal.record
    if record is None:
        return [
            "Whether adding one dimension's direction moves that dimension's answers and leaves the others' alone was not "
            f"measured: {sentence_end(causal.reason)} So nothing here tests what the activations show."
        ]
    group = label(record["grouping"])
    outcome = str(record["outcome"])
    told = [
        SHOWS.get(outcome, "The outcome is {outcome}.").format(group=group, outcome=outcome),
        _sizes(causal, record),
    ]
    cannot = CANNOT.get(outcome, "").format(group=group)
    paragraphs = (
        " ".join(told),
        " ".join(part for part in (_how(causal, record), cannot, ALWAYS) if part),
        beside_controls(causal, str(record["target"])),
    )
    return [text for text in paragraphs if text]


def _sizes(causal: CausalEvidence, record: Mapping[str, Any]) -> str:
    """How far own and other answers move, beside random directions."""
    rows = causal.of(causal.selectivity, record)
    own, others = (mean([row[name] for row in rows]) for name in ("own", "others"))
    group = label(record["grouping"])
    text = (
        f"On average a direction moves its own {group}'s answers by {signed(own, 2)} nats per token and the others' by "
        f"{signed(others, 2)}, less what random directions do; "
    )
    text += (
        f"the ratio of the two is X = {fine(record['x'])} {ends(record['x_low'], record['x_high'])} (0: its own alone; 1: all "
        "alike)."
        if is_present(record["x"])
        else "a ratio of the two has no meaning here, for the first is not positive."
    )
    cells = causal.of(causal.matrix, record)
    chance, spread = (mean([row[name] for row in cells]) for name in ("random_mean", "random_sd"))
    if chance is None:
        return text
    text += f" Random directions as long as these move a {group}'s answers by {signed(chance, 2)} on average"
    if spread is None:
        return f"{text}."
    times = f", so the own effect is {abs(own) / spread:.1f} times that" if own is not None and spread > 0 else ""
    return f"{text}, with a standard deviation of {fine(spread)} between them{times}."


def _how(causal: CausalEvidence, record: Mapping[str, Any]) -> str:
    summary = causal.summary
    sizes = summary["items_by_group"]
    spread = f" ({', '.join(f'{label(name)} {size}' for name, size in sizes.items())})" if sizes else ""
    return (
        f"This was read at {short_site(str(summary['site']))} with {record['coefficient']:g} times the typical residual norm "
        f"added {POSITIONS.get(str(summary['positions']), str(summary['positions']))}, the largest coefficient tried at which "
        f"answers stay coherent, on {counted(int(record['items']), 'question')}{spread}; each question is tested only with "
        "directions that it did not go into."
    )


def beside_controls(causal: CausalEvidence, target: str) -> str:
    """What the control organism's direction and those of random sets of questions do, beside the study's own."""
    at = causal.shown_at(target)
    table = causal.controls[causal.controls["target"] == target]
    rows = [row for row in table.to_dict("records") if at is not None and abs(row["coefficient"] - at) < 1e-9]
    own = mean([row["effect"] for row in rows if row["kind"] == "dimension"])
    if own is None:
        return ""
    told = []
    control = next((row for row in rows if row["kind"] == "control"), None)
    if control is not None and is_present(control["effect"]):
        text = (
            f"The mean shift of the control organism, tuned on harmless data, {VERB.get(target, 'used')} at the same strength, "
            f"moves all answers by {signed(control['effect'], 2)} "
            f"{ends(control['low'], control['high'])}, the dimensions' by {signed(own, 2)}"
        )
        apart = any((one["target"], one["outcome"]) == (target, "selective") for one in causal.matrices)
        alike = own > 0 and control["effect"] >= ALIKE * own and not apart
        told.append(f"{text}: what they do is not particular to this organism." if alike else f"{text}.")
    shuffled = next((row for row in rows if row["kind"] == "shuffled"), None)
    if shuffled is not None and is_present(shuffled["effect"]):
        text = f"Mean shifts of random sets of questions move them by {signed(shuffled['effect'], 2)}"
        alike = own > 0 and shuffled["effect"] >= ALIKE * own
        told.append(f"{text}, whatever dimension these are of." if alike else f"{text}.")
    return " ".join(told)


def readings(causal: CausalEvidence) -> list[tuple[str, str]]:
    """(matrix, what it says) for every matrix, those that were not measured with the reason."""
    return [(title(record), reading(causal, record)) for record in causal.matrices]


def title(record: Mapping[str, Any]) -> str:
    """`Mean shifts by dimension, added to the base`."""
    kind, target = str(record["kind"]), str(record["target"])
    return f"{TITLES.get(kind, label(kind))}, {DONE.get(target, target)}"


def reading(causal: CausalEvidence, record: Mapping[str, Any]) -> str:
    """One matrix in a sentence, and what may be said of single rows."""
    outcome = record["outcome"]
    if outcome is None:
        return f"not measured: {sentence_end(str(record['reason']))}"
    ratio = "" if outcome == "not potent" else f"X {cross_talk(record)}, "  # of nothing to nothing
    return f"{SETTLED.get(str(outcome), str(outcome))} ({ratio}p {fine(record['p'])}). {alone(causal, record)}"


def cross_talk(record: Mapping[str, Any]) -> str:
    """`0.98 [0.93, 1.03]`; words where there is no such ratio."""
    if not is_present(record["x"]):
        return "has no meaning: no mean effect on own answers"
    return f"{fine(record['x'])} {ends(record['x_low'], record['x_high'])}"


def alone(causal: CausalEvidence, record: Mapping[str, Any]) -> str:
    """What single rows show, and how much that is worth beside the whole matrix."""
    rows = causal.standing_out(record)
    if not rows:
        return "" if record["outcome"] == "selective" else "No row stands out by itself."
    told = listed(f"{group_name(row['group'], record)} (p {fine(row['p_holm'])} after Holm)" for row in rows)
    start = (
        f"{counted(len(rows), 'row')} of {len(record['groups'])} {'stands' if len(rows) == 1 else 'stand'} out: {told}"
    )
    if record["outcome"] == "selective":
        return f"{start}."
    weak = [row for row in rows if not row["selectivity"] > 0]
    one = "It is one row" if len(rows) == 1 else "They are single rows"
    text = (
        f"{start}: less what the other directions do to the same answers, own answers move further than the rest. {one}, "
        "and the matrix as a whole is not selective."
    )
    if weak:
        names = listed(group_name(row["group"], record) for row in weak)
        text += f" Of {names} the own answers move no further than the others' all the same, so not even that row is selective."
    return text


def group_name(name: Any, record: Mapping[str, Any]) -> str:
    """A group for people; a cluster's number with the noun."""
    return f"cluster {name}" if record["grouping"] == "cluster" else label(str(name).replace("/", ", "))


def share_of_rows(record: Mapping[str, Any]) -> str:
    """Directions that move own answers at all."""
    return percent(record["potent_share"])


def mean(values: Sequence[Any]) -> float | None:
    """The mean of what is there; None where nothing is."""
    present = [float(value) for value in values if is_present(value)]
    return float(np.mean(present)) if present else None


def sentence_end(text: str) -> str:
    """The text with one full stop."""
    return f"{text.strip().rstrip('.')}."
