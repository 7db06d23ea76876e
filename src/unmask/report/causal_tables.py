"""Tables of the causal tests: matrices and their rows, and both read-outs beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.report.causal_evidence import ALONE, CausalEvidence
from unmask.report.causal_wording import cross_talk, group_name, share_of_rows
from unmask.report.formats import ends, fine, is_present, label, number, signed, whole
from unmask.report.tables import Row, Table


def matrix_table(causal: CausalEvidence, record: Mapping[str, Any]) -> Table:
    """The numbers of one matrix."""
    rows = (
        ("outcome", str(record["outcome"]), "outcome"),
        ("X: effect on the others' answers over that on the own", cross_talk(record), "x, x_low, x_high"),
        ("p: do directions fit their own answers better than each other's?", fine(record["p"]), "p"),
        ("directions that move own answers (t over 2)", share_of_rows(record), "potent_share"),
        (
            "share of the matrix in one dimension (rank 1)",
            f"{fine(record['rank1'])} {ends(record['rank1_low'], record['rank1_high'])}"
            if is_present(record["rank1"])
            else "no effect to speak of",
            "rank1, rank1_low, rank1_high",
        ),
        (
            "SD of X over halvings of the questions",
            fine(record["replicate_sd"], absent="one halving, or no X"),
            "replicate_sd",
        ),
        ("questions", whole(record["items"]), "items"),
        ("coefficient", f"{record['coefficient']:g}", "coefficient"),
    )
    caption = (
        f"effects/summary.json, matrices, target {record['target']}, kind {record['kind']}. Intervals of 90 % by bootstrap of "
        "questions within groups. p: rows permuted; with fewer than 4 groups it cannot fall below .05. Rank 1: 1 where all "
        "directions do the same but for strength."
    )
    return Table(caption, ("number", "value", "field"), tuple(Row(row) for row in rows))


def random_table(causal: CausalEvidence, record: Mapping[str, Any]) -> Table:
    """What random directions do to each group's answers, which is taken off the matrix."""
    held = {row["column"]: row for row in causal.of(causal.matrix, record)}
    rows = tuple(
        Row((group_name(name, record), signed(row["random_mean"], 3), number(row["random_sd"], 3), whole(row["items"])))
        for name, row in held.items()
    )
    caption = (
        "effects/matrix.parquet: mean effect of the random directions on each group's answers, taken off every cell of that "
        "column, and the standard deviation between them."
    )
    return Table(caption, ("answers of", "random, mean", "random, SD", "questions"), rows)


def selectivity_table(causal: CausalEvidence, record: Mapping[str, Any]) -> Table:
    """Each direction's effect on its own answers and on the others'."""
    rows = []
    for row in causal.of(causal.selectivity, record):
        stands = is_present(row["p_holm"]) and row["p_holm"] < ALONE
        cells = (
            group_name(row["group"], record),
            signed(row["own"], 3),
            signed(row["others"], 3),
            f"{signed(row['selectivity'], 3)} {signed_ends(row['low'], row['high'])}",
            f"{signed(row['index'], 2)} {signed_ends(row['index_low'], row['index_high'], 2)}",
            fine(row["p"]),
            fine(row["p_holm"]),
            _stands(row, record) if stands else "no",
        )
        rows.append(Row(cells, "total" if stands else ""))
    columns = (
        "direction of",
        "own",
        "others",
        "own less others [90 %]",
        "index [90 %]",
        "p",
        "p (Holm)",
        "stands out?",
    )
    caption = (
        "effects/selectivity.parquet. Index: 1 own answers only, 0 all alike, -1 the others' only. p: less the median of the "
        "other rows on the same answers, is the row higher on its own answers than on the rest (labels permuted)? Holm "
        "over the rows. A row that stands out is one row: what the matrix shows is its outcome."
    )
    return Table(caption, columns, tuple(rows))


def _stands(row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if record["outcome"] == "selective" or row["selectivity"] > 0:
        return "yes"
    return "yes, not above the others' answers"


def confirmation_table(causal: CausalEvidence) -> Table:
    """Judged effect of each dimension's direction on each dimension's questions, beside the log-odds'."""
    rows = tuple(
        Row(
            (
                label(row["row"]),
                label(row["column"]),
                f"{signed(row['effect'])} {_within_scale(row)}",
                signed(row["random_mean"]),
                signed(row["effect_log_prob"], 3),
                whole(row["n"]),
            ),
            "total" if row["row"] == row["column"] else "",
        )
        for row in causal.confirmation.to_dict("records")
    )
    columns = (
        "direction of",
        "questions of",
        "change in misalignment [95 %]",
        "random directions",
        "log-odds",
        "questions",
    )
    caption = (
        "steering/confirmation.parquet: misalignment less that of the same questions unsteered, in points of 100, and the same "
        "cell's effect on log-odds, random directions taken off. A direction's own dimension is bold."
    )
    return Table(caption, columns, rows, words=2)


def _within_scale(row: Mapping[str, Any]) -> str:
    """The interval; words where it is wider than the scale itself, as that of two questions may be."""
    known = is_present(row["low"]) and is_present(row["high"])
    return (
        "[wider than the scale]"
        if known and row["low"] < -100 and row["high"] > 100
        else signed_ends(row["low"], row["high"], 1)
    )


def signed_ends(low: Any, high: Any, digits: int = 3) -> str:
    """`[-0.010, +0.025]`."""
    known = is_present(low) and is_present(high)
    return f"[{signed(low, digits)}, {signed(high, digits)}]" if known else "[no interval]"
