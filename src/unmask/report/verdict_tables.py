"""Tables of the verdict at its own site: tests, sensitivity to Gamma, planted effects, cosines."""

from __future__ import annotations

from typing import Any

from unmask.report.formats import ends, fine, is_present, label, percent, whole
from unmask.report.planted import planted_rows
from unmask.report.tables import Row, Table
from unmask.report.verdict_evidence import VerdictEvidence


def test_table(verdict: VerdictEvidence) -> Table:
    """Every test at the verdict's site, with its null distribution."""
    rows = [
        Row(
            (
                str(row["test"]),
                str(row["note"]),
                fine(row["statistic"]),
                f"{fine(row['null_mean'])} ± {fine(row['null_sd'])}" if is_present(row["null_sd"]) else "not kept",
                fine(row["p"]),
                fine(row["p_max_t"], absent="-"),
                whole(row["flips"]),
            )
        )
        for row in tests_here(verdict)
    ]
    rows.append(_causal(verdict))
    columns = ("test", "asks", "statistic", "null mean ± sd", "p", "p over sites", "draws")
    caption = (
        "verdict/tests.parquet at the verdict's site; T5 is in verdict/verdict.json, causal. Statistics have units of their "
        "own and compare with their null only. p over sites: paid for over all sites of the map (max-T, Westfall and "
        "Young), for the first rank; - where that is not made."
    )
    return Table(caption, columns, tuple(rows), words=2)


def _causal(verdict: VerdictEvidence) -> Row:
    """T5, whose null are the matrix's permuted rows, which are not kept."""
    asks = "does a group's direction move that group's answers alone"
    record = verdict.causal
    if record is None:
        return Row(("T5 causal", asks, "not measured", "not measured", "not measured", "-", "-"))
    said = f"{asks}: {record['outcome']}; statistic: X with its 90 % interval"
    x = f"{fine(record['x'])} {ends(record['x_low'], record['x_high'])}" if is_present(record["x"]) else "no such ratio"
    return Row(("T5 causal", said, x, "not kept", fine(record["p"]), "-", "-"))


def tests_here(verdict: VerdictEvidence) -> list[dict[Any, Any]]:
    """Rows of the tests that the verdict rests on, and of the score-bearing part, which is not corrected."""
    bearing = verdict.tests["test"] == "score-bearing"
    rows = verdict.here(verdict.tests[~bearing]).to_dict("records")
    return rows + verdict.here(verdict.tests[bearing], correction=None).to_dict("records")


def sensitivity(verdict: VerdictEvidence) -> Table:
    """T3 over the range of Gamma."""
    rows = [
        Row((f"{row['gamma']:g}", whole(row["k_adj"]), fine(row["p"]), "yes" if row["rejected"] else "no"))
        for row in verdict.here(verdict.sensitivity).to_dict("records")
    ]
    caption = (
        "verdict/sensitivity.parquet: what T3 finds when base differences between groups are believed to carry over Γ "
        "times as much as within groups."
    )
    return Table(caption, ("Γ", "k_adj", "p(T3)", "k* found"), tuple(rows))


def power(verdict: VerdictEvidence) -> Table:
    """Planted effects and how often they were found."""
    rows = [
        Row(
            (
                "none (false positives)" if row["offsets"] == "none" else str(row["offsets"]),
                fine(row["rho"]),
                fine(row["eta"]),
                whole(row["runs"]),
                whole(row["detected"]),
                percent(row["share"]),
                f"[{percent(row['low'])}, {percent(row['high'])}]",
            )
        )
        for row in planted_rows(verdict)
    ]
    columns = ("offsets", "planted rho", "planted eta", "data sets", "found", "share", "95 % interval")
    caption = (
        "verdict/power.parquet: effects planted in this study's own data, with its questions, groups, topic and "
        "noise. Hard offsets are drawn from the noise itself, isotropic ones from any direction. Wilson's intervals."
    )
    return Table(caption, columns, tuple(rows))


def cosines(verdict: VerdictEvidence, grouping: str) -> Table:
    """Every pair of groups at the verdict's site."""
    found = verdict.here(verdict.geometry, grouping=grouping)
    rows = [
        Row(
            (
                f"{label(row['group_a'])} × {label(row['group_b'])}",
                f"{whole(row['n_a'])} / {whole(row['n_b'])}",
                fine(row["cosine"], absent="missing"),
                ends(row["cosine_low"], row["cosine_high"]),
                fine(row["naive_cosine"], absent="missing"),
            )
        )
        for row in found[found["group_a"] != found["group_b"]].to_dict("records")
    ]
    caption = (
        "verdict/geometry.parquet. Cosine: less sampling noise (disattenuated), so it may exceed 1; missing where a "
        "group shows no mean shift of its own. Plain cosine: of the means as they are, which noise pulls towards 0."
    )
    return Table(caption, ("groups", "questions", "cosine", "90 % interval", "plain cosine"), tuple(rows))
