"""What was tested and steered, and whether both read-outs agree: log-odds of given answers, and judged ones that were written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.errors import listed
from unmask.report.causal_evidence import CausalEvidence
from unmask.report.causal_wording import sentence_end
from unmask.report.formats import counted, ends, fine, is_present, short_site, signed

PAIRS = {
    "judged": "the answers with the highest and the lowest score",
    "written": "the organism's and the base's answer",
    "stance": "packaged words of agreeing and disagreeing",
}


def agreement(causal: CausalEvidence) -> list[str]:
    """Whether judged answers and log-odds rank cells and doses alike, or why that cannot be said."""
    steering = causal.steering
    confirmation = steering["confirmation"]
    told = []
    if confirmation["reason"]:
        told.append(f"Judged answers by dimension were not made: {sentence_end(str(confirmation['reason']))}")
    else:
        told.append(
            f"At coefficient {confirmation['coefficient']:g} every dimension's direction met "
            f"{counted(int(confirmation['questions']), 'question')} of the dimensions once more, and the judge "
            f"{steering['judge']} read what was written. {_own_judged(confirmation['selectivity'])} "
            f"{_spearman(steering['agreement'], 'cells (direction by dimension)')}"
        )
    told.append(f"Over doses: {_spearman(steering['agreement_of_doses'], 'doses that both stages have')}")
    return told


def _own_judged(found: Mapping[str, Any] | None) -> str:
    if found is None or not is_present(found["mean"]):
        return "Too few answers could be scored to compare own directions with the others."
    around = f" [{signed(found['low'])}, {signed(found['high'])}]"
    known = is_present(found["low"]) and is_present(found["high"])
    return (
        "The effect of a question's own direction less that of the other dimensions' is "
        f"{signed(found['mean'])}{around if known else ' (no interval)'} points of misalignment."
    )


def _spearman(found: Mapping[str, Any], what: str) -> str:
    cells = int(found["cells"] or 0)
    if not is_present(found["spearman"]):
        return f"no rank correlation with the log-odds: {cells} {what} with both numbers, too few or all alike."
    around = ends(found["low"], found["high"])
    known = is_present(found["low"]) and is_present(found["high"])
    reads = ", so agreement is not shown"
    if known and found["low"] > 0:
        reads = ""
    elif known and found["high"] < 0:
        reads = ": over these the two disagree"
    return f"Spearman's correlation with the log-odds is {fine(found['spearman'])} {around} over {cells} {what}{reads}."


def what_was_tested(causal: CausalEvidence) -> str:
    """For the facts: what the effects were read from."""
    summary = causal.summary
    if not summary["items"]:
        return ""
    pairs = PAIRS.get(str(summary["pairs"]), str(summary["pairs"]))
    return (
        f"{counted(int(summary['items']), 'question')} at {short_site(str(summary['site']))}, each with {pairs}, "
        f"{summary['answer_tokens']} tokens read; {counted(len(causal.directions), 'direction')} in "
        f"{counted(int(causal.directed['replicates']), 'halving')} of the questions"
    )


def what_was_steered(causal: CausalEvidence) -> str:
    """For the facts: how many answers were written under directions."""
    steering = causal.steering
    return (
        f"{counted(len(causal.answers), 'answer')} of {listed(str(one) for one in steering['targets'])} at "
        f"{short_site(str(steering['site']))}, {steering['questions']} open questions per dose"
    )
