"""The verdict's tables and records: findings in, files out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unmask.analysis.decision import Decision
from unmask.analysis.examination import Settings, interest_energy
from unmask.analysis.nulls import holm
from unmask.analysis.score_gradient import ScoreBearing
from unmask.analysis.sharpening import Collected, advise
from unmask.analysis.site_map import SiteFinding
from unmask.artifact import finite, write_json, write_table, write_tensors
from unmask.records import Site
from unmask.stages.verdict import schemas
from unmask.stages.verdict.causal import CausalEvidence
from unmask.stages.verdict.material import Material
from unmask.stages.verdict.rows import geometry_rows, power_rows, sensitivity_rows, site_row, test_rows

MEANING = {
    "no-shift": "the tuning left no mean shift on these questions",
    "monolithic": "the shift is one thing over these groups",
    "entangled": "the shift differs between questions, but not as separable parts over these groups",
    "separable": "the shift has parts of its own in different groups",
    "inconclusive": "the data cannot tell one thing from several",
}


def write_all(
    out: Path,
    found: list[SiteFinding],
    *,
    gradient: ScoreBearing | None,
    causal: CausalEvidence,
    primary: str,
    settings: Settings,
    material: Material,
    seed: int,
) -> dict[str, Any]:
    """Write every artifact of the stage into `out`; returns what verdict.json holds."""
    chosen = chosen_finding(found, primary)
    write_table(out / "sites.parquet", [site_row(f, primary) for f in found], schema=schemas.SITES)
    write_table(out / "geometry.parquet", [row for f in found for row in geometry_rows(f)], schema=schemas.GEOMETRY)
    tests = [row for f in found for row in test_rows(f)] + gradient_rows(gradient, chosen)
    write_table(out / "tests.parquet", tests, schema=schemas.TESTS)
    write_table(out / "power.parquet", [row for f in found for row in power_rows(f)], schema=schemas.POWER)
    write_table(
        out / "sensitivity.parquet", [row for f in found for row in sensitivity_rows(f)], schema=schemas.SENSITIVITY
    )
    write_directions(out, found)
    write_components(out, chosen, material)
    verdict = verdict_record(
        found, chosen, gradient=gradient, causal=causal, settings=settings, material=material, seed=seed
    )
    write_json(out / "verdict.json", verdict)
    return verdict


def chosen_finding(found: list[SiteFinding], primary: str) -> SiteFinding:
    """What the study's verdict rests on: the primary site over dimensions, corrected where there is a control."""
    here = [f for f in found if f.site == primary and f.grouping == "dimension"]
    return next((f for f in here if f.correction == "control"), here[0])


def gradient_rows(gradient: ScoreBearing | None, chosen: SiteFinding) -> list[dict[str, Any]]:
    """Rows of the test of the score-bearing part."""
    if gradient is None:
        return []
    where = {"site": chosen.site, "grouping": "dimension", "correction": "none", "p_max_t": None}
    note = f"Cov(shift, score) within groups, {gradient.questions} scored questions"
    named = [(None, gradient.shift, f"{note}: is any direction score-bearing")]
    named += [
        (rank, test, f"{note}: do groups need more than {rank}")
        for rank, test in enumerate(gradient.ranks.tests, start=1)
    ]
    return [
        {
            "test": "score-bearing",
            **where,
            "rank": rank,
            "statistic": test.statistic,
            "null_mean": float(test.null_B.mean()),
            "null_sd": float(test.null_B.std()),
            "p": test.p,
            "flips": len(test.null_B),
            "note": text,
        }
        for rank, test, text in named
    ]


def write_directions(out: Path, found: list[SiteFinding]) -> None:
    """Shared and specific directions of every site over dimensions, in the site's own units."""
    rows, tensors = [], {}
    for f in found:
        if f.grouping != "dimension":
            continue
        for direction in f.directions:
            kind = "shared" if direction.name == "shared" else "specific"
            identity = f"{f.site}/{f.correction}/{direction.name}"
            tensors[identity] = direction.vector_D.astype(np.float32)
            rows.append(
                {
                    "direction_id": identity,
                    "kind": kind,
                    "label": "shared by all groups" if kind == "shared" else f"specific to {direction.name}",
                    "site": f.site,
                    "grouping": f.grouping,
                    "correction": f.correction,
                    "norm": float(np.linalg.norm(direction.vector_D)),
                    "questions": direction.questions,
                }
            )
    write_table(out / "directions.parquet", rows, schema=schemas.DIRECTIONS)
    if tensors:
        write_tensors(
            out / "directions.safetensors", tensors, provenance={"what": "mean shifts in the site's own units"}
        )


def write_components(out: Path, chosen: SiteFinding, material: Material) -> None:
    """Components and loadings of the verdict's directions at the primary site."""
    source = "shift" if chosen.correction == "none" else "shift-control"
    components, loadings = [], []
    dropped = chosen.decision.dropped or {}
    kept = [not dropped.get(name) for name in material.questions["dimension"]]
    identities = material.questions.loc[kept, "question_id"].tolist()
    for direction in chosen.directions:
        kind = "shared" if direction.name == "shared" else "specific"
        identity = kind if kind == "shared" else f"specific-{direction.name}"
        components.append(
            {
                "component_id": identity,
                "kind": kind,
                "source": source,
                "site": chosen.site,
                "label": "shared direction" if kind == "shared" else f"specific to {direction.name}",
                "size": direction.questions,
                "stability": finite(direction.stability),
                "stability_name": "mean |cosine| of two random halves, 50 halvings",
                "strength": finite(direction.strength),
            }
        )
        loadings += [
            {"component_id": identity, "question_id": name, "loading": float(value)}
            for name, value in zip(identities, direction.loadings_N, strict=True)
        ]
    write_table(out / "components.parquet", components, schema=schemas.COMPONENTS)
    write_table(out / "loadings.parquet", loadings, schema=schemas.LOADINGS)


