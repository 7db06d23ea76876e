"""What the figures of doses show, and where answers stay coherent."""

from __future__ import annotations

from unmask.report.causal_evidence import CausalEvidence
from unmask.report.causal_wording import DONE, VERB
from unmask.report.formats import is_present, label


def window(causal: CausalEvidence) -> str:
    """Where answers stay coherent, by target."""
    told = []
    for target, found in causal.summary["window"].items():
        tried = ", ".join(f"{value:g}" for value in found["coefficients"])
        inside = [f"{one:g}" for one, kept in zip(found["coefficients"], found["coherent"], strict=True) if kept]
        kept = f"coherent at {', '.join(inside)}" if inside else "coherent at none of them"
        told.append(f"{label(target)}: tried {tried}, {kept}")
    limit = next((each.get("most_loss") for each in causal.summary["window"].values()), None)
    if not told:
        return "No coefficient was tried."
    cost = f", where no direction costs both answers more than {limit:g} nats per token" if is_present(limit) else ""
    return f"Coherent window{cost}: {'; '.join(told)}."


def caption(part: str, target: str, *, several: bool) -> str:
    """What a figure of doses shows: curves over several coefficients, or dots at the only one."""
    done = DONE.get(target, target)
    if part == "doses":
        drawn = (
            "on its own dimension's answers (solid) and on the others' (dashed) with 90 % intervals, and random directions: "
            "their mean (dotted), the least and the most of them (grey). Upright: where the matrices were read."
            if several
            else "on its own dimension's answers (dot) and on the others' (ring) with 90 % intervals; grey: the least and the "
            "most of random directions."
        )
        whose = f"{done[0].upper()}{done[1:]}: effect of each dimension's direction"
        return f"{whose} {drawn} Random directions are not taken off here."
    told = (
        "Solid: the direction; dashed grey: random directions of equal norm; dotted line and band: unsteered. Hatched: answers "
        "are not coherent; upright: the largest coefficient at which they are."
        if several
        else "Every direction at the one dose that there is, random directions last; dotted line and band: unsteered."
    )
    done = VERB.get(target, "used")
    return (
        f"Answers of the {target} with directions {done}. {told} Whiskers and band are 95 % intervals over questions."
    )
