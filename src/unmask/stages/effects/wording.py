"""What the matrices show, in plain sentences."""

from __future__ import annotations

import math

from unmask.stages.effects.matrices import Matrix

TARGETS = {"base": "added to the base model", "organism": "taken from the organism"}
SAYS = {
    "selective": "each moves its own {grouping}'s answers and leaves the others' largely alone",
    "cross-talk": "each moves the other {grouping}s' answers as well as its own",
    "undetermined": "whether they move their own {grouping}'s answers alone is not settled",
    "not potent": "they do not move their own {grouping}'s answers more than random directions do",
}


def sentence(matrix: Matrix) -> str:
    """One matrix in words, with its numbers."""
    what = {"specific": "Specific parts of the dimensions' mean shifts"}.get(
        matrix.kind, f"Mean shifts by {matrix.kind}"
    )
    opening = f"{what}, {TARGETS[matrix.target]}"
    talk = matrix.found
    if talk is None:
        return f"{opening}: not measured ({matrix.reason})."
    says = SAYS[talk.outcome].format(grouping=matrix.grouping)
    shown = f"cross-talk X = {talk.x:.2f} [{talk.x_low:.2f}, {talk.x_high:.2f}], p = {talk.p:.3f}"
    if not math.isfinite(talk.x) or not math.isfinite(talk.x_low):
        shown = f"no mean effect on their own {matrix.grouping} to compare with, p = {talk.p:.3f}"
    rows = zip(talk.names, talk.p_holm_F, talk.selectivity_low_F, strict=True)
    alone = [name for name, p, low in rows if p < 0.05 and low > 0]
    rest = f" One row alone stands out (Holm): {', '.join(alone)}." if alone and talk.outcome != "selective" else ""
    return f"{opening} at {matrix.coefficient:g}: {says} ({talk.outcome}; {shown}; {talk.items} questions).{rest}"