def verdict_record(
    found: list[SiteFinding],
    chosen: SiteFinding,
    *,
    gradient: ScoreBearing | None,
    causal: CausalEvidence,
    settings: Settings,
    material: Material,
    seed: int,
) -> dict[str, Any]:
    """What verdict.json holds."""
    decision = chosen.decision
    numbers = dict(decision.numbers)
    if gradient is not None:
        numbers["score_bearing_p"] = gradient.shift.p
        numbers["score_bearing_p_rank"] = gradient.ranks.tests[0].p
    numbers |= causal.numbers
    examined = decision.examined
    sizes = {} if examined is None else zip(examined.groups.names, examined.groups.sizes_F.tolist(), strict=True)
    qualifier = f" ({decision.qualifier})" if decision.qualifier else ""
    return {
        "verdict": decision.verdict,
        "qualifier": decision.qualifier,
        "provisional": decision.verdict != "no-shift" and not causal.settles,  # no causal test could change a no-shift
        "site": chosen.site,
        "grouping": chosen.grouping,
        "correction": chosen.correction,
        "headline": f"{decision.verdict}{qualifier}: {MEANING[decision.verdict]}, at {Site.parse(chosen.site).name}",
        "reasons": list(decision.ruling.reasons),
        "numbers": numbers,
        "causal": causal.record,
        "missing": missing_tests(decision, gradient=gradient, causal=causal, material=material),
        "sharpen": [
            {"what": a.what, "why": a.why, "cost": a.cost}
            for a in advice(decision, causal=causal, settings=settings, material=material)
        ],
        "settings": {**asdict(settings), "seed": seed},
        "questions": len(material.questions),
        "left_out": material.left_out,
        "merged": material.merged,
        "groups": dict(sizes),
        "groups_left_out": decision.dropped or {},
        "other_grouping": other_grouping(found, chosen),
    }


def missing_tests(
    decision: Decision, *, gradient: ScoreBearing | None, causal: CausalEvidence, material: Material
) -> list[dict[str, str]]:
    """Tests that the verdict is without, with the reason."""
    missing = []
    if causal.record is None:
        reason = f"cross-talk was not measured ({causal.reason}), so the verdict is provisional"
        missing.append({"test": "T5 causal", "reason": reason})
    if decision.replicates is None:
        reason = "one response per question"
        if material.samples > 1:
            untested = decision.examined is None
            reason = "nothing could be tested" if untested else "too few questions have two answers that are not empty"
        missing.append({"test": "T4 replicates", "reason": reason})
    if material.control is None:
        missing.append(
            {
                "test": "fingerprint removal",
                "reason": "no control organism: two dimensions beyond topic are needed (k* = 2)",
            }
        )
    if gradient is None:
        missing.append({"test": "score-bearing", "reason": "fewer than two groups hold enough scored questions"})
    return missing


def advice(decision: Decision, *, causal: CausalEvidence, settings: Settings, material: Material) -> list[Any]:
    """What would sharpen this verdict."""
    own = material.responses[material.responses["writer"] == "organism"]
    examined = decision.examined
    design = Collected(
        questions=len(material.questions),
        groups=examined.groups.count if examined is not None else int(material.questions["dimension"].nunique()),
        samples=material.samples,
        tokens=float(own["tokens"].mean()),
        has_control=material.control is not None,
        has_causal=causal.settles,
        fully_scored=not material.questions["misalignment"].isna().any(),
    )
    detectable = interest = None
    if examined is not None and decision.planted is not None:
        detectable = decision.planted.detectable()
        interest = interest_energy(examined.geometry, settings.thresholds)
    return advise(
        design,
        verdict=decision.verdict,
        detectable=detectable,
        interest=interest,
        thresholds=settings.thresholds,
    )


def other_grouping(found: list[SiteFinding], chosen: SiteFinding) -> dict[str, Any] | None:
    """The finer grouping at the same site: T2 by Holm with the primary grouping, and its verdict."""
    other = next(
        (f for f in found if (f.site, f.correction) == (chosen.site, chosen.correction) and f.grouping == "facet"), None
    )
    if other is None or other.decision.examined is None or chosen.decision.examined is None:
        return None
    pair = [f.decision.examined.ranks.tests[0].p for f in (chosen, other) if f.decision.examined is not None]
    return {
        "grouping": "facet",
        "p_rank": pair[1],
        "p_rank_holm": holm(pair)[1],
        "rank": other.decision.numbers["rank"],
        "k_adj": other.decision.numbers["k_adj"],
        "verdict": other.decision.verdict,
        "qualifier": other.decision.qualifier,
        "groups_left_out": other.decision.dropped or {},
    }
