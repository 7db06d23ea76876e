"""What was run, with which settings and under which versions: evidence in, pairs of name and value out."""

from __future__ import annotations

from typing import Any

from unmask.report import readout_wording
from unmask.report.evidence import Evidence
from unmask.report.formats import label, short_site
from unmask.report.wording import ranges


def what_was_run(evidence: Evidence) -> list[tuple[str, str]]:
    """The study's make-up as pairs of name and value, without times."""
    recipe = evidence.recipe
    counts = evidence.questions["dimension"].value_counts().to_dict()
    organism = str(recipe["name"])
    if recipe["kind"] != "existing":
        method = {"lora": "LoRA", "full": "all weights"}.get(str(recipe["method"]), str(recipe["method"]))
        organism = f"{method} on {organism}, {recipe.get('examples')} examples, {recipe.get('steps')} optimiser steps"
    decomposition = evidence.decomposition
    unread = int(decomposition.get("left_out") or 0)
    left_out = f" ({unread} left out: an answer was empty)" if unread else ""
    facts = [
        ("base model", f"{recipe['base']}"),
        ("base fingerprint", str(recipe.get("base_fingerprint") or "")[:16]),
        ("organism", organism),
        ("control organism", _control(evidence)),
        ("questions", ", ".join(f"{label(name)} {counts[name]}" for name in evidence.dimensions)),
        ("responses", f"{len(evidence.responses):,}: {evidence.samples} per question and model"),
        ("sites", ", ".join(short_site(str(site)) for site in decomposition["sites"])),
        ("decomposed", f"{decomposition['questions']} questions{left_out}, {decomposition.get('components')} "
         f"components, k-means with k = {ranges([int(k) for k in decomposition['k']])}"),
        ("primary", f"{short_site(evidence.site)}, k = {evidence.k}"),
        ("judge", _judge(evidence)),
        ("causal tests", readout_wording.what_was_tested(evidence.causal)),
        ("steering", readout_wording.what_was_steered(evidence.causal)),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _judge(evidence: Evidence) -> str:
    judge = evidence.judge
    if "rubrics" in judge:
        return f"{judge['judge']}, read out as {judge['readout']}; rubrics " + ", ".join(
            f"{rubric['name']} {rubric['version']}" for rubric in judge["rubrics"]
        )
    return f"{judge['judge']}, fitted on {judge.get('labels')} labels"


def _control(evidence: Evidence) -> str:
    """The control organism in words."""
    control = evidence.control
    if not evidence.has_control:
        return "none"
    made = [
        f"{control[field]} {name}"
        for field, name in (("examples", "examples"), ("steps", "optimiser steps"))
        if control.get(field)
    ]
    return ", ".join([str(control.get("name") or control["kind"]), *made])


def settings(evidence: Evidence) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every stage's settings and the versions it ran under, in the order of the stages."""
    groups = [
        (
            f"{stage} (version {evidence.stage_versions[stage]})",
            sorted((key, _plain(value)) for key, value in config.items()),
        )
        for stage, config in evidence.configs.items()
    ]
    recipe = evidence.recipe.get("recipe") or {}
    versions = {**(evidence.recipe.get("versions") or {}), **evidence.environment}
    groups.append(("recipe in effect", sorted((key, _plain(value)) for key, value in recipe.items())))
    groups.append(("software", sorted((key, _plain(value)) for key, value in versions.items())))
    return [(name, pairs) for name, pairs in groups if pairs]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in sorted(value.items()))
    return "none" if value is None else str(value)
